import random
from pathlib import Path

import pytest

from loadtests.client import Client, ServerError
from loadtests.throughput import main, medians, prompt, run
from tests.loadtests.fake_server import fake_server


def test_a_closed_loop_keeps_its_clients_busy() -> None:
    with fake_server(pace=0.03) as server:
        with Client(server.url) as client:
            target = client.discover()
        result = run(target, prompt_tokens=16, output_tokens=5, concurrency=3, requests=6)
        asked = server.bodies[1:]
    assert len({body["prompt"] for body in asked}) == 6
    assert (result["requests"], result["prompt_tokens"]) == (6, 16)
    assert result["output_tokens_per_second"] == pytest.approx(6 * 5 / result["wall_seconds"])
    assert result["ttft_ms"] >= 30
    assert result["inter_token_ms"] > 15
    # Two rounds of three at once, each of five tokens: one after another they would take three times as long.
    assert result["wall_seconds"] < 6 * 5 * 0.03


def test_a_repeating_prompt_says_the_same_words_again() -> None:
    first, *others = prompt(random.Random(1), 64, 4).split("\n")
    assert others == [first] * 3
    assert len(first.split()) == 16


def test_answers_by_a_schema_are_asked_for_in_chats_that_may_end_early() -> None:
    schema = {"type": "object"}
    with fake_server() as server:
        with Client(server.url) as client:
            target = client.discover()
        assert target.ignore_eos
        result = run(target, prompt_tokens=16, output_tokens=5, concurrency=2, requests=4, schema=schema)
        asked = server.bodies[1:]
    assert result["requests"] == len(asked) == 4
    for body in asked:
        assert body["response_format"]["json_schema"]["schema"] == schema
        assert len(body["messages"]) == 1
        assert "ignore_eos" not in body


@pytest.mark.parametrize(("text", "reason"), [("[1]", "not a JSON object"), ("{", "Expecting"), (None, "No such file")])
def test_a_schema_that_is_none_is_refused_in_one_line(
    text: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "schema.json"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr("sys.argv", ["throughput", "http://127.0.0.1:1", "--schema", str(file)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_a_failed_request_fails_the_measurement() -> None:
    with fake_server(fails_every=3) as server:
        with Client(server.url) as client:
            target = client.discover()
        with pytest.raises(ServerError, match="too busy"):
            run(target, prompt_tokens=16, output_tokens=2, concurrency=1, requests=2)


def test_medians_are_taken_for_each_concurrency() -> None:
    results = [{"concurrency": float(level), "wall_seconds": wall} for level in (1, 8) for wall in (3.0, 1.0, 2.0)]
    assert medians(results) == [{"concurrency": 1.0, "wall_seconds": 2.0}, {"concurrency": 8.0, "wall_seconds": 2.0}]
