"""Projections y = x W^T + bias, of a dense weight or a packed one. Knows nothing of what is projected.

Which way a projection goes:

- a dense weight: torch's matmul, but where batch invariance is asked for;
- a quantised weight and few tokens: `_matmul`, which reads the codes once and makes numbers of them on their way to the
  tensor cores. What it takes is the time in which the weight's bytes arrive;
- a quantised weight and many tokens: the numbers written out, then torch's matmul;
- batch invariance: `_matmul` for any number of tokens, in tiles of one size. A row's bits then depend on its numbers
  and on the weight alone: nothing in the order of its additions follows from the batch.

A row's inputs are cut into splits, so that a small weight keeps the whole chip busy too. How many follows from the
weight and the chip. Each split is summed by itself and the splits are added in order, whether a program computes one of
them and a second kernel adds, or a program computes them all.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import Linear, QuantizedWeight
from kernels.gpu.launch import Launcher, Target
from kernels.gpu.packed import PackedWeight, dequantize, integers, rearrange, unit

FUSED_TOKENS = 256
"""Up to as many tokens, making numbers of the codes for each tile of tokens is less than writing them all out."""
PROGRAMS_PER_MULTIPROCESSOR = 3
"""What splitting aims at: enough loads under way to keep the memory busy."""
OUTPUTS = 64
"""Of a program: with more, what is made of the codes for 64 tokens does not fit the registers."""
VALUES_UNDER_WAY = 128
"""Of each of a program's rows, while it computes, where there is shared memory for them."""
TILES_PER_SPLIT = 4
"""At least: a program waits for its first loads in full."""
MOST_SPLITS = 8
"""So that what is written of them stays small beside the weight."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """What one program of `_matmul` computes at a time, for OUTPUTS outputs."""

    tokens: int
    num_warps: int
    num_stages: int


def pack(weight: Tensor | QuantizedWeight, bias: Tensor | None) -> Linear:
    """A dense weight stays as it is and where it is; a quantised one is rearranged."""
    return Linear(rearrange(weight) if isinstance(weight, QuantizedWeight) else weight, bias)


def linear(launch: Launcher, x: Tensor, weight: Linear, *, batch_invariant: bool) -> Tensor:
    """[tokens, in] -> [tokens, out] in x's dtype, which is a dense weight's too; added up in float32.

    With `batch_invariant`, no bit of a row's result depends on how many rows there are or on what is in the others.
    """
    packed = weight.weight
    assert isinstance(packed, Tensor | QuantizedWeight), "another backend packed this weight"
    if batch_invariant or (isinstance(packed, PackedWeight) and len(x) <= FUSED_TOKENS):
        return _project(launch, x, packed, weight.bias, batch_invariant)
    dense = dequantize(launch, packed, x.dtype) if isinstance(packed, PackedWeight) else packed
    assert isinstance(dense, Tensor), "pack() has not seen this weight"
    return F.linear(x, dense, weight.bias)


def _project(
    launch: Launcher, x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None, batch_invariant: bool
) -> Tensor:
    """`linear` by `_matmul`."""
    x = x.contiguous()
    tokens, inputs = x.shape
    outputs = weight.shape[0]
    y = x.new_empty(tokens, outputs)
    if tokens == 0:
        return y
    operands: tuple[object, object, object]
    if isinstance(weight, PackedWeight):
        operands = weight.codes, weight.scales, weight.offsets
        form = {"BITS": weight.bits, "ZERO": weight.zero, "GROUP": weight.group_size, "WIDTH": weight.width}
    else:
        operands = weight, None, None
        form = {"BITS": 16, "ZERO": 0, "GROUP": 64, "WIDTH": 64}
    tile = 16 // form["BITS"] * form["WIDTH"]
    offset = operands[2] is not None
    tiling = _tiling(tokens, form["BITS"], form["WIDTH"], offset, x.dtype, launch.target, batch_invariant)
    rows, columns = triton.cdiv(outputs, OUTPUTS), triton.cdiv(tokens, tiling.tokens)
    tiles_per_split, splits = _split(rows, triton.cdiv(inputs, tile), launch.target)
    apart = splits > 1 and rows * columns < launch.target.multiprocessors
    sums = torch.empty(splits, tokens, outputs, dtype=torch.float32, device=x.device) if apart else y
    launch(
        _matmul,
        (rows * columns, splits if apart else 1),
        x,
        *operands,
        None if apart else bias,
        sums,
        tokens,
        outputs,
        inputs,
        tiles_per_split,
        1 if apart else splits,
        **form,
        OUTPUTS=OUTPUTS,
        TOKENS=tiling.tokens,
        WHOLE_TILES=inputs % tile == 0,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if apart:
        _add(launch, sums, bias, y)
    return y


def _tiling(
    tokens: int, bits: int, width: int, offset: bool, dtype: torch.dtype, target: Target, batch_invariant: bool
) -> Tiling:
    """Batch-invariant, the tile of tokens is as wide as it may be before a single token waits for its arithmetic."""
    # A run of 16 values of 8 tokens is too little for each thread of a program to copy some of it without waiting.
    narrowest = 8 if target.backend == "cuda" and width >= 32 else 16
    # Before Hopper, and on AMD, x comes from registers too: 64 tokens do not fit there beside what offsets add up.
    crowded = offset and not (target.backend == "cuda" and int(target.arch) >= 90)
    widest = 32 if bits == 4 and (batch_invariant or crowded) else 64
    wide = widest if batch_invariant else min(max(narrowest, triton.next_power_of_2(tokens)), widest)
    if dtype == torch.float32:
        return Tiling(16, num_warps=8, num_stages=2)
    num_stages = 2 if target.shared_memory < 100_000 else min(1 + VALUES_UNDER_WAY // width, 6)
    return Tiling(wide, 4 if wide <= target.warp_size // 2 else 8, num_stages)


def _split(rows: int, tiles: int, target: Target) -> tuple[int, int]:
    """(tiles of a split, splits) for a weight of so many rows of programs and tiles in a row."""
    wanted = PROGRAMS_PER_MULTIPROCESSOR * target.multiprocessors // rows
    splits = max(1, min(wanted, tiles // TILES_PER_SPLIT, MOST_SPLITS))
    tiles_per_split = triton.cdiv(tiles, splits)
    return tiles_per_split, triton.cdiv(tiles, tiles_per_split)


def _add(launch: Launcher, sums: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Y = the sum of `sums` [splits, tokens, out] over the splits, and the bias."""
    splits, tokens, outputs = sums.shape
    block = 256
    launch(
        _add_splits,
        (triton.cdiv(outputs, block), tokens),
        sums,
        bias,
        y,
        tokens,
        outputs,
        SPLITS=splits,
        BLOCK=block,
        num_warps=4,
        num_stages=1,
    )


