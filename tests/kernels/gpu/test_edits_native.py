"""Edits of logits compiled for the GPU, at the sizes of vocabularies and of long requests, against plain torch."""

import pytest
import torch

from kernels import reference_edits as reference
from kernels.backend import Penalties, TokenCounts
from kernels.load import load_backend

pytestmark = pytest.mark.gpu

ROWS = 70
KNOWN = [1, 1023, 1024, 1025, 8191]


@pytest.mark.parametrize("vocab", [32_000, 50_257, 262_208])
def test_edits_are_those_of_the_reference(vocab: int) -> None:
    """One after the other on the same logits; the table has fewer columns than its rows are apart."""
    device = torch.device("cuda")
    backend, generator = load_backend(device, "triton"), torch.Generator().manual_seed(vocab)
    tokens = torch.stack([torch.randperm(vocab, generator=generator)[:9000] for _ in range(ROWS)]).int().to(device)
    lengths = torch.tensor([KNOWN[row % len(KNOWN)] for row in range(ROWS)], dtype=torch.int32, device=device)
    columns = {"tokens": tokens, "times": tokens % 3, "lengths": lengths}
    ours, theirs = (TokenCounts(**{name: column.clone() for name, column in columns.items()}) for _ in range(2))
    order = torch.randperm(ROWS, generator=generator).to(device)
    drawn = torch.where(order % 3 == 0, tokens[order, 0].long(), order * 7)
    drawn[order % 7 == 0] = -1
    factors = torch.rand(3, ROWS, generator=generator).to(device) + 0.5
    penalties = Penalties(
        rows=order.flip(0), requests=order, repetition=factors[0], presence=factors[1], frequency=factors[2]
    )
    masks = torch.randint(256, (ROWS, -(-vocab // 32) * 4), generator=generator, dtype=torch.uint8).to(device)
    logits = torch.randn(ROWS, vocab, generator=generator).to(device) * 5
    expected = logits.clone()

    def narrowed(counts: TokenCounts) -> TokenCounts:
        return TokenCounts(tokens=counts.tokens[:, :8192], times=counts.times[:, :8192], lengths=counts.lengths)

    for edits, counts, edited in ((backend, ours, logits), (reference, theirs, expected)):
        edits.count_tokens(narrowed(counts), order, drawn)
        edits.penalise(edited, narrowed(counts), penalties)
        edits.restrict(edited, order[:9], masks[:9])
    for name in columns:
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
