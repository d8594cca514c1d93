"""Every operation of the cpu backend against the reference, and what only it promises: its programs, its threads."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import llvmlite.binding as llvm
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import ActivationKind, AttentionOptions, HeadNorms, LayerCache, LayerQueries, QuantizedWeight
from kernels.cpu import pages, recording
from kernels.cpu.activations import TOKENS, UNIT_FROM, Rounding, rounding_for
from kernels.cpu.arguments import RoundArguments
from kernels.cpu.attention_memory import serves
from kernels.cpu.backend import CpuBackend
from kernels.cpu.cache_forms import STORED
from kernels.cpu.operation import Operation
from kernels.cpu.operations import logprobs_operation, round_operation, weigh_operation, weights_operation
from kernels.cpu.panels import Format
from kernels.cpu.target import matrix_unit
from kernels.reference import ReferenceBackend, attend, decode, dequantize, encode
from tests.kernels.gpu.cases import FP8, PADDING, AttentionCase, Lengths, attention_case, part_of

REFERENCE = ReferenceBackend()
CPU = CpuBackend(2)
INVARIANT = CpuBackend(2, batch_invariant=True)
CUT = 0.65 * 2.0**-7
"""Largest error of a weight that has been unpacked to bfloat16, relative to the weight unless it is almost 0."""
RAGGED: Lengths = [PADDING, (0, 1), (37, 1), (200, 1), (0, 5), (130, 9), (3, 70), (0, 150)]
PLAIN = AttentionOptions(scale=0.3)


def quantized(
    rows: int, columns: int, bits: int, group: int, offsets: bool, zero: int | None = None
) -> QuantizedWeight:
    """A weight whose zero is in the middle of the codes, or 0 with offsets, unless it is given."""
    codes = torch.randint(0, 256, (rows, columns * bits // 8), dtype=torch.uint8)
    scales = torch.rand(rows, columns // group).mul(0.02).half()
    shift = torch.rand(rows, columns // group).sub(0.5).mul(0.1).half() if offsets else None
    usual = 0 if offsets else 2 ** (bits - 1)
    return QuantizedWeight(codes, scales, shift, usual if zero is None else zero, bits, group)  # type: ignore[arg-type]


def close(got: Tensor, expected: Tensor, error: float) -> None:
    """Within `error` of the expected numbers' usual size: sums come in another order."""
    assert got.shape == expected.shape
    assert (got.double() - expected.double()).abs().max() <= error * expected.double().std().clamp(min=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 9) | st.integers(15, 40),
    outputs=st.integers(1, 40),
    groups=st.integers(1, 5) | st.just(19),
    form=st.sampled_from([(4, 32, True), (4, 32, False), (8, 32, False), (8, 16, True), (4, 128, True)]),
    zero=st.sampled_from([None, 7]),
    biased=st.booleans(),
    invariant=st.booleans(),
    seed=st.integers(0, 99),
)
def test_quantized_projection_keeps_the_weights_and_rounds_inputs(
    rows: int,
    outputs: int,
    groups: int,
    form: tuple[int, int, bool],
    zero: int | None,
    biased: bool,
    invariant: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    bits, group, offsets = form
    backend = INVARIANT if invariant else CPU
    weight = quantized(outputs, groups * group, bits, group, offsets, zero)
    bias = torch.randn(outputs) if biased else None
    x = torch.randn(rows, groups * group) + 20 * torch.randn(rows, groups).repeat_interleave(group, 1)
    got = backend.linear(x, backend.pack(weight, bias))
    dense = dequantize(weight).double()
    own = min(group, 32)
    unit_from = rounding_for(Format(bits, own, 2), groups * group // own, batch_invariant=invariant).unit_from
    if not unit_from or rows < unit_from:
        # A group's inputs are rounded by half a step; the steps are the largest input over the largest code.
        largest = {4: 2039, 8: 32639}[bits]
        steps = x.view(rows, -1, own).abs().amax(-1).repeat_interleave(own, 1) / largest
        bound = steps.double() / 2 @ dense.abs().T + 1e-3
    else:
        bound = (CUT + 2.0**-9) * (x.double().abs() @ dense.abs().T) + 1e-3
    expected = x.double() @ dense.T + (0 if bias is None else bias)
    assert ((got - expected).abs() <= bound).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_projection_of_many_tokens_has_the_bits_of_each_alone(bits: int) -> None:
    weight = INVARIANT.pack(quantized(40, 64 * 11, bits, 32, bits == 4), torch.randn(40))
    x = torch.randn(521, 64 * 11)
    parts = torch.cat([INVARIANT.linear(part, weight) for part in x.split(7)])
    assert torch.equal(INVARIANT.linear(x, weight), parts)


@pytest.mark.parametrize("bits", [4, 8])
def test_few_tokens_have_the_bits_of_each_alone_and_many_those_of_batch_invariance(bits: int) -> None:
    """The matrix unit multiplies from some number of tokens on, and by its own arithmetic."""
    weight, x = CPU.pack(quantized(40, 64, bits, 32, bits == 4), None), torch.randn(3 * UNIT_FROM, 64)
    few = x[: UNIT_FROM - 1]
    assert torch.equal(CPU.linear(few, weight), torch.cat([CPU.linear(row[None], weight) for row in few]))
    for many in (x[:UNIT_FROM], x):
        assert torch.equal(CPU.linear(many, weight), INVARIANT.linear(many, weight))


def test_offsets_are_exact() -> None:
    """A zero times a scale, plus an offset, is no float16 number, and an error in it is the same for a whole group."""
    for zero in (0, 7, 11):
        weight = quantized(40, 64, 4, 32, True, zero)
        got = CPU.embed(torch.arange(40), torch.arange(40), CPU.pack(weight, None), 1.0, None)
        torch.testing.assert_close(got, dequantize(weight), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", [(4, 32, True), (4, 16, False), (8, 32, False), (8, 16, True)])
def test_unpacked_weights_are_near_and_right_on_average(form: tuple[int, int, bool]) -> None:
    """Products with the identity are the weights themselves."""
    weight = quantized(512, 256, *form)
    dense = dequantize(weight)
    got = CPU.linear(torch.eye(256), CPU.pack(weight, None)).T
    errors = got - dense
    assert (errors.abs() <= CUT * dense.abs() + 2.0**-14 * dense.abs().max()).all()
    # Ties, an eighth of all weights, are rounded away from 0.
    assert (errors * dense.sign()).mean().abs() <= 2.0**-11 * dense.abs().mean()
    assert errors.abs().mean() <= 2.0**-9 * dense.abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [96, 20])
def test_dense_projection(dtype: torch.dtype, columns: int) -> None:
    weight, x = torch.randn(37, columns).to(dtype), torch.randn(6, columns)
    packed = CPU.pack(weight, None)
    close(CPU.linear(x, packed), x @ weight.float().T, 3e-5)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_activations(kind: ActivationKind) -> None:
    x = torch.cat([torch.randn(11, 62) * 4, torch.tensor([[1e4, -1e4]] * 11)], 1)
    torch.testing.assert_close(CPU.activation(x, kind), REFERENCE.activation(x, kind), rtol=1e-5, atol=1e-5)
    x = torch.randn(11, 70)
    expected = REFERENCE.gated_activation(x, kind)
    torch.testing.assert_close(CPU.gated_activation(x, kind), expected, rtol=1e-5, atol=1e-5)


def test_norms() -> None:
    x, residual, weight, bias = torch.randn(11, 52), torch.randn(11, 52), torch.randn(52), torch.randn(52)
    for stream in (None, residual):
        for got, expected in (
            (CPU.add_rms_norm(x, stream, weight, 1e-5), REFERENCE.add_rms_norm(x, stream, weight, 1e-5)),
            (
                CPU.add_layer_norm(x, stream, weight, bias, 1e-5),
                REFERENCE.add_layer_norm(x, stream, weight, bias, 1e-5),
            ),
        ):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("quantized_table", [True, False])
def test_embedding(quantized_table: bool) -> None:
    for form in [(4, 32, True), (8, 32, False), (8, 16, True)] if quantized_table else [None]:
        table = torch.randn(19, 64) if form is None else quantized(19, 64, *form)
        dense = table if isinstance(table, Tensor) else dequantize(table)
        tokens, positions, learned = torch.tensor([0, 18, 7, 8]), torch.arange(3, 7), torch.randn(9, 64)
        packed = CPU.pack(table, None)
        got = CPU.embed(tokens, positions, packed, 2.5, learned)
        torch.testing.assert_close(got, REFERENCE.embed(tokens, positions, dense, 2.5, learned), rtol=1e-3, atol=1e-4)


def test_rotation_angles() -> None:
    frequencies, positions = 1.0 / 1e4 ** (torch.arange(8) / 8), torch.tensor([0, 1, 77, 8191])
    got, expected = (backend.rotation(frequencies, 1.5, positions) for backend in (CPU, REFERENCE))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, FP8])
