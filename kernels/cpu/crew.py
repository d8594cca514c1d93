"""How many threads run programs: fewer than there are where other processes want the cores.

A thread that loses its core in the middle of a chunk keeps all others waiting, so that two threads on a busy machine
may take twice as long as one. Nothing but time tells: for a while programs run with one thread more or fewer, and the
faster number is kept.
"""

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean

SAMPLE = 0.25
"""Seconds of runs with either number of threads in a trial."""
GAIN = 0.95
"""Share of the time that another number of threads must stay below to be taken."""
PAUSE = 2.0
"""Seconds between trials."""
CONTENDED = 30.0
"""Switches a second, of threads that would have run on, from which on others are taken to want the cores."""

Sample = Mapping[int, list[float]]
"""Seconds of runs by the work of their programs."""


def involuntary_switches() -> int:
    """Number of times that the system took a core from a thread of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Crew:
    """The number of threads that run programs, up to `most`."""

    def __init__(
        self,
        most: int,
        clock: Callable[[], float] = time.perf_counter,
        switches: Callable[[], int] = involuntary_switches,
    ) -> None:
        self.size = most
        """Number of threads, between trials."""
        self._most = most
        self._clock = clock
        self._switches = switches
        self._since, self._switched = clock(), switches()
        self._down = False
        self._samples: dict[int, Sample] = {}
        """Each number of threads in a trial with its runs, in the order in which they have their turn; {}: no trial."""

    def choose(self) -> int:
        """Number of threads for the next run."""
        if self._most == 1:
            return 1
        if not self._samples and self._clock() - self._since > PAUSE:
            self._begin()
        return next((threads for threads, sample in self._samples.items() if _seconds(sample) < SAMPLE), self.size)

    def took(self, work: int, threads: int, seconds: float) -> None:
        """Count the time of a run; runs with the same `work`, a program's number of chunks, are compared."""
        if threads in self._samples:
            self._samples[threads][work].append(seconds)
            if all(_seconds(sample) >= SAMPLE for sample in self._samples.values()):
                self._decide()

    def _begin(self) -> None:
        """Begin a trial, unless all threads run and nobody else wants the cores."""
        now, switched = self._clock(), self._switches()
        contended = switched - self._switched > CONTENDED * (now - self._since)
        self._since, self._switched = now, switched
        if self.size < self._most or contended:
            self._down = self.size == self._most or (contended and not self._down and self.size > 1)
            other = self.size + (-1 if self._down else 1)
            self._samples = {self.size: defaultdict(list), other: defaultdict(list)}

    def _decide(self) -> None:
        now, other = self._samples
        if _ratio(self._samples[other], self._samples[now]) < GAIN:
            self.size = other
        self._since, self._switched, self._samples = self._clock(), self._switches(), {}


def _seconds(sample: Sample) -> float:
    return sum(map(sum, sample.values()))


def _ratio(one: Sample, other: Sample) -> float:
    """The time of one sample's runs as a share of the other's, for work that both have done; 1 if there is none."""
    shared = one.keys() & other.keys()
    counts = {work: len(other[work]) for work in shared}
    if not shared:
        return 1.0
    mine, theirs = (sum(counts[work] * fmean(sample[work]) for work in shared) for sample in (one, other))
    return mine / theirs
