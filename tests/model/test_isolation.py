"""What goes wrong with one request of a step changes no token of the others, on a real decoder."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.contract import DeviceLostError, Draw
from model.runner import ModelRunner
from model.sampling import settings as sampling
from model.sampling.memory import TokenMemory
from model.sampling.transforms import Transform
from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.messages import EngineRequest, Submit
from tests.dummies import empty_cache, make_decoder

PARAMS = SamplingParams(max_tokens=6, temperature=0.7, seed=3, presence_penalty=0.5)
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
VICTIM = 2
"""The longest prompt: it is admitted last, and stands last in every step."""


def outputs(prepare: Callable[[ModelRunner], None] = lambda runner: None) -> dict[int, tuple[list[int], str | None]]:
    """What each request gets when all run together, and why it ended."""
    decoder = make_decoder()
    cache = empty_cache(decoder, blocks=16)
    runner = ModelRunner(decoder, cache, decoder.spec.max_context)
    prepare(runner)
    core = EngineCore(runner, token_budget=32, max_running=8)
    for id, prompt in enumerate(PROMPTS):
        core.submit(Submit(id, EngineRequest(prompt, PARAMS)))
    got: dict[int, tuple[list[int], str | None]] = {id: ([], None) for id in range(len(PROMPTS))}
    while report := core.step():
        for delta in report.deltas:
            got[delta.id] = (got[delta.id][0] + delta.tokens, delta.finish_reason)
    return got


def others(got: dict[int, tuple[list[int], str | None]]) -> dict[int, tuple[list[int], str | None]]:
    return {id: result for id, result in got.items() if id != VICTIM}


@pytest.mark.parametrize("transform", range(len(sampling.TRANSFORMS)))
def test_a_transform_that_raises_for_one_request_ends_that_one_alone(
    transform: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = outputs()

    def edit(logits: Tensor, rows: Sequence[int], draws: Sequence[Draw], memory: TokenMemory) -> None:
        # Half done, as an exception may leave it: what it wrote must not reach a neighbour.
        logits += 100 * torch.arange(logits.shape[1])
        if any(draw.prompt == PROMPTS[VICTIM] and draw.index == 2 for draw in draws):
            raise RuntimeError("planted")
        logits -= 100 * torch.arange(logits.shape[1])
        sampling_transforms[transform](logits, draws, memory)

    sampling_transforms = sampling.TRANSFORMS
    replaced = [*sampling_transforms]
    replaced[transform] = Transform("planted", lambda params: True, lambda draw: True, edit)
    monkeypatch.setattr(sampling, "TRANSFORMS", tuple(replaced))
    got = outputs()
    assert got[VICTIM] == (plain[VICTIM][0][:2], "error")
    assert others(got) == others(plain)


def test_logits_that_are_not_numbers_end_their_own_request_alone() -> None:
    plain = outputs()

    def plant(runner: ModelRunner) -> None:
        logits, steps = runner._decoder.logits, iter(range(100))

        def poisoned(hidden: Tensor) -> Tensor:
            out = logits(hidden)
            if next(steps) == 2:
                out[-1] = float("nan")
            return out

        runner._decoder.logits = poisoned  # type: ignore[method-assign]

    got = outputs(plant)
    assert got[VICTIM] == (plain[VICTIM][0][:2], "error")
    assert others(got) == others(plain)


def test_a_lost_device_is_told_apart_from_a_step_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:

    def lost(params: SamplingParams) -> bool:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(sampling, "TRANSFORMS", (replace(sampling.TRANSFORMS[0], asked=lost),))
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        outputs()
