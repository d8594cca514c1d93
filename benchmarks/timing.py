"""How long device work takes. Knows nothing of what is timed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

SECONDS_A_MEASUREMENT = 0.2
MOST_SAMPLES = 200
FEWEST_SAMPLES = 7


class Timer(Protocol):
    """Measures in seconds, medians over samples."""

    def cold(self, function: Callable[[], object]) -> float:
        """One run that finds nothing of its data in the caches, started from a graph where there are graphs."""

    def steady(self, function: Callable[[], object], runs: int = 20) -> float:
        """One of `runs` runs in a row, with whatever the host does between them."""


@dataclass(frozen=True, slots=True)
class CudaTimer:
    """Device time by events."""

    device: torch.device
    flush: torch.Tensor
    """Four times what the L2 holds. It is read, not written, so that no run pays for writing it back."""
    stream: torch.cuda.Stream

    @classmethod
    def of(cls, device: torch.device) -> "CudaTimer":
        """For `device`."""
        cache: int = torch.cuda.get_device_properties(device).L2_cache_size
        return cls(device, torch.ones(cache, dtype=torch.float32, device=device), torch.cuda.Stream(device))

    def cold(self, function: Callable[[], object]) -> float:
        torch.cuda.synchronize(self.device)  # What `function` reads was made on another stream.
        # A capture that fails leaves its stream the current one: here it is left in any case.
        with torch.cuda.stream(self.stream):
            function()  # Compiled and loaded, which a capture does not allow.
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                function()
            return self._median(graph.replay)

    def steady(self, function: Callable[[], object], runs: int = 20) -> float:
        for _ in range(3):
            function()
        samples = []
        for _ in range(3):
            began, ended = self._moment(), self._moment()
            began.record()
            for _ in range(runs):
                function()
            ended.record()
            ended.synchronize()
            samples.append(_seconds(began, ended) / runs)
        return statistics.median(samples)

    def _median(self, replay: Callable[[], object]) -> float:
        once = max(self._samples(replay, 3))
        count = int(SECONDS_A_MEASUREMENT / max(once, 1e-6))
        return statistics.median(self._samples(replay, min(max(count, FEWEST_SAMPLES), MOST_SAMPLES)))

    def _samples(self, replay: Callable[[], object], count: int) -> list[float]:
        # The flushes keep the device behind the host, so that no sample holds a wait for the host.
        moments = [(self._moment(), self._moment()) for _ in range(count)]
        for began, ended in moments:
            self.flush.sum()
            began.record()
            replay()
            ended.record()
        torch.cuda.synchronize(self.device)
        return [_seconds(began, ended) for began, ended in moments]

    def _moment(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)


def _seconds(began: torch.cuda.Event, ended: torch.cuda.Event) -> float:
    return float(began.elapsed_time(ended)) / 1e3


@dataclass(frozen=True, slots=True)
class WallTimer:
    """The host's clock, once: to see that the code runs where there is nothing to measure."""

    def cold(self, function: Callable[[], object]) -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    def steady(self, function: Callable[[], object], runs: int = 20) -> float:
        return self.cold(function)


class Clock:
    """What is left of the time that a whole run may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; below 0 once it is over."""
        return self._end - time.monotonic()
