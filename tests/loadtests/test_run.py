"""Whole runs, each in a process of its own: Locust replaces the sockets and threads of the one it is imported in."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from loadtests.pace import PROMPT_TOKENS
from tests.loadtests.fake_server import FakeServer, fake_server
from tests.service.servers import free_port

EASY = "ttft_p95_seconds = 60\ninter_token_p95_seconds = 60\nerror_rate = 0\ngoodput_share = 1\n"
LATENCIES = {"end-to-end latency", "time to first token", "inter-token latency"}
USERS = 4
ROWS = {"/v1/chat/completions", "time to first token", "time per output token", "Aggregated"}


@pytest.fixture
def goals(tmp_path: Path) -> Path:
    path = tmp_path / "goals.toml"
    path.write_text(EASY)
    return path


def locust(url: str, goals: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run beside its goals file; short unless the options say otherwise."""
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary"]
    settings = [
        "--host",
        url,
        "--goals",
        str(goals),
        "--results",
        str(goals.parent),
        "--scale",
        "0.02",
        "--warmup",
        "0s",
    ]
    return run([*command, *settings, "-u", str(USERS), "-t", "2s", *options], environment)


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | environment, check=False
    )


def summary(goals: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((goals.parent / "summary.json").read_text())
    return result


def of_the_test(server: FakeServer) -> list[dict[str, Any]]:
    """What was asked without the first request, which tries the fields, and those that measure the pace."""
    return [body for body in server.bodies[1:] if server.prompt_tokens(body) != PROMPT_TOKENS]


def records(goals: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (goals.parent / "requests.jsonl").read_text().splitlines()]


def test_a_server_with_nothing_but_openais_api(goals: Path) -> None:
    """Locust's own statistics, the summary and the server's count say the same."""
    with fake_server(strict=True, key="secret") as server:
        statistics = goals.parent / "locust"
        result = locust(server.url, goals, "--csv", str(statistics), OPENAI_API_KEY="secret")
        assert result.returncode == 0, result.stderr
        asked = of_the_test(server)
    total = summary(goals)["total"]
    assert total["complete"] == len(asked) > 4
    assert total["prompt_tokens"] == sum(map(server.prompt_tokens, asked))
    assert total["completion_tokens"] == sum(body["max_tokens"] for body in asked)
    assert (total["failed"], total["abandoned"], total["tokens_per_event"]) == (0, 0, 1.0)
    with Path(f"{statistics}_stats.csv").open() as file:
        rows = {row["Name"]: int(row["Request Count"]) for row in csv.DictReader(file)}
    several = sum(body["max_tokens"] > 1 for body in asked)
    assert rows == dict.fromkeys(ROWS, len(asked)) | {"time per output token": several}
    assert summary(goals)["server"] is None
    assert "<svg" in (goals.parent / "report.html").read_text()


def test_missed_goals_and_failures_are_the_exit_status(goals: Path) -> None:
    with fake_server(fails_every=3) as server:
        result = locust(server.url, goals, "--shape", "step", "-t", "3s")
    assert result.returncode == 1
    assert "MISSED   error_rate" in result.stdout
    assert "knee at" in result.stdout
    total = summary(goals)["total"]
    assert total["errors"] == {"status 503: too busy": total["failed"]}
    assert [stage["load"] for stage in summary(goals)["stages"]] == [1, 2, 4]


def test_a_run_that_is_too_short_for_full_lengths_gets_shorter_ones(goals: Path) -> None:
    """As a newcomer starts it: the server would take half a minute for one answer, and has six seconds for all."""
    command = [sys.executable, "-m", "loadtests", "--users", "2", "--duration", "6s", "--goals", str(goals)]
    with fake_server(pace=0.05) as server:
        result = run([*command, "--host", server.url, "--results", str(goals.parent)], {})
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert summary(goals)["settings"]["scale"] < 0.1
    assert summary(goals)["total"]["complete"] >= 20
    said = result.stdout.splitlines()
    assert said[0].startswith("measuring fake-model")
    assert "goals will rest on about" in said[3]
    assert " of 0:06  " in said[4]


def test_an_open_loop_sends_at_its_times_whatever_the_server_does(goals: Path) -> None:
    """Two processes share the times of one; each request is far longer than the distance to the next."""
    with fake_server(pace=0.1) as server:
        port = str(free_port())
        processes = ["--processes", "2", "--master-bind-port", port, "--master-port", port]
        result = locust(server.url, goals, "--rate", "10", "--arrivals", "fixed", "-t", "3s", *processes)
    assert result.returncode == 0, result.stderr
    total = summary(goals)["total"]
    assert total["complete"] == 30
    assert total["in_flight"] > 3
    began = [row["began"] for row in records(goals)]
    assert max(after - before for before, after in pairwise(began)) < 3


@pytest.mark.parametrize("loop", [(), ("--rate", "20", "--arrivals", "fixed")])
def test_several_models_have_their_parts_of_the_completions(goals: Path, loop: tuple[str, ...]) -> None:
    with fake_server(models=["a", "b", "c"]) as server:
        result = locust(server.url, goals, "--model-name", "a,c", "--api", "completions", *loop)
    assert result.returncode == 0, result.stderr
    assert {"prompt" in body for body in server.bodies} == {True}
    counts = Counter(row["model"] for row in records(goals))
    models = {name: figures["complete"] for name, figures in summary(goals)["models"].items()}
    assert models == counts == {"a": counts["a"], "c": counts["c"]}
    assert abs(counts["a"] - counts["c"]) <= USERS
    assert "<h2>Models</h2>" in (goals.parent / "report.html").read_text()


def test_a_trace_is_sent_at_its_times(goals: Path) -> None:
    trace = goals.with_name("trace.jsonl")
    lines = [{"timestamp": 100 * n, "input_length": n + 1, "output_length": 2} for n in range(25)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    with fake_server() as server:
        result = locust(server.url, goals, "--dataset", str(trace), "--scale", "auto", "-t", "3s")
        assert result.returncode == 0, result.stderr
        lengths = [server.prompt_tokens(body) for body in server.bodies if body["max_tokens"] == 2][1:]
    assert lengths == [line["input_length"] for line in lines]
    assert [row["began"] for row in records(goals)] == pytest.approx([n / 10 for n in range(25)], abs=0.5)
    with goals.with_name("requests.csv").open() as file:
        assert [row["completion_tokens"] for row in csv.DictReader(file)] == ["2"] * 25


def test_the_warm_up_is_left_out(goals: Path) -> None:
    with fake_server() as server:
        result = locust(server.url, goals, "--warmup", "1s")
        asked = of_the_test(server)
    assert result.returncode == 0, result.stderr
    rows = records(goals)
    complete = [row for row in rows if not row["abandoned"]]
    # A request that is abandoned at the end may have come to the server or not.
    assert len(complete) <= len(asked) <= len(rows)
    assert 0 < sum(row["warmup"] for row in complete) == len(complete) - summary(goals)["total"]["complete"]


def test_options_that_contradict_each_other_are_one_line(goals: Path) -> None:
    with fake_server() as server:
        result = locust(server.url, goals, "--arrivals", "fixed")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "loadtest: arrivals fixed need a rate"


def test_too_few_requests_are_a_status_of_their_own_and_their_first_tokens_count(goals: Path) -> None:
    with fake_server(pace=0.05) as server:
        result = locust(server.url, goals, "--scale", "1", "--stop-timeout", "1", "-t", "3s")
    assert result.returncode == 2
    assert "too few  ttft_p95_seconds" in result.stdout
    total = summary(goals)["total"]
    assert 0 < total["abandoned"] <= USERS
    assert total["ttft"]["samples"] == total["complete"] + total["abandoned"]
    assert f"{total['abandoned']} requests were abandoned at the end, 0 of them before the first" in result.stdout


def test_the_answers_of_several_processes_come_together(goals: Path) -> None:
    with fake_server() as server:
        port = str(free_port())
        result = locust(
            server.url, goals, "-t", "3s", "--processes", "2", "--master-bind-port", port, "--master-port", port
        )
        assert result.returncode == 0, result.stderr
        asked = of_the_test(server)
    assert summary(goals)["total"]["complete"] == len(asked) > 4


def test_without_a_server_or_goals_there_is_one_line(goals: Path) -> None:
    with fake_server() as server:
        url = server.url
        result = locust(url, goals.with_name("none.toml"))
        assert (result.returncode, result.stderr.count("none.toml")) == (1, 1)
    result = run([sys.executable, "-m", "loadtests", "--host", url, "--results", str(goals.parent)], {})
    assert result.returncode == 1
    said = [line for line in result.stderr.splitlines() if "INFO" not in line]
    assert said == [f"loadtest: no server answers at {url}: [Errno 111] Connection refused"]


def test_a_server_that_does_not_start_is_one_line(goals: Path) -> None:
    command = [sys.executable, "-m", "loadtests", "--model", "no/such/model/at-all", "--results", str(goals.parent)]
    result = run(command, {})
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "no/such/model/at-all" in result.stderr


def test_the_real_server_counts_what_the_users_count(smollm2: Path, goals: Path) -> None:
    """As `make loadtest` runs it. The figures of clients and server agree within five per cent."""
    command = [sys.executable, "-m", "loadtests", "--users", "3", "--duration", "6s", "--scale", "0.1"]
    settings = ["--workload", "chat", "--goals", str(goals), "--results", str(goals.parent)]
    # One thread leaves a core to the users, even while other tests run.
    result = run([*command, *settings], {"HEADLIGHT_CACHE_MEMORY": "256MB", "HEADLIGHT_THREADS": "1"})
    # How many requests there are depends on what else the machine does: there may be too few for a verdict.
    assert result.returncode in (0, 2), result.stdout + result.stderr
    server = summary(goals)["server"]
    compared = {row["figure"].split(",")[0] for row in server["comparisons"]}
    assert compared == {"requests", "prompt tokens", "generated tokens"} | LATENCIES
    assert [row for row in server["comparisons"] if not row["agrees"]] == []
    assert server["agrees"]