@pytest.mark.parametrize("normed", [True, False])
def test_rotate_and_store(cache_dtype: torch.dtype, normed: bool) -> None:
    case = attention_case([(3, 6), (2, 5)], head_dim=32, block_size=CPU.block_size, cache_dtype=cache_dtype)
    tokens = len(case.q)
    qkv = torch.randn(tokens, (4 + 2 * 2) * 32) * 20
    slots = case.layout.slots.clone()
    slots[2] = -1
    norms = HeadNorms(torch.randn(32), torch.randn(32), 1e-5) if normed else None
    rotation = REFERENCE.rotation(1.0 / 1e4 ** (torch.arange(6) / 6), 1.0, case.layout.positions)
    caches = [as_stored(case.cache), case.cache]
    queries = [
        backend.rotate_and_store(qkv, 4, norms, rotation, cache, slots)
        for backend, cache in zip((CPU, REFERENCE), caches, strict=True)
    ]
    torch.testing.assert_close(*queries, rtol=1e-5, atol=1e-5)
    caches[1] = as_stored(caches[1])
    for name in ("keys", "values"):
        got, expected = (decode(getattr(cache, name), getattr(cache, name[:-1] + "_scales")) for cache in caches)
        # A number next to the middle between two that can be stored may fall to either side.
        rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-7, FP8: 2**-3}[cache_dtype]
        torch.testing.assert_close(got, expected, rtol=rounding, atol=1e-2, equal_nan=True)


