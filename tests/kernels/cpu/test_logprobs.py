"""Log-probabilities of the cpu backend against the reference: the same numbers, and exactly its tokens and ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.cpu.backend import CpuBackend
from kernels.reference import log_probabilities
from tests.kernels.cpu.test_backend import CPU

INFINITE = float("inf")


def check(logits: Tensor, tokens: Tensor, most: int) -> None:
    got, expected = CPU.log_probabilities(logits, tokens, most), log_probabilities(logits, tokens, most)
    assert torch.equal(got[:, 1], expected[:, 1])
    assert torch.equal(got[:, 2 + most :], expected[:, 2 + most :])
    # Blocks of 1,024 exponentials are summed up in float32, with up to 256 additions for each lane: 256 * 2^-24.
    torch.testing.assert_close(got, expected, rtol=0, atol=1.6e-5, equal_nan=True)


@settings(deadline=None, max_examples=60)
@given(
    vocab=st.integers(1, 70) | st.integers(900, 5000),
    most=st.integers(0, 20) | st.integers(100, 5000),
    spread=st.floats(0.01, 30),
    tied=st.booleans(),
    masked=st.booleans(),
    order=st.sampled_from([None, False, True]),
    seed=st.integers(0, 999),
)
def test_log_probabilities_are_those_of_the_reference(
    vocab: int, most: int, spread: float, tied: bool, masked: bool, order: bool | None, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(7, vocab) * spread
    if tied:
        # Zeros of both signs are equal.
        logits = logits.round()
    if masked:
        logits[:, 1:][torch.rand(7, vocab - 1) < 0.5] = -INFINITE
    if order is not None:
        # The worst case: every token is likelier than all before it.
        logits = logits.sort(descending=order).values
    check(logits, torch.randint(0, vocab, (7,)), min(most, vocab))


def test_a_whole_vocabulary() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 200_001) * torch.tensor([0.0, 1e-3, 1, 10, 1e4])[:, None]
    check(logits, torch.tensor([0, 7, 200_000, 5, 6]), 20)
    # Every block has a new highest logit, by little.
    check(torch.linspace(0, 1, 200_001)[None], torch.tensor([9]), 5)
    check(torch.full((1, 9), torch.finfo(torch.float32).min), torch.tensor([4]), 5)


@pytest.mark.parametrize("bad", [INFINITE, float("nan"), -float("nan")])
@pytest.mark.parametrize("place", [0, 1, 299])
def test_rows_without_a_finite_maximum_have_no_numbers(bad: float, place: int) -> None:
    logits = torch.randn(5, 300)
    logits[1, place], logits[3] = bad, -INFINITE
    tokens = torch.tensor([1, place, 3, 4, 5])
    check(logits, tokens, 9)
    got = CPU.log_probabilities(logits, tokens, 9)
    assert got[[1, 3]][:, [0, *range(2, 11)]].isnan().all()
    assert got[[0, 2, 4]].isfinite().all()


def test_a_row_depends_on_no_other_and_on_no_number_of_threads() -> None:
    logits, tokens = torch.randn(9, 3000), torch.randint(0, 3000, (9,))
    whole = CPU.log_probabilities(logits, tokens, 5)
    alone = CpuBackend(1)
    rows = [alone.log_probabilities(logits[[row]], tokens[[row]], 5) for row in range(9)]
    assert torch.equal(torch.cat(rows), whole)
