"""Batch files: every line has one result in the end, whatever stops the command in between."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import cli
from service.batch_files import Results
from tests.service.test_cli import failure

pytestmark = pytest.mark.usefixtures("lent_engine")

GREEDY = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}


def request(custom_id: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def completion(number: int, **body: Any) -> dict[str, Any]:
    return request(f"r{number}", prompt=f"{number} and more", **GREEDY | body)


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_id(path: Path) -> dict[str, dict[str, Any]]:
    found = {result["custom_id"]: result for result in read(path)}
    assert len(found) == len(read(path))
    return found


@pytest.fixture(scope="module")
def flags(dummy_flags: tuple[str, ...]) -> tuple[str, ...]:
    return (*dummy_flags, "--served-model-name", "tiny")


def batch(flags: tuple[str, ...], requests: Path, results: Path) -> int:
    return cli.main(["batch", str(requests), str(results), *flags])


def test_every_route_answers_and_every_fault_is_told(
    flags: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [
        completion(0, model="tiny"),
        request("chat", "/v1/chat/completions", messages=[{"role": "user", "content": "안녕"}], n=3, **GREEDY),
        request("response", "/v1/responses", input="hi", max_output_tokens=3, store=True),
        request("embedding", "/v1/embeddings", input=["hi", "there"], dimensions=3),
        "",
        "{broken",
        "[1]",
        '{"custom_id": 7}',
        completion(0),
        request("refused", prompt="hi", temperature=3),
        request("late refusal", "/v1/embeddings", input="hi", dimensions=10**6),
        request("grammar", prompt="hi", structured_outputs={"regex": "["}),
        request("stream", prompt="hi", stream=True),
        request("model", prompt="hi", model="other"),
        request("unknown", "/v1/messages", messages=[]),
        {**request("get", prompt="hi"), "method": "GET"},
        {**request("more", prompt="hi"), "priority": 1},
        {"custom_id": "bare"},
        request("many", prompt=["a", "b"], n=10, **GREEDY),
    ]
    requests, results = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    assert batch(flags, requests, results) == 1
    assert capfd.readouterr().err == f"headlight: 13 of 18 requests failed; their lines in {results} say why\n"

    got = [result for result in read(results) if result["custom_id"] is not None]
    responses = {result["custom_id"]: result["response"] for result in got if result["error"] is None}
    assert {name: said["status_code"] for name, said in responses.items()} == dict.fromkeys(
        ["r0", "chat", "response", "embedding", "many"], 200
    ) | dict.fromkeys(["refused", "late refusal", "grammar", "stream"], 400) | {"model": 404}
    bodies = {name: said["body"] for name, said in responses.items()}
    assert bodies["r0"]["usage"]["completion_tokens"] == 4
    assert len(bodies["chat"]["choices"]) == 3
    assert (bodies["response"]["object"], responses["response"]["ignored"]) == ("response", ["store"])
    assert [len(entry["embedding"]) for entry in bodies["embedding"]["data"]] == [3, 3]
    assert [choice["index"] for choice in bodies["many"]["choices"]] == [*range(20)]
    assert bodies["refused"]["error"]["param"] == "temperature"
    assert bodies["grammar"]["error"]["code"] == "invalid_grammar"

    errors = {result["custom_id"]: result["error"]["message"] for result in got if result["error"] is not None}
    for name, words in {
        "unknown": "url: is not answered",
        "get": "method: should be 'POST'",
        "more": "priority: is not known",
        "bare": "Line 18: method: is required",
    }.items():
        assert words in errors[name]
    nameless = {result["id"]: result["error"]["message"] for result in read(results) if result["custom_id"] is None}
    assert {name: words.split(": ")[1] for name, words in nameless.items()} == {
        "batch_req_line_6": "The body is not JSON",
        "batch_req_line_7": "The line is not a JSON object.",
        "batch_req_line_8": "custom_id",
        "batch_req_line_9": "custom_id",
    }
    assert "line 1" in nameless["batch_req_line_9"]

    before = results.read_bytes()
    assert batch(("--model", "/nowhere"), requests, results) == 1  # Nothing is left to do, so no model is loaded.
    assert results.read_bytes() == before


def test_a_stopped_batch_goes_on(flags: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its last line may be half written, or lack its end."""
    requests, results = write(tmp_path / "in.jsonl", [*map(completion, range(12))]), tmp_path / "out.jsonl"
    assert batch(flags, requests, results) == 0
    assert capfd.readouterr().err == ""
    whole = by_id(results)
    lines = results.read_bytes().splitlines(keepends=True)
    for kept in (
        b"".join(lines[:5]) + lines[5][:40],
        b"".join(lines[:5]) + lines[5][:3],
        b"".join(lines[:6]).rstrip(b"\n"),
    ):
        results.write_bytes(kept)
        assert batch(flags, requests, results) == 0
        assert results.read_bytes().startswith(b"".join(lines[:5]))
        again = by_id(results)
        assert again.keys() == whole.keys()
        assert [text(again[name]) for name in whole] == [text(whole[name]) for name in whole]


def text(result: dict[str, Any]) -> str:
    return str(result["response"]["body"]["choices"][0]["text"])


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Interrupts end processes started here, also where a shell has begun the tests in the background, which ignores
    interrupts for them and for all that they start.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_loses_nothing_that_is_finished(flags: tuple[str, ...], tmp_path: Path) -> None:
    long = [completion(number, max_tokens=5 + 40 * (number > 3)) for number in range(2000)]
    requests, results = write(tmp_path / "in.jsonl", long), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "service.cli", "batch", str(requests), str(results), *flags]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (results.exists() and results.read_bytes().count(b"\n") > 3):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # As a terminal does: every process of the group gets it.
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said == "headlight: stopped; the same command goes on from here\n"
    finished = by_id(results)
    assert 3 < len(finished) < 2000
    assert all(result["response"]["status_code"] == 200 for result in finished.values())


@pytest.mark.parametrize(
    "text", ["my diary\n", "my diary", '{"id": 1}\n', '{"id":"batch_req_1"}\n{"id":"batch_req_2"}\n']
)
def test_a_file_that_is_no_results_stays_as_it_is(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    requests, results = write(tmp_path / "in.jsonl", [completion(0)]), tmp_path / "out.jsonl"
    results.write_text(text)
    assert "line 1 is no result of a batch" in failure(capfd, "batch", str(requests), str(results))
    assert results.read_text() == text


def test_files_that_cannot_be_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    requests, results = write(tmp_path / "in.jsonl", [completion(0)]), tmp_path / "out.jsonl"
    assert "file of their own" in failure(capfd, "batch", str(requests), str(requests))
    assert "No such file" in failure(capfd, "batch", str(tmp_path / "none"), str(results))
    assert "Is a directory" in failure(capfd, "batch", str(requests), str(tmp_path))
    with Results(results):
        assert "another program writes it" in failure(capfd, "batch", str(requests), str(results))


def test_a_line_that_is_too_large_is_a_fault(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    requests, results = write(tmp_path / "in.jsonl", [completion(0)]), tmp_path / "out.jsonl"
    assert "1 of 1" in failure(capfd, "batch", str(requests), str(results), "--max-body", "20")
    assert "larger than 20 bytes" in read(results)[0]["error"]["message"]