def test_fp8_and_bfloat16_are_stored_as_the_reference_rounds() -> None:
    x = torch.cat(
        [torch.randn(1, 1, 4096) * 10 ** torch.linspace(-4, 4, 4096), torch.tensor([[[500.0, -500, 0, float("nan")]]])],
        2,
    )
    dim = x.shape[2]
    for dtype in (torch.bfloat16, FP8):
        cache = LayerCache(*[torch.zeros(1, 1, 1, dim).to(dtype) for _ in range(2)])
        if dtype == FP8:
            cache = cache._replace(key_scales=torch.tensor([0.7]), value_scales=torch.tensor([1.3]))
        CPU.rotate_and_store(x.expand(3, 1, dim).reshape(1, -1).contiguous(), 1, None, None, cache, torch.tensor([0]))
        for stored, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales)):
            expected = encode(x, scales, dtype)
            torch.testing.assert_close(stored[0].float(), expected.float(), rtol=0, atol=0, equal_nan=True)


def on_unit(cache: LayerCache) -> bool:
    """Whether the matrix unit attends over the cache."""
    _, block, _, dim = cache.keys.shape
    return serves(STORED[cache.keys.dtype], dim, block)


def as_stored(cache: LayerCache) -> LayerCache:
    """A copy of a cache as the CPU stores it: for the matrix unit, values of two tokens lie number beside number."""
    blocks, block, kv_heads, dim = cache.values.shape
    values = cache.values.clone()
    if on_unit(cache):
        pairs = values.view(blocks, block // 2, 2, kv_heads, dim).permute(0, 1, 3, 4, 2)
        values = pairs.reshape(values.shape)
    return cache._replace(keys=cache.keys.clone(), values=values)


def stored(case: AttentionCase) -> AttentionCase:
    """A case with its cache as the CPU stores it."""
    return replace(case, cache=as_stored(case.cache))


def ragged(heads: int = 4, cache_dtype: torch.dtype = torch.float32) -> AttentionCase:
    """A batch over a cache in blocks of the CPU's own size."""
    return attention_case(RAGGED, heads=heads, head_dim=32, block_size=CPU.block_size, cache_dtype=cache_dtype)


def check(case: AttentionCase, options: AttentionOptions = PLAIN) -> None:
    got = CPU.attend(case.q, as_stored(case.cache), case.layout, options)
    q, error = case.q, torch.tensor(0.0)
    if on_unit(case.cache):
        # The matrix unit multiplies queries and weights of the nearest bfloat16 numbers.
        q = (q * options.scale).bfloat16().float() / options.scale
        sizes = case.cache._replace(values=case.cache.values.abs())
        error = 2.0**-8 * attend(q, sizes, case.layout, options)
    expected = attend(q, case.cache, case.layout, options)
    assert bool(((got - expected).abs() <= error + 1e-5 * (1 + expected.abs())).all())


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, FP8])
def test_attention_over_ragged_batches(cache_dtype: torch.dtype) -> None:
    check(ragged(cache_dtype=cache_dtype))


