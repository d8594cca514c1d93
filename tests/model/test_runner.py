"""From a plan's integers to the layout that a backend reads, and results back in the plan's order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.contract import Chunk
from model.runner import batch_layout

CPU = torch.device("cpu")


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=6),
    st.sampled_from([1, 4, 16]),
)
def test_every_token_has_its_position_and_its_own_slot(lens: list[tuple[int, int]], block_size: int) -> None:
    lens = sorted(lens, key=lambda pair: pair[1])
    chunks, next_block = [], 0
    for start, count in lens:
        needed = -(-(start + count) // block_size) + 1  # One more than needed: a block for what comes next.
        chunks.append(Chunk([0] * count, start, list(range(next_block, next_block + needed)), None))
        next_block += needed
    layout = batch_layout(chunks, block_size, CPU)

    expected = [
        (start + i, chunk.blocks[(start + i) // block_size] * block_size + (start + i) % block_size)
        for chunk, (start, count) in zip(chunks, lens, strict=True)
        for i in range(count)
    ]
    assert list(zip(layout.positions.tolist(), layout.slots.tolist(), strict=True)) == expected
    assert len(set(layout.slots.tolist())) == len(expected)
    assert layout.context_lens.tolist() == [start + count for start, count in lens]
    assert layout.query_starts.diff().tolist() == [count for _, count in lens]
    assert layout.singles == sum(count == 1 for _, count in lens)
    assert (layout.max_query, layout.max_context) == (max(c for _, c in lens), max(s + c for s, c in lens))
