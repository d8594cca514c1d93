"""A device's memory: how much is free, how much a step takes, and one line of error where something does not fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from model.contract import Chunk, Draw, StepPlan
from model.limits import ModelLimits
from model.loading.cache import DeviceMemory
from model.loading.machine import available_memory
from model.sampling_params import SamplingParams

Probe = Callable[[torch.device, Callable[[], object]], DeviceMemory]
"""Runs a step on a device and measures the memory in use afterwards."""


ALLOCATION_FAILURES = (
    "DefaultCPUAllocator",
    "Storage size calculation overflowed",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",
)
"""Phrases in the messages of RuntimeErrors by which torch, CUDA's driver and its libraries report too little memory."""


class DeviceMemoryError(ValueError):
    """An allocation does not fit into a device's memory; the message is one line for the operator."""


def free_memory(device: torch.device) -> int:
    """Free bytes on a CUDA device, or in this machine's memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


@contextmanager
def fitting(device: torch.device, what: str, remedy: str, needed: int = 0) -> Iterator[None]:
    """Turn a failed allocation in the block into DeviceMemoryError: `what` did not fit, and `remedy` says what to do.

    On a CPU the error is raised at once if fewer than `needed` bytes are free. The system might grant the allocation
    all the same, and kill the process when the memory is written to.
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
    """Whether memory ran out. Only torch's CUDA allocator has an exception type for it; others are known by phrases."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ALLOCATION_FAILURES)


def measure(device: torch.device, step: Callable[[], object]) -> DeviceMemory:
    """Run `step` and return the memory of a CUDA device after it.

    Torch's allocator keeps the memory that it took for the step, so the step's peak is still in use afterwards.
    """
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info(device)
    step()
    torch.cuda.synchronize(device)
    after, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(total=total, used=total - after, working=max(before - after, 0))


def largest_step(limits: ModelLimits, *, max_running: int, token_budget: int) -> StepPlan:
    """The plan whose step takes the most working memory.

    It has `max_running` requests at the end of their context, each drawing with a filter and with log-probabilities.
    The first requests have as many prompt tokens as `token_budget` allows. All use the first block of the cache, since
    their results are not used.
    """
    params = SamplingParams(max_tokens=1, top_p=0.9, logprobs=min(20, limits.vocab_size))
    draw = Draw(params, [], [], 0)
    blocks = [0] * -(-limits.max_context // limits.block_size)
    chunks, left = [], token_budget
    for others in reversed(range(max_running)):
        count = max(1, min(limits.max_context, left - others))
        left -= count
        chunks.append(Chunk([0] * count, limits.max_context - count, blocks, [draw]))
    return StepPlan(chunks)
