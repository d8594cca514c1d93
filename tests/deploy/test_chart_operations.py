"""What the chart gives those who run it: alerts that fit, a runbook for each, a test of the service, and claims."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.deploy.chart import render, set_json, template
from tests.deploy.test_monitoring import DASHBOARD, RULES
from tests.deploy.tools import CHART, DEPLOY, helm, tool
from tests.service.api.fakes import MODEL, serving

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
THRESHOLDS: dict[str, float] = VALUES["alerts"]["thresholds"]
RUNBOOKS = (DEPLOY / "runbooks" / "README.md").read_text()
NAMES = [rule["alert"] for rule in RULES]
OWN = 'namespace="llm", job="headlight"'
"""The labels of the series of `render`'s release."""


def alerts(**values: Any) -> dict[str, dict[str, Any]]:
    """The chart's rules by name, with values of `alerts`."""
    flags = set_json(**{"alerts.enabled": True}, **{f"alerts.{name}": value for name, value in values.items()})
    (group,) = render("values.yaml", *flags).of("PrometheusRule")["spec"]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def of_every_release(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule of the chart about any series, as the repository's are."""
    return {**rule, "expr": re.sub(r"{}", "", re.sub(f"{OWN}(, )?", "", rule["expr"]))}


def test_the_thresholds_of_the_values_are_those_of_the_rules() -> None:
    marked = re.findall(r"([\d.]+) # (\w+)$", "\n".join(rule["expr"] for rule in RULES), re.MULTILINE)
    assert {name: float(number) for number, name in marked} == THRESHOLDS
    assert len(marked) == len(THRESHOLDS)
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["alerts"]["properties"]["thresholds"]["properties"]) == set(THRESHOLDS)
    assert schema["$defs"]["alert"]["enum"] == NAMES
    assert [of_every_release(rule) for rule in alerts().values()] == RULES


