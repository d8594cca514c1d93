import pytest

from loadtests.shapes import SHAPES, Stage, stage_at, step


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("users", [1, 3, 8])
def test_every_shape_reaches_its_users_and_takes_its_time(shape: str, users: int) -> None:
    stages = SHAPES[shape](users, 120.0)
    assert max(stage.users for stage in stages) == users
    assert min(stage.users for stage in stages) >= 1
    assert sum(stage.seconds for stage in stages) == pytest.approx(120.0)


def test_steps_double_up_to_the_users() -> None:
    assert [stage.users for stage in step(8, 60)] == [1, 2, 4, 8]
    assert [stage.users for stage in step(6, 60)] == [1, 2, 4, 6]
    assert [stage.users for stage in step(1, 60)] == [1]


def test_the_stage_at_a_time() -> None:
    stages = [Stage(1, 10), Stage(2, 5)]
    assert [stage_at(stages, time) for time in (0, 9.9, 10, 14.9, 15)] == [*stages[:1] * 2, *stages[1:] * 2, None]
