"""What a device's memory holds: measured, and said in one line where something does not fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from model.cache import DeviceMemory
from model.contract import Chunk, Draw, ModelLimits, SamplingParams, StepPlan
from model.machine import available_memory

Probe = Callable[[torch.device, Callable[[], object]], DeviceMemory]
"""Runs a step on a device and says what memory it took."""


class DeviceMemoryError(ValueError):
    """Something does not fit into a device's memory; the message is one line for the operator."""


def free_memory(device: torch.device) -> int:
    """Bytes that nobody uses."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


@contextmanager
def fitting(device: torch.device, what: str, remedy: str) -> Iterator[None]:
    """Raise DeviceMemoryError where `what` runs out of memory; `remedy` says what to lower."""
    free = free_memory(device)
    try:
        yield
    except torch.OutOfMemoryError:
        raise DeviceMemoryError(
            f"{what} did not fit into the {free / 2**30:.2f} GiB that were free on {device}: {remedy}"
        ) from None


def measure(device: torch.device, step: Callable[[], object]) -> DeviceMemory:
    """The memory of a CUDA device after `step`.

    What torch's allocator took for the step it keeps, so the step's peak can be seen after it is over.
    """
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info(device)
    step()
    torch.cuda.synchronize(device)
    after, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(total=total, used=total - after, working=max(before - after, 0))


def largest_step(limits: ModelLimits, *, max_running: int, token_budget: int) -> StepPlan:
    """The plan that takes the most working memory.

    `max_running` requests at the end of their context, of which the first have all the prompt tokens that the budget
    allows, each drawing with a filter and with log-probabilities. All share the cache's first block: what they compute
    means nothing.
    """
    params = SamplingParams(max_tokens=1, top_p=0.9, logprobs=min(20, limits.vocab_size))
    draw = Draw(params, [], [], 0)
    blocks = [0] * -(-limits.max_context // limits.block_size)
    chunks, left = [], token_budget
    for others in reversed(range(max_running)):
        count = max(1, min(limits.max_context, left - others))
        left -= count
        chunks.append(Chunk([0] * count, limits.max_context - count, blocks, draw))
    return StepPlan(chunks)
