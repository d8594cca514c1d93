"""Activations against the reference backend, and far out on either side, where exponentials overflow."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import ActivationKind
from kernels.gpu.activation import activation, gated_activation
from kernels.gpu.launch import JitLauncher, device_target
from kernels.reference import ReferenceBackend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = JitLauncher(device_target(DEVICE))
REFERENCE = ReferenceBackend()
KINDS: tuple[ActivationKind, ...] = get_args(ActivationKind)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
kinds = pytest.mark.parametrize("kind", KINDS)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3).to(DEVICE, dtype)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 3),
    size=st.one_of(st.sampled_from([1, 1024, 1536]), st.integers(1, 1100)),
    dtype=st.sampled_from(list(TOLERANCE)),
    kind=st.sampled_from(KINDS),
)
def test_as_the_reference(tokens: int, size: int, dtype: torch.dtype, kind: ActivationKind) -> None:
    x = random(tokens, 2 * size, dtype=dtype)
    tolerance = TOLERANCE[dtype]
    plain, gated = activation(LAUNCH, x, kind), gated_activation(LAUNCH, x, kind)
    assert plain.dtype == gated.dtype == dtype
    torch.testing.assert_close(plain, REFERENCE.activation(x, kind), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gated, REFERENCE.gated_activation(x, kind), rtol=tolerance, atol=tolerance)


@kinds
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (1, 1, 1), (0, 4)])
def test_any_shape(kind: ActivationKind, shape: tuple[int, ...]) -> None:
    x = random(*shape)
    torch.testing.assert_close(activation(LAUNCH, x, kind), REFERENCE.activation(x, kind), rtol=1e-5, atol=1e-5)


@kinds
def test_far_from_zero_it_is_x_or_zero(kind: ActivationKind) -> None:
    x = torch.tensor([100.0, 1e4, 3e38, -100.0, -1e4, -3e38], device=DEVICE)
    with np.errstate(over="ignore"):
        out = activation(LAUNCH, x, kind)
    torch.testing.assert_close(out, x.clamp(min=0.0), rtol=1e-6, atol=1e-6)


@kinds
def test_a_nan_stays_where_it_is(kind: ActivationKind) -> None:
    x = random(2, 8)
    x[0, 1] = x[1, 6] = float("nan")
    assert activation(LAUNCH, x, kind).isnan().nonzero().tolist() == [[0, 1], [1, 6]]
    assert gated_activation(LAUNCH, x, kind).isnan().nonzero().tolist() == [[0, 1], [1, 2]]


@kinds
def test_a_row_depends_on_nothing_else(kind: ActivationKind) -> None:
    x = random(4, 2 * 1100)
    alone = gated_activation(LAUNCH, x[2:3], kind)
    x[:2] = float("nan")
    assert torch.equal(gated_activation(LAUNCH, x, kind)[2], alone[0])


@kinds
def test_tensors_that_are_not_contiguous(kind: ActivationKind) -> None:
    x = random(24, 6).T
    torch.testing.assert_close(activation(LAUNCH, x, kind), REFERENCE.activation(x, kind), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gated_activation(LAUNCH, x, kind), REFERENCE.gated_activation(x, kind), rtol=1e-5, atol=1e-5
    )
