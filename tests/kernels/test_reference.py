"""The reference backend against arithmetic written out naively, one sequence and one head at a time, in float64."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import AttentionOptions, HeadNorms, KVCache, LayerCache, QuantizedWeight, Rotation
from kernels.reference import ReferenceBackend, decode, dequantize
from model.batch import batch_layout
from model.contract import Chunk

BACKEND = ReferenceBackend()
CPU = torch.device("cpu")


def naive_attention(q: Tensor, keys: Tensor, values: Tensor, start: int, options: AttentionOptions) -> Tensor:
    """Q [n, heads, dim] at positions start..; keys, values [context, kv_heads, dim]."""
    out = torch.zeros_like(q, dtype=torch.float64)
    group = q.shape[1] // keys.shape[1]
    for i in range(q.shape[0]):
        for head in range(q.shape[1]):
            at = start + i
            scores = []
            for j in range(at + 1):
                if options.window is not None and at - j >= options.window:
                    continue
                score = options.scale * float(q[i, head].double() @ keys[j, head // group].double())
                if options.softcap is not None:
                    score = options.softcap * math.tanh(score / options.softcap)
                if options.alibi_slopes is not None:
                    score += float(options.alibi_slopes[head]) * (j - at)
                scores.append((j, score))
            top = max(score for _, score in scores)
            total = sum(math.exp(score - top) for _, score in scores)
            if options.sinks is not None:
                total += math.exp(float(options.sinks[head]) - top)
            for j, score in scores:
                out[i, head] += math.exp(score - top) / total * values[j, head // group].double()
    return out


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(tokens in the cache already, new tokens) of each sequence of a batch."""
    return draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=5))


