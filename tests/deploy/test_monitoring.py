"""Dashboard and alerts against the real Prometheus: every query of a panel and of a rule finds what a server says."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import yaml

from tests.deploy.tools import DEPLOY, tool
from tests.service.observability.test_metrics import VLLMS
from tests.service.servers import PATIENCE, free_port, get, save_dummy_llama, serving, wait_until

DASHBOARD = json.loads((DEPLOY / "dashboards" / "headlight.json").read_text())
RULES = yaml.safe_load((DEPLOY / "alerts" / "headlight.rules.yaml").read_text())["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {"namespace": ".*", "job": ".*", "instance": ".*", "model": ".*", "__rate_interval": "20s", "__range": "1h"}
SAMPLES = 5
"""Scrapes to wait for: a rate needs two, and some time between the first request and the last."""


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should() -> None:
    run(tool("promtool"), "check", "rules", DEPLOY / "alerts" / "headlight.rules.yaml")
    run(tool("promtool"), "test", "rules", DEPLOY / "alerts" / "tests.yaml")


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tests = (DEPLOY / "alerts" / "tests.yaml").read_text()
    for rule in RULES:
        assert rule["alert"] in tests
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_prometheus_takes_the_compose_files_configuration(tmp_path: Path) -> None:
    (tmp_path / "headlight.rules.yaml").symlink_to(DEPLOY / "alerts" / "headlight.rules.yaml")
    (tmp_path / "prometheus.yml").write_text((DEPLOY / "compose" / "prometheus.yml").read_text())
    run(tool("promtool"), "check", "config", tmp_path / "prometheus.yml")


def test_the_dashboard_answers_its_four_questions() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Is it up?", "Is it slow, and where?", "Is it full?", "What do users get?"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert panel["description"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    spots = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]}
    assert len(spots) == len(ids)


def test_releases_of_one_name_in_two_namespaces_are_told_apart(tmp_path: Path) -> None:
    """Every series of a panel is chosen by its namespace, and Prometheus's own engine counts those alone."""
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"]]
    selectors = [found for expression in expressions for found in re.findall(r"\w+\{[^}]*\}", expression)]
    assert len(selectors) >= len(expressions)
    assert [found for found in selectors if 'namespace=~"$namespace"' not in found] == []
    up = next(panel for panel in PANELS if panel["title"] == "Replicas ready")["targets"][0]["expr"]
    samples = [("red", 1), ("red", 1), ("blue", 1), ("", 1)]
    series = [
        {"series": f'headlight_engine_up{{namespace="{name}",job="headlight",instance="{at}"}}', "values": f"{value}x5"}
        for at, (name, value) in enumerate(samples)
    ]
    asked = [
        {"expr": _filled(up, {**VARIABLES, "namespace": chosen}), "eval_time": "2m", "exp_samples": [{"value": count}]}
        for chosen, count in (("red", 2), ("blue", 1), (".*", 4))
    ]
    tests = {"rule_files": [], "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    run(tool("promtool"), "test", "rules", tmp_path / "tests.yaml")


def _filled(expression: str, variables: dict[str, str]) -> str:
    """An expression of the dashboard with Grafana's variables filled in."""
    return re.sub(r"\$(\w+)", lambda match: variables[match[1]], expression)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that has scraped a server with a little load, and evaluated the rules."""
    binary = tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    model = tmp_path_factory.mktemp("model")
    save_dummy_llama(model, 512)
    with serving(str(model), "--load-format", "dummy", "--threads", "1") as (url, _):
        config = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(DEPLOY / "alerts" / "headlight.rules.yaml")]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [url.removeprefix("http://")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        command = [
            *(binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
            *(f"--web.listen-address={address}", "--log.level=error"),
        ]
        with subprocess.Popen(command, env={**os.environ, "GOMAXPROCS": "1"}) as process:
            try:
                _load(url, f"http://{address}")
                yield f"http://{address}"
            finally:
                process.terminate()


def _load(url: str, prometheus: str) -> None:
    """A few requests, some of them refused, until Prometheus has seen enough."""
    stop = time.monotonic() + PATIENCE
    scrapes = 'count_over_time(up{job="headlight"}[1h])'
    with ThreadPoolExecutor(2) as users:
        while not any(float(sample["value"][1]) >= SAMPLES for sample in query(prometheus, scrapes)):
            assert time.monotonic() < stop, "Prometheus does not scrape"
            for answer in users.map(lambda text: _ask(url, text), ("Count to ten: one, two,", "word " * 500)):
                assert answer.status_code in (200, 400)
            time.sleep(0.1)
    # What the last requests have left behind is in the next scrape.
    seen = time.time()
    wait_until(lambda: _last_scrape(prometheus) > seen)


def _ask(url: str, prompt: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"prompt": prompt, "max_tokens": 6}, timeout=PATIENCE)


def _last_scrape(prometheus: str) -> float:
    return max((float(sample["value"][1]) for sample in query(prometheus, 'timestamp(up{job="headlight"})')), default=0)


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """The samples of an expression now; none while Prometheus starts."""
    answered, text = get(f"{prometheus}/api/v1/query?{urlencode({'query': expression})}")
    if answered in (0, 503):
        return []
    assert answered == 200, text
    result: list[dict[str, Any]] = json.loads(text)["data"]["result"]
    return result


def test_every_query_of_every_panel_finds_a_number(prometheus: str) -> None:
    empty = []
    for panel in PANELS:
        for target in panel["targets"]:
            expression = _filled(target["expr"], VARIABLES)
            samples = query(prometheus, expression)
            if not samples or all(sample["value"][1] == "NaN" for sample in samples):
                empty.append(f"{panel['title']}: {expression}")
    assert empty == []


def test_every_series_of_every_rule_exists(prometheus: str) -> None:
    for rule in RULES:
        for selector in re.findall(r"headlight_\w+(?:\{[^}]*\})?", rule["expr"]):
            # No server starts out with errors, so that there need be no such status.
            selector = selector.replace('{status=~"5.."}', "")
            assert query(prometheus, selector), f"{rule['alert']}: {selector}"


def test_no_alert_is_pending_that_has_no_cause(prometheus: str) -> None:
    health = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["health"] for rule in health} == {"ok"}
    assert [rule["name"] for rule in health if rule["state"] == "firing"] == []


def test_the_dashboards_variables_have_values(prometheus: str) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            expression, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            expression = _filled(expression, VARIABLES)
            samples = query(prometheus, expression)
            assert samples
            # Outside of Kubernetes there are no namespaces, and all of them are chosen.
            assert label == "namespace" or all(sample["metric"][label] for sample in samples)


def test_autoscalers_find_what_they_ask_for(prometheus: str) -> None:
    for name in VLLMS:
        # Prometheus asks for OpenMetrics, which must not change the names.
        assert query(prometheus, f"vllm:{name}"), name
    (info,) = query(prometheus, "headlight_cache_config_info")
    assert int(info["metric"]["num_gpu_blocks"]) * int(info["metric"]["block_size"]) > 0
