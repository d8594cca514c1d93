"""The plan of a run: what is asked, how much of it when, and what of it is measured. Made from the options alone."""

import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from loadtests.arrivals import ARRIVALS
from loadtests.dataset import Dataset, DatasetError, load_dataset
from loadtests.shapes import SHAPES, Stage, sweep
from loadtests.workloads import WORKLOADS, Workload

_SECONDS = {"soak": 3600.0}
"""The duration of a shape, if it is not given; _ANY_SECONDS for the others."""
_ANY_SECONDS = 120.0
_WARMUP_SHARE, _WARMUP_SECONDS = 0.1, 30.0
"""The warm-up is this share of the duration, and at most so long, unless it is given."""


class PlanError(ValueError):
    """The options contradict each other. The message is one line."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of a run."""

    source: Workload | Dataset
    arrivals: str
    """`users` for a closed loop; `poisson`, `fixed` or `trace` for an open one."""
    shape: str
    warmup: Stage
    """The load before the stages. Its requests are not measured."""
    stages: list[Stage]

    @property
    def open(self) -> bool:
        """Whether conversations begin at times of their own, and not when a user has nothing else to do."""
        return self.arrivals != "users"

    @property
    def seconds(self) -> float:
        """The duration of the stages, without the warm-up."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def all(self) -> list[Stage]:
        """The warm-up and the stages."""
        return [self.warmup, *self.stages]

    @property
    def judged(self) -> list[Stage]:
        """The stages that the goals are judged by: the first one of a step run, else all of them."""
        return self.stages[:1] if self.shape == "step" else self.stages

    @property
    def unit(self) -> str:
        """Unit of a load."""
        return "requests/s" if self.open else "users"

    def times(self, seed: int) -> Iterator[float]:
        """When the conversations of an open loop begin, in seconds from the start of the warm-up."""
        if self.arrivals != "trace":
            return ARRIVALS[self.arrivals](self.all, seed)
        assert isinstance(self.source, Dataset)
        end = self.warmup.seconds + self.seconds
        return takewhile(lambda time: time < end, self.source.times or [])

    def requests(self, turn_seconds: float) -> float:
        """About how many requests the judged stages have, if a turn takes that long. A conversation counts as one."""
        load = sum(stage.load * stage.seconds for stage in self.judged)
        return load if self.open else load / turn_seconds

    def budget(self, requests: int) -> float:
        """The seconds that a turn may take, so that the judged stages have `requests`.

        An open loop has as many as it sends. There a turn should end in a quarter of its stage.
        """
        if self.open:
            return min(stage.seconds for stage in self.judged) / 4
        return sum(stage.load * stage.seconds for stage in self.judged) / requests


def plan_of(options: Namespace) -> Plan:
    """The plan that the options describe. Raises PlanError if they contradict each other or the dataset."""
    source = _source(options)
    times = source.times if isinstance(source, Dataset) else None
    rates = _rates(options.rate)
    arrivals = _arrivals(options.arrivals, rates, times)
    shape = "step" if len(rates) > 1 and options.shape == "steady" else options.shape
    if len(rates) > 1 and shape != "step":
        raise PlanError(f"several rates are a sweep: they cannot have the shape {shape} as well")
    if arrivals == "trace" and shape != "steady":
        raise PlanError(f"a trace has its own times: it cannot have the shape {shape} as well")
    seconds = float(options.run_time or _SECONDS.get(shape, _ANY_SECONDS))
    if arrivals == "trace":
        assert times
        # The last request counts as well.
        seconds = min(seconds, times[-1] + 1e-3) if options.run_time else times[-1] + 1e-3
        seconds = max(seconds, 1.0)
    warmup = _warmup(options.warmup, seconds, arrivals)
    if arrivals == "trace":
        assert times
        stages = [Stage(sum(time < seconds for time in times) / seconds, seconds - warmup)]
    elif len(rates) > 1:
        stages = sweep(rates, seconds)
    else:
        stages = SHAPES[shape](rates[0] if rates else float(options.num_users or 1), seconds, not rates)
    return Plan(source, arrivals, shape, Stage(stages[0].load, warmup), stages)


def _source(options: Namespace) -> Workload | Dataset:
    if not options.dataset:
        return WORKLOADS[options.workload]
    try:
        return load_dataset(Path(options.dataset))
    except DatasetError as error:
        raise PlanError(str(error)) from None


def _rates(text: str) -> list[float]:
    try:
        rates = [float(rate) for rate in text.split(",")] if text else []
    except ValueError:
        rates = [0.0]
    if not all(0 < rate < float("inf") for rate in rates):
        raise PlanError(f"rate should be a number above zero, or several with commas between them (got {text!r})")
    return rates


def _arrivals(chosen: str, rates: list[float], times: list[float] | None) -> str:
    if chosen == "auto":
        chosen = "poisson" if rates else "trace" if times else "users"
    if (chosen in ARRIVALS) != bool(rates):
        raise PlanError(f"arrivals {chosen} {'need a rate' if chosen in ARRIVALS else 'have no rate'}")
    if chosen == "trace" and not times:
        raise PlanError("arrivals trace need a dataset with timestamps")
    return chosen


def _warmup(text: str, seconds: float, arrivals: str) -> float:
    if text == "auto":
        return 0.0 if arrivals == "trace" else min(_WARMUP_SHARE * seconds, _WARMUP_SECONDS)
    match = re.fullmatch(r"(\d+)(s|m|h)", text)
    if match is None:
        raise PlanError(f"warmup should be a time such as 0s, 30s or 2m (got {text!r})")
    warmup = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    if arrivals == "trace" and warmup >= seconds:
        raise PlanError(f"a warm-up of {warmup:g} s leaves nothing of a trace of {seconds:g} s")
    return warmup