@settings(max_examples=40, deadline=None)
@given(
    lens=sequences(),
    block_size=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)]),
    window=st.sampled_from([None, 1, 5]),
    softcap=st.sampled_from([None, 2.0]),
    alibi=st.booleans(),
    sinks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_attention_over_scattered_blocks_equals_naive_attention(
    lens: list[tuple[int, int]],
    block_size: int,
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    alibi: bool,
    sinks: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query_heads, kv_heads = heads
    lens = sorted(lens, key=lambda pair: pair[1])
    needed = [-(-(start + new) // block_size) for start, new in lens]
    ids = torch.randperm(sum(needed) + 3, generator=generator).tolist()
    # Blocks that nobody owns, and what lies beyond a sequence in its last block, hold garbage of the worst kind.
    keys = torch.full((len(ids), block_size, kv_heads, 8), float("nan"))
    values = torch.full_like(keys, float("nan"))
    chunks, expected, queries = [], [], []
    options = AttentionOptions(
        scale=0.3,
        window=window,
        softcap=softcap,
        alibi_slopes=torch.rand(query_heads) if alibi else None,
        sinks=torch.randn(query_heads) if sinks else None,
    )
    for (start, new), count in zip(lens, needed, strict=True):
        blocks, ids = ids[:count], ids[count:]
        k = torch.randn(start + new, kv_heads, 8, generator=generator)
        v = torch.randn(start + new, kv_heads, 8, generator=generator)
        slots = torch.tensor([blocks[i // block_size] * block_size + i % block_size for i in range(start + new)])
        keys.flatten(0, 1)[slots], values.flatten(0, 1)[slots] = k, v
        q = torch.randn(new, query_heads, 8, generator=generator)
        queries.append(q)
        chunks.append(Chunk([0] * new, start, blocks))
        expected.append(naive_attention(q, k, v, start, options))
    layout = batch_layout(chunks, block_size, CPU)
    out = BACKEND.attend(torch.cat(queries), LayerCache(keys, values), layout, options)
    torch.testing.assert_close(out.double(), torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_a_sequence_that_pads_a_batch_attends_to_nothing_and_is_not_stored() -> None:
    cache = KVCache(layers=1, blocks=2, block_size=4, kv_heads=1, head_dim=8, dtype=torch.float32, device=CPU)
    cache.layers[0].keys.fill_(float("nan"))
    cache.layers[0].values.fill_(float("nan"))
    alone = batch_layout([Chunk([0], 0, [1])], 4, CPU)
    padded = replace(
        alone,
        query_starts=torch.arange(3, dtype=torch.int32),
        context_lens=torch.tensor([1, 0], dtype=torch.int32),
        block_table=torch.tensor([[1], [0]], dtype=torch.int32),
        slots=torch.tensor([4, -1]),
        positions=torch.zeros(2, dtype=torch.int64),
        singles=2,
    )
    qkv = torch.randn(2, 3 * 8)
    q = BACKEND.rotate_and_store(qkv, 1, None, None, cache.layers[0], padded.slots)
    out = BACKEND.attend(q, cache.layers[0], padded, AttentionOptions(scale=1.0))
    torch.testing.assert_close(out, torch.stack([qkv[:1, 16:], torch.zeros(1, 8)]))
    assert cache.layers[0].keys.isnan().sum() == 7 * 8


def test_an_fp8_cache_holds_what_its_scales_bring_into_range() -> None:
    dtype = torch.float8_e4m3fn
    cache = KVCache(layers=2, blocks=1, block_size=4, kv_heads=2, head_dim=8, dtype=dtype, device=CPU)
    layer = cache.layers[1]
    assert layer.key_scales is not None
    assert layer.value_scales is not None
    layer.key_scales.copy_(torch.tensor([0.01, 2.0]))
    qkv = torch.randn(3, (2 + 2 * 2) * 8)
    qkv[0, -1] = 1000.0
    BACKEND.rotate_and_store(qkv, 2, None, None, layer, torch.arange(3))
    keys, values = qkv.view(3, 6, 8)[:, 2:4], qkv.view(3, 6, 8)[:, 4:]
    # Three bits of mantissa: half a unit in the last place is 1/16.
    torch.testing.assert_close(decode(layer.keys[0, :3], layer.key_scales), keys, rtol=1 / 16, atol=0.01)
    torch.testing.assert_close(decode(layer.values[0, :3], None), values.clamp(max=448), rtol=1 / 16, atol=0.01)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("offsets", [True, False])
def test_a_quantised_weight_is_its_formula(bits: Literal[4, 8], offsets: bool) -> None:
    codes = torch.randint(0, 1 << bits, (3, 64), dtype=torch.uint8)
    stored = codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    scales, shifts = torch.rand(3, 2).half(), torch.randn(3, 2).half()
    weight = QuantizedWeight(stored, scales, shifts if offsets else None, 5, bits, 32)
    assert weight.shape == (3, 64)
    expected = torch.zeros(3, 64)
    for row in range(3):
        for column in range(64):
            value = float(scales[row, column // 32]) * (int(codes[row, column]) - 5)
            expected[row, column] = value + (float(shifts[row, column // 32]) if offsets else 0.0)
    torch.testing.assert_close(dequantize(weight), expected)
    x, bias = torch.randn(2, 64), torch.randn(3)
    torch.testing.assert_close(BACKEND.linear(x, BACKEND.pack(weight, bias)), x @ expected.T + bias)


def test_rotate_and_store_puts_every_token_into_its_slot() -> None:
    heads, kv_heads, dim, tokens = 4, 2, 8, 5
    cache = KVCache(layers=1, blocks=4, block_size=4, kv_heads=kv_heads, head_dim=dim, dtype=torch.float32, device=CPU)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim)
    slots = torch.tensor([15, 2, 7, 0, 9])
    angles = torch.rand(tokens, 3)
    norms = HeadNorms(torch.rand(dim), torch.rand(dim), 1e-6)
    q = BACKEND.rotate_and_store(qkv, heads, norms, Rotation(angles.cos(), angles.sin()), cache.layers[0], slots)

    split = qkv.view(tokens, -1, dim)
    stored = cache.layers[0].keys.view(-1, kv_heads, dim)[slots]
    torch.testing.assert_close(cache.layers[0].values.view(-1, kv_heads, dim)[slots], split[:, heads + kv_heads :])
    for got, raw, weight in (
        (q, split[:, :heads], norms.query),
        (stored, split[:, heads : heads + kv_heads], norms.key),
    ):
        normed = raw / torch.sqrt(raw.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
        # A pair as a complex number, multiplied by e^(i angle).
        turned = torch.complex(normed[..., :3], normed[..., 3:6]) * torch.exp(1j * angles)[:, None]
        torch.testing.assert_close(got, torch.cat([turned.real, turned.imag, normed[..., 6:]], -1))


@pytest.mark.parametrize("residual", [True, False])
def test_norms_return_the_sum_and_its_norm(residual: bool) -> None:
    x, stream = torch.randn(3, 16), torch.randn(3, 16) if residual else None
    weight, bias = torch.rand(16), torch.rand(16)
    total = x if stream is None else x + stream
    normed, out = BACKEND.add_rms_norm(x, stream, weight, 1e-5)
    torch.testing.assert_close(out, total)
    torch.testing.assert_close(normed, total / (total.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight)
    normed, out = BACKEND.add_layer_norm(x, stream, weight, bias, 1e-5)
    torch.testing.assert_close(out, total)
    centred = total - total.mean(-1, keepdim=True)
    torch.testing.assert_close(normed, centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("gelu", lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_tanh", lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_activations(kind, formula) -> None:
    x = torch.linspace(-4, 4, 32).view(2, 16)
    expected = torch.tensor([[formula(float(v)) for v in row] for row in x])
    torch.testing.assert_close(BACKEND.activation(x, kind), expected)
    torch.testing.assert_close(BACKEND.gated_activation(x, kind), expected[:, :8] * x[:, 8:])


@settings(max_examples=40, deadline=None)
@given(
    logits=st.lists(st.sampled_from([-math.inf, -3.5, -0.0, 0.0, 1e-45, 2.5, 30.0]), min_size=1, max_size=12),
    data=st.data(),
)
def test_log_probabilities_have_one_order_also_among_equals(logits: list[float], data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    most = data.draw(st.integers(0, len(logits)))
    (row,) = BACKEND.log_probabilities(torch.tensor([logits]), torch.tensor([token]), most).tolist()
    ids = sorted(range(len(logits)), key=lambda index: (-logits[index], index))[:most]
    if max(logits) == -math.inf:
        assert row[1] == 1
        assert [*map(math.isnan, row)] == [True, False, *[True] * most, *[False] * most]
    else:
        total = math.log(sum(math.exp(logit) for logit in logits))
        expected = [logits[token] - total, 1 + sum(logit > logits[token] for logit in logits)]
        assert row[: 2 + most] == pytest.approx([*expected, *(logits[index] - total for index in ids)])
    assert row[2 + most :] == ids
