"""What the autoscalers are told: KEDA's ways of asking Prometheus, going to 0 and back, and an adapter for the HPA."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import render, set_json, template
from tests.deploy.tools import DEPLOY, tool

ADAPTER = yaml.safe_load((DEPLOY / "autoscaling" / "prometheus-adapter.yaml").read_text())
SECRETS = [{"parameter": "bearerToken", "name": "prometheus", "key": "token"}]
FALLBACK = {"failureThreshold": 3, "replicas": 4}
TRIGGERS = [{"type": "cron", "metadata": {"desiredReplicas": "1"}}]
REF = {"kind": "ClusterTriggerAuthentication", "name": "prometheus"}


def triggers(**values: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = keda(**values).of("ScaledObject")["spec"]["triggers"]
    return found


def keda(**values: Any) -> Any:
    return render("examples/autoscaling-keda.yaml", *set_json(**{f"autoscaling.{k}": v for k, v in values.items()}))


def test_prometheus_is_asked_by_whoever_may() -> None:
    plain = triggers()
    assert not any("authenticationRef" in trigger or "authModes" in trigger["metadata"] for trigger in plain)
    for value, name in (({"secrets": SECRETS}, "headlight"), ({"ref": REF}, "prometheus")):
        values = {"keda.authentication": {"modes": "bearer", **value}}
        for trigger in triggers(**values):
            assert trigger["metadata"]["authModes"] == "bearer"
            assert trigger["authenticationRef"]["name"] == name
        made = [d for d in keda(**values).documents if d["kind"] == "TriggerAuthentication"]
        assert [d["metadata"]["name"] for d in made] == (["headlight"] if "secrets" in value else [])
        assert [d["spec"] for d in made] == ([{"secretTargetRef": SECRETS}] if "secrets" in value else [])


def test_no_series_are_no_reason_to_scale_down_where_there_is_a_fallback() -> None:
    assert not any("ignoreNullValues" in trigger["metadata"] for trigger in triggers())
    for trigger in triggers(**{"keda.fallback": FALLBACK}):
        assert trigger["metadata"]["ignoreNullValues"] == "false"
    # Where there may be no pod, no series are nothing out of the way.
    to_zero = render("examples/autoscaling-keda-to-zero.yaml").of("ScaledObject")["spec"]
    assert to_zero["minReplicaCount"] == 0
    assert not any("ignoreNullValues" in trigger["metadata"] for trigger in to_zero["triggers"])
    assert [trigger["type"] for trigger in to_zero["triggers"]] == ["prometheus", "prometheus", "cron", "prometheus"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "keda", "minReplicas": 0}, "minReplicas 0 needs a trigger"),
        ({"kind": "hpa", "minReplicas": 0}, "/autoscaling/minReplicas"),
        ({"kind": "hpa", "keda.authentication.modes": "bearer"}, "keda.authentication is for autoscaling.kind keda"),
        ({"kind": "hpa", "keda.authentication.secrets": SECRETS}, "keda.authentication is for autoscaling.kind keda"),
        ({"kind": "hpa", "keda.triggers": TRIGGERS}, "keda.triggers is for autoscaling.kind keda"),
        ({"kind": "hpa", "keda.fallback": FALLBACK}, "keda.fallback is for autoscaling.kind keda"),
        ({"kind": "hpa", "keda.pollingSeconds": 16}, "keda.pollingSeconds is for autoscaling.kind keda"),
        ({"kind": "hpa", "keda.cooldownSeconds": 0}, "keda.cooldownSeconds is for autoscaling.kind keda"),
        ({"kind": "hpa", "prometheusUrl": "http://other:9090"}, "prometheusUrl is for autoscaling.kind keda"),
        ({"kind": "keda", "hpa.metrics": [{"type": "Pods"}]}, "hpa.metrics is for autoscaling.kind hpa"),
        ({"keda.authentication.modes": "bearer"}, "modes, and secrets or ref, go together"),
        ({"keda.authentication.ref": REF}, "modes, and secrets or ref, go together"),
        ({"keda.authentication": {"modes": "bearer", "ref": REF, "secrets": SECRETS}}, "secrets or ref, not both"),
        ({"keda.authentication.modes": "password"}, "/autoscaling/keda/authentication/modes"),
        ({"keda.fallback": {"replicas": 4}}, "/autoscaling/keda/fallback"),
        ({"keda.triggers": [{"type": "cron", "metadata": {"desiredReplicas": 1}}]}, "desiredReplicas"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], said: str) -> None:
    done = template(*set_json(**{f"autoscaling.{name}": value for name, value in values.items()}))
    assert done.returncode != 0
    assert said in done.stderr


def test_the_adapter_serves_what_the_hpa_follows(tmp_path: Path) -> None:
    """Its query, as the adapter fills it in, is asked of Prometheus's own engine: a number for each pod."""
    (rule,) = ADAPTER["rules"]["custom"]
    name, *labels = re.findall(r'(?:"\^([^"]*)\$"|(\w+)!="")', rule["seriesQuery"])
    assert [label for _, label in labels] == [*rule["resources"]["overrides"]]
    followed = render("examples/autoscaling-hpa.yaml").of("HorizontalPodAutoscaler")["spec"]["metrics"]
    series = [metric["pods"]["metric"]["name"] for metric in followed]
    assert all(re.fullmatch(name[0], metric) for metric in series)
    tests = [_expects_a_number_for_each_pod(rule["metricsQuery"], metric) for metric in series]
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _expects_a_number_for_each_pod(query: str, series: str) -> dict[str, Any]:
    filled = query.replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
    filled = filled.replace("<<.LabelMatchers>>", 'namespace="llm",pod=~"a|b"')
    assert "<<" not in filled
    pods = {("llm", "a"): 3, ("llm", "b"): 5, ("other", "a"): 7}
    return {
        "interval": "1m",
        "input_series": [
            {"series": f'{series}{{namespace="{namespace}",pod="{pod}",model_name="m"}}', "values": f"{value}x5"}
            for (namespace, pod), value in pods.items()
        ],
        "promql_expr_test": [
            {
                "expr": filled,
                "eval_time": "2m",
                "exp_samples": [{"labels": '{pod="a"}', "value": 3}, {"labels": '{pod="b"}', "value": 5}],
            }
        ],
    }
