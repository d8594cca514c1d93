import pytest

from benchmarks.host import KINDS, engine


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_a_step_is_charged_once(kind: str) -> None:
    found = engine(requests=4, prompt=16, steps=12, device_seconds=0.004, temperature=0.5, **KINDS[kind])
    assert set(found.parts) == {"receive", "step", "masks", "plan", "stage", "read", "commit", "send"}
    assert all(0 < milliseconds < 1000 for milliseconds in found.parts.values())
    assert 0.1 < found.pace < 1.1
