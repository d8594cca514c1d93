{{- define "headlight.name" -}}
{{- .Values.nameOverride | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "headlight.selector" -}}
app.kubernetes.io/name: headlight
app.kubernetes.io/instance: {{ include "headlight.name" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "headlight.pickerSelector" -}}
app.kubernetes.io/name: headlight
app.kubernetes.io/instance: {{ include "headlight.name" . }}
app.kubernetes.io/component: endpoint-picker
{{- end -}}

{{- define "headlight.labels" -}}
{{ include "headlight.selector" . }}
{{ include "headlight.commonLabels" . }}
{{- end -}}

{{- define "headlight.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- define "headlight.image" -}}
{{ printf "%s:%s" .Values.image.repository .Values.image.tag | quote }}
{{- end -}}

{{/* Whether the model is a path on the mounted volume, and not a name. */}}
{{- define "headlight.modelIsPath" -}}
{{- if has .Values.model.source (list "pvc" "oci") }}true{{ end -}}
{{- end -}}

{{- define "headlight.apiKeysSecret" -}}
{{- if .Values.apiKeys.create }}{{ include "headlight.name" . }}-api-keys{{ else }}{{ .Values.apiKeys.secret }}{{ end -}}
{{- end -}}

{{/* Strictly more than what a pod may take to end. */}}
{{- define "headlight.gracePeriod" -}}
{{- $shutdown := .Values.shutdown -}}
{{- add $shutdown.preStopSeconds (ceil $shutdown.drainSeconds) $shutdown.teardownSeconds 5 -}}
{{- end -}}

{{/* A value as the server reads it: numbers come from YAML as floats, and large ones would be written as 4.19e+06. */}}
{{- define "headlight.setting" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* Ports at which the server tells of its prefix cache: those of addresses that it binds, which have a * or ::. */}}
{{- define "headlight.eventPorts" -}}
{{- range $name, $setting := dict "kv-events" "kv_events_endpoint" "kv-replay" "kv_events_replay_endpoint" }}
{{- $address := get $.Values.settings $setting | default "" }}
{{- if and (hasPrefix "tcp://" $address) (or (contains "*" $address) (contains "::" $address)) }}
- name: {{ $name }}
  containerPort: {{ regexFind "[0-9]+$" $address }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "headlight.check" -}}
{{- with .Values.autoscaling }}
{{- if and (ne .kind "none") (gt (int .minReplicas) (int .maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas (%d) is more than maxReplicas (%d)" (int .minReplicas) (int .maxReplicas)) }}
{{- end }}
{{- end }}
{{- with .Values }}
{{- if and .apiKeys.secret .apiKeys.create }}
{{- fail "apiKeys.secret and apiKeys.create: give the keys in one way" }}
{{- end }}
{{- end }}
{{- if and (eq .Values.model.source "oci") (semverCompare "<1.33.0-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "model.source oci needs Kubernetes 1.33 or newer; this is %s" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end -}}
