"""One run of the load test: gathers the answers, reads the server's metrics before and after, writes the results.

Knows Locust's environment and events, but neither users nor shapes.
"""

import json
import logging
import os
import platform
import time
from argparse import Namespace
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment

from loadtests import progress
from loadtests.client import Client, ServerError, Target
from loadtests.figures import Span, over_time
from loadtests.goals import Goals, GoalsError, load_goals
from loadtests.locust_rows import show
from loadtests.pace import fitting_scale, pace_of, probe, turn_seconds
from loadtests.report import conclusion, render
from loadtests.scrape import Scrape
from loadtests.shapes import SHAPES, Stage
from loadtests.sse import Answer
from loadtests.summary import Summary, summarise
from loadtests.workloads import WORKLOADS

log = logging.getLogger(__name__)

_SECONDS = 120.0
_SOAK_SECONDS = 3600.0
REQUESTS = 40
"""The number of requests that lengths are scaled for: twice what a verdict needs, for a pace is a rough guess."""
_GRACE_SECONDS = (10.0, 120.0)
"""The least and the most time that requests in flight have to finish after their users are told to stop."""


def stages(options: Namespace) -> list[Stage]:
    """The stages of the shape that the options choose."""
    seconds = float(options.run_time or (_SOAK_SECONDS if options.shape == "soak" else _SECONDS))
    return SHAPES[options.shape](int(options.num_users or 1), seconds)


def judged(options: Namespace) -> list[Stage]:
    """The stages that the goals are judged by: the first one of a step run, else all of them."""
    plan = stages(options)
    return plan[:1] if options.shape == "step" else plan


EXIT_STATUS = {True: 0, False: 1, None: 2}
"""Of a run whose goals are met, of one that misses one, and of one with too few samples to tell."""