@pytest.mark.parametrize("first", [7, 0.125])
def test_every_threshold_is_where_it_must_be_and_nowhere_else(first: float, tmp_path: Path) -> None:
    thresholds = {name: first + place for place, name in enumerate(THRESHOLDS)}
    rules = list(alerts(thresholds=thresholds).values())
    for new, old in zip(rules, RULES, strict=True):
        expected = re.sub(r"[\d.]+ # (\w+)", lambda marked: f"{thresholds[marked[1]]} # {marked[1]}", old["expr"])
        assert of_every_release(new)["expr"] == expected
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}))
    done = subprocess.run(
        [tool("promtool"), "check", "rules", tmp_path / "rules.yaml"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_rules_have_other_times_and_severities_and_runbooks_and_may_be_left_out() -> None:
    url = "https://git.example.com/runbooks/README.md#"
    changed = alerts(
        **{"for": {"HeadlightQueueing": "20m"}},
        severity={"HeadlightSlowTokens": "info"},
        runbookUrl=url,
        disabled=["HeadlightMissing"],
    )
    assert changed["HeadlightQueueing"]["for"] == "20m"
    assert changed["HeadlightSlowTokens"]["labels"] == {"severity": "info"}
    assert [*changed] == NAMES[1:]
    for name, rule in changed.items():
        assert rule["annotations"]["runbook_url"] == url + name.lower()


def test_every_series_of_an_alert_is_the_releases_own() -> None:
    for rule in alerts().values():
        series = re.findall(r"headlight_\w+", rule["expr"])
        assert series
        assert re.findall(r"headlight_\w+(?={" + OWN + ")", rule["expr"]) == series


def test_alerts_of_a_release_fire_for_its_servers_as_the_repositorys_do(tmp_path: Path) -> None:
    text = (DEPLOY / "alerts" / "tests.yaml").read_text()
    text = text.replace('job="h"', OWN).replace("job: h,", "namespace: llm, job: headlight,")
    text = text.replace(
        "exp_labels: {severity: critical}", "exp_labels: {severity: critical, namespace: llm, job: headlight}"
    )
    judge(tmp_path, text)


@pytest.mark.parametrize("other", ['namespace="llm", job="another"', 'namespace="another", job="headlight"'])
def test_alerts_of_a_release_are_silent_about_others(tmp_path: Path, other: str) -> None:
    """Series for which the repository's alerts fire; that the release's own are missing is all there is to say."""
    text = (DEPLOY / "alerts" / "tests.yaml").read_text().replace('job="h"', other)
    silence = [
        {"expr": 'ALERTS{alertname!="HeadlightMissing"}', "eval_time": f"{minutes}m", "exp_samples": []}
        for minutes in range(1, 30)
    ]
    # As strings: 0x40 is a number to YAML.
    told = yaml.load(text, yaml.BaseLoader)
    for test in told["tests"]:
        test.pop("alert_rule_test", None)
        test["promql_expr_test"] = silence
    judge(tmp_path, yaml.safe_dump(told))


def judge(folder: Path, tests: str) -> None:
    """Have promtool judge the chart's rules by tests of the repository's."""
    rules = {"groups": [{"name": "g", "rules": [*alerts().values()]}]}
    (folder / "headlight.rules.yaml").write_text(yaml.safe_dump(rules))
    (folder / "tests.yaml").write_text(tests)
    command = [tool("promtool"), "test", "rules", folder / "tests.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nobody_is_missed_who_may_be_away() -> None:
    flags = ("--set", "alerts.enabled=true")
    rules = render("examples/autoscaling-keda-to-zero.yaml", *flags).of("PrometheusRule")["spec"]["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == NAMES[1:]


def test_every_alert_has_a_runbook() -> None:
    sections = re.split(r"^## ", RUNBOOKS, flags=re.MULTILINE)[1:]
    assert [section.split("\n")[0] for section in sections] == NAMES
    for section in sections:
        assert len(re.findall(r"^\d\. ", section, re.MULTILINE)) >= 3
        assert len(section.split()) > 50


def test_runbooks_speak_of_what_there_is() -> None:
    anchors = set(re.findall(r"\]\(#(\w+)\)", RUNBOOKS))
    assert anchors <= {name.lower() for name in NAMES}
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    assert set(re.findall(r'"([A-Z][^"]+)"', RUNBOOKS)) <= titles
    words = set(re.findall(r"`([a-z]+_[a-z_]+)(?:: [^`]*)?`", RUNBOOKS))
    of_others = {"runbook_url", "finish_reason", "container_cpu_cfs_throttled_seconds_total", "headlight_engine_up"}
    assert words - of_others <= set(Settings.model_fields)
    for value in re.findall(r"`(\w+(?:\.\w+)+)`", RUNBOOKS):
        place: Any = VALUES
        for part in value.split("."):
            assert part in place, value
            place = place[part]


async def test_the_test_pod_asks_a_server(tmp_path: Path) -> None:
    pod = render("values.yaml", "--set", "apiKeys.secret=k").of("Pod")["spec"]
    (container,) = pod["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    service = render("values.yaml").of("Service")
    assert environment["URL"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert environment["KEYS_FILE"].startswith(container["volumeMounts"][0]["mountPath"] + "/")
    keys = tmp_path / "keys"
    keys.write_text("# of tests\n\nsecret\n")

    async def ask(url: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *container["command"][1:], *container["args"]]
        environ = {"PATH": os.environ["PATH"], "URL": url, **variables}
        return await asyncio.to_thread(
            subprocess.run, command, env=environ, capture_output=True, text=True, check=False
        )

    async with serving(api_keys_file=keys) as server:
        done = await ask(server.url, KEYS_FILE=str(keys))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{MODEL}: '")
        refused = await ask(server.url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"{server.url}/v1/models: HTTP Error 401: Unauthorized\n"
    gone = await ask(server.url)
    assert gone.returncode == 1
    assert len(gone.stderr.splitlines()) == 1


def test_helm_takes_the_pod_for_a_test_and_not_for_a_part_of_the_release() -> None:
    hooks = render("values.yaml").of("Pod")["metadata"]["annotations"]
    assert hooks["helm.sh/hook"] == "test"
    assert "kind: Pod\n" not in template("--no-hooks").stdout


def test_claims_are_made_by_size_and_mounted() -> None:
    assert not [d for d in render("values.yaml").documents if d["kind"] == "PersistentVolumeClaim"]
    flags = set_json(**{"claims.models": {"size": "50Gi", "keep": True}, "claims.cache.size": "5Gi"})
    rendered = render("values.yaml", *flags)
    claims = {d["metadata"]["name"]: d for d in rendered.documents if d["kind"] == "PersistentVolumeClaim"}
    mounted = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in rendered.pod["volumes"] if "emptyDir" not in v
    }
    assert mounted == {"models": "headlight-models", "cache": "headlight-cache"}
    assert claims.keys() == set(mounted.values())
    assert claims["headlight-models"]["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in claims["headlight-cache"]["metadata"]


def test_the_notes_warn_of_a_claim_that_one_node_can_mount() -> None:
    command = [helm(), "install", "headlight", str(CHART), "--dry-run=client", "--set", "claims.models.size=5Gi"]
    notes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("NOTES:")[1]
    assert "models is a claim that one node at a time can mount" in notes
    shared = [*command, "--set", "claims.models.accessModes={ReadWriteMany}"]
    assert (
        "one node" not in subprocess.run(shared, capture_output=True, text=True, check=True).stdout.split("NOTES:")[1]
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"claims.models.size": "5Gi", "model.source": "image"}, "claims.models is for model.source download"),
        ({"claims.models.size": "5Gi", "model.download.volume": {"emptyDir": {}}}, "give a volume in one way"),
        ({"claims.cache.size": "5Gi", "cache": {"emptyDir": {}}}, "give a volume in one way"),
        ({"claims.models.size": "large"}, "/claims/models/size"),
        ({"claims.models.accessModes": ["ReadOnlyMany"]}, "/claims/models/accessModes/0"),
        ({"claims.logs": {"size": "1Gi"}}, "logs"),
        ({"alerts.thresholds.queue": 5}, "queue"),
        ({"alerts.thresholds.cacheUsage": "most"}, "/alerts/thresholds/cacheUsage"),
        ({"alerts.for": {"Queueing": "5m"}}, "Queueing"),
        ({"alerts.for": {"HeadlightQueueing": "5 minutes"}}, "/alerts/for/HeadlightQueueing"),
        ({"alerts.disabled": ["Missing"]}, "/alerts/disabled/0"),
        ({"alerts.runbookUrl": "runbooks"}, "/alerts/runbookUrl"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    done = template(*set_json(**values))
    assert done.returncode != 0
    assert said in done.stderr
