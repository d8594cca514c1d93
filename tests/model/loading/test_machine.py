"""A container's limits count, not the host's size."""

from pathlib import Path

from model.loading.machine import available_memory, usable_cores

NOWHERE = Path("/nonexistent")


def test_cores_follow_the_quota(tmp_path: Path) -> None:
    own = usable_cores(NOWHERE)
    assert own >= 1
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == own


def test_memory_is_the_lesser_of_machine_and_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable: 2000 kB\n")
    assert available_memory(NOWHERE, meminfo) == 2000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_memory(tmp_path, meminfo) == 2000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert available_memory(tmp_path, meminfo) == 4000
    (tmp_path / "memory.max").write_text("500\n")
    assert available_memory(tmp_path, meminfo) == 0
    assert available_memory(NOWHERE, NOWHERE) > 0
