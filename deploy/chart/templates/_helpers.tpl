{{/* Values that were set to null, or that an older release did not have (`helm upgrade --reuse-values`), get their defaults. */}}
{{- define "harpoon.defaults" -}}
{{- $values := .Values }}
{{- $maps := list "settings" "image" "serviceAccount" "priorityClass" "updateStrategy" "openshift" "securityContext" "podSecurityContext"
    "commonLabels" "podLabels" "podAnnotations" "prefetch" "continuous" "imageVolumes" "cleanup" "fastFill" }}
{{- range $maps }}{{ if not (kindIs "map" (get $values .)) }}{{ $_ := set $values . dict }}{{ end }}{{ end }}
{{- range $map := list "serviceAccount" "priorityClass" }}
{{- if not (hasKey (get $values $map) "create") }}{{ $_ := set (get $values $map) "create" true }}{{ end }}
{{- end }}
{{- /* As chart 0.1 had it. */}}
{{- with $values.imagePullSecret }}
{{- $_ := set $values "imagePullSecrets" (append ($values.imagePullSecrets | default list) (dict "name" .) | uniq) }}
{{- end }}
{{- if kindIs "invalid" $values.runtime }}{{ $_ := set $values "runtime" "containerd" }}{{ end }}
{{- if kindIs "invalid" $values.cloud }}{{ $_ := set $values "cloud" "" }}{{ end }}
{{- if kindIs "invalid" $values.mode }}{{ $_ := set $values "mode" "once" }}{{ end }}
{{- range $key, $value := include "harpoon.continuousDefaults" . | fromYaml }}
{{- if kindIs "invalid" (index $values.continuous $key) }}{{ $_ := set $values.continuous $key $value }}{{ end }}
{{- end }}
{{- if not (hasKey $values.continuous.controller "replicas") }}{{ $_ := set $values.continuous.controller "replicas" 2 }}{{ end }}
{{- if kindIs "invalid" $values.image.repository }}{{ $_ := set $values.image "repository" "registry.example/harpoon" }}{{ end }}
{{- end }}

{{- define "harpoon.continuousDefaults" -}}
workloadKinds: [Deployment, StatefulSet, DaemonSet, Job, CronJob]
namespaces: []
pullSecrets: []
metricsAddress: 0.0.0.0:9464
admissionPolicy: auto
podMonitor: false
serviceMonitor: false
prometheusRule: false
monitorLabels: {}
controller: {}
{{- end }}

{{/* Labels of the objects of the Prometheus Operator, which selects them by labels. */}}
{{- define "harpoon.monitorLabels" -}}
{{- toYaml (merge (dict) .Values.continuous.monitorLabels (include "harpoon.labels" . | fromYaml)) }}
{{- end }}

{{/* The name of the node as a label of every metric, for the alerts and the dashboard. */}}
{{- define "harpoon.monitorRelabelings" -}}
- sourceLabels: [__meta_kubernetes_pod_node_name]
  targetLabel: node
{{- end }}

