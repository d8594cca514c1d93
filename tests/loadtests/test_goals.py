from pathlib import Path

import pytest

from loadtests import goals as module
from loadtests.goals import Goals, GoalsError, judge, load_goals

NOTHING = dict.fromkeys(Goals.__dataclass_fields__)


def test_the_goals_that_come_with_it_can_be_read() -> None:
    assert load_goals(Path(module.__file__).with_name("goals.toml")).error_rate == 0.01


def test_latencies_are_ceilings_and_goodput_is_a_floor() -> None:
    goals = Goals(ttft_p95_seconds=1.0, goodput_share=0.9)
    verdicts = judge(goals, NOTHING | {"ttft_p95_seconds": 1.0, "goodput_share": 0.9})
    assert [verdict.met for verdict in verdicts] == [True, True]
    verdicts = judge(goals, NOTHING | {"ttft_p95_seconds": 1.01, "goodput_share": 0.89})
    assert [verdict.met for verdict in verdicts] == [False, False]


def test_what_was_not_measured_is_not_met() -> None:
    assert [verdict.met for verdict in judge(Goals(error_rate=1.0), NOTHING)] == [False]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ttft = 1", "no goal 'ttft'"),
        ("error_rate = 'low'", "error_rate should be a number"),
        ("error_rate = -1", "at least 0"),
        ("error_rate = true", "number"),
        ("goodput_share = 0.5", "goodput needs"),
        ("", "no goal in it"),
        ("error_rate", "toml"),
    ],
)
def test_a_bad_file_is_one_line_with_its_name(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "goals.toml"
    path.write_text(text)
    with pytest.raises(GoalsError, match=word) as caught:
        load_goals(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
