"""Counts that several processes share."""

import subprocess
import sys
from pathlib import Path

from service.api.places import Places

SLOTS = 3


def places(folder: Path, slot: int) -> Places:
    return Places(folder / "places", slot, SLOTS)


def test_places_are_for_all_together(tmp_path: Path) -> None:
    first, second = places(tmp_path, 0), places(tmp_path, 1)
    assert first.take(2, capacity=5)
    assert second.take(3, capacity=5)
    assert not first.take(1, capacity=5)
    second.give(2)
    assert not first.take(3, capacity=5)
    assert first.take(2, capacity=5)
    assert (first.taken, second.taken) == (4, 1)


def test_who_replaces_a_process_has_nothing_of_its_own(tmp_path: Path) -> None:
    assert places(tmp_path, 0).take(3, capacity=5)
    assert places(tmp_path, 1).take(2, capacity=5)
    assert not places(tmp_path, 2).take(1, capacity=5)
    assert places(tmp_path, 0).take(3, capacity=5)


GREEDY = """
import sys
from pathlib import Path
from service.api.places import Places

folder, slot, slots = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
places = Places(folder / "places", slot, slots)
print("here", flush=True)
sys.stdin.read(1)
taken = crowded = 0
while taken < 3000:
    if places.take(1, capacity=1):
        taken += 1
        crowded += sum(places._counts) > 1
        places.give(1)
print(crowded, flush=True)
"""


def test_no_place_is_given_twice(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", GREEDY, str(tmp_path), str(slot), str(SLOTS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for slot in range(SLOTS)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "here\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("!")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["0\n"] * SLOTS