SHAPES = [
    (64, 32, torch.bfloat16),
    (96, 64, torch.bfloat16),
    (64, 16, torch.bfloat16),
    (5, 3, torch.bfloat16),
    (17, 1, torch.float32),
]
SHAPES += [(256, 8, torch.float32), (80, 64, FP8)]


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=12)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 90)), min_size=1, max_size=5),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 4, 7, 100]),
    window=st.none() | st.integers(1, 150),
    sinks=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_of_any_shape(
    shape: tuple[int, int, torch.dtype],
    lengths: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    window: int | None,
    sinks: bool,
    seed: int,
) -> None:
    dim, block, dtype = shape
    lengths.sort(key=lambda pair: pair[1])
    case = attention_case(
        lengths,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=dim,
        block_size=block,
        cache_dtype=dtype,
        seed=seed,
    )
    check(case, replace(PLAIN, window=window, sinks=torch.randn(kv_heads * group) * 9 if sinks else None))


FEATURES = {
    "plain": PLAIN,
    "window": replace(PLAIN, window=21),
    "softcap": replace(PLAIN, softcap=5.0),
    "alibi": replace(PLAIN, alibi_slopes=torch.rand(4)),
    "sinks": replace(PLAIN, sinks=torch.randn(4)),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_attention_features(feature: str) -> None:
    for cache_dtype in (torch.float32, torch.bfloat16):
        check(ragged(cache_dtype=cache_dtype), FEATURES[feature])


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, FP8])
@pytest.mark.parametrize("window", [None, 70])
def test_a_row_of_attention_depends_on_no_other_in_any_bit(cache_dtype: torch.dtype, window: int | None) -> None:
    options = replace(PLAIN, window=window)
    for heads in (2, 6, 14):
        case = stored(ragged(heads, cache_dtype))
        whole = CPU.attend(case.q, case.cache, case.layout, options)
        for sequence in (3, 5, 7):
            begin, end = case.layout.query_starts[sequence : sequence + 2].tolist()
            for first, last in ((0, 1), (end - begin - 1, end - begin), (7, 8), (17, 50), (5, 149)):
                if last > end - begin:
                    continue
                part = part_of(case, sequence, first, last)
                got = CPU.attend(part.q, part.cache, part.layout, options)
                assert torch.equal(got, whole[begin + first : begin + last])


