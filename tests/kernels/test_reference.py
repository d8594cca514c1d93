"""The reference backend against arithmetic written out naively, one sequence and one head at a time, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import AttentionOptions, HeadNorms, KVCache, LayerCache, Rotation
from kernels.reference import ReferenceBackend
from model.contract import Chunk
from model.runner import batch_layout

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
    seed=st.integers(0, 2**31),
)
def test_attention_over_scattered_blocks_equals_naive_attention(
    lens: list[tuple[int, int]],
    block_size: int,
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    alibi: bool,
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
        scale=0.3, window=window, softcap=softcap, alibi_slopes=torch.rand(query_heads) if alibi else None
    )
    for (start, new), count in zip(lens, needed, strict=True):
        blocks, ids = ids[:count], ids[count:]
        k = torch.randn(start + new, kv_heads, 8, generator=generator)
        v = torch.randn(start + new, kv_heads, 8, generator=generator)
        slots = torch.tensor([blocks[i // block_size] * block_size + i % block_size for i in range(start + new)])
        keys.flatten(0, 1)[slots], values.flatten(0, 1)[slots] = k, v
        q = torch.randn(new, query_heads, 8, generator=generator)
        queries.append(q)
        chunks.append(Chunk([0] * new, start, blocks, None))
        expected.append(naive_attention(q, k, v, start, options))
    layout = batch_layout(chunks, block_size, CPU)
    out = BACKEND.attend(torch.cat(queries), LayerCache(keys, values), layout, options)
    torch.testing.assert_close(out.double(), torch.cat(expected), rtol=1e-4, atol=1e-5)


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
