{{- define "headlight.name" -}}
{{- .Values.fullnameOverride | default .Values.nameOverride | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "headlight.release" -}}
app.kubernetes.io/name: headlight
app.kubernetes.io/instance: {{ include "headlight.name" . | quote }}
{{- end -}}

{{- define "headlight.selector" -}}
{{ include "headlight.release" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "headlight.pickerSelector" -}}
{{ include "headlight.release" . }}
app.kubernetes.io/component: endpoint-picker
{{- end -}}

{{- define "headlight.testSelector" -}}
{{ include "headlight.release" . }}
app.kubernetes.io/component: test
{{- end -}}

{{- define "headlight.versionLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{/*
Labels and annotations of `root`'s object: its `own`, then those of the value `of` (a map with labels and annotations), then
the common ones; of a key that is given more than once, the first.
*/}}
{{- define "headlight.marks" -}}
{{- $of := .of | default dict -}}
labels:
  {{- merge dict .own ($of.labels | default dict) (.root.Values.commonLabels | default dict) | toYaml | nindent 2 }}
{{- with merge dict (.annotations | default dict) ($of.annotations | default dict) (.root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The metadata of an object: `root`, and if need be its `name`, its `selector` and the value that it is made `of`. */}}
{{- define "headlight.metadata" -}}
{{- $selector := include (.selector | default "headlight.selector") .root | fromYaml -}}
{{- $own := merge $selector (include "headlight.versionLabels" .root | fromYaml) -}}
name: {{ .name | default (include "headlight.name" .root) | quote }}
namespace: {{ .root.Release.Namespace }}
{{ include "headlight.marks" (merge (dict "own" $own) .) }}
{{- end -}}

{{/*
The Deployment's replicas. An autoscaler sets them in the cluster, so that with one they are what they are there: left out,
they would become 1 when it is turned on, and whenever Helm then sees that it once had set them. Where there is no
Deployment yet, or nothing may be looked up (helm template), they are left out.
*/}}
{{- define "headlight.replicas" -}}
{{- if eq .Values.autoscaling.kind "none" -}}
replicas: {{ .Values.replicas }}
{{- else -}}
{{- with lookup "apps/v1" "Deployment" .Release.Namespace (include "headlight.name" .) -}}
replicas: {{ int .spec.replicas }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* An `image` by its name, from `root`'s global.imageRegistry if there is one, and not from the registry that it names. */}}
{{- define "headlight.mirrored" -}}
{{- with (.root.Values.global | default dict).imageRegistry -}}
{{- printf "%s/%s" . (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $.image "") -}}
{{- else -}}
{{- .image -}}
{{- end -}}
{{- end -}}

{{- define "headlight.image" -}}
{{- $repository := include "headlight.mirrored" (dict "root" . "image" .Values.image.repository) -}}
{{- with .Values.image -}}
{{- $tag := .tag | default (printf "%s-%s" $.Chart.AppVersion .variant) -}}
{{ empty .digest | ternary (printf "%s:%s" $repository $tag) (printf "%s@%s" $repository .digest) | quote }}
{{- end -}}
{{- end -}}

{{/* Pull secrets of all of an umbrella's charts, which may be plain names, and of this one. */}}
{{- define "headlight.pullSecrets" -}}
{{- range concat ((.Values.global | default dict).imagePullSecrets | default list) (.Values.imagePullSecrets | default list) }}
- name: {{ if kindIs "string" . }}{{ quote . }}{{ else }}{{ quote .name }}{{ end }}
{{- end }}
{{- end -}}

{{- define "headlight.serviceAccount" -}}
{{- with .Values.serviceAccount | default dict -}}
{{- .name | default (ternary (include "headlight.name" $) "" (.create | default false)) -}}
{{- end -}}
{{- end -}}

{{/* Whether the model is a path on the mounted volume, and not a name. */}}
{{- define "headlight.modelIsPath" -}}
{{- if has .Values.model.source (list "pvc" "oci") }}true{{ end -}}
{{- end -}}

{{- define "headlight.apiKeysSecret" -}}
{{- if .Values.apiKeys.create }}{{ include "headlight.name" . }}-api-keys{{ else }}{{ .Values.apiKeys.secret }}{{ end -}}
{{- end -}}

{{- define "headlight.keysVolume" -}}
- name: api-keys
  secret:
    secretName: {{ include "headlight.apiKeysSecret" . | quote }}
    defaultMode: 0440
    items:
      - key: {{ .Values.apiKeys.key }}
        path: api-keys
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

{{/* What KEDA's triggers refer to for how to ask Prometheus. */}}
{{- define "headlight.triggerAuthentication" -}}
{{- with .Values.autoscaling.keda.authentication -}}
{{- if .secrets }}name: {{ include "headlight.name" $ | quote }}{{ else if .ref }}{{ toYaml .ref }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* What PromQL selects the release's own series by, with the labels that its ServiceMonitor gives them. */}}
{{- define "headlight.seriesLabels" -}}
{{- printf "namespace=%q, job=%q" .Release.Namespace (include "headlight.name" .) -}}
{{- end -}}

{{/*
A `rule` of deploy/alerts as an item of a list, about the release's own servers alone, with the values' thresholds and times;
nothing if it is left out.
*/}}
{{- define "headlight.alert" -}}
{{- $alerts := .root.Values.alerts -}}
{{- $rule := .rule -}}
{{- $disabled := $alerts.disabled | default list -}}
{{- with .root.Values.autoscaling -}}
{{- if and (eq .kind "keda") (eq (int .minReplicas) 0) -}}
{{- $disabled = append $disabled "HeadlightMissing" -}}
{{- end -}}
{{- end -}}
{{- if not (has $rule.alert $disabled) -}}
{{- $selector := printf "{%s}" (include "headlight.seriesLabels" .root) -}}
{{- $_ := set $rule "expr" (regexReplaceAll "\\bheadlight_\\w+" $rule.expr (printf "${0}%s" $selector) | replace "}{" ", ") -}}
{{- range $name, $value := $alerts.thresholds -}}
{{- $_ := set $rule "expr" (regexReplaceAll (printf "[0-9.]+ # %s\\b" $name) $rule.expr (printf "%v # %s" $value $name)) -}}
{{- end -}}
{{- with get ($alerts.for | default dict) $rule.alert -}}
{{- $_ := set $rule "for" . -}}
{{- end -}}
{{- with get ($alerts.severity | default dict) $rule.alert -}}
{{- $_ := set $rule.labels "severity" . -}}
{{- end -}}
{{- with $alerts.runbookUrl -}}
{{- $_ := set $rule.annotations "runbook_url" (printf "%s%s" . (lower $rule.alert)) -}}
{{- end -}}
{{- list $rule | toYaml -}}
{{- end -}}
{{- end -}}

{{/* The source of the volume `name`: the claim that the chart makes, or the `value`, or an emptyDir. */}}
{{- define "headlight.volume" -}}
{{- if (get .root.Values.claims .name).size -}}
persistentVolumeClaim:
  claimName: {{ printf "%s-%s" (include "headlight.name" .root) .name | quote }}
{{- else -}}
{{- .value | default (dict "emptyDir" dict) | toYaml -}}
{{- end -}}
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
{{- if and (eq .kind "keda") .hpa.metrics }}
{{- fail "autoscaling.hpa.metrics is for autoscaling.kind hpa; this is keda, whose own are autoscaling.keda.triggers" }}
{{- end }}
{{- if eq .kind "hpa" }}
{{- range $name, $value := dict "fallback" .keda.fallback "triggers" .keda.triggers "authentication" (values .keda.authentication | compact) }}
{{- if $value }}
{{- fail (printf "autoscaling.keda.%s is for autoscaling.kind keda; this is hpa" $name) }}
{{- end }}
{{- end }}
{{- /* Values that are never empty are given if they are not those of values.yaml, without which no HPA would be rendered. */}}
{{- $keda := dict "keda.pollingSeconds" (list .keda.pollingSeconds 15) "keda.cooldownSeconds" (list .keda.cooldownSeconds 300) }}
{{- $_ := set $keda "prometheusUrl" (list .prometheusUrl "http://prometheus-operated.monitoring.svc:9090") }}
{{- range $name, $value := $keda }}
{{- if ne (toString (first $value)) (toString (last $value)) }}
{{- fail (printf "autoscaling.%s is for autoscaling.kind keda; this is hpa" $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (ne .kind "none") (gt (int .minReplicas) (int .maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas (%d) is more than maxReplicas (%d)" (int .minReplicas) (int .maxReplicas)) }}
{{- end }}
{{- if and (eq .kind "keda") (eq (int .minReplicas) 0) (not .keda.triggers) }}
{{- fail "autoscaling.minReplicas 0 needs a trigger in autoscaling.keda.triggers that calls for a pod while there is none" }}
{{- end }}
{{- with .keda.authentication }}
{{- if and .secrets .ref }}
{{- fail "autoscaling.keda.authentication: give secrets or ref, not both" }}
{{- end }}
{{- if ne (empty .modes) (and (empty .secrets) (empty .ref)) }}
{{- fail "autoscaling.keda.authentication: modes, and secrets or ref, go together" }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values }}
{{- if and .apiKeys.secret .apiKeys.create }}
{{- fail "apiKeys.secret and apiKeys.create: give the keys in one way" }}
{{- end }}
{{- if and .claims.models.size (ne .model.source "download") }}
{{- fail (printf "claims.models is for model.source download, which fills it; this is %s" .model.source) }}
{{- end }}
{{- if or (and .claims.models.size .model.download.volume) (and .claims.cache.size .cache) }}
{{- fail "claims: give a volume in one way, by claims.models or model.download.volume, and by claims.cache or cache" }}
{{- end }}
{{- if and .image.tag .image.digest }}
{{- fail "image.tag and image.digest: give the image in one way" }}
{{- end }}
{{- if and .nameOverride .fullnameOverride }}
{{- fail "nameOverride and fullnameOverride: give the name in one way" }}
{{- end }}
{{- $names := list }}
{{- range concat (.env | default list) (.extraEnv | default list) (ternary (list (dict "name" "HF_TOKEN")) list (not (empty .model.download.tokenSecret.name))) }}
{{- if has .name $names }}
{{- fail (printf "env, extraEnv and model.download.tokenSecret: %s is given more than once" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- if kindIs "bool" .enabled | and (not .enabled) }}
{{- fail "enabled: false leaves the chart out of an umbrella chart whose dependency has condition: headlight.enabled; alone there would be nothing to install" }}
{{- end }}
{{- end }}
{{- if and (eq .Values.model.source "oci") (semverCompare "<1.33.0-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "model.source oci needs Kubernetes 1.33 or newer; this is %s" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end -}}
