{{/* Refuses values that have no meaning with mode: imageVolumes, and versions of Kubernetes without image volumes. */}}
{{- define "harpoon.checkImageVolumes" -}}
{{- $version := .Capabilities.KubeVersion.Version }}
{{- if and (semverCompare "<1.36.0-0" $version) (not .Values.imageVolumes.skipVersionCheck) }}
{{- fail (printf "mode: imageVolumes requires Kubernetes 1.36 or later, not %s; with helm template, set --kube-version or imageVolumes.skipVersionCheck" $version) }}
{{- end }}
{{- if not .Values.images }}{{ fail "mode: imageVolumes requires images" }}{{ end }}
{{- if .Values.settings }}{{ fail "settings have no meaning with mode: imageVolumes: the kubelet pulls" }}{{ end }}
{{- range list "cloud" "registrySecret" "secretNames" "tokenAudiences" }}
{{- if index $.Values . }}{{ fail (printf "%s has no meaning with mode: imageVolumes: the kubelet pulls with its own credentials and imagePullSecrets" .) }}{{ end }}
{{- end }}
{{- range list "prefetch" "resources" "extraEnv" "extraVolumes" "extraVolumeMounts" }}
{{- if index $.Values . }}{{ fail (printf "%s has no meaning with mode: imageVolumes" .) }}{{ end }}
{{- end }}
{{- if .Values.openshift.enabled }}{{ fail "openshift.enabled has no meaning with mode: imageVolumes: the pods need no SecurityContextConstraints of their own" }}{{ end }}
{{- end }}
