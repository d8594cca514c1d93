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

from locust.env import Environment

from loadtests.client import Client, ServerError
from loadtests.figures import Span, over_time
from loadtests.goals import Goals, GoalsError, load_goals
from loadtests.report import conclusion, render
from loadtests.scrape import Scrape
from loadtests.shapes import SHAPES, Stage
from loadtests.sse import Answer
from loadtests.summary import Summary, summarise

log = logging.getLogger(__name__)

_SECONDS = 120.0
_SOAK_SECONDS = 3600.0


def stages(options: Namespace) -> list[Stage]:
    """The stages of the shape that the options choose."""
    seconds = float(options.run_time or (_SOAK_SECONDS if options.shape == "soak" else _SECONDS))
    return SHAPES[options.shape](int(options.num_users or 1), seconds)


class Run:
    """One process's part in a test. It gathers answers; the master, or the only process, also judges them."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._answers: list[Answer] = []
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
        """Begin a test: forget the answers of the last one, and read the server's metrics."""
        if self._host != self._environment.host and not self._reconnected():
            return
        self._options.run = f"{time.time():.6f}"
        self._answers.clear()
        self._before = self._scrape()
        self._under_way = True

    def take(self, answer: Answer) -> None:
        """Keep an answer of this process, and show it in Locust's statistics."""
        self._answers.append(answer)
        for name, amount, error in _shown(answer):
            self._environment.events.request.fire(
                request_type=self._options.workload,
                name=name,
                response_time=amount,
                response_length=0,
                exception=error,
                context={},
            )

    def send(self, client_id: str, data: dict[str, Any]) -> None:
        """Add this worker's answers to `data`, its report to the master."""
        data["answers"] = [asdict(answer) for answer in self._answers]
        self._answers.clear()

    def receive(self, client_id: str, data: dict[str, Any]) -> None:
        """Take the answers out of `data`, a worker's report."""
        self._answers += [Answer(**answer) for answer in data.get("answers", ())]

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
        self._environment.process_exit_code = 0 if self._summary.passed else 1

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
        names = ("workload", "scale", "shape", "seed", "run")
        return {
            "url": self._options.target["url"],
            "model": self._options.target["model"],
            "ignore_eos": self._options.target["ignore_eos"],
            **{name: getattr(self._options, name) for name in names},
            "users": max(stage.users for stage in stages(self._options)),
            "seconds": sum(stage.seconds for stage in stages(self._options)),
            "goals": self._options.goals,
            "load_generator": f"Locust {version('locust')}, Python {platform.python_version()}, {os.cpu_count()} CPUs",
        }


def _shown(answer: Answer) -> list[tuple[str, float, Exception | None]]:
    """(name, amount, error) of rows of Locust's statistics, in milliseconds, or tokens where the name says so."""
    if answer.abandoned:
        return []
    rows: list[tuple[str, float, Exception | None]] = [
        ("end-to-end latency", 1000 * answer.seconds, Exception(answer.error) if answer.error else None)
    ]
    if answer.complete and answer.ttft is not None:
        rows.append(("time to first token", 1000 * answer.ttft, None))
        rows += [("inter-token latency", 1000 * gap, None) for gap in answer.gaps]
        rows += [
            ("tokens of prompt", answer.prompt_tokens, None),
            ("tokens of completion", answer.completion_tokens, None),
        ]
    return rows
