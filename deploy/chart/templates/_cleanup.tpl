{{/* Refuses values with which a clean-up after the uninstall has no meaning, or cannot work. */}}
{{- define "harpoon.checkCleanup" -}}
{{- if eq .Values.mode "imageVolumes" }}{{ fail "cleanup has no meaning with mode: imageVolumes: nothing is pinned or sealed" }}{{ end }}
{{- if not (has .Values.runtime (list "containerd" "k3s" "rke2" "microk8s" "k0s")) }}
{{- fail (printf "cleanup has no meaning with runtime: %s: only containerd pins and seals images" .Values.runtime) }}
{{- end }}
{{- if .Values.openshift.enabled }}{{ fail "cleanup has no meaning with openshift.enabled: only containerd pins and seals images" }}{{ end }}
{{- if .Values.createNamespace }}{{ fail "cleanup requires createNamespace: false: the namespace must outlive the release" }}{{ end }}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) }}{{ fail "cleanup requires serviceAccount.name with serviceAccount.create: false; NAME-cleanup is used" }}{{ end }}
{{- end }}

{{/* Annotations of a hook after the uninstall. Helm deletes its objects when the last hook has succeeded. Takes the weight. */}}
{{- define "harpoon.cleanupHook" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Scheduling and security context of the pods that clean up: those of the node's pods, and only after these have ended. */}}
{{- define "harpoon.cleanupPod" -}}
{{- $pod := omit (include "harpoon.nodePod" . | fromYaml) "hostNetwork" }}
{{- /* The release's own class is deleted by then. */}}
{{- if .Values.priorityClass.create }}{{ $pod = omit $pod "priorityClassName" }}{{ end }}
{{- $ended := merge (dict "app.kubernetes.io/component" (ternary "node" "agent" (eq .Values.mode "once"))) (include "harpoon.selectorLabels" . | fromYaml) }}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $ended) }}
{{- $affinity := $pod.affinity | default dict }}
{{- $anti := $affinity.podAntiAffinity | default dict }}
{{- $required := append ($anti.requiredDuringSchedulingIgnoredDuringExecution | default list) $term }}
{{- $_ := set $anti "requiredDuringSchedulingIgnoredDuringExecution" $required }}
{{- $_ := set $affinity "podAntiAffinity" $anti }}
{{- $_ := set $pod "affinity" $affinity }}
{{- toYaml $pod }}
{{- end }}

{{/* Resources of a container that sleeps or waits. */}}
{{- define "harpoon.pauseResources" -}}
{{- if .Values.pauseResources }}
{{- toYaml .Values.pauseResources }}
{{- else -}}
requests:
  cpu: 1m
  memory: 4Mi
limits:
  memory: 16Mi
{{- end }}
{{- end }}