def test_a_recording_compiles_what_looks_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes seconds, in which everybody's tokens would wait for the first who looks.

    Attention weights, log-probabilities and distributions are what one can look at.
    """
    built: list[Operation] = []
    monkeypatch.setattr(recording, "build", lambda operations, _: built.extend(operations))
    case = attention_case([(3, 5)], cache_dtype=torch.bfloat16)
    CPU.record(lambda: CPU.attend(case.q, case.cache, case.layout, PLAIN))
    assert {weights_operation(2, 16, 16, True), logprobs_operation(), weigh_operation()} < {*built}


def check_weights(case: AttentionCase, options: AttentionOptions, heads: Sequence[int], sparse: bool = False) -> None:
    """The weights of each sequence's new tokens, or of some of them."""
    for sequence, context in enumerate(case.layout.context_lens.tolist()):
        begin, end = case.layout.query_starts[sequence : sequence + 2].tolist()
        if not context:
            continue
        rows = torch.arange(begin, end)[:: 3 if sparse else 1]
        blocks = case.layout.block_table[sequence, : -(-context // case.cache.keys.shape[1])]
        # Two layers, of which the second is asked for other heads.
        layers = [LayerQueries(case.q[rows], case.cache, some, options) for some in (heads, heads[::-2])]
        asked = (layers, case.layout.positions[rows], blocks)
        got, expected = CPU.attention_weights(*asked), REFERENCE.attention_weights(*asked)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, FP8])
@pytest.mark.parametrize("feature", FEATURES)
def test_attention_weights(cache_dtype: torch.dtype, feature: str) -> None:
    check_weights(ragged(cache_dtype=cache_dtype), FEATURES[feature], [3, 0, 2])


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=6)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 120)), min_size=1, max_size=3),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 3, 7]),
    window=st.none() | st.integers(1, 150),
    sinks=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_weights_of_any_shape(
    shape: tuple[int, int, torch.dtype],
    lengths: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    window: int | None,
    sinks: bool,
    seed: int,
) -> None:
    dim, block, dtype = shape
    lengths.sort(key=lambda pair: pair[1])
    heads = kv_heads * group
    case = attention_case(
        lengths, heads=heads, kv_heads=kv_heads, head_dim=dim, block_size=block, cache_dtype=dtype, seed=seed
    )
    options = replace(PLAIN, window=window, sinks=torch.randn(heads) * 9 if sinks else None)
    check_weights(case, options, [*range(heads)][:: max(1, seed % 3)], sparse=seed % 2 == 1)


def test_attention_of_what_is_not_a_number_or_unbounded() -> None:
    case = stored(ragged(cache_dtype=torch.bfloat16))
    expected = CPU.attend(case.q, case.cache, case.layout, PLAIN)
    case.q[60, 1, 3] = float("nan")
    got = CPU.attend(case.q, case.cache, case.layout, PLAIN)
    assert got[60, 1].isnan().all()
    got[60, 1] = expected[60, 1]
    assert torch.equal(got, expected)
    # The weights of all keys but one are far below the least float32.
    # Rounded numbers would change such scores by more than the distance between some of them.
    check(replace(ragged(), q=torch.randn(case.q.shape) * 1000))


def test_a_row_of_a_projection_depends_on_no_other_in_any_bit() -> None:
    for weight in (quantized(24, 64, 4, 32, True), quantized(24, 64, 8, 32, False), torch.randn(24, 64)):
        packed, x = INVARIANT.pack(weight, None), torch.randn(11, 64)
        rows = torch.cat([INVARIANT.linear(row[None], packed) for row in x])
        assert torch.equal(INVARIANT.linear(x, packed), rows)