@triton.jit(do_not_specialize=["tokens", "tiles_per_split", "splits"])
def _matmul(
    x,
    weight,
    scales,
    offsets,
    bias,
    y,
    tokens,
    outputs,
    inputs,
    tiles_per_split,
    splits,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TOKENS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
):
    """y[t, n] = sum over k of w[n, k] x[t, k] + bias[n], over `splits` splits of the k from program_id(1) on.

    x [tokens, inputs]; `weight` [outputs, inputs] of x's type if BITS is 16, else a `PackedWeight`'s codes; y is
    [tokens, outputs], or [programs, tokens, outputs] float32 for `_add_splits`.

    The weight's rows are the rows of the dot, for there are always many of them, and the tokens are its columns. So
    what is made of the codes is made in the registers that the tensor cores read.
    """
    # Neighbouring programs share a block of the weight and a block of x, and find them in the cache.
    BLOCK: tl.constexpr = 8
    columns = tl.cdiv(tokens, TOKENS)
    block = tl.program_id(0) // (BLOCK * columns) * BLOCK
    height = tl.minimum(tl.cdiv(outputs, OUTPUTS) - block, BLOCK)
    within = tl.program_id(0) - block * columns
    n = (block + within % height) * OUTPUTS + tl.arange(0, OUTPUTS)
    t = within // height * TOKENS + tl.arange(0, TOKENS)

    tiles = tl.cdiv(inputs, 16 // BITS * WIDTH)
    first = tl.program_id(1) * splits * tiles_per_split
    total = tl.zeros([OUTPUTS, TOKENS], tl.float32)
    for split in range(splits):
        begin = first + split * tiles_per_split
        end = tl.minimum(begin + tiles_per_split, tiles)
        if BITS == 16:
            total += _sum_dense(x, weight, n, t, tokens, outputs, inputs, begin, end, WIDTH, WHOLE_TILES)
        else:
            total += _sum_quantized(
                x, weight, scales, offsets, n, t, tokens, outputs, inputs, begin, end,
                BITS, ZERO, GROUP, WIDTH, WHOLE_TILES,
            )  # fmt: skip
    if bias is not None:
        total += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[:, None]
    place = (tl.program_id(1).to(tl.int64) * tokens + t)[None, :] * outputs + n[:, None]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=(n < outputs)[:, None] & (t < tokens)[None, :])


