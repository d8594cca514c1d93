"""Records of tensors do to all their tensors what is asked of them, and keep the rest."""

from dataclasses import fields

import pytest
import torch

from kernels.backend import BatchLayout, SamplingBatch
from model.batch import batch_layout
from model.contract import Chunk
from tests.dummies import CPU


def layout() -> BatchLayout:
    return batch_layout([Chunk([1], 4, [0, 1]), Chunk([1, 2], 0, [2])], 4, CPU)


def test_every_tensor_is_mapped_and_nothing_else() -> None:
    plain = layout()
    moved = plain.map(lambda tensor: tensor + 1)
    assert len(plain.tensors()) == 5
    for name, tensor in plain.tensors().items():
        assert torch.equal(getattr(moved, name), tensor + 1)
    assert (moved.singles, moved.max_query, moved.max_context) == (1, 2, 5)


def test_what_is_drawn_by_has_names_and_no_order() -> None:
    assert all(field.kw_only for field in fields(SamplingBatch))
    assert all(field.kw_only for field in fields(BatchLayout))


def test_chunks_out_of_order_make_no_layout() -> None:
    with pytest.raises(ValueError, match="fewer tokens come first"):
        batch_layout([Chunk([1, 2], 0, [2]), Chunk([1], 4, [0, 1])], 4, CPU)
