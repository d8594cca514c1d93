"""Norms, activations and rotation compiled for the GPU, in its dtypes and at the sizes it serves, against float64."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from kernels.backend import ActivationKind, HeadNorms, KVCache, Rotation
from kernels.gpu.activation import activation, gated_activation
from kernels.gpu.launch import JitLauncher, device_target
from kernels.gpu.norm import add_layer_norm, add_rms_norm
from kernels.gpu.rotary import rotate_and_store

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = JitLauncher(device_target(DEVICE))
KINDS: tuple[ActivationKind, ...] = get_args(ActivationKind)
EPS = 1e-5
HALF_STEP = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""How far rounding takes a number from itself, relative to it."""

dtypes = pytest.mark.parametrize("dtype", HALF_STEP, ids=str)
tokens_ = pytest.mark.parametrize("tokens", [1, 7, 2048])


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE).to(dtype)


def assert_rounded(got: Tensor, exact: Tensor, roundings: float = 1.0) -> None:
    """`got` is `exact`, float64, after so many roundings to its dtype, and what float32 loses before."""
    bound = roundings * HALF_STEP[got.dtype] * 1.01 + 1e-5
    torch.testing.assert_close(got.double(), exact, rtol=bound, atol=1e-5)


@dtypes
@tokens_
@pytest.mark.parametrize("size", [576, 896, 4096, 8192, 16_384])
@pytest.mark.parametrize("starts", [False, True])
def test_norms(dtype: torch.dtype, tokens: int, size: int, starts: bool) -> None:
    x = random(tokens, size, dtype=dtype, seed=1)
    residual = None if starts else random(tokens, size, dtype=dtype, seed=2)
    weight, bias = random(size, dtype=dtype, seed=3), random(size, dtype=dtype, seed=4)
    total = x if residual is None else x + residual
    wide = total.double()

    normed, stream = add_rms_norm(LAUNCH, x, residual, weight, EPS)
    assert torch.equal(stream, total)
    assert_rounded(normed, wide / (wide.square().mean(1, keepdim=True) + EPS).sqrt() * weight.double())

    normed, stream = add_layer_norm(LAUNCH, x, residual, weight, bias, EPS)
    assert torch.equal(stream, total)
    assert_rounded(normed, torch.nn.functional.layer_norm(wide, (size,), weight.double(), bias.double(), EPS))


@dtypes
@tokens_
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1536, 14_336])
def test_activations(dtype: torch.dtype, tokens: int, kind: ActivationKind, size: int) -> None:
    x = random(tokens, 2 * size, dtype=dtype) * 3
    exact: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": lambda x: x * x.sigmoid(),
        "gelu": lambda x: x * torch.special.ndtr(x),
        "gelu_tanh": lambda x: x * ((2 / torch.pi) ** 0.5 * 2 * (x + 0.044715 * x**3)).sigmoid(),
    }
    expected = exact[kind](x.double())
    assert_rounded(activation(LAUNCH, x, kind), expected)
    gate, up = expected[:, :size], x[:, size:].double()
    assert_rounded(gated_activation(LAUNCH, x, kind), gate * up, roundings=2)


def test_more_elements_than_32_bits_count() -> None:
    x = torch.full((1 << 17, 1 << 14), -1.0, dtype=torch.bfloat16, device=DEVICE)
    x[-1] = 3.0
    out = activation(LAUNCH, x, "silu")
    assert_rounded(out[-1], 3 / (1 + torch.exp(torch.full((1 << 14,), -3.0, dtype=torch.float64, device=DEVICE))))


@dtypes
@tokens_
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rope_dim"),
    [(32, 8, 128, 128), (9, 3, 64, 64), (8, 8, 80, 32), (4, 4, 96, 96), (4, 1, 256, 256), (12, 12, 64, 0)],
)
@pytest.mark.parametrize("fp8", [False, True])
def test_rotation(
    dtype: torch.dtype, tokens: int, normed: bool, heads: int, kv_heads: int, dim: int, rope_dim: int, fp8: bool
) -> None:
    cache = KVCache(
        layers=1,
        blocks=40,
        block_size=64,
        kv_heads=kv_heads,
        head_dim=dim,
        dtype=torch.float8_e4m3fn if fp8 else dtype,
        device=DEVICE,
    ).layers[0]
    scales = torch.ones(2, kv_heads, 1, device=DEVICE)
    if cache.key_scales is not None and cache.value_scales is not None:
        scales = torch.rand(2, kv_heads, 1, generator=torch.Generator(DEVICE).manual_seed(5), device=DEVICE) + 0.1
        cache.key_scales.copy_(scales[0, :, 0])
        cache.value_scales.copy_(scales[1, :, 0])
    qkv = random(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    weights = random(2, dim, dtype=dtype, seed=1)
    angles = random(tokens, rope_dim // 2, dtype=torch.float32, seed=2) * 100
    rotation = Rotation(angles.cos(), angles.sin()) if rope_dim else None
    slots = torch.randperm(40 * 64, generator=torch.Generator(DEVICE).manual_seed(3), device=DEVICE)[:tokens]

    norms = HeadNorms(weights[0], weights[1], EPS) if normed else None
    q = rotate_and_store(LAUNCH, qkv, heads, norms, rotation, cache, slots)
    exact_q, exact_k, v = qkv.double().unflatten(1, (-1, dim)).split([heads, kv_heads, kv_heads], dim=1)
    if normed:
        exact_q, exact_k = (
            (x / (x.square().mean(2, keepdim=True) + EPS).sqrt() * weight.double())
            for x, weight in zip((exact_q, exact_k), weights, strict=True)
        )
    exact_q, exact_k = rotated(exact_q, rotation), rotated(exact_k, rotation)
    assert_turned(q.double(), exact_q, HALF_STEP[dtype])

    k = cache.keys.flatten(0, 1)[slots].double() * scales[0]
    stored_v = cache.values.flatten(0, 1)[slots]
    if fp8:
        limit = 448 * scales[0].double()
        assert_turned(k, exact_k.clamp(-limit, limit), HALF_STEP[dtype], stored_step=2**-4)
        codes = (v.float() / scales[1]).clamp(-448, 448).to(torch.float8_e4m3fn)
        assert torch.equal(stored_v.view(torch.uint8), codes.view(torch.uint8))
    else:
        assert_turned(k, exact_k, HALF_STEP[dtype])
        assert torch.equal(stored_v.double(), v)


def assert_turned(got: Tensor, exact: Tensor, half_step: float, stored_step: float = 0.0) -> None:
    """`got` is `exact` but for rounding after norm and rotation, by `half_step`, and in the cache by `stored_step`.

    Rotation mixes the errors of a pair, so that they are relative to its length, at most sqrt 2 of the largest number.
    """
    bound = 2 * half_step * float(exact.abs().max()) + 1e-3 * (stored_step > 0)
    torch.testing.assert_close(got, exact, rtol=1.1 * (half_step + stored_step), atol=1.1 * bound)


def rotated(x: Tensor, rotation: Rotation | None) -> Tensor:
    """[tokens, heads, dim] in float64."""
    if rotation is None:
        return x
    half = rotation.cos.shape[1]
    turn = torch.complex(rotation.cos.double(), rotation.sin.double())[:, None]
    turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * turn
    return torch.cat([turned.real, turned.imag, x[..., 2 * half :]], dim=-1)
