"""One run of the load test: gathers the answers, reads the server's metrics before and after, writes the results.

Knows Locust's environment and events, but neither users nor shapes.
"""

import json
import logging
import math
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
from locust.runners import MasterRunner, Runner

from loadtests import progress, records
from loadtests.client import ROUTES, Client, ServerError, Target
from loadtests.figures import Span, over_time
from loadtests.goals import Goals, GoalsError, load_goals
from loadtests.locust_rows import show
from loadtests.pace import fitting_scale, pace_of, probe, turn_seconds
from loadtests.plan import Plan, PlanError, plan_of
from loadtests.report import conclusion, render
from loadtests.scrape import Scrape
from loadtests.sse import Answer
from loadtests.summary import Summary, summarise
from loadtests.workloads import Workload

log = logging.getLogger(__name__)

REQUESTS = 40
"""The number of requests that lengths are scaled for: twice what a verdict needs, for a pace is a rough guess."""
_GRACE_SECONDS = (10.0, 120.0)
"""The least and the most time that requests in flight have to finish after their users are told to stop."""


EXIT_STATUS = {True: 0, False: 1, None: 2}
"""Exit statuses of a run whose goals are met, of one that misses one, and of one with too few samples to tell."""


def processes(runner: Runner | None) -> int:
    """The number of processes that send requests."""
    return runner.worker_count if isinstance(runner, MasterRunner) else 1


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
        self._plan: Plan
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

    @property
    def _targets(self) -> list[Target]:
        return [Target(**target) for target in self._options.targets]

    def connect(self) -> None:
        """Read the goals, and store the server's Targets in the options, which workers get.

        Raises PlanError for contradicting options, GoalsError, and ServerError if no server answers.
        """
        plan_of(self._options)
        self._goals = load_goals(Path(self._options.goals))
        with Client(self._environment.host or "") as client:
            names = self._options.model_name.split(",")
            self._options.targets = [asdict(client.discover(name.strip(), self._options.api)) for name in names]
        self._host = self._environment.host

    def start(self, **_: Any) -> None:
        """Begin a test: measure the server, forget the answers of the last test, and read the server's metrics.

        Locust's interface can change host and options between two tests.
        """
        try:
            if self._host != self._environment.host:
                self.connect()
            self._plan = plan_of(self._options)
        except (ServerError, GoalsError, PlanError) as error:
            self._refuse(error)
            return
        # Locust gives its workers the options that are ours, but none of its own.
        self._options.common = {name: getattr(self._options, name) for name in ("num_users", "run_time")}
        self._options.generators = processes(self._environment.runner)
        self._options.run = f"{time.time():.6f}"
        self._calibrate()
        self._answers.clear()
        self._asked = 0
        self._before = self._scrape()
        self._under_way = True
        assert self._environment.shape_class is not None
        self._environment.shape_class.reset_time()  # It began before the measurement.
        self._options.began = time.time()
        gevent.spawn(self._show_progress)

    def _calibrate(self) -> None:
        """Measure the server's pace, and choose by it the scale of lengths and the time for the last requests."""
        options, targets, plan = self._options, self._targets, self._plan
        least, most = _GRACE_SECONDS
        at_once = 2 if plan.open else round(max(stage.load for stage in plan.stages))
        _say(f"measuring {', '.join(target.model for target in targets)} at {targets[0].url} ...")
        # Each of several models has its part of the requests.
        parts = [probe(target, math.ceil(at_once / len(targets))) for target in targets]
        context = min((target.max_context for target in targets if target.max_context), default=None)
        pace = pace_of([answer for part in parts for answer in part])
        options.factor = 1.0 if options.scale == "auto" else float(options.scale)
        if pace is None:
            _say("no request of the measurement was answered; the test is made all the same")
            self._environment.stop_timeout = self._patience or most
            return
        # A text cannot be shortened, so a dataset stays as it is.
        if options.scale == "auto" and isinstance(plan.source, Workload):
            options.factor = fitting_scale(plan.source, pace, context, plan.budget(REQUESTS))
        scaled = plan.source.scaled(options.factor)
        turn = turn_seconds(scaled, pace, context)
        self._environment.stop_timeout = self._patience or round(min(max(3 * turn, least), most))
        prompt, output, _ = scaled.means
        _say(pace.describe())
        _say(
            f"scale {options.factor:g}: {prompt:.0f} tokens of prompt and {output:.0f} of completion in the mean; "
            f"{turn:.2g} s for a request and the thinking after it"
        )
        _say(f"the goals will rest on about {max(plan.requests(turn), 1):.0f} requests")

    def _show_progress(self) -> None:
        """Print a line every few seconds while the test is under way."""
        shape = self._environment.shape_class
        assert shape is not None
        run, plan = self._options.run, self._plan
        while True:
            gevent.sleep(progress.interval(plan.seconds))
            if not self._under_way or self._options.run != run:
                return
            now = shape.get_run_time() - plan.warmup.seconds
            _say(progress.line(now, plan.seconds, self._asked, self._answers))

    def ask(self) -> None:
        """Count a request that is sent."""
        self._asked += 1

    def take(self, answer: Answer) -> None:
        """Keep an answer of this process, and show it in Locust's statistics."""
        self._answers.append(answer)
        show(self._environment, answer, ROUTES[self._options.api])

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
        self._options.generators = 0
        after = self._scrape()
        gained = after.since(self._before) if after and self._before else None
        spans = self._spans()
        self._summary = summarise(self._answers, spans, self._goals, self._settings(), gained)
        folder = Path(self._options.results)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(self._summary.as_json(), indent=2, allow_nan=False) + "\n")
        records.write(folder, self._answers, spans[0].start)
        series = over_time(self._answers, Span(spans[0].start, spans[-1].end, 0))
        measured = [answer for answer in self._answers if answer.began >= spans[0].start]
        (folder / "report.html").write_text(render(self._summary, series, measured))
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

    def _refuse(self, error: Exception) -> None:
        """Say why there will be no test, and end."""
        log.error("%s", error)
        assert self._environment.runner is not None
        self._environment.runner.quit()

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
        start = now - shape.get_run_time() + self._plan.warmup.seconds
        spans = []
        for stage in self._plan.stages:
            end = min(start + stage.seconds, now)
            if end > start:
                spans.append(Span(start, end, stage.load))
            start = end
        return spans or [Span(now, now + 1e-6, 0)]  # It was interrupted during the warm-up.

    def _settings(self) -> dict[str, Any]:
        names = ("seed", "run")
        targets = self._targets
        return {
            "url": targets[0].url,
            "model": ", ".join(target.model for target in targets),
            "api": self._options.api,
            "ignore_eos": all(target.ignore_eos for target in targets),
            "scale": self._options.factor,
            **{name: getattr(self._options, name) for name in names},
            "workload": self._options.dataset or self._options.workload,
            "shape": self._plan.shape,
            "arrivals": self._plan.arrivals,
            "load": max(stage.load for stage in self._plan.stages),
            "unit": self._plan.unit,
            "warmup_seconds": self._plan.warmup.seconds,
            "seconds": self._plan.seconds,
            "goals": self._options.goals,
            "load_generator": f"Locust {version('locust')}, Python {platform.python_version()}, {os.cpu_count()} CPUs",
        }


def _say(text: str) -> None:
    print(text, flush=True)
