"""What a step may take is tried out with the largest one, and what does not fit is said in one line."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.limits import ModelLimits
from model.loading.memory import DeviceMemoryError, fitting, largest_step
from model.runner import ModelRunner
from tests.dummies import CPU, drawn, empty_cache, make_decoder


@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 500), st.sampled_from([1, 4, 16]))
def test_the_largest_step_has_every_token_and_every_draw_that_may_be(
    max_context: int, max_running: int, beyond: int, block_size: int
) -> None:
    budget = max_running + beyond
    limits = ModelLimits(
        vocab_size=97, max_context=max_context, num_blocks=1, block_size=block_size, layers=3, heads=4, encoding_width=8
    )
    plan = largest_step(limits, max_running=max_running, token_budget=budget)
    tokens = sum(len(chunk.tokens) for chunk in plan.chunks)
    assert tokens == min(budget, max_running * max_context)
    assert len(plan.chunks) == max_running
    for chunk in plan.chunks:
        assert chunk.draws
        assert chunk.start + len(chunk.tokens) == max_context
        assert len(chunk.blocks) * block_size >= max_context
        assert set(chunk.blocks) == {0}


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 5), st.integers(0, 90))
def test_it_runs_on_a_cache_of_one_block(max_running: int, beyond: int) -> None:
    decoder = make_decoder()
    runner = ModelRunner(decoder, empty_cache(decoder, blocks=1), decoder.spec.max_context)
    plan = largest_step(runner.limits, max_running=max_running, token_budget=max_running + beyond)
    assert len(drawn(runner.start(plan).result())) == max_running


def cuda_allocator() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore than there is")


def cuda_driver() -> None:
    raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")


def cuda_library() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def python() -> None:
    raise MemoryError


def numpy_allocator() -> None:
    np.empty(2**50)


def cpu_allocator() -> None:
    torch.empty(2**50)


def cpu_overflow() -> None:
    torch.empty(2**62)


@pytest.mark.parametrize(
    "fail", [cuda_allocator, cuda_driver, cuda_library, python, numpy_allocator, cpu_allocator, cpu_overflow]
)
def test_what_does_not_fit_is_one_line_that_says_what_to_do(fail: Callable[[], None]) -> None:
    with (
        pytest.raises(DeviceMemoryError) as caught,
        fitting(CPU, "a step of 9 tokens", "lower token_budget"),
    ):
        fail()
    message = str(caught.value)
    assert message.startswith("a step of 9 tokens did not fit into the ")
    assert message.endswith(" GiB that were free on cpu: lower token_budget")
    assert "\n" not in message


def test_what_the_system_would_only_promise_is_not_begun() -> None:
    with fitting(CPU, "a cache", "lower it", needed=1):
        pass
    with pytest.raises(DeviceMemoryError, match="a cache did not fit"), fitting(CPU, "a cache", "lower it", 2**50):
        pytest.fail("there is no such machine")


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shapes differ"), RuntimeError("out of resource")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, fitting(CPU, "anything", "nothing"):
        raise error
    assert caught.value is error
