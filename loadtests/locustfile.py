"""The load test for Locust: users that stream, the shape of the load, and the report at the end.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --headless -u 8 -t 2m --workload mix --shape steady

Without --headless, Locust's own interface shows the same latencies during the run. With --processes N, or on several
machines, the master gathers the workers' answers; only the master reads /metrics and judges.
"""

import itertools
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from locust import LoadTestShape, events, task
from locust import User as LocustUser
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.event import EventHook
from locust.runners import MasterRunner, WorkerRunner

from loadtests.arrivals import ARRIVALS
from loadtests.client import ROUTES, ServerError, Target
from loadtests.goals import GoalsError
from loadtests.loops import Asker, ClosedLoop, Line, OpenLoop
from loadtests.plan import PlanError, plan_of
from loadtests.run import Run, processes
from loadtests.shapes import SHAPES, stage_at
from loadtests.workloads import WORKLOADS

_REPORT_SECONDS = 4.0
"""The time that the master waits for the workers' last answers."""

asked = EventHook()
"""Fired by a user as it sends a request."""
answered = EventHook()
"""Fired by a user with the Answer to its request."""


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add the options of the load test to Locust's own.

    Locust's -u is the largest number of users, -t the duration of all stages together.
    """
    group = parser.add_argument_group("load test")
    group.add_argument("--workload", choices=list(WORKLOADS), default="mix", help="what users ask (default: mix)")
    group.add_argument("--shape", choices=list(SHAPES), default="steady", help="how many there are (default: steady)")
    arrivals = ["auto", "users", *ARRIVALS, "trace"]
    group.add_argument("--arrivals", choices=arrivals, default="auto", help="when requests come (default: by the rest)")
    group.add_argument("--rate", default="", help="conversations that begin per second; a sweep: 1,2,4")
    group.add_argument("--warmup", default="auto", help="time before what is measured (default: a tenth of it)")
    group.add_argument("--dataset", default="", help="JSONL file of requests, instead of a workload")
    group.add_argument("--goals", default=str(Path(__file__).with_name("goals.toml")), help="TOML file to be judged by")
    group.add_argument("--results", default="build/loadtest", help="folder for the report and the figures")
    group.add_argument("--scale", type=scale, default="auto", help="multiplies all lengths (default: fits the time)")
    group.add_argument("--seed", type=int, default=0, help="of lengths and thinking times (default: 0)")
    group.add_argument("--model-name", default="", help="models to ask for: a or a,b (default: first of /v1/models)")
    group.add_argument("--api", choices=list(ROUTES), default="chat", help="what is asked (default: chat)")


def scale(text: str) -> str:
    """`text`, if it is "auto" or a finite number above zero. Raises ValueError for other texts."""
    if text != "auto" and not 0 < float(text) < float("inf"):
        raise ValueError
    return text


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Create the Run and connect it to Locust's events.

    Without a server or goals, the process ends with one line of explanation and exit status 1.
    """
    run = Run(environment)
    asked.add_listener(run.ask)
    answered.add_listener(run.take)
    if isinstance(environment.runner, WorkerRunner):
        environment.events.report_to_master.add_listener(run.send)
        return
    try:
        run.connect()
    except (ServerError, GoalsError, PlanError) as error:
        sys.exit(f"loadtest: {error}")
    environment.events.worker_report.add_listener(run.receive)
    environment.events.test_start.add_listener(run.start)
    environment.events.test_stop.add_listener(run.stop)
    environment.events.quitting.add_listener(run.interrupt)
    environment.events.quit.add_listener(run.conclude)


class StreamingUser(LocustUser):
    """A user of a closed loop, or one of the processes' generators of an open one. Each turn is a Locust task."""

    _numbers = itertools.count()

    def on_start(self) -> None:
        options = self.environment.parsed_options
        assert options is not None
        vars(options).update(options.common)
        plan = plan_of(options)
        source = plan.source.scaled(options.factor)
        targets = [Target(**target) for target in options.targets]
        lines = [Line(target, asked.fire, lambda answer: answered.fire(answer=answer)) for target in targets]
        context = min((target.max_context for target in targets if target.max_context), default=None)
        index = getattr(self.environment.runner, "worker_index", 0)
        self._loop: ClosedLoop | OpenLoop

        def asker(name: str) -> Asker:
            return source.user(options.seed, options.run, name, context)

        if plan.open:
            # Each process takes its part of the same times, so that there are as many of them as with one.
            late = max(time.time() - options.began, 0.0)
            part = index % options.generators
            times = itertools.islice(enumerate(plan.times(options.seed)), part, None, options.generators)
            arrivals = ((at, lines[number % len(lines)], partial(asker, str(number))) for number, at in times)
            self._loop = OpenLoop(arrivals, late)
        else:
            number = next(self._numbers)
            self._loop = ClosedLoop(lines, asker(f"{index}.{number}"), number)
        self.wait()  # Users don't all arrive at the same moment.

    def on_stop(self) -> None:
        self._loop.stop(self.environment.stop_timeout or 0)

    def wait_time(self) -> float:
        return self._loop.pause()

    @task
    def turn(self) -> None:
        """Have the loop's next turn."""
        self._loop.turn()


class Shape(LoadTestShape):
    """The stages of the plan, then no users until the last answer has come."""

    use_common_options = True
    _over: float | None = None

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        plan = plan_of(options)
        # Workers that come or go during the test don't change how its times are shared.
        generators = getattr(options, "generators", 0) or processes(self.runner)
        # Stops all at once: Locust waits for each group that it stops.
        at_once = generators if plan.open else round(max(stage.load for stage in plan.stages))
        stage = stage_at(plan.all, self.get_run_time())
        if stage:
            self._over = None
            return generators if plan.open else round(stage.load), at_once
        if self.runner.user_count:
            return 0, at_once
        self._over = self._over or self.get_run_time()
        late = _REPORT_SECONDS if isinstance(self.runner, MasterRunner) else 0.0
        return (0, at_once) if self.get_run_time() < self._over + late else None