{{/* Name of the chart. */}}
{{- define "harpoon.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{/* Name of the release's objects. */}}
{{- define "harpoon.fullname" -}}
{{- $name := include "harpoon.name" . }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "harpoon.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{/* Name of a cluster-scoped object: it carries the namespace, so that two releases of one name never share it. */}}
{{- define "harpoon.clusterName" -}}
{{- printf "%s-%s" (include "harpoon.namespace" .) (include "harpoon.fullname" .) }}
{{- end }}

{{- define "harpoon.selectorLabels" -}}
{{- toYaml (dict "app.kubernetes.io/name" (include "harpoon.name" .) "app.kubernetes.io/instance" .Release.Name) }}
{{- end }}

{{/* Labels of every object. Those that the chart sets take precedence. */}}
{{- define "harpoon.labels" -}}
{{- $own := dict
    "app.kubernetes.io/component" "node"
    "app.kubernetes.io/version" .Chart.AppVersion
    "app.kubernetes.io/managed-by" .Release.Service
    "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") }}
{{- toYaml (merge (include "harpoon.selectorLabels" . | fromYaml) $own .Values.commonLabels) }}
{{- end }}

{{/* The same of an object of one part of continuous mode. Takes root and part, `agent` or `controller`. */}}
{{- define "harpoon.partLabels" -}}
{{- toYaml (merge (dict "app.kubernetes.io/component" .part) (include "harpoon.labels" .root | fromYaml)) }}
{{- end }}

{{/* Labels that select the pods of one part. */}}
{{- define "harpoon.partSelector" -}}
{{- toYaml (merge (dict "app.kubernetes.io/component" .part) (include "harpoon.selectorLabels" .root | fromYaml)) }}
{{- end }}

{{- define "harpoon.partPodLabels" -}}
{{- toYaml (merge (dict "app.kubernetes.io/component" .part) (include "harpoon.podLabels" .root | fromYaml)) }}
{{- end }}

{{- define "harpoon.podLabels" -}}
{{- $own := dict "app.kubernetes.io/component" "node" }}
{{- toYaml (merge (include "harpoon.selectorLabels" . | fromYaml) $own .Values.podLabels .Values.commonLabels) }}
{{- end }}

{{/* A changed list of images rolls out like a new version. */}}
{{- define "harpoon.podAnnotations" -}}
{{- $own := dict }}
{{- with .Values.images }}{{ $_ := set $own "checksum/images" (toJson . | sha256sum) }}{{ end }}
{{- with merge $own .Values.podAnnotations }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* Whether the pods use a ServiceAccount of their own. With a fixed list of images they need none. */}}
{{- define "harpoon.usesAccount" -}}
{{- if or (not .Values.images) .Values.tokenAudiences .Values.openshift.enabled .Values.serviceAccount.name }}true{{ end }}
{{- end }}

{{- define "harpoon.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "harpoon.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* Name of the ServiceAccount of one part. */}}
{{- define "harpoon.partAccount" -}}
{{- $values := .root.Values.serviceAccount }}
{{- if and (not $values.create) (not $values.name) }}{{ fail "serviceAccount.create: false requires serviceAccount.name with mode: continuous; NAME-agent and NAME-controller are used" }}{{ end }}
{{- printf "%s-%s" ($values.name | default (include "harpoon.fullname" .root)) .part }}
{{- end }}

{{/* Name of the PriorityClass, empty for none. */}}
{{- define "harpoon.priorityClass" -}}
{{- .Values.priorityClass.name | default (ternary (include "harpoon.clusterName" .) "" .Values.priorityClass.create) }}
{{- end }}

{{- define "harpoon.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ printf "%s@%s" .repository .digest }}{{ else }}{{ printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}{{ end }}
{{- end }}
{{- end }}

{{/* A setting of `harpoon run` as text. Numbers of YAML are floats, which must not become 1e+06. */}}
{{- define "harpoon.text" -}}
{{- if kindIs "float64" . }}{{ printf "%.0f" . }}{{ else }}{{ toString . }}{{ end }}
{{- end }}

{{/* The items of a list separated by commas, as JSON. */}}
{{- define "harpoon.items" -}}
{{- $items := list }}
{{- range splitList "," . }}{{ with trim . }}{{ $items = append $items . }}{{ end }}{{ end }}
{{- toJson $items }}
{{- end }}

{{/* The namespaces to scan, as JSON; "" stands for the whole cluster. */}}
{{- define "harpoon.namespaces" -}}
{{- $names := fromJsonArray (include "harpoon.items" (get .Values.settings "NAMESPACES" | default (include "harpoon.namespace" .))) }}
{{- if has "*" $names }}{{ toJson (list "") }}{{ else }}{{ toJson (uniq $names) }}{{ end }}
{{- end }}

{{- define "harpoon.pullSecrets" -}}
{{- if eq (toString (get .Values.settings "PULL_SECRETS")) "true" }}true{{ end }}
{{- end }}

{{/* The socket of the runtime. */}}
{{- define "harpoon.socket" -}}
{{- $sockets := dict
    "containerd" "/run/containerd/containerd.sock"
    "crio" "/run/crio/crio.sock"
    "k3s" "/run/k3s/containerd/containerd.sock"
    "rke2" "/run/k3s/containerd/containerd.sock"
    "microk8s" "/var/snap/microk8s/common/run/containerd.sock"
    "k0s" "/run/k0s/containerd.sock"
    "dockershim" "/run/dockershim.sock"
    "cri-dockerd" "/run/cri-dockerd.sock"
    "docker" "/var/run/docker.sock" }}
{{- get .Values.settings "RUNTIME_ENDPOINT" | default (get $sockets .Values.runtime) | trimPrefix "unix://" }}
{{- end }}

{{/* What is mounted for it: its directory, or the socket itself where the directory holds everybody's sockets. */}}
{{- define "harpoon.mount" -}}
{{- $socket := include "harpoon.socket" . }}
{{- if has (dir $socket) (list "/" "/run" "/var/run") }}{{ $socket }}{{ else }}{{ dir $socket }}{{ end }}
{{- end }}

{{/* Root directory of containerd, for fast fill. */}}
{{- define "harpoon.containerdRoot" -}}
{{- $roots := dict
    "containerd" "/var/lib/containerd"
    "k3s" "/var/lib/rancher/k3s/agent/containerd"
    "rke2" "/var/lib/rancher/rke2/agent/containerd"
    "microk8s" "/var/snap/microk8s/common/var/lib/containerd"
    "k0s" "/var/lib/k0s/containerd" }}
{{- $root := .Values.fastFill.root | default (get $roots .Values.runtime) }}
{{- if not $root }}{{ fail (printf "fastFill.enabled requires containerd, and the runtime is %s" .Values.runtime) }}{{ end }}
{{- $root }}
{{- end }}

{{/* Directory of containerd's registry configuration, for fast fill. */}}
{{- define "harpoon.registryDirectory" -}}
{{- $root := include "harpoon.containerdRoot" . }}
{{- if .Values.fastFill.configPath }}{{ .Values.fastFill.configPath }}
{{- else if hasSuffix "/agent/containerd" $root }}{{ trimSuffix "/containerd" $root }}/etc/containerd/certs.d
{{- else if eq .Values.runtime "microk8s" }}/var/snap/microk8s/current/args/certs.d
{{- else }}/etc/containerd/certs.d
{{- end }}
{{- end }}

{{/* The credential provider of a cloud: its configuration, its plugins, and files beside them. */}}
{{- define "harpoon.cloud" -}}
eks: {config: /etc/eks/image-credential-provider/config.json, plugins: /etc/eks/image-credential-provider, files: {}}
gke:
  config: /etc/srv/kubernetes/cri_auth_config.yaml
  plugins: /home/kubernetes/bin
  files: {provider-config: /etc/srv/kubernetes/cri_auth_config.yaml}
aks:
  config: /var/lib/kubelet/credential-provider-config.yaml
  plugins: /var/lib/kubelet/credential-provider
  files: {provider-config: /var/lib/kubelet/credential-provider-config.yaml, azure: /etc/kubernetes/azure.json}
bottlerocket:
  config: /etc/kubernetes/kubelet/credential-provider-config.yaml
  plugins: /usr/libexec/kubernetes/kubelet/plugins
  files: {provider-config: /etc/kubernetes/kubelet/credential-provider-config.yaml}
{{- end }}

{{/* Security context of the init container. */}}
{{- define "harpoon.runSecurity" -}}
{{- $knownGroup := has .Values.runtime (list "containerd" "crio" "k3s" "rke2" "k0s") }}
{{- $own := dict "runAsGroup" (int64 .Values.socketGroup) }}
{{- if or (eq .Values.cloud "aks") (and (kindIs "invalid" .Values.socketGroup) (not $knownGroup)) }}
{{- $own = dict "runAsNonRoot" false "runAsUser" 0 "runAsGroup" 0 }}
{{- end }}
{{- if .Values.fastFill.enabled }}
{{- $own = dict "runAsNonRoot" false "runAsUser" 0 "runAsGroup" 0 "capabilities" (dict "add" (list "CHOWN" "DAC_OVERRIDE" "FOWNER" "FSETID" "MKNOD" "SETFCAP")) }}
{{- end }}
{{- if .Values.openshift.enabled }}{{ $_ := set $own "seLinuxOptions" (dict "type" "spc_t") }}{{ end }}
{{- toYaml (merge (deepCopy .Values.securityContext) $own) }}
{{- end }}

{{/* A role and its binding. Takes root, suffix, namespace ("" for the whole cluster) and rules, and in continuous mode the part. */}}
{{- define "harpoon.grant" -}}
{{- $labels := include "harpoon.labels" .root }}
{{- $account := "" }}
{{- if .part }}
{{- $labels = include "harpoon.partLabels" . }}
{{- $account = include "harpoon.partAccount" . }}
{{- else }}
{{- $account = include "harpoon.serviceAccount" .root }}
{{- end }}
{{- $kind := ternary "Role" "ClusterRole" (ne .namespace "") }}
{{- /* In another namespace than its own, a release meets others of its name. */}}
{{- $isOwn := eq .namespace (include "harpoon.namespace" .root) }}
{{- $name := printf "%s%s" (include (ternary "harpoon.fullname" "harpoon.clusterName" $isOwn) .root) .suffix }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata:
  name: {{ $name | quote }}
  {{- with .namespace }}
  namespace: {{ . | quote }}
  {{- end }}
  labels:
    {{- $labels | nindent 4 }}
rules:
  {{- toYaml .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  name: {{ $name | quote }}
  {{- with .namespace }}
  namespace: {{ . | quote }}
  {{- end }}
  labels:
    {{- $labels | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ $name | quote }}
subjects:
  - kind: ServiceAccount
    name: {{ $account | quote }}
    namespace: {{ include "harpoon.namespace" .root | quote }}
{{- end }}

{{/* Environment variables of the container that pulls, besides NODE_NAME: the settings and the paths of credentials. */}}
{{- define "harpoon.env" -}}
{{- $cloud := get (include "harpoon.cloud" . | fromYaml) .Values.cloud }}
{{- /* In continuous mode, the controller has this one. */}}
{{- range $variable, $value := ternary .Values.settings (omit .Values.settings "INCLUDE_IDLE") (eq .Values.mode "once") }}
- name: {{ $variable | quote }}
  value: {{ include "harpoon.text" $value | quote }}
{{- if eq $variable "PRIVATE_REGISTRY" }}
- name: PRIVATE_REGISTRY_AUTH
  valueFrom:
    secretKeyRef:
      name: "{{ include "harpoon.fullname" $ }}-private-registry"
      key: auth
{{- end }}
{{- end }}
{{- if .Values.registrySecret }}
- name: REGISTRY_CONFIG
  value: /registry/config.json
{{- end }}
{{- with $cloud }}
- name: CREDENTIAL_PROVIDER_CONFIG
  value: {{ .config }}
- name: CREDENTIAL_PROVIDER_BIN_DIR
  value: {{ .plugins }}
{{- end }}
{{- with .Values.extraEnv }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{/* Volume mounts of the container that pulls. */}}
{{- define "harpoon.mounts" -}}
{{- $cloud := get (include "harpoon.cloud" . | fromYaml) .Values.cloud }}
{{- $pki := has .Values.cloud (list "eks" "aks") }}
{{- $mount := include "harpoon.mount" . }}
- name: runtime
  mountPath: {{ $mount }}
  readOnly: true
{{- if .Values.images }}
- name: images
  mountPath: /config
  readOnly: true
{{- else }}
- name: token
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}
{{- if .Values.registrySecret }}
- name: registry
  mountPath: /registry
  readOnly: true
{{- end }}
{{- with $cloud }}
- name: provider
  mountPath: {{ .plugins }}
  readOnly: true
{{- range $name, $path := .files }}
- name: {{ $name | quote }}
  mountPath: {{ $path }}
  readOnly: true
{{- end }}
- name: certificates
  mountPath: /etc/ssl/certs
  readOnly: true
{{- end }}
{{- if $pki }}
# The RHEL family and Azure Linux keep the files there that /etc/ssl/certs links to.
- name: pki
  mountPath: /etc/pki
  readOnly: true
{{- end }}
{{- if .Values.tokenAudiences }}
- name: tokens
  mountPath: /var/run/secrets/harpoon.dev/tokens
  readOnly: true
{{- end }}
{{- if .Values.fastFill.enabled }}
- name: snapshots
  mountPath: {{ include "harpoon.containerdRoot" . }}/io.containerd.snapshotter.v1.overlayfs
- name: content
  mountPath: {{ include "harpoon.containerdRoot" . }}/io.containerd.content.v1.content
- name: registries
  mountPath: {{ include "harpoon.registryDirectory" . }}
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{/* Volumes of the pods that pull. */}}
{{- define "harpoon.volumes" -}}
{{- $cloud := get (include "harpoon.cloud" . | fromYaml) .Values.cloud }}
{{- $pki := has .Values.cloud (list "eks" "aks") }}
{{- $mount := include "harpoon.mount" . }}
- name: runtime
  hostPath:
    path: {{ $mount }}
    type: {{ ternary "Socket" "Directory" (eq $mount (include "harpoon.socket" .)) }}
{{- if .Values.images }}
- name: images
  configMap:
    name: "{{ include "harpoon.fullname" . }}-images"
{{- else }}
- name: token
  {{- include "harpoon.token" . | nindent 2 }}
{{- end }}
{{- with .Values.registrySecret }}
- name: registry
  secret:
    secretName: {{ . | quote }}
    items:
      - key: .dockerconfigjson
        path: config.json
{{- end }}
{{- with $cloud }}
- name: provider
  hostPath:
    path: {{ .plugins }}
    type: Directory
{{- range $name, $path := .files }}
- name: {{ $name | quote }}
  hostPath:
    path: {{ $path }}
    type: File
{{- end }}
- name: certificates
  hostPath:
    path: /etc/ssl/certs
    type: Directory
{{- end }}
{{- if $pki }}
- name: pki
  hostPath:
    path: /etc/pki
    type: DirectoryOrCreate
{{- end }}
{{- with .Values.tokenAudiences }}
- name: tokens
  projected:
    sources:
      {{- range $n, $audience := . }}
      - serviceAccountToken:
          path: token-{{ $n }}
          audience: {{ $audience | quote }}
          expirationSeconds: 600
      {{- end }}
      # Annotations that a provider requires are set as podAnnotations.
      - downwardAPI:
          items:
            - path: annotations
              fieldRef:
                fieldPath: metadata.annotations
{{- end }}
{{- if .Values.fastFill.enabled }}
- name: snapshots
  hostPath:
    path: {{ include "harpoon.containerdRoot" . }}/io.containerd.snapshotter.v1.overlayfs
    type: Directory
- name: content
  hostPath:
    path: {{ include "harpoon.containerdRoot" . }}/io.containerd.content.v1.content
    type: DirectoryOrCreate
- name: registries
  hostPath:
    path: {{ include "harpoon.registryDirectory" . }}
    type: DirectoryOrCreate
{{- end }}
{{- with .Values.extraVolumes }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{/* Image of a container. */}}
{{- define "harpoon.containerImage" -}}
image: {{ include "harpoon.image" . | quote }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . | quote }}
{{- end }}
{{- end }}

{{/* Old revisions and update strategy of a DaemonSet. */}}
{{- define "harpoon.updates" -}}
{{- if not (kindIs "invalid" .Values.revisionHistoryLimit) }}
revisionHistoryLimit: {{ int64 .Values.revisionHistoryLimit }}
{{- end }}
{{- $strategy := .Values.updateStrategy }}
{{- if eq ($strategy.type | default "") "OnDelete" }}{{ $strategy = omit $strategy "rollingUpdate" }}{{ end }}
{{- with $strategy }}
updateStrategy:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Scheduling, network and security context of the pods that pull. */}}
{{- define "harpoon.nodePod" -}}
{{- $cloud := get (include "harpoon.cloud" . | fromYaml) .Values.cloud }}
{{- with include "harpoon.priorityClass" . }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $cloud }}
# The plugins call the node's metadata service, which a pod's own network may not reach.
hostNetwork: true
{{- else if and .Values.fastFill.enabled .Values.fastFill.hostNetwork }}
# Registries and mirrors that only the node reaches.
hostNetwork: true
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .Values.tolerations | default list }}
{{- /* Agents have to run on the nodes that the gate holds. */}}
{{- if include "harpoon.nodeGate" . }}
{{- $all := false }}
{{- range $tolerations }}{{ if and (eq (toString .operator) "Exists") (not .key) (or (not .effect) (eq (toString .effect) "NoSchedule")) }}{{ $all = true }}{{ end }}{{ end }}
{{- if not $all }}
{{- range list "harpoon.dev/not-prefetched" "startup-taint.cluster-autoscaler.kubernetes.io/harpoon" }}
{{- $tolerations = append $tolerations (dict "key" . "operator" "Exists" "effect" "NoSchedule") }}
{{- end }}
{{- end }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Refuses variables that the chart sets itself. */}}
{{- define "harpoon.checkEnv" -}}
{{- $taken := concat (keys .Values.settings) (list "NODE_NAME" "REGISTRY_CONFIG" "CREDENTIAL_PROVIDER_CONFIG" "CREDENTIAL_PROVIDER_BIN_DIR" "PRIVATE_REGISTRY_AUTH") }}
{{- if ne .Values.mode "once" }}{{ $taken = append $taken "METRICS_ADDRESS" }}{{ end }}
{{- range .Values.extraEnv }}{{ if has .name $taken }}{{ fail (printf "extraEnv: the chart sets %s itself" .name) }}{{ end }}{{ end }}
{{- end }}

