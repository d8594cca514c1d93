"""A scheduler to test, step by step."""

from collections.abc import Iterable
from typing import Any

import msgspec

from model.contract import StepPlan
from model.sampling_params import SamplingParams
from service.engine.blocks import BlockPool
from service.engine.messages import Delta, deltas_of
from service.engine.request import Request
from service.engine.scheduler import Scheduler
from tests.service.engine.fakes import FakeRunner

NOW = 0.0
"""For steps whose times nobody asks for."""


class Bench:
    """A scheduler, its pool and a fake runner."""

    def __init__(
        self, num_blocks: int, block_size: int, token_budget: int = 64, max_running: int = 8, lookahead: int = 0
    ) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.runner = FakeRunner(num_blocks, block_size, lookahead)
        self.scheduler = Scheduler(self.pool, token_budget=token_budget, max_running=max_running)
        self.ids = 0

    def add(self, prompt: list[int], max_tokens: int = 8, salt: str = "", **params: Any) -> Request:
        request = Request(self.ids, prompt, SamplingParams(max_tokens=max_tokens, **params), salt)
        self.ids += 1
        assert self.scheduler.add(request) is None
        return request

    def start(self) -> StepPlan:
        plan = self.scheduler.plan(NOW)
        assert plan is not None
        self.runner.start(plan)
        self.scheduler.check()
        return plan

    def land(self) -> list[Delta]:
        deltas = deltas_of(self.scheduler.commit(self.runner.in_flight[0].result(), NOW))
        self.scheduler.check()
        return deltas

    def step(self) -> tuple[StepPlan, list[Delta]]:
        return self.start(), self.land()

    def finish(self) -> list[Delta]:
        deltas: list[Delta] = []
        for _ in range(1000):
            if self.runner.in_flight:
                deltas += self.land()
            elif self.scheduler.has_work:
                self.start()
            else:
                assert self.pool.used == 0
                return deltas
        raise AssertionError("the scheduler does not come to rest")


def untimed(deltas: Iterable[Delta | None]) -> list[Delta]:
    return [msgspec.structs.replace(delta, times=None) for delta in deltas if delta is not None]


def sizes(plan: StepPlan) -> list[int]:
    return [len(chunk.tokens) for chunk in plan.chunks]


def follows(plan: StepPlan) -> list[int | None]:
    return [chunk.follows for chunk in plan.chunks]
