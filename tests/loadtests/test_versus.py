import json
import random
from pathlib import Path
from typing import Any

import pytest

from loadtests.figures import Span
from loadtests.goals import Goals
from loadtests.records import write
from loadtests.sse import Answer
from loadtests.summary import summarise
from loadtests.versus import Results, compare, differing, main, render

SETTINGS = {"model": "tiny", "workload": "mix", "shape": "steady", "unit": "users", "run": "1"}


def run(folder: Path, factor: float, count: int = 200, seed: int = 0, **settings: Any) -> Path:
    """A run of `count` requests that take `factor` times as long as another's; its warm-up takes for ever."""
    rng = random.Random(seed)
    got = [Answer(1000.0 - n, 1e4, 1e3, [1e3], completion_tokens=2) for n in range(1, count // 2)]
    for index in range(count):
        ttft, gap = (factor * rng.lognormvariate(-1, 0.3) for _ in range(2))
        got.append(Answer(1000.0 + index, ttft + 4 * gap, ttft, [gap] * 4, 10, 0, 5))
    span = Span(1000.0, 1000.0 + count, 1)
    folder.mkdir(exist_ok=True)
    write(folder, got, span.start)
    summary = summarise(got, [span], Goals(error_rate=1), SETTINGS | settings, None)
    (folder / "summary.json").write_text(json.dumps(summary.as_json()))
    return folder


def better(before: Path, after: Path) -> list[bool | None]:
    return [change.better for change in compare(Results.load(before), Results.load(after))]


def test_a_change_is_told_from_chance(tmp_path: Path) -> None:
    before = run(tmp_path / "a", 1.0)
    latencies = 6
    assert better(before, run(tmp_path / "b", 1.0, seed=1))[:latencies] == [None] * latencies
    assert better(before, run(tmp_path / "c", 0.6, seed=1))[:latencies] == [True] * latencies
    assert better(before, run(tmp_path / "d", 1.6, seed=1))[:latencies] == [False] * latencies
    assert better(before, run(tmp_path / "e", 1.6, seed=1))[latencies:] == [None] * 3


def test_too_few_requests_have_no_interval(tmp_path: Path) -> None:
    changes = compare(Results.load(run(tmp_path / "a", 1.0, 10)), Results.load(run(tmp_path / "b", 9.0, 10)))
    assert [change.interval is None for change in changes[:2]] == [False, True]
    assert (changes[1].after, changes[1].better) == (None, None)


def test_the_exit_status_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast, slow = run(tmp_path / "a", 1.0), run(tmp_path / "b", 2.0, run="2", workload="chat<")
    assert main([str(fast), str(slow)]) == 1
    said = capsys.readouterr().out
    assert "workload differs: mix before, chat< after" in said
    assert "run differs" not in said
    assert said.count("WORSE") == 6
    page = (slow / "comparison.html").read_text()
    assert "chat&lt;" in page
    assert page.count("<svg") == 3
    assert main([str(slow), str(fast)]) == 0


def test_runs_alike_differ_in_nothing(tmp_path: Path) -> None:
    one = Results.load(run(tmp_path / "a", 1.0))
    assert differing(one, one) == []
    assert "<p>None.</p>" in render(one, one, compare(one, one))


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"versus: {tmp_path}/summary.json: No such file or directory\n"
    (tmp_path / "summary.json").write_text("[]")
    (tmp_path / "requests.jsonl").write_text("")
    assert main([str(tmp_path), str(tmp_path)]) == 2
