"""What a step may take is tried out with the largest one, and what does not fit is said in one line."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract import ModelLimits
from model.memory import DeviceMemoryError, fitting, largest_step
from model.runner import ModelRunner
from tests.dummies import CPU, empty_cache, make_decoder


@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 500), st.sampled_from([1, 4, 16]))
def test_the_largest_step_has_every_token_and_every_draw_that_may_be(
    max_context: int, max_running: int, beyond: int, block_size: int
) -> None:
    budget = max_running + beyond
    limits = ModelLimits(vocab_size=97, max_context=max_context, num_blocks=1, block_size=block_size)
    plan = largest_step(limits, max_running=max_running, token_budget=budget)
    tokens = sum(len(chunk.tokens) for chunk in plan.chunks)
    assert tokens == min(budget, max_running * max_context)
    assert len(plan.chunks) == max_running
    for chunk in plan.chunks:
        assert chunk.draw is not None
        assert chunk.start + len(chunk.tokens) == max_context
        assert len(chunk.blocks) * block_size >= max_context
        assert set(chunk.blocks) == {0}


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 5), st.integers(0, 90))
def test_it_runs_on_a_cache_of_one_block(max_running: int, beyond: int) -> None:
    decoder = make_decoder()
    runner = ModelRunner(decoder, empty_cache(decoder, blocks=1), decoder.spec.max_context)
    plan = largest_step(runner.limits, max_running=max_running, token_budget=max_running + beyond)
    assert len(runner.start(plan).result().tokens) == max_running


def test_what_does_not_fit_is_one_line_that_says_what_to_do() -> None:
    with (
        pytest.raises(DeviceMemoryError) as caught,
        fitting(CPU, "a step of 9 tokens", "lower token_budget"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore than there is")
    message = str(caught.value)
    assert message.startswith("a step of 9 tokens did not fit into the ")
    assert message.endswith(" GiB that were free on cpu: lower token_budget")
    assert "\n" not in message


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), fitting(CPU, "anything", "nothing"):
        raise KeyError
