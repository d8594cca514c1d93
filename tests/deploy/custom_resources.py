"""The fields of the custom resources that the chart makes, as their definitions have them.

Written down from the definitions of Gateway API v1, Inference Extension v1.6, Prometheus operator v1, KEDA v2 and Istio
v1: those fields that the chart has a use for. A field that is not here is an error, as it would be in a strict cluster.
"""

from typing import Any

import jsonschema
import kubernetes_validate

Schema = dict[str, Any]

STRING: Schema = {"type": "string", "minLength": 1}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
COUNT: Schema = {"type": "integer", "minimum": 0}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}, "maxProperties": 64}
GO_DURATION: Schema = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
PROMETHEUS_DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"}


def struct(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def array(items: Schema, low: int = 1, high: int = 1000) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def trigger(kind: str, required: str, *fields: str) -> Schema:
    """A trigger of KEDA's. Every value of its metadata is a string, numbers too."""
    return struct(
        "type metadata",
        type=one_of(kind),
        metricType=one_of("AverageValue", "Value"),
        metadata=struct(required, **dict.fromkeys(fields, STRING)),
        authenticationRef=struct(
            "name", name=NAME, kind=one_of("TriggerAuthentication", "ClusterTriggerAuthentication")
        ),
    )


HEADER = struct("name value", name=STRING, value=STRING)

SCALING_RULES = struct(
    stabilizationWindowSeconds={**COUNT, "maximum": 3600},
    selectPolicy=one_of("Max", "Min", "Disabled"),
    policies=array(
        struct("type value periodSeconds", type=one_of("Pods", "Percent"), value=COUNT, periodSeconds=COUNT)
    ),
)

SPECS: dict[tuple[str, str], Schema] = {
    ("inference.networking.k8s.io/v1", "InferencePool"): struct(
        "selector targetPorts endpointPickerRef",
        selector=struct("matchLabels", matchLabels={**LABELS, "minProperties": 1}),
        targetPorts=array(struct("number", number=PORT), high=8),
        appProtocol=one_of("http", "kubernetes.io/h2c"),
        endpointPickerRef=struct(
            "name port",  # The port may be left out for other kinds than Service.
            group={"type": "string"},
            kind=one_of("Service"),
            name=NAME,
            port=struct("number", number=PORT),
            failureMode=one_of("FailOpen", "FailClose"),
        ),
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): struct(
        "parentRefs rules",
        parentRefs=array(
            struct("name", group=STRING, kind=STRING, name=NAME, namespace=NAME, sectionName=NAME, port=PORT), high=32
        ),
        hostnames=array({"type": "string", "pattern": r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}, high=16),
        rules=array(
            struct(
                "backendRefs",
                matches=array(
                    struct(
                        path=struct("type value", type=one_of("Exact", "PathPrefix"), value={"pattern": "^/"}),
                        headers=array(struct("name value", name=STRING, value=STRING, type=one_of("Exact")), high=16),
                    )
                ),
                filters=array(
                    struct(
                        "type",
                        type=one_of("RequestHeaderModifier", "URLRewrite"),
                        requestHeaderModifier=struct(
                            remove=array(STRING, high=16), set=array(HEADER), add=array(HEADER)
                        ),
                        urlRewrite=struct(hostname=STRING, path={"type": "object"}),
                    ),
                    high=16,
                ),
                timeouts=struct(request=GO_DURATION, backendRequest=GO_DURATION),
                backendRefs=array(struct("name", group=STRING, kind=STRING, name=NAME, port=PORT, weight=COUNT)),
            ),
            high=16,
        ),
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): struct(
        "selector endpoints",
        selector=struct("matchLabels", matchLabels=LABELS),
        endpoints=array(struct(port=STRING, path={"pattern": "^/"}, interval=PROMETHEUS_DURATION)),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): struct(
        "groups",
        groups=array(
            struct(
                "name rules",
                name=STRING,
                interval=PROMETHEUS_DURATION,
                rules=array(
                    struct(
                        "alert expr",
                        **{"for": PROMETHEUS_DURATION},
                        alert=STRING,
                        expr=STRING,
                        labels=LABELS,
                        annotations={"type": "object", "additionalProperties": STRING},
                    )
                ),
            )
        ),
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): struct(
        "scaleTargetRef triggers",
        scaleTargetRef=struct("name", apiVersion=STRING, kind=STRING, name=NAME),
        pollingInterval=COUNT,
        cooldownPeriod=COUNT,
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        fallback=struct(
            "failureThreshold replicas",
            failureThreshold=COUNT,
            replicas=COUNT,
            behavior=one_of("static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"),
        ),
        advanced=struct(
            horizontalPodAutoscalerConfig=struct(behavior=struct(scaleUp=SCALING_RULES, scaleDown=SCALING_RULES))
        ),
        triggers=array(
            {
                "anyOf": [
                    trigger(
                        "prometheus",
                        "serverAddress query threshold",
                        *("serverAddress", "query", "threshold", "ignoreNullValues", "authModes"),
                    ),
                    trigger(
                        "cron", "timezone start end desiredReplicas", *"timezone start end desiredReplicas".split()
                    ),
                ]
            }
        ),
    ),
    ("keda.sh/v1alpha1", "TriggerAuthentication"): struct(
        "secretTargetRef",
        secretTargetRef=array(struct("parameter name key", parameter=STRING, name=NAME, key=STRING)),
    ),
    ("networking.istio.io/v1", "DestinationRule"): struct(
        "host",
        host=STRING,
        trafficPolicy=struct(tls=struct("mode", mode=one_of("SIMPLE"), insecureSkipVerify={"type": "boolean"})),
    ),
}

ENGINE_CONFIG = struct(
    "name",
    name=STRING,
    queuedRequestsSpec=STRING,
    runningRequestsSpec=STRING,
    kvUsageSpec=STRING,
    loraSpec=STRING,
    cacheInfoSpec=STRING,
)
PICKER_CONFIG = struct(
    "apiVersion kind plugins schedulingProfiles",
    apiVersion=one_of("llm-d.ai/v1alpha1"),
    kind=one_of("EndpointPickerConfig"),
    plugins=array(
        struct(
            "type",
            name=STRING,
            type=one_of(
                "queue-scorer",
                "kv-cache-utilization-scorer",
                "prefix-cache-scorer",
                "metrics-data-source",
                "core-metrics-extractor",
            ),
            parameters=struct(
                scheme=one_of("http", "https"),
                path={"pattern": "^/"},
                defaultEngine=STRING,
                engineConfigs=array(ENGINE_CONFIG),
            ),
        )
    ),
    schedulingProfiles=array(
        struct("name plugins", name=STRING, plugins=array(struct("pluginRef", pluginRef=STRING, weight=COUNT)))
    ),
)
"""The configuration file of llm-d-router's endpoint picker v0.10."""


def validate(document: dict[str, Any]) -> None:
    """Raises ValidationError for a field that is wrong, and KeyError for a kind that is not known here."""
    spec = SPECS[document["apiVersion"], document["kind"]]
    whole = struct(
        "apiVersion kind metadata spec",
        apiVersion=STRING,
        kind=STRING,
        metadata=struct("name", name=NAME, namespace=NAME, labels=LABELS, annotations={"type": "object"}),
        spec=spec,
    )
    jsonschema.validate(document, whole)


def validate_any(document: dict[str, Any], version: str) -> None:
    """As `validate`, with the kinds of Kubernetes itself, of that version."""
    if (document["apiVersion"], document["kind"]) in SPECS:
        validate(document)
    else:
        kubernetes_validate.validate(document, version, strict=True)
