"""How many threads run programs: fewer than there are where other processes want the cores.

A thread that loses its core in the middle of a chunk keeps all others waiting, so that two threads on a busy machine
may take twice as long as one. Nothing but time tells: in a trial, programs run in turn with one thread more or fewer,
and the faster number is kept.
"""

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean

SAMPLE = 0.15
"""Seconds of runs with either number of threads in a trial, at least."""
RUNS = 2
"""Runs of the same work with either number of threads, at least; the time of a single one says little."""
GIVEN_UP = 1.0
"""Seconds of all runs of a trial, after which it ends without them."""
GAIN = 0.95
"""Share of the time that another number of threads must stay below to be taken."""
HOPELESS = 1.25
"""Ratio of the times for the same work, with another number of threads and with the present one, that ends a trial."""
PAUSE, LONGEST_PAUSE = 3.0, 24.0
"""Seconds between trials: at first, and at most; they double with each trial that changes nothing."""
CONTENDED = 30.0
"""Switches in a second of runs, of threads that would have run on, from which on others are taken to want the cores."""

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
        self._down = False
        self._samples: dict[int, Sample] = {}
        """Each number of threads in a trial with its runs; {}: no trial."""
        self._pause = PAUSE
        self._rest()

    def choose(self, work: int) -> int:
        """Number of threads for the next run, of a program with `work` chunks."""
        if self._most == 1:
            return 1
        if not self._samples and self._clock() - self._since > self._pause:
            self._begin()
        self._before = self._switches()
        # Runs of the same work take turns, since what others do to the machine changes while a trial lasts.
        return min(self._samples, key=lambda threads: len(self._samples[threads][work]), default=self.size)

    def took(self, work: int, threads: int, seconds: float) -> None:
        """Count the time of a run; runs with the same `work` are compared."""
        if self._most == 1:
            return
        self._ran += seconds
        self._switched += self._switches() - self._before
        if threads in self._samples:
            self._samples[threads][work].append(seconds)
            self._decide()

    def _rest(self) -> None:
        """Begin to count what others do, until the next trial."""
        self._since, self._ran, self._switched, self._samples = self._clock(), 0.0, 0, {}

    def _begin(self) -> None:
        """Begin a trial, unless all threads run and nobody else wants the cores."""
        contended = self._switched > CONTENDED * self._ran
        self._rest()
        if self.size < self._most or contended:
            self._down = self.size == self._most or (contended and not self._down and self.size > 1)
            other = self.size + (-1 if self._down else 1)
            self._samples = {self.size: defaultdict(list), other: defaultdict(list)}

    def _decide(self) -> None:
        """Keep the faster number of threads once that is known, or the one there was where nothing tells."""
        seconds = [sum(map(sum, sample.values())) for sample in self._samples.values()]
        now, other = self._samples
        first, ratio = (_ratio(self._samples[other], self._samples[now], runs) for runs in (1, RUNS))
        if first is not None and first > HOPELESS:
            self._end(now)
        elif (ratio is not None and min(seconds) >= SAMPLE) or sum(seconds) >= GIVEN_UP:
            self._end(other if ratio is not None and ratio < GAIN else now)

    def _end(self, size: int) -> None:
        """End a trial with a number of threads."""
        self._pause = min(2 * self._pause, LONGEST_PAUSE) if size == self.size else PAUSE
        self.size = size
        self._rest()


def _ratio(one: Sample, other: Sample, runs: int) -> float | None:
    """The time of one sample's runs as a share of the other's, for work that both have done so many times, if any."""
    shared = [work for work in one.keys() & other.keys() if min(len(one[work]), len(other[work])) >= runs]
    mine, theirs = (sum(len(other[work]) * fmean(sample[work]) for work in shared) for sample in (one, other))
    return mine / theirs if shared else None
