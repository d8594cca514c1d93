import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests import compare
from loadtests.client import ServerError
from loadtests.compare import Plan, Turn, beside_best, choose, medians, report, round_numbers, take_turns, text_table
from loadtests.peers import Peer
from tests.loadtests.test_peers import PIPED, VARIABLES

PLAN = Plan(concurrency=(1, 8), prompt_tokens=16, output_tokens=4, ttft_requests=1)
OURS, THEIRS = Peer("headlight", PIPED), Peer("other", PIPED)


def turn(peer: str, number: int, speed: float, ttft: float = 100.0) -> Turn:
    return Turn(peer, number, {"tokens_per_second_1": speed, "tokens_per_second_8": 2 * speed, "ttft_ms": ttft})


def test_every_peer_gets_the_same_prompts_and_no_prompt_comes_twice() -> None:
    rounds = [
        prompt
        for number in (1, 2)
        for part, count in (("ttft", 1), ("1 at once", 6), ("8 at once", 16))
        for prompt in PLAN.prompts(number, part, count)
    ]
    assert len(set(rounds)) == len(rounds)
    assert PLAN.prompts(1, "ttft", 3) == PLAN.prompts(1, "ttft", 3)
    assert {len(prompt.split()) for prompt in rounds} == {16}
    assert (PLAN.requests(1), PLAN.requests(8)) == (6, 16)


def test_peers_take_turns_and_a_failure_costs_one_turn(tmp_path: Path) -> None:
    broken = Peer("broken", PIPED, environment={"FAKE_PEER_DIES": "1"})
    turns = list(take_turns([OURS, broken, THEIRS], VARIABLES, PLAN, (1, 2), tmp_path))
    assert [(t.peer, t.round) for t in turns] == [
        (name, number) for number in (1, 2) for name in ("headlight", "broken", "other")
    ]
    for one in turns:
        if one.peer == "broken":
            assert one.error == "broke off; exit status 1; out of ideas"
            assert set(one.figures) == {"ready_seconds"}
        else:
            assert one.error is None
            assert one.figures["tokens_per_second_8"] == pytest.approx(100)
            assert one.figures["prompt_tokens_8"] == 16
            assert one.figures["ttft_ms"] == pytest.approx(50)


def test_a_file_that_cannot_be_made_costs_a_turn(tmp_path: Path) -> None:
    peer = Peer("other", PIPED, makes=str(tmp_path / "weights"), make=("false",))
    (only,) = take_turns([peer], VARIABLES, PLAN, (1,), tmp_path)
    assert only.error == "weights was not made: exit status 1; it said nothing"


@pytest.mark.parametrize(("seconds", "expected"), [(1e9, [1, 2, 3]), (25.0, [1, 2]), (1.0, [1])])
def test_no_round_begins_that_would_end_too_late(seconds: float, expected: list[int]) -> None:
    # The clock is read at the start, and before and after each round, which takes ten seconds.
    clock = iter([0.0, 0.0, 10.0, 10.0, 20.0, 20.0, 30.0])
    assert list(round_numbers(3, seconds, lambda: next(clock))) == expected


def test_medians_and_the_best_peer() -> None:
    turns = [
        *(turn("headlight", number, speed) for number, speed in enumerate((150.0, 90.0, 120.0), 1)),
        *(turn("slow", number, 40.0, ttft=50.0) for number in (1, 2, 3)),
        *(turn("fast", number, 80.0, ttft=200.0) for number in (1, 2, 3)),
    ]
    table = medians(turns)
    assert table["headlight"]["tokens_per_second_1"] == 120
    best = beside_best(table, PLAN)
    assert best["tokens_per_second_8"] == {"peer": "fast", "figure": 160, "ratio": 1.5}
    assert best["ttft_ms"] == {"peer": "slow", "figure": 50, "ratio": 2}
    assert "memory_mb" not in best


def test_the_table_says_what_is_missing() -> None:
    turns = [turn("headlight", 1, 30.0), turn("other", 1, 20.0), turn("other", 2, 10.0), turn("gone", 1, 0.0)]
    turns[2].figures.pop("ttft_ms")
    turns[3].figures.clear()
    rows = [row.strip("| ").split(" | ") for row in text_table(turns, [OURS, THEIRS], PLAN).splitlines()]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["headlight (no HTTP)"] == ["30.0", "60.0", "100", "failed", "failed"]
    assert by_name["other (no HTTP)"][:3] == ["15.0", "30.0", "100 (1 of 2)"]
    assert by_name["gone"][0] == "failed"
    assert by_name["headlight / best"][:3] == ["2.00", "2.00", "1.00"]
    assert text_table([], [OURS], PLAN).count("\n") == 1


def test_the_report_has_every_turn_and_its_units() -> None:
    turns = [turn("headlight", 1, 30.0), Turn("other", 1, {}, "did not start")]
    whole = json.loads(json.dumps(report(turns, PLAN, {"machine": {"cores": 2}})))
    assert whole["machine"] == {"cores": 2}
    assert whole["plan"]["concurrency"] == [1, 8]
    assert whole["turns"][1] == {"peer": "other", "round": 1, "error": "did not start", "figures": {}}
    assert whole["medians"]["headlight"]["tokens_per_second_8"] == 60


def test_only_installed_peers_are_chosen() -> None:
    absent = Peer("absent", ("${PEER_NONE}",))
    assert choose([OURS, absent], {}, []) == ([OURS], {"absent": "PEER_NONE is not set"})
    assert choose([OURS, absent], {}, ["headlight"]) == ([OURS], {})
    assert choose([OURS, THEIRS], {}, ["other", "headlight", "other"]) == ([THEIRS, OURS], {})
    with pytest.raises(ServerError, match="no peer is called nobody"):
        choose([OURS], {}, ["nobody"])


@pytest.fixture
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a short comparison of two fake peers; the test may add some."""
    peers = tmp_path / "peers.toml"
    fake = f'command = ["${{PYTHON}}", "{VARIABLES["ROOT"]}/tests/loadtests/fake_peer.py"]'
    peers.write_text(f"[variables]\n[peers.headlight]\n{fake}\n[peers.other]\n{fake}\n")
    monkeypatch.setattr(compare.signal, "signal", lambda *_: None)
    arguments = ["compare", "--peers", str(peers), "--rounds", "2", "--concurrency", "1", "--ttft-requests", "1"]
    arguments += ["--logs", str(tmp_path / "made"), "--json", str(tmp_path / "out" / "results.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    return arguments


def test_a_whole_run(command_line: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert compare.main() == 0
    shown = capsys.readouterr().out
    assert "cores: " in shown
    assert "medians of 2 rounds" in shown
    assert "| headlight / best | 1.00 |" in shown
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["turns"]) == 4
    assert set(results["versions"]) == {"headlight", "other"}
    assert "load_before" in results["machine"]


def test_a_run_that_is_terminated_shows_what_it_has(
    command_line: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_turn(*_: object) -> Iterator[Turn]:
        yield turn("headlight", 1, 30.0)
        sys.exit(143)

    monkeypatch.setattr(compare, "take_turns", one_turn)
    with pytest.raises(SystemExit):
        compare.main()
    assert "| headlight (no HTTP) | 30.0 |" in capsys.readouterr().out


def test_an_unknown_peer_is_refused(command_line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command_line += ["--only", "nobody"]
    assert compare.main() == 2
    assert capsys.readouterr().err == "compare: no peer is called nobody\n"
