from pathlib import Path

import pytest

from loadtests import goals as module
from loadtests.goals import LEAST_SAMPLES, Goals, GoalsError, Measured, judge, load_goals

NOTHING = dict.fromkeys(Goals.__dataclass_fields__, Measured(None, 0))


def met(goals: Goals, samples: int, **values: float) -> list[bool | None]:
    figures = NOTHING | {name: Measured(value, samples) for name, value in values.items()}
    return [verdict.met for verdict in judge(goals, figures)]


def test_the_goals_that_come_with_it_can_be_read() -> None:
    assert load_goals(Path(module.__file__).with_name("goals.toml")).error_rate == 0.01


def test_latencies_are_ceilings_and_goodput_is_a_floor() -> None:
    goals = Goals(ttft_p95_seconds=1.0, goodput_share=0.9)
    assert met(goals, 100, ttft_p95_seconds=1.0, goodput_share=0.9) == [True, True]
    assert met(goals, 100, ttft_p95_seconds=1.01, goodput_share=0.89) == [False, False]


def test_what_was_not_measured_is_not_judged() -> None:
    assert met(Goals(error_rate=1.0), 0) == [None]


@pytest.mark.parametrize("goal", Goals.__dataclass_fields__)
@pytest.mark.parametrize("value", [0.45, 0.55])
def test_too_few_samples_decide_nothing(goal: str, value: float) -> None:
    goals = Goals(**{goal: 0.5})
    assert met(goals, LEAST_SAMPLES // 2, **{goal: value}) == [None]
    assert met(goals, LEAST_SAMPLES, **{goal: value}) != [None]


def test_a_share_may_be_so_bad_that_more_samples_could_not_mend_it() -> None:
    assert met(Goals(error_rate=0.01), 2, error_rate=0.5) == [False]
    assert met(Goals(error_rate=0.2), 4, error_rate=1.0) == [None]
    assert met(Goals(goodput_share=0.9), 3, goodput_share=0.0) == [False]
    assert met(Goals(goodput_share=0.9), 2, goodput_share=0.0) == [None]


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
