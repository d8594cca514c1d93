"""Norm, rotation and the cache's write against the reference backend, over what families combine of them."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import HeadNorms, KVCache, LayerCache, Rotation
from kernels.gpu.launch import JitLauncher, device_target
from kernels.gpu.rotary import rotate_and_store
from kernels.reference import ReferenceBackend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = JitLauncher(device_target(DEVICE))
REFERENCE = ReferenceBackend()
FP8 = torch.float8_e4m3fn
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
POISON = {torch.float32: float("nan"), torch.float16: float("nan"), FP8: 7.0}


@dataclass
class Heads:
    """A model's heads, how much of each is rotated (0: nothing, by no rotation), and its dtypes."""

    heads: int
    kv_heads: int
    dim: int
    rope_dim: int
    normed: bool = False
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype = torch.float32

    def qkv(self, tokens: int) -> Tensor:
        return random(tokens, (self.heads + 2 * self.kv_heads) * self.dim, seed=1).to(self.dtype)

    def norms(self) -> HeadNorms | None:
        query, key = random(2, self.dim, seed=2).to(self.dtype)
        return HeadNorms(query, key, 1e-5) if self.normed else None

    def rotation(self, tokens: int) -> Rotation | None:
        angles = random(tokens, self.rope_dim // 2, seed=3) * 10
        # With a magnitude, as YaRN has.
        return Rotation(angles.cos() * 1.1, angles.sin() * 1.1) if self.rope_dim else None

    def cache(self) -> list[LayerCache]:
        """Two layers, where nothing is a number yet, or everything 7."""
        cache = KVCache(
            layers=2,
            blocks=3,
            block_size=4,
            kv_heads=self.kv_heads,
            head_dim=self.dim,
            dtype=self.cache_dtype,
            device=DEVICE,
        )
        for layer in cache.layers:
            for tensor in layer.keys, layer.values:
                tensor.copy_(torch.full(tensor.shape, POISON[self.cache_dtype]))
            if layer.key_scales is not None and layer.value_scales is not None:
                # Small ones, so that some of what is stored is clamped.
                layer.key_scales.copy_(0.002 + torch.arange(self.kv_heads) * 0.07)
                layer.value_scales.copy_(0.3 + torch.arange(self.kv_heads))
        return cache.layers


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def check(model: Heads, slots: list[int]) -> None:
    """The queries, and the whole cache: what was stored, and what was to be left alone, in the layer before as well."""
    tokens = len(slots)
    arguments = model.qkv(tokens), model.heads, model.norms(), model.rotation(tokens)
    at = torch.tensor(slots, dtype=torch.int64, device=DEVICE)
    layers, expected_layers = model.cache(), model.cache()
    q = rotate_and_store(LAUNCH, *arguments, layers[1], at)
    expected = REFERENCE.rotate_and_store(*arguments, expected_layers[1], at)
    tolerance = TOLERANCE[model.dtype]
    torch.testing.assert_close(q, expected, rtol=tolerance, atol=tolerance)
    # A key that differs in its last bit may lie on the other side of a tie of e4m3, whose steps are of 1/8 at most.
    step = 0.13 if model.cache_dtype == FP8 else tolerance
    for layer, wanted in zip(layers, expected_layers, strict=True):
        assert layer.keys.dtype == layer.values.dtype == model.cache_dtype
        torch.testing.assert_close(layer.keys.float(), wanted.keys.float(), rtol=step, atol=tolerance, equal_nan=True)
        # Values are only encoded.
        torch.testing.assert_close(layer.values.float(), wanted.values.float(), rtol=0, atol=0, equal_nan=True)


SHAPES = [
    Heads(9, 3, 64, 64),
    Heads(4, 2, 80, 80),
    Heads(3, 3, 96, 96),
    Heads(4, 1, 256, 256),
    Heads(17, 17, 64, 64),
    Heads(4, 2, 128, 128, normed=True),
    Heads(4, 4, 80, 32),
    Heads(4, 4, 96, 24, normed=True),
    Heads(2, 2, 64, 16),
    Heads(3, 1, 6, 2, normed=True),
    Heads(12, 12, 64, 0),
    Heads(2, 2, 80, 0, normed=True),
]


def name(model: Heads) -> str:
    return f"{model.heads}/{model.kv_heads}x{model.dim}r{model.rope_dim}{'n' if model.normed else ''}"


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.float16,) * 2, (torch.float16, FP8)], ids=str)
@pytest.mark.parametrize("model", SHAPES, ids=name)
def test_as_the_reference(model: Heads, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    dtype, cache_dtype = dtypes
    check(Heads(**{**vars(model), "dtype": dtype, "cache_dtype": cache_dtype}), [5, -1, 0, 7])


@settings(max_examples=25, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (6, 2), (5, 5), (20, 4)]),
    dim=st.integers(1, 70).map(lambda half: 2 * half),
    part=st.floats(0, 1),
    normed=st.booleans(),
    slots=st.lists(st.integers(0, 11), unique=True, max_size=3),
    padding=st.integers(0, 2),
)
def test_any_shape(heads: tuple[int, int], dim: int, part: float, normed: bool, slots: list[int], padding: int) -> None:
    check(Heads(*heads, dim, rope_dim=2 * int(part * dim / 2), normed=normed), slots + padding * [-1])


