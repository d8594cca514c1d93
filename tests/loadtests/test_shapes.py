import pytest

from loadtests.shapes import SHAPES, Stage, stage_at, step


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("load", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("whole", [True, False])
def test_every_shape_reaches_its_load_and_takes_its_time(shape: str, load: float, whole: bool) -> None:
    stages = SHAPES[shape](load, 120.0, whole)
    assert max(stage.load for stage in stages) == load
    assert min(stage.load for stage in stages) >= (1 if whole else load / 8)
    assert all(stage.load.is_integer() for stage in stages if whole)
    assert sum(stage.seconds for stage in stages) == pytest.approx(120.0)


def test_steps_double_up_to_the_users() -> None:
    assert [stage.load for stage in step(8, 60, True)] == [1, 2, 4, 8]
    assert [stage.load for stage in step(6, 60, True)] == [1, 2, 4, 6]
    assert [stage.load for stage in step(1, 60, True)] == [1]
    assert [stage.load for stage in step(2, 60, False)] == [0.25, 0.5, 1, 2]


def test_the_stage_at_a_time() -> None:
    stages = [Stage(1, 10), Stage(2, 5)]
    assert [stage_at(stages, time) for time in (0, 9.9, 10, 14.9, 15)] == [*stages[:1] * 2, *stages[1:] * 2, None]
