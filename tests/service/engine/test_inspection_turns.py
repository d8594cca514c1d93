"""Requests that look inside take turns, and take no more time from the others than half their part of the requests."""

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract import StepPlan, Wanted
from model.inspection import InspectionRequest
from model.sampling_params import SamplingParams
from service.engine.blocks import BlockPool
from service.engine.request import Request
from service.engine.scheduler import Scheduler
from tests.service.engine.fakes import FakeRunner, output_alone

GENERATED = Wanted(inspect=InspectionRequest(generated=True, lens=1))


class Clocked:
    """A scheduler whose steps take 1 second, and `cost` seconds more for each position that is inspected."""

    def __init__(self, cost: float, *, lookahead: int = 0, budget: int = 256) -> None:
        self.runner = FakeRunner(1000, 16, lookahead)
        self.scheduler = Scheduler(BlockPool(1000, 16), token_budget=budget, max_running=64)
        self.cost = cost
        self.requests: list[Request] = []

    def add(self, wanted: Wanted | None = None, prompt: int = 3, tokens: int = 1000) -> Request:
        number = len(self.requests)
        start = [1 + number % 7, 1 + number // 7]
        tokens_of_prompt = [*start, *[1 + place % 7 for place in range(prompt - 2)]]
        request = Request(number, tokens_of_prompt, SamplingParams(max_tokens=tokens), wanted=wanted or Wanted())
        assert self.scheduler.add(request) is None
        self.requests.append(request)
        return request

    def step(self) -> tuple[StepPlan, float]:
        """The next step, and its seconds."""
        plan = self.scheduler.plan(0.0)
        assert plan is not None
        result = self.runner.start(plan).result()
        seconds = 1 + self.cost * inspected(plan)
        self.scheduler.commit(result, 0.0, seconds)
        self.scheduler.check()
        return plan, seconds


def inspected(plan: StepPlan) -> int:
    return sum(len(chunk.inspect.positions) for chunk in plan.others if chunk.inspect is not None)


@pytest.mark.parametrize("cost", [0.05, 0.5, 3.0])
def test_one_who_looks_slows_seven_others_by_less_than_a_tenth(cost: float) -> None:
    bench = Clocked(cost)
    others = [bench.add() for _ in range(7)]
    bench.step()
    inspector = bench.add(GENERATED)
    seconds = [bench.step()[1] for _ in range(150)]
    assert fmean(seconds[20:]) < 1.1
    assert all(len(request.output) == 151 for request in others)
    # Nobody is starved either: all the time that is its own is used.
    assert len(inspector.output) >= min(100, 0.05 / cost * 130)


def test_where_all_look_nobody_waits() -> None:
    bench = Clocked(3.0)
    inspecting = [bench.add(GENERATED) for _ in range(5)]
    for _ in range(20):
        bench.step()
    assert [len(request.output) for request in inspecting] == [20] * 5


def test_those_who_look_take_turns() -> None:
    bench = Clocked(1.0)
    others = [bench.add() for _ in range(8)]
    inspecting = [bench.add(GENERATED) for _ in range(20)]
    seconds = [bench.step()[1] for _ in range(400)]
    turns = [len(request.output) for request in inspecting]
    assert max(turns) - min(turns) <= 1
    assert min(turns) >= 3
    assert fmean(seconds) < 1 + 20 / 28 + 0.1
    assert all(len(request.output) == 400 for request in others)


def test_a_look_at_a_long_prompt_is_cut_beside_others_alone() -> None:
    positions = range(0, 200, 2)
    wanted = Wanted(inspect=InspectionRequest(positions=positions, lens=1))
    bench = Clocked(0.25)
    bench.add(wanted, prompt=201, tokens=1)
    plan, _ = bench.step()
    assert inspected(plan) == 100
    bench.add()
    bench.step()
    bench.add(wanted, prompt=202, tokens=1)
    plans = [bench.step() for _ in range(600)]
    assert sum(inspected(plan) for plan, _ in plans) == 100
    # A step with an inspection takes at most about twice as long as one without.
    assert max(seconds for _, seconds in plans) <= 2.5


def test_one_who_looks_goes_on_where_nobody_else_can() -> None:
    """The other waits for room that it never gets while the first runs."""
    bench = Clocked(9.0)
    inspector = bench.add(GENERATED, prompt=9000, tokens=300)
    bench.add(prompt=12000, tokens=100)
    for _ in range(80):
        bench.step()
    assert len(inspector.output) >= 20


@given(
    kinds=st.lists(st.sampled_from(["plain", "inspects", "prompt"]), min_size=1, max_size=9),
    cost=st.sampled_from([0.0, 0.3, 5.0]),
    budget=st.integers(64, 80),
)
def test_all_end_with_what_they_get_alone(kinds: list[str], cost: float, budget: int) -> None:
    bench = Clocked(cost, budget=budget)
    wishes = {
        "plain": None,
        "inspects": GENERATED,
        "prompt": Wanted(inspect=InspectionRequest(positions=[0, 3, 50], lens=1)),
    }
    for number, kind in enumerate(kinds):
        bench.add(wishes[kind], prompt=60 + number, tokens=1 + number)
    for _ in range(2000):
        if not bench.scheduler.has_work:
            break
        bench.step()
    assert not bench.scheduler.has_work
    for request in bench.requests:
        assert request.output == output_alone(request.prompt, request.params)[0]
