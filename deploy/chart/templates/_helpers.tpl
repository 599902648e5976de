{{/* Values that were set to null, or that an older release did not have (`helm upgrade --reuse-values`), get their defaults. */}}
{{- define "harpoon.defaults" -}}
{{- $values := .Values }}
{{- $maps := list "settings" "image" "serviceAccount" "priorityClass" "updateStrategy" "openshift" "securityContext" "podSecurityContext"
    "commonLabels" "podLabels" "podAnnotations" }}
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
{{- if kindIs "invalid" $values.image.repository }}{{ $_ := set $values.image "repository" "registry.example/harpoon" }}{{ end }}
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
{{- if .Values.openshift.enabled }}{{ $_ := set $own "seLinuxOptions" (dict "type" "spc_t") }}{{ end }}
{{- toYaml (merge (deepCopy .Values.securityContext) $own) }}
{{- end }}

{{/* A role and its binding. Takes root, suffix, namespace ("" for the whole cluster) and rules. */}}
{{- define "harpoon.grant" -}}
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
    {{- include "harpoon.labels" .root | nindent 4 }}
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
    {{- include "harpoon.labels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ $name | quote }}
subjects:
  - kind: ServiceAccount
    name: {{ include "harpoon.serviceAccount" .root | quote }}
    namespace: {{ include "harpoon.namespace" .root | quote }}
{{- end }}
