"""Tokens that the cpu backend draws are the reference's: the same filters, and the same random numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import SamplingBatch
from kernels.reference_sampling import sample
from tests.kernels.cpu.test_backend import CPU

INFINITE = float("inf")


def batch(rows: int) -> SamplingBatch:
    """Rows of all kinds: greedy, without a filter, with one and with several."""

    def some(share: float) -> Tensor:
        return torch.rand(rows) < share

    return SamplingBatch(
        temperature=torch.rand(rows) * 2 * some(0.9),
        top_k=torch.randint(0, 60, (rows,)) * some(0.5),
        top_p=torch.where(some(0.5), torch.rand(rows), 1.0),
        min_p=torch.rand(rows) * some(0.3),
        seed=torch.randint(-(2**62), 2**62, (rows,)),
        counter=torch.randint(0, 1000, (rows,)),
    )


@settings(deadline=None, max_examples=60)
@given(
    vocab=st.integers(1, 70) | st.integers(900, 5000),
    spread=st.floats(0.01, 10),
    tied=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
def test_tokens_are_those_of_the_reference(vocab: int, spread: float, tied: bool, masked: bool, seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(12, vocab) * spread
    if tied:
        logits = logits.round()
    if masked:
        logits[:, 1:][torch.rand(12, vocab - 1) < 0.5] = -INFINITE
    wanted = batch(12)
    assert torch.equal(CPU.sample(logits.clone(), wanted), sample(logits, wanted))


@pytest.mark.parametrize("bad", [INFINITE, float("nan"), -float("nan")])
def test_rows_without_a_finite_maximum_draw_nothing(bad: float) -> None:
    logits, wanted = torch.randn(12, 300), batch(12)
    expected = sample(logits, wanted)
    logits[3, 7], logits[5] = bad, -INFINITE
    expected[[3, 5]] = -1
    assert torch.equal(CPU.sample(logits, wanted), expected)
