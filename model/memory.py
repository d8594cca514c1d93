"""What a device's memory holds: measured, and said in one line where something does not fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from model.cache import DeviceMemory
from model.contract import Chunk, Draw, ModelLimits, SamplingParams, StepPlan
from model.machine import available_memory

Probe = Callable[[torch.device, Callable[[], object]], DeviceMemory]
"""Runs a step on a device and says what memory it took."""


ALLOCATION_FAILURES = (
    "DefaultCPUAllocator",
    "Storage size calculation overflowed",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
)
"""What plain RuntimeErrors of torch, of CUDA's driver and of its libraries say where memory ran out."""


class DeviceMemoryError(ValueError):
    """Something does not fit into a device's memory; the message is one line for the operator."""


def free_memory(device: torch.device) -> int:
    """Bytes that nobody uses."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


@contextmanager
def fitting(device: torch.device, what: str, remedy: str, needed: int = 0) -> Iterator[None]:
    """Raise DeviceMemoryError where `what` runs out of memory; `remedy` says what to lower.

    On a CPU it is raised at once where as many bytes as are `needed` are not free: the system may promise them all the
    same, and end the process when they are written to.
    """
    free = 0
    try:
        free = free_memory(device)
        if device.type == "cpu" and needed > free:
            raise MemoryError
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"{what} did not fit into the {free / 2**30:.2f} GiB that were free on {device}: {remedy}"
        ) from None


def _is_out_of_memory(error: Exception) -> bool:
    """Torch has an exception of its own for CUDA's allocator alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ALLOCATION_FAILURES)


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
