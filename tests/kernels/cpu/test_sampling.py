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


def tied(logits: Tensor, kind: str) -> Tensor:
    """The logits with so many equal ones as a kind has."""
    match kind:
        case "rounded":
            return logits.round()
        case "bfloat16":
            return logits.bfloat16().float()
        case "flat":
            return torch.full_like(logits, 2.5)
        case "two levels":
            return torch.where(logits > 0, 0.0, -1.75)
        case "signs of zero":
            return torch.where(logits > 0, 0.0, -0.0)
    return logits


@settings(deadline=None, max_examples=90)
@given(
    vocab=st.integers(1, 70) | st.integers(900, 5000),
    spread=st.floats(0.01, 10),
    kind=st.sampled_from(["usual", "rounded", "bfloat16", "flat", "two levels", "signs of zero"]),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
def test_tokens_are_those_of_the_reference(vocab: int, spread: float, kind: str, masked: bool, seed: int) -> None:
    torch.manual_seed(seed)
    logits = tied(torch.randn(12, vocab) * spread, kind)
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
