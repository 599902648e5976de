{{/* What all objects of one installation have in common. */}}
{{- define "harpoon.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/name: harpoon
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
{{- $names := fromJsonArray (include "harpoon.items" (get .Values.settings "NAMESPACES" | default .Release.Namespace)) }}
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

{{/* What is mounted for it: its directory, or the socket itself where that is the directory of everybody's sockets. */}}
{{- define "harpoon.mount" -}}
{{- $socket := include "harpoon.socket" . }}
{{- if has (dir $socket) (list "/" "/run" "/var/run") }}{{ $socket }}{{ else }}{{ dir $socket }}{{ end }}
{{- end }}

{{/* The credential provider of a cloud: its configuration, its programs, and files beside them. */}}
{{- define "harpoon.cloud" -}}
eks: {config: /etc/eks/image-credential-provider/config.json, programs: /etc/eks/image-credential-provider, files: {}}
gke:
  config: /etc/srv/kubernetes/cri_auth_config.yaml
  programs: /home/kubernetes/bin
  files: {provider-config: /etc/srv/kubernetes/cri_auth_config.yaml}
aks:
  config: /var/lib/kubelet/credential-provider-config.yaml
  programs: /var/lib/kubelet/credential-provider
  files: {provider-config: /var/lib/kubelet/credential-provider-config.yaml, azure: /etc/kubernetes/azure.json}
{{- end }}

{{/* A role and its binding. Takes root, suffix, namespace ("" for the whole cluster) and rules. */}}
{{- define "harpoon.grant" -}}
{{- $kind := ternary "Role" "ClusterRole" (ne .namespace "") }}
{{- $name := printf "%s%s" .root.Release.Name .suffix }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata:
  name: {{ $name }}
  {{- with .namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "harpoon.labels" .root | nindent 4 }}
rules:
  {{- toYaml .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  name: {{ $name }}
  {{- with .namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "harpoon.labels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ .root.Release.Name }}
    namespace: {{ .root.Release.Namespace }}
{{- end }}
