from benchmarks.host import engine


def test_every_part_of_a_step_is_charged_once() -> None:
    parts = engine(requests=4, prompt=16, steps=12, device_seconds=0.001, temperature=0.5)
    assert set(parts) == {"receive", "step", "plan", "stage", "read", "commit", "send"}
    assert all(0 < milliseconds < 1000 for milliseconds in parts.values())