def test_rows_that_fill_a_tile_add_zeros() -> None:
    """Chance numbers may be too small for the processor to add quickly: 13 tokens took longer than 16."""
    rounding, rows, groups = Rounding(Format(4, 32, 2), unit_from=0), 13, 2
    x, sums = torch.randn(rows, 32 * groups), torch.full((groups, TOKENS, 2), 1e-40)
    rounded = torch.empty(groups, TOKENS, 2, 32, dtype=torch.int8)
    CPU._set(x)
    arguments = RoundArguments(CPU._step, x.data_ptr(), x.shape[1], rounded.data_ptr(), sums.data_ptr())
    CPU._run(round_operation(rounding), arguments)
    assert sums[:, :rows, 0].min() > 1e-6
    assert not sums[:, rows:].any()


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_that_are_all_alike_or_nearly_so_are_not_rounded_away(bits: int) -> None:
    """Where a group's range is a few units in the last place, or far beyond what its square could be."""
    weight = quantized(9, 64, bits, 32, True)
    dense = dequantize(weight).double()
    alike = torch.tensor([0.0, 7.0, -3e-39, 1e30])[:, None].expand(4, 64)
    step = torch.arange(64).remainder(3)
    nearly = torch.stack([1 + step * 2.0**-23, -1e6 - step * 2.0**-4, step * 1e-44, (step - 1) * 3e36])
    for x in (alike, nearly):
        got, expected = CPU.linear(x, CPU.pack(weight, None)), x.double() @ dense.T
        size = x.double().abs().amax(1, keepdim=True) * dense.abs().sum(1)
        assert ((got - expected).abs() <= 2.0**-8 * size + 1e-36).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_stays_so(bits: int, bad: float) -> None:
    x = torch.randn(2, 64)
    x[0, 40] = bad
    out = CPU.linear(x, CPU.pack(quantized(9, 64, bits, 32, True), None))
    assert not out[0].isfinite().any()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_a_program_does_what_it_recorded_for_any_number_of_tokens(bits: int) -> None:
    """Also where activations are rounded by the operation that makes them, and where a projection has another input."""
    shapes = (64, 64), (64, 32), (128, 64)
    if bits <= 8:
        wide, narrow, double = (CPU.pack(quantized(*shape, bits, 32, True), None) for shape in shapes)
    else:
        dtype = torch.bfloat16 if bits == 16 else torch.float32
        wide, narrow, double = (CPU.pack(torch.randn(shape).to(dtype), None) for shape in shapes)
    double = replace(double, bias=torch.randn(128))
    wide_too = replace(wide, bias=torch.randn(64))
    weight = torch.randn(64)
    given = torch.randn(40, 64)

    def forward(x: Tensor) -> Tensor:
        normed, stream = CPU.add_rms_norm(x, None, weight, 1e-5)
        for _ in range(3):
            projected = CPU.linear(normed, wide)
            normed, stream = CPU.add_layer_norm(CPU.linear(projected, wide_too), stream, weight, weight, 1e-5)
            gated = CPU.gated_activation(CPU.linear(normed, double), "gelu")
            normed, stream = CPU.add_rms_norm(CPU.linear(gated, wide), stream, weight, 1e-5)
        return CPU.linear(CPU.gated_activation(normed, "silu"), narrow)

    x = given.clone()
    program, out = CPU.record(lambda: forward(x))
    case = attention_case([(0, 1)])
    for rows in (1, 3, 40, 2, UNIT_FROM, 33):
        # A replay adds to the stream where it lies.
        x.copy_(given)
        CPU.replay(program, x[:rows, 0], case.layout)
        assert torch.equal(out[:rows], forward(given[:rows]))


@pytest.mark.parametrize("width", [7, 16, 48, 64])
@pytest.mark.parametrize("biased", [False, True])
def test_a_recorded_projection_adds_to_a_residual_stream_of_any_width(width: int, biased: bool) -> None:
    packed = CPU.pack(quantized(width, 96, 4, 32, True), torch.randn(width) if biased else None)
    x, given, weight = torch.randn(300, 96), torch.randn(300, width), torch.randn(width)

    def add(residual: Tensor) -> tuple[Tensor, Tensor]:
        return CPU.add_rms_norm(CPU.linear(x, packed), residual, weight, 1e-5)

    expected, stream = add(given), given.clone()
    program, got = CPU.record(lambda: add(stream))
    CPU.replay(program, x[:, 0], attention_case([(0, 1)]).layout)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert got[1].data_ptr() == stream.data_ptr()


def test_a_recording_has_no_second_use_of_what_it_does_not_write() -> None:
    """Norms, and products of a gate in large steps, are rounded for a projection and not written themselves."""
    double, wide = (CPU.pack(quantized(rows, 64, 4, 32, True), None) for rows in (128, 64))
    x = torch.randn(40, 64)

    def gate() -> Tensor:
        return CPU.gated_activation(CPU.linear(x, double), "silu")

    def norm() -> Tensor:
        return CPU.add_rms_norm(x, None, torch.randn(64), 1e-5)[0]

    def twice(make: Callable[[], Tensor]) -> Tensor:
        made = make()
        CPU.linear(made, wide)
        return CPU.linear(made, wide)

    for make in (norm, gate) if matrix_unit() else (norm,):
        with pytest.raises(AssertionError, match="for one projection alone"):
            CPU.record(lambda make=make: twice(make))