@triton.jit
def _sum_dense(x, weight, n, t, tokens, outputs, inputs, begin, end, TILE: tl.constexpr, WHOLE_TILES: tl.constexpr):
    """W x^T over the tiles `begin` to `end` - 1 of the inputs, for the outputs `n` and the tokens `t`: [n, t]."""
    precision: tl.constexpr = "ieee" if x.dtype.element_ty == tl.float32 else "tf32"
    # A row past the end reads the last one's, and is not stored.
    row = weight + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * inputs
    token = x + t.to(tl.int64)[:, None] * inputs
    total = tl.zeros([n.shape[0], t.shape[0]], tl.float32)
    for tile in range(begin, end):
        k = (tile * TILE + tl.arange(0, TILE))[None, :]
        if WHOLE_TILES:
            numbers = tl.load(row + k)
            values = tl.load(token + k, mask=(t < tokens)[:, None], other=0.0)
        else:
            numbers = tl.load(row + k, mask=k < inputs, other=0.0)
            values = tl.load(token + k, mask=(t < tokens)[:, None] & (k < inputs), other=0.0)
        total = tl.dot(numbers, tl.trans(values), total, input_precision=precision, out_dtype=tl.float32)
    return total


@triton.jit
def _sum_quantized(
    x,
    codes,
    scales,
    offsets,
    n,
    t,
    tokens,
    outputs,
    inputs,
    begin,
    end,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
):
    """`_sum_dense` of a `PackedWeight`.

    sum of w x = sum over groups of scale * (sum of (code - zero) x) + offset * (sum of x): the tensor cores see small
    integers, which are exact, and the scales are applied in float32.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    precision: tl.constexpr = "ieee" if dtype == tl.float32 else "tf32"
    TILE: tl.constexpr = 16 // BITS * WIDTH
    WORDS: tl.constexpr = WIDTH // 2
    GROUPS: tl.constexpr = TILE // GROUP if TILE > GROUP else 1

    row = codes + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * (tl.cdiv(inputs, TILE) * WORDS)
    token = x + t.to(tl.int64)[:, None] * inputs
    one = tl.full([n.shape[0], WORDS], 1.0, dtype)
    # Joined, as `integers` are: the compiler lays such operands out alike, and one copy of the values serves both dots.
    ones = tl.join(one, one).reshape(n.shape[0], WIDTH)
    total = tl.zeros([n.shape[0], t.shape[0]], tl.float32)
    # The compiler pipelines no load that feeds no dot: each tile's scales are asked for a tile ahead.
    next_scales = _groups(scales, begin * TILE // GROUP, n, outputs, GROUPS)
    if offsets is not None:
        next_offsets = _groups(offsets, begin * TILE // GROUP, n, outputs, GROUPS)
    for tile in range(begin, end):
        words = tl.load(row + (tile * WORDS + tl.arange(0, WORDS))[None, :])
        ahead = tl.minimum(tile + 1, end - 1) * TILE // GROUP
        tile_scales = next_scales
        next_scales = _groups(scales, ahead, n, outputs, GROUPS)
        if offsets is not None:
            tile_offsets = next_offsets
            next_offsets = _groups(offsets, ahead, n, outputs, GROUPS)
        for start in tl.static_range(0, TILE, WIDTH):
            k = (tile * TILE + start + tl.arange(0, WIDTH))[None, :]
            if WHOLE_TILES:
                values = tl.trans(tl.load(token + k, mask=(t < tokens)[:, None], other=0.0))
            else:
                values = tl.trans(tl.load(token + k, mask=(t < tokens)[:, None] & (k < inputs), other=0.0))
            if start % GROUP == 0:
                part = tl.zeros_like(total)
                values_sum = tl.zeros_like(total)
            numbers = integers(words, start // WIDTH, BITS, ZERO, dtype)
            part = tl.dot(numbers, values, part, input_precision=precision, out_dtype=tl.float32)
            if offsets is not None:
                # On the tensor cores, which have the time, and not across the lanes of a warp.
                values_sum = tl.dot(ones, values, values_sum, input_precision=precision, out_dtype=tl.float32)
            if (start + WIDTH) % GROUP == 0 or start + WIDTH == TILE:
                total += (tile_scales[start // GROUP].to(tl.float32) * unit(dtype))[:, None] * part
                if offsets is not None:
                    total += tile_offsets[start // GROUP].to(tl.float32)[:, None] * values_sum
    return total


@triton.jit
def _groups(numbers, group, n, outputs, COUNT: tl.constexpr):
    """Of scales or offsets [groups, outputs]: a tuple of COUNT rows from `group` on, for the outputs `n`."""
    row = (tl.load(numbers + group * outputs + n, mask=n < outputs, other=0.0),)
    if COUNT == 1:
        return row
    else:
        return row + _groups(numbers, group + 1, n, outputs, COUNT - 1)


@triton.jit(do_not_specialize=["tokens"])
def _add_splits(sums, bias, y, tokens, outputs, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """y[t, n] = sums[0, t, n] + sums[1, t, n] + ... + bias[n], added in this order."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = n < outputs
    place = tl.program_id(1).to(tl.int64) * outputs + n
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(sums + split * tokens.to(tl.int64) * outputs + place, mask=there, other=0.0)
    if bias is not None:
        total += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=there)
