"""Norms against the reference backend, over the sizes models have."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.gpu.launch import JitLauncher, device_target
from kernels.gpu.norm import add_layer_norm, add_rms_norm
from kernels.reference import ReferenceBackend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = JitLauncher(device_target(DEVICE))
REFERENCE = ReferenceBackend()
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    if bias is None:
        return add_rms_norm(LAUNCH, x, residual, weight, eps)
    return add_layer_norm(LAUNCH, x, residual, weight, bias, eps)


def reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    if bias is None:
        return REFERENCE.add_rms_norm(x, residual, weight, eps)
    return REFERENCE.add_layer_norm(x, residual, weight, bias, eps)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 3),
    size=st.one_of(st.sampled_from([1, 64, 576, 896, 4096]), st.integers(1, 1100)),
    dtype=st.sampled_from(list(TOLERANCE)),
    starts=st.booleans(),
    biased=st.booleans(),
    eps=st.sampled_from([1e-6, 1e-5, 0.1]),
)
def test_as_the_reference(tokens: int, size: int, dtype: torch.dtype, starts: bool, biased: bool, eps: float) -> None:
    x = random(tokens, size, dtype=dtype, seed=1) * 3 + 1
    residual = None if starts else random(tokens, size, dtype=dtype, seed=2)
    weight = random(size, dtype=dtype, seed=3)
    bias = random(size, dtype=dtype, seed=4) if biased else None
    normed, stream = norm(x, residual, weight, bias, eps)
    expected, total = reference(x, residual, weight, bias, eps)
    assert normed.dtype == dtype
    assert torch.equal(stream, total)
    torch.testing.assert_close(normed, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("biased", [False, True])
def test_the_largest_rows(biased: bool) -> None:
    x, residual, weight = random(2, 16_384, seed=1), random(2, 16_384, seed=2), random(16_384, seed=3)
    bias = random(16_384, seed=4) if biased else None
    torch.testing.assert_close(
        norm(x, residual, weight, bias, 1e-5), reference(x, residual, weight, bias, 1e-5), rtol=1e-5, atol=1e-5
    )


def test_a_stream_that_starts_is_x_itself_and_no_argument_is_written() -> None:
    x, residual, weight = random(2, 576, seed=1), random(2, 576, seed=2), random(576, seed=3)
    before = [tensor.clone() for tensor in (x, residual, weight)]
    assert add_rms_norm(LAUNCH, x, None, weight, 1e-5)[1] is x
    assert add_rms_norm(LAUNCH, x, residual, weight, 1e-5)[1].data_ptr() not in (x.data_ptr(), residual.data_ptr())
    assert all(torch.equal(now, then) for now, then in zip((x, residual, weight), before, strict=True))


def test_what_is_normed_is_the_stream_as_it_is_stored() -> None:
    """1024 + 0.25 is 1024 in float16: only the rounded sum is constant along the row, and its layer norm 0."""
    x = torch.full((1, 64), 1024.0, dtype=torch.float16, device=DEVICE)
    residual = torch.zeros_like(x)
    residual[0, ::2] = 0.25
    ones, zeros = torch.ones_like(x[0]), torch.zeros_like(x[0])
    normed, stream = add_layer_norm(LAUNCH, x, residual, ones, zeros, 1e-12)
    assert torch.equal(stream, x)
    assert torch.equal(normed, torch.zeros_like(x))


def test_a_mean_far_from_zero_is_subtracted_before_anything_is_squared() -> None:
    x = random(2, 896) + 3000.0
    weight, bias = torch.ones(896, device=DEVICE), torch.zeros(896, device=DEVICE)
    expected = torch.nn.functional.layer_norm(x.double(), (896,), eps=1e-5).float()
    # The rows hold differences of 2^-12; a mean of squares would have lost all of them.
    torch.testing.assert_close(norm(x, None, weight, bias, 1e-5)[0], expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_row_depends_on_nothing_else(biased: bool, dtype: torch.dtype) -> None:
    x, residual = random(5, 896, dtype=dtype, seed=1), random(5, 896, dtype=dtype, seed=2)
    weight = random(896, dtype=dtype, seed=3)
    bias = random(896, dtype=dtype, seed=4) if biased else None
    alone = norm(x[3:4], residual[3:4], weight, bias, 1e-5)
    x[:3], residual[4:] = float("nan"), 100.0
    together = norm(x, residual, weight, bias, 1e-5)
    for row, rows in zip(alone, together, strict=True):
        assert torch.equal(row[0], rows[3])


def test_weights_of_another_dtype_and_tensors_that_are_not_contiguous() -> None:
    x, weight = random(576, 4, dtype=torch.float16).T, random(576, seed=3)
    residual = random(4, 1152, dtype=torch.float16, seed=2)[:, ::2]
    normed, stream = norm(x, residual, weight, None, 1e-5)
    expected, total = reference(x, residual, weight, None, 1e-5)
    assert torch.equal(stream, total)
    torch.testing.assert_close(normed, expected, rtol=2e-3, atol=2e-3)


def test_a_nan_stays_in_its_row_and_fills_it() -> None:
    x = random(3, 576)
    x[1, 5] = float("nan")
    normed, _ = norm(x, None, torch.ones(576, device=DEVICE), None, 1e-5)
    assert normed[1].isnan().all()
    assert not normed[[0, 2]].isnan().any()