def test_weights_keep_their_numbers_in_pages_shared_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PIECE_BYTES", 4096)
    store = pages.Pages()
    given = [torch.randn(size).to(dtype) for size in (3, 900, 0, 5000, 1, 1000) for dtype in (torch.float32, FP8)]
    kept = [store.keep(tensor) for tensor in given]
    for ours, theirs in zip(kept, given, strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
        assert not len(ours) or ours.data_ptr() % pages.ALIGNMENT == 0


MASKED = """
import torch
from kernels.cpu.target import path_name
from tests.kernels.cpu.test_backend import CPU, FP8, INVARIANT, PLAIN, RAGGED, attention_case, quantized, stored
torch.manual_seed(0)
print(path_name())
for bits, group, offsets in ((4, 32, True), (8, 32, False)):
    x, weight = torch.randn(23, 64), INVARIANT.pack(quantized(44, 64, bits, group, offsets), None)
    out = INVARIANT.linear(x, weight)
    assert torch.equal(out, torch.cat([INVARIANT.linear(row[None], weight) for row in x])), (bits, group)
    print(out.double().abs().sum().item())
from tests.kernels.cpu.test_logprobs import check
from tests.kernels.cpu.test_sampling import batch, sample
wanted, logits = batch(50), torch.randn(50, 1001)
assert torch.equal(CPU.sample(logits, wanted), sample(logits, wanted))
if path_name() in ("portable", "avx512-vnni, amx"):
    check(logits, torch.arange(50), 20)
    case = stored(attention_case(RAGGED, heads=6, head_dim=32, block_size=32, cache_dtype=torch.bfloat16))
    print(CPU.attend(case.q, case.cache, case.layout, PLAIN).double().abs().sum().item())
"""
"""Paths differ in how products are added, for weights of 4 bits and of 8, and on a matrix unit in attention too. Other
forms are compiled for this CPU's path alone, by the other tests: a process compiles all that it uses from nothing.
"""
AVX2 = ["avx", "avx2", "fma", "f16c", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "bmi", "bmi2", "lzcnt"]
AVX512 = ["avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"]
PATHS = {"portable": ["sse2"], "avx2": AVX2, "avx-vnni": [*AVX2, "avxvnni"], "avx512-vnni": [*AVX2, *AVX512]}
PATHS["avx512-vnni, amx"] = [*PATHS["avx512-vnni"], "amx-tile", "amx-bf16"]


def run_masked(path: str) -> list[float]:
    """What a machine computes that can do no more than the path needs; each row the same alone and beside others."""
    features = ",".join(f"+{name}" for name in PATHS[path])
    masked = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features, "ATEN_CPU_CAPABILITY": "default"}
    if path == "portable":
        masked["NUMBA_CPU_NAME"] = "generic"
    done = subprocess.run(
        [sys.executable, "-c", MASKED], env={**os.environ, **masked}, capture_output=True, text=True, check=True
    )
    taken, *sums = done.stdout.splitlines()
    assert taken == path
    return [float(value) for value in sums]


@pytest.fixture(scope="module")
def masked() -> Iterator[dict[str, Future[list[float]]]]:
    """The runs of all paths that this CPU has, two at a time: most of their time they compile on one core."""
    host = {name for name, present in llvm.get_host_cpu_features().items() if present}
    with ThreadPoolExecutor(2) as pool:
        yield {path: pool.submit(run_masked, path) for path, needed in PATHS.items() if host.issuperset(needed)}


@pytest.mark.parametrize("path", ["avx2", "avx-vnni", "avx512-vnni", "avx512-vnni, amx"])
def test_every_path_comes_to_the_same_numbers(path: str, masked: dict[str, Future[list[float]]]) -> None:
    if path not in masked:
        pytest.skip(f"this CPU does not have all of {PATHS[path]}")
    # The matrix unit multiplies bfloat16 numbers.
    error = 1e-3 if "amx" in path else 1e-5
    found = masked[path].result()
    assert found == pytest.approx(masked["portable"].result()[: len(found)], rel=error)