{{/* Refuses values that have no meaning with the mode. */}}
{{- define "harpoon.checkMode" -}}
{{- if eq .Values.mode "once" }}
{{- if .Values.prefetch }}{{ fail "prefetch requires mode: continuous" }}{{ end }}
{{- range list "RESYNC" "DISK_HIGH_PERCENT" }}
{{- if hasKey $.Values.settings . }}{{ fail (printf "settings.%s requires mode: continuous" .) }}{{ end }}
{{- end }}
{{- else if eq .Values.mode "continuous" }}
{{- range list "NAMESPACES" "WORKLOADS" "SELECTOR" "ONLY" "IGNORE" "LIMIT" "SEAL" }}
{{- if hasKey $.Values.settings . }}{{ fail (printf "settings.%s has no meaning with mode: continuous: the spec of an ImagePrefetch says it; see prefetch" .) }}{{ end }}
{{- end }}
{{- range list "DEADLINE" "FAIL_ON" "OUTPUT" "STAGGER" "STAGGER_MIN_AGE" "SEAL_TTL" "REFRESH" "WATCH_CACHE" }}
{{- if hasKey $.Values.settings . }}{{ fail (printf "settings.%s has no meaning with mode: continuous" .) }}{{ end }}
{{- end }}
{{- if hasKey .Values.settings "PULL_SECRETS" }}{{ fail "settings.PULL_SECRETS has no meaning with mode: continuous: name the Secrets in continuous.pullSecrets" }}{{ end }}
{{- if .Values.secretNames }}{{ fail "secretNames has no meaning with mode: continuous: name the Secrets in continuous.pullSecrets" }}{{ end }}
{{- if .Values.images }}{{ fail "images has no meaning with mode: continuous: list the images in prefetch.images" }}{{ end }}
{{- if and .Values.prefetch (not (or (hasKey .Values.prefetch "workloads") (hasKey .Values.prefetch "images"))) }}{{ fail "prefetch requires workloads or images" }}{{ end }}
{{- if and (hasKey .Values.prefetch "workloads") (hasKey .Values.prefetch "images") }}{{ fail "prefetch: workloads and images exclude each other" }}{{ end }}
{{- end }}
{{- end }}

{{/* The token of a ServiceAccount, as a volume without its name. */}}
{{- define "harpoon.token" -}}
projected:
  sources:
    - serviceAccountToken:
        path: token
        expirationSeconds: {{ ternary 600 3600 (eq .Values.mode "once") }}
    - configMap:
        name: kube-root-ca.crt
        items:
          - key: ca.crt
            path: ca.crt
    - downwardAPI:
        items:
          - path: namespace
            fieldRef:
              fieldPath: metadata.namespace
{{- end }}

{{/* Port and probes of a container of continuous mode. */}}
{{- define "harpoon.probes" -}}
ports:
  - name: metrics
    containerPort: {{ last (splitList ":" .Values.continuous.metricsAddress) }}
livenessProbe:
  httpGet:
    path: /healthz
    port: metrics
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: metrics
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{- /* "true" if the controller may open the node gate. */}}
{{- define "harpoon.nodeGate" -}}
{{- if and (eq .Values.mode "continuous") (or .Values.continuous.nodeGate (hasKey (.Values.prefetch | default dict) "nodeGate")) }}true{{ end }}
{{- end }}
