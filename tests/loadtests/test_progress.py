from loadtests.progress import interval, line
from loadtests.sse import Answer


def test_a_line_says_what_happens_before_any_answer_has_come() -> None:
    assert line(5, 90, 2, []) == " 0:05 of 1:30  2 in flight, 0 answered"


def test_a_line_says_what_came() -> None:
    got = [Answer(0.0, 3.0, 1.0, [0.5, 0.5], completion_tokens=3), Answer(0.0, 1.0, error="gone")]
    said = line(95, 90, 5, got)
    assert said == " time is over  3 in flight, 1 answered, 1 FAILED, first token after 1.00 s, 2.0 tokens/s each"


def test_long_runs_say_less_often() -> None:
    assert interval(30) == 5.0
    assert interval(3600) == 120.0