def test_what_is_too_large_for_e4m3_is_clamped_and_a_nan_stays_one() -> None:
    model = Heads(1, 1, 16, 0, cache_dtype=FP8)
    cache = model.cache()[1]
    qkv = torch.full((1, 48), 1e6, device=DEVICE)
    qkv[0, 20], qkv[0, 40] = -1e6, float("nan")
    rotate_and_store(LAUNCH, qkv, 1, None, None, cache, torch.zeros(1, dtype=torch.int64, device=DEVICE))
    keys, values = cache.keys[0, 0, 0].float(), cache.values[0, 0, 0].float()
    assert keys.tolist() == 4 * [448.0] + [-448.0] + 11 * [448.0]
    assert values.isnan().nonzero().tolist() == [[8]]


def test_unrotated_heads_without_norm_are_copied() -> None:
    model = Heads(4, 2, 80, 0, dtype=torch.float16, cache_dtype=torch.float16)
    qkv, cache = model.qkv(2), model.cache()[1]
    q = rotate_and_store(LAUNCH, qkv, 4, None, None, cache, torch.tensor([7, 2], device=DEVICE))
    assert torch.equal(q.flatten(1), qkv[:, :320])
    assert torch.equal(cache.keys.flatten(0, 1)[[7, 2]].flatten(1), qkv[:, 320:480])
    assert torch.equal(cache.values.flatten(0, 1)[[7, 2]].flatten(1), qkv[:, 480:])


def test_a_token_depends_on_nothing_else() -> None:
    model = Heads(4, 2, 96, 48, normed=True)
    qkv, rotation, norms = model.qkv(4), model.rotation(4), model.norms()
    assert rotation is not None
    alone, together = model.cache()[1], model.cache()[1]
    last = Rotation(rotation.cos[3:], rotation.sin[3:])
    q = rotate_and_store(LAUNCH, qkv[3:], 4, norms, last, alone, torch.tensor([6], device=DEVICE))
    qkv[:3] = float("nan")
    rows = rotate_and_store(LAUNCH, qkv, 4, norms, rotation, together, torch.tensor([1, 2, 3, 6], device=DEVICE))
    assert torch.equal(rows[3], q[0])
    assert torch.equal(together.keys[1, 2], alone.keys[1, 2])
    assert torch.equal(together.values[1, 2], alone.values[1, 2])


@pytest.mark.gpu
def test_slots_whose_offset_exceeds_32_bits() -> None:
    model = Heads(2, 16, 128, 128, cache_dtype=torch.float16, dtype=torch.float16)
    blocks = (1 << 32) // (64 * 16 * 128) + 2
    cache = LayerCache(*torch.empty(2, blocks, 64, 16, 128, dtype=torch.float16, device=DEVICE))
    qkv, slot = model.qkv(1), blocks * 64 - 1
    rotate_and_store(LAUNCH, qkv, 2, None, None, cache, torch.tensor([slot], device=DEVICE))
    keys, values = qkv[0, 2 * 128 :].view(2, 16, 128)
    assert torch.equal(cache.keys[-1, -1], keys)
    assert torch.equal(cache.values[-1, -1], values)
