"""The number of threads follows what is faster, and a quiet machine never pays for a trial."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from kernels.cpu.crew import CONTENDED, GIVEN_UP, PAUSE, Crew

WORK = 500


class Machine:
    """A clock that runs as programs do, and counts what other processes take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.switches = 0.0
        self.rate = 0.0
        """Switches a second."""

    def run(self, crew: Crew, seconds: Callable[[int], float], until: float, work: int = WORK) -> list[int]:
        """The numbers of threads of all runs until a time; `seconds` tells how long each number takes."""
        sizes = []
        while self.now < until:
            threads = crew.choose(work)
            self.now += seconds(threads)
            self.switches += self.rate * seconds(threads)
            crew.took(work, threads, seconds(threads))
            sizes.append(threads)
        return sizes


def crew_of(most: int, machine: Machine) -> Crew:
    return Crew(most, lambda: machine.now, lambda: int(machine.switches))


def quiet(threads: int) -> float:
    return 0.01 / threads


def crowded(threads: int) -> float:
    return 0.01 + 0.01 * threads


def test_all_threads_run_where_nobody_else_wants_the_cores() -> None:
    machine = Machine()
    assert set(machine.run(crew_of(4, machine), quiet, 60)) == {4}


@pytest.mark.parametrize("most", [2, 3, 8])
def test_fewer_threads_run_while_that_is_faster_and_all_again_afterwards(most: int) -> None:
    machine = Machine()
    crew = crew_of(most, machine)
    machine.rate = 2 * CONTENDED
    machine.run(crew, crowded, 90)
    assert crew.size == 1
    sizes = machine.run(crew, crowded, 150)
    assert sizes.count(1) > 0.7 * len(sizes)
    machine.rate = 0
    machine.run(crew, quiet, 200)
    assert crew.size == most
    assert set(machine.run(crew, quiet, 250)) == {most}


def test_trials_that_change_nothing_are_rare() -> None:
    machine = Machine()
    machine.rate = 2 * CONTENDED
    sizes = machine.run(crew_of(2, machine), quiet, 100)
    assert 0 < sizes.count(1) * quiet(1) < 0.001 * 100


def test_what_others_do_between_runs_does_not_count() -> None:
    """While a server starts, and before a request comes, other processes may take any number of cores."""
    machine = Machine()
    crew = crew_of(2, machine)
    sizes = []
    for _ in range(100):
        machine.now += 1
        machine.switches += 10 * CONTENDED
        sizes += machine.run(crew, quiet, machine.now + 0.02)
    assert set(sizes) == {2}


def test_a_run_that_took_long_by_chance_changes_nothing() -> None:
    """The first run of a program reads all weights from the disk's cache, and may take ten times its usual time."""
    machine = Machine()
    machine.rate = 2 * CONTENDED
    crew = crew_of(2, machine)
    machine.run(crew, quiet, PAUSE)
    machine.run(crew, lambda threads: 1.1 * GIVEN_UP, machine.now + 0.1)
    assert crew.size == 2
    machine.run(crew, quiet, 20)
    assert crew.size == 2


def test_runs_of_a_trial_take_turns() -> None:
    machine = Machine()
    machine.rate = 2 * CONTENDED
    crew = crew_of(2, machine)
    machine.run(crew, crowded, PAUSE)
    assert all(one != other for one, other in pairwise(machine.run(crew, crowded, machine.now + 0.1)[-4:]))


def test_a_trial_ends_with_the_first_run_that_takes_far_longer() -> None:
    machine = Machine()
    machine.rate = 2 * CONTENDED
    crew = crew_of(2, machine)
    machine.run(crew, quiet, PAUSE)
    assert machine.run(crew, quiet, 2 * PAUSE).count(1) == 1


def test_runs_of_other_work_are_not_compared() -> None:
    machine = Machine()
    crew = crew_of(2, machine)
    machine.rate = 2 * CONTENDED
    for work in range(1000):
        machine.run(crew, crowded, machine.now + 0.001, work)
    assert crew.size == 2


def test_one_thread_stays_one() -> None:
    machine = Machine()
    machine.rate = 2 * CONTENDED
    assert set(machine.run(crew_of(1, machine), crowded, 10)) == {1}