class Run:
    """One process's part in a test. It gathers answers; the master, or the only process, also judges them."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._patience = environment.stop_timeout
        """Seconds for the last requests, if Locust's --stop-timeout says so."""
        self._answers: list[Answer] = []
        self._asked = 0
        """Requests sent; a worker counts from one report to the next."""
        self._goals = Goals()
        self._host: str | None = None
        """The host that `connect` was called for."""
        self._under_way = False
        self._before: Scrape | None = None
        self._summary: Summary | None = None

    @property
    def _options(self) -> Namespace:
        options = self._environment.parsed_options
        assert isinstance(options, Namespace)
        return options

    def connect(self) -> None:
        """Read the goals, and store the server's Target in the options, which workers get.

        Raises GoalsError, and ServerError if no server answers.
        """
        self._goals = load_goals(Path(self._options.goals))
        with Client(self._environment.host or "") as client:
            self._options.target = asdict(client.discover(self._options.model_name))
        self._host = self._environment.host

    def start(self, **_: Any) -> None:
        """Begin a test: measure the server, forget the answers of the last test, and read the server's metrics."""
        if self._host != self._environment.host and not self._reconnected():
            return
        self._options.run = f"{time.time():.6f}"
        self._calibrate()
        self._answers.clear()
        self._asked = 0
        self._before = self._scrape()
        self._under_way = True
        gevent.spawn(self._show_progress)

    def _calibrate(self) -> None:
        """Measure the server's pace, and choose by it the scale of lengths and the time for the last requests."""
        options, target = self._options, Target(**self._options.target)
        least, most = _GRACE_SECONDS
        _say(f"measuring {target.model} at {target.url} ...")
        pace = pace_of(probe(target, max(stage.users for stage in stages(options))))
        if pace is None:
            _say("no request of the measurement was answered; the test is made all the same, with full lengths")
            options.factor = 1.0 if options.scale == "auto" else float(options.scale)
            self._environment.stop_timeout = self._patience or most
            return
        workload = WORKLOADS[options.workload]
        room = sum(stage.users * stage.seconds for stage in judged(options))
        if options.scale == "auto":
            options.factor = fitting_scale(workload, pace, target.max_context, room / REQUESTS)
        else:
            options.factor = float(options.scale)
        scaled = workload.scaled(options.factor)
        turn = turn_seconds(scaled, pace, target.max_context)
        self._environment.stop_timeout = self._patience or round(min(max(3 * turn, least), most))
        _say(pace.describe())
        _say(f"scale {options.factor:g}: {scaled.describe()}; {turn:.2g} s for a request and the thinking after it")
        _say(f"the goals will rest on about {max(room / turn, 1):.0f} requests")

    def _show_progress(self) -> None:
        """Print a line every few seconds while the test is under way."""
        shape = self._environment.shape_class
        assert shape is not None
        run, seconds = self._options.run, sum(stage.seconds for stage in stages(self._options))
        while True:
            gevent.sleep(progress.interval(seconds))
            if not self._under_way or self._options.run != run:
                return
            _say(progress.line(shape.get_run_time(), seconds, self._asked, self._answers))

    def ask(self) -> None:
        """Count a request that is sent."""
        self._asked += 1

    def take(self, answer: Answer) -> None:
        """Keep an answer of this process, and show it in Locust's statistics."""
        self._answers.append(answer)
        show(self._environment, answer)

    def send(self, client_id: str, data: dict[str, Any]) -> None:
        """Add this worker's answers to `data`, its report to the master."""
        data["answers"] = [asdict(answer) for answer in self._answers]
        self._answers.clear()
        data["asked"] = self._asked
        self._asked = 0

    def receive(self, client_id: str, data: dict[str, Any]) -> None:
        """Take the answers out of `data`, a worker's report."""
        self._answers += [Answer(**answer) for answer in data.get("answers", ())]
        self._asked += data.get("asked", 0)

    def stop(self, **_: Any) -> None:
        """Write summary and report after all users have stopped, if a test was under way."""
        if not self._under_way:
            return
        self._under_way = False
        after = self._scrape()
        gained = after.since(self._before) if after and self._before else None
        spans = self._spans()
        self._summary = summarise(self._answers, spans, self._goals, self._settings(), gained)
        folder = Path(self._options.results)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(self._summary.as_json(), indent=2, allow_nan=False) + "\n")
        series = over_time(self._answers, Span(spans[0].start, spans[-1].end, 0))
        (folder / "report.html").write_text(render(self._summary, series, self._answers))
        self._environment.process_exit_code = EXIT_STATUS[self._summary.passed]

    def interrupt(self, **_: Any) -> None:
        """Stop a test that is under way when Locust is about to end.

        Locust asks for the exit status before it stops the test itself.
        """
        assert self._environment.runner is not None
        if self._under_way:
            self._environment.runner.stop()

    def conclude(self, **_: Any) -> None:
        """Print the conclusion, as the last lines in the terminal."""
        if self._summary:
            print("\n".join([*conclusion(self._summary), f"report: {self._options.results}/report.html"]), flush=True)

    def _reconnected(self) -> bool:
        """Connect to another host, which was entered in Locust's interface. False, and quit, if there is no server."""
        try:
            self.connect()
        except (ServerError, GoalsError) as error:
            log.error("%s", error)
            assert self._environment.runner is not None
            self._environment.runner.quit()
            return False
        return True

    def _scrape(self) -> Scrape | None:
        try:
            with Client(self._environment.host or "") as client:
                return Scrape.parse(client.get("/metrics").decode())
        except (ServerError, ValueError):
            return None

    def _spans(self) -> list[Span]:
        """The time spans of the stages, up to now if the test was interrupted."""
        shape = self._environment.shape_class
        assert shape is not None
        now = time.time()
        start = now - shape.get_run_time()
        spans = []
        for stage in stages(self._options):
            end = min(start + stage.seconds, now)
            if end > start:
                spans.append(Span(start, end, stage.users))
            start = end
        return spans

    def _settings(self) -> dict[str, Any]:
        names = ("workload", "shape", "seed", "run")
        return {
            "url": self._options.target["url"],
            "model": self._options.target["model"],
            "ignore_eos": self._options.target["ignore_eos"],
            "scale": self._options.factor,
            **{name: getattr(self._options, name) for name in names},
            "users": max(stage.users for stage in stages(self._options)),
            "seconds": sum(stage.seconds for stage in stages(self._options)),
            "goals": self._options.goals,
            "load_generator": f"Locust {version('locust')}, Python {platform.python_version()}, {os.cpu_count()} CPUs",
        }


def _say(text: str) -> None:
    print(text, flush=True)
