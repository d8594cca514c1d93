"""A loader and a runner for engine processes under test. The file at `config.model`, the script, commands both.

wait: the loader waits for another word. refuse, bug, crash: it fails in that way. ok: it loads, and steps run freely.
steps N: it loads, and the runner takes no more than N steps.
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from model.contract import Runner, StepPlan
from model.runner_config import RunnerConfig
from service.processes.engine_config import EngineConfig
from tests.service.engine.fakes import FakeRunner, FakeStep

ROOT = Path(__file__).parents[3]
BLOCKS = 256
BLOCK_SIZE = 4
EXIT, SEGFAULT, HANG = 100, 101, 102
"""What a step does that meets this token."""


def fake_config(script: Path) -> EngineConfig:
    """An engine that the script commands; its process has to find this module, below `ROOT`."""
    runner = RunnerConfig(model=str(script), token_budget=64, max_running=32)
    return EngineConfig(
        runner=runner, draft_tokens=0, draft_running=0, loader="tests.service.engine.fake_loader:load_runner"
    )


def command(script: Path, order: str) -> None:
    """Replace the order in one go: a file that is being written reads as empty."""
    draft = script.with_suffix(".draft")
    draft.write_text(order)
    draft.rename(script)


class ScriptedRunner(FakeRunner):
    def __init__(self, script: Path) -> None:
        super().__init__(BLOCKS, BLOCK_SIZE)
        self.limits = replace(self.limits, vocab_size=103)
        self._script = script

    def start(self, plan: StepPlan) -> FakeStep:
        while (order := self._script.read_text()).startswith("steps") and len(self.plans) >= int(order.split()[1]):
            time.sleep(0.005)
        tokens = {token for chunk in plan.chunks for token in chunk.tokens}
        if EXIT in tokens:
            os._exit(7)
        if SEGFAULT in tokens:
            os.kill(os.getpid(), signal.SIGSEGV)
        if HANG in tokens:
            time.sleep(3600)
        return super().start(plan)


def load_runner(config: RunnerConfig) -> Runner:
    script = Path(config.model)
    while (order := script.read_text()) == "wait":
        time.sleep(0.005)
    match order:
        case "refuse":
            raise ValueError("model.gguf is cut off\nafter 12 bytes")
        case "bug":
            raise KeyError("blk.0.attn_q.weight")
        case "crash":
            os._exit(9)
    return ScriptedRunner(script)
