"""Timers of device work. Knows nothing of the work that is timed."""

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
    """Measures functions, in seconds; results are medians over samples."""

    def cold(self, function: Callable[[], object]) -> float:
        """Seconds of a run with cold caches, started from a CUDA graph on a GPU."""

    def steady(self, function: Callable[[], object], runs: int = 20) -> float:
        """Seconds of one run, averaged over `runs` runs in a row, including any work of the host between them."""

    def host(self, function: Callable[[], object]) -> float:
        """Seconds that the host takes to start a run, while the device is idle."""


@dataclass(frozen=True, slots=True)
class CudaTimer:
    """Measures device time with CUDA events."""

    device: torch.device
    flush: torch.Tensor
    """A tensor of four times the size of the L2 cache, read to flush the cache. It is not written, since the next run
    would then also pay for writing it back to memory."""
    stream: torch.cuda.Stream

    @classmethod
    def of(cls, device: torch.device) -> "CudaTimer":
        """A timer for `device`."""
        cache: int = torch.cuda.get_device_properties(device).L2_cache_size
        return cls(device, torch.ones(cache, dtype=torch.float32, device=device), torch.cuda.Stream(device))

    def cold(self, function: Callable[[], object]) -> float:
        torch.cuda.synchronize(self.device)  # The inputs of `function` were made on another stream.
        # A failed capture leaves its stream the current one; this block restores the previous stream in any case.
        with torch.cuda.stream(self.stream):
            function()  # Compiles and loads the kernels, which is not allowed during a capture.
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

    def host(self, function: Callable[[], object]) -> float:
        samples = []
        for _ in range(FEWEST_SAMPLES):
            torch.cuda.synchronize(self.device)
            began = time.perf_counter()
            function()
            samples.append(time.perf_counter() - began)
        torch.cuda.synchronize(self.device)
        return statistics.median(samples)

    def _median(self, replay: Callable[[], object]) -> float:
        once = max(self._samples(replay, 3))
        count = int(SECONDS_A_MEASUREMENT / max(once, 1e-6))
        return statistics.median(self._samples(replay, min(max(count, FEWEST_SAMPLES), MOST_SAMPLES)))

    def _samples(self, replay: Callable[[], object], count: int) -> list[float]:
        # The flushes take longer than the host's calls, so the device never waits for the host within a sample.
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
    """Measures one run with the host's clock, for smoke runs."""

    def cold(self, function: Callable[[], object]) -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    def steady(self, function: Callable[[], object], runs: int = 20) -> float:
        return self.cold(function)

    def host(self, function: Callable[[], object]) -> float:
        return self.cold(function)


class Clock:
    """A time limit of `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left; negative once the limit is passed."""
        return self._end - time.monotonic()
