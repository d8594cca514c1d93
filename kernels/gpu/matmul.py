"""Projections y = x W^T + bias, with a dense or a quantised weight. Knows nothing of the model around them.

There are four cases:

- dense weight: torch's matmul, or for one token `matvec`, unless batch invariance is asked for;
- quantised weight, few tokens: `_matmul`, which reads the codes once and converts them to numbers in registers, right
  before the tensor cores use them. It takes about as long as reading the weight's bytes;
- quantised weight, many tokens: `dequantize` writes the numbers to memory, then torch's matmul;
- batch invariance: `_matmul` for any number of tokens, with tiles of one size. The order of additions in a row then
  does not depend on the batch, so the row's bits depend on its numbers and the weight alone.

The inputs of a row are cut into splits, so that a small weight keeps the whole chip busy as well. The number of splits
depends on the weight and the chip. Each split is summed alone, and the sums are added in order: by a second kernel, by
the last program to finish one of them, or by a program that computes all splits itself. The bits are the same.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import Linear, QuantizedWeight
from kernels.gpu.arrival import arrivals, last_to_arrive
from kernels.gpu.dependent import wait_for_kernels_before
from kernels.gpu.launch import Launcher, Target
from kernels.gpu.matvec import RowTiling, multiply_rows
from kernels.gpu.packed import PackedWeight, code_unit, dequantize, integers, rearrange

FUSED_TOKENS = 256
"""The largest number of tokens for which `_matmul` is faster than `dequantize` and torch's matmul. `_matmul` converts
the codes again for every tile of tokens."""
PROGRAMS_PER_MULTIPROCESSOR = 3
"""The number of programs that splitting aims at: enough loads in flight to keep the memory busy."""
OUTPUTS = 64
"""Outputs that a program of `_matmul` computes. With more, four warps have no registers for a tile of 64 tokens."""
VALUES_UNDER_WAY = 128
"""Inputs of each row that are loaded ahead while a program computes, if shared memory has room for them."""
TILES_PER_SPLIT = 4
"""The smallest number of tiles in a split. A program waits for its first loads, so short splits are inefficient."""
MOST_SPLITS = 8
"""The largest number of splits. It keeps the sums of the splits small compared with the weight."""


class Tiling(NamedTuple):
    """The tile of results and the launch options of `_matmul`."""

    outputs: int
    tokens: int
    num_warps: int
    num_stages: int
    programs: int | None = None
    """Programs on a multiprocessor that splitting aims at; None for PROGRAMS_PER_MULTIPROCESSOR."""


class Projecting(NamedTuple):
    """A choice of how to multiply; `python -m benchmarks --variants` measures others.

    Neither a larger `step` nor `lean`, `folded`, `wide` and `rows` have run on a GPU yet.
    """

    tiling: Tiling | None = None
    """None for that of `_tiling`, up to FUSED_TOKENS tokens."""
    step: int = 1
    """Tiles that a program multiplies at a time, where a row has a multiple of it.

    Scales are loaded one step ahead, so that no step takes less time than memory takes to answer. A step of one tile of
    8-bit codes has little else to do.
    """
    lean: bool = False
    """Whether `integers` has its LEAN form, which changes no bit."""
    folded: bool = False
    """Whether the last program to finish a split adds up all of its tile; otherwise a second kernel adds them up.

    The norm that follows could add them up as well, but has one program a row to read them all.
    """
    wide: Tiling | None = None
    """With batch invariance, the tiling for dense weights and more than FUSED_TOKENS tokens; None for that of few.

    It must change no bit, so that `programs` means nothing in it: splits are those for few tokens. Within a split, the
    order of additions is that of the tensor cores' instructions, which is to be the same for all widths of a tile.
    """
    rows: RowTiling | None = None
    """The tiling for dense weights and one token, without batch invariance; None for torch's matmul."""


PROJECTING = Projecting()
"""The choice that is served."""


def pack(weight: Tensor | QuantizedWeight, bias: Tensor | None) -> Linear:
    """See `Backend.pack`. A dense weight is kept without a copy; a quantised weight becomes a `PackedWeight`."""
    return Linear(rearrange(weight) if isinstance(weight, QuantizedWeight) else weight, bias)


def linear(
    launch: Launcher, x: Tensor, weight: Linear, *, batch_invariant: bool, projecting: Projecting = PROJECTING
) -> Tensor:
    """X W^T + bias, [tokens, in] -> [tokens, out], in x's dtype; sums are float32. A dense weight has x's dtype.

    With `batch_invariant`, no bit of a row's result depends on the number of rows or on the other rows, unless
    `projecting` has a tiling.
    """
    packed = weight.weight
    assert isinstance(packed, Tensor | QuantizedWeight), "another backend packed this weight"
    fused = len(x) <= FUSED_TOKENS or projecting.tiling is not None
    if batch_invariant or (isinstance(packed, PackedWeight) and fused):
        return _project(launch, x, packed, weight.bias, batch_invariant, projecting)
    dense = dequantize(launch, packed, x.dtype) if isinstance(packed, PackedWeight) else packed
    assert isinstance(dense, Tensor), "pack() has not seen this weight"
    if projecting.rows is not None and len(x) == 1:
        return multiply_rows(launch, x, dense, weight.bias, projecting.rows)
    return F.linear(x, dense, weight.bias)


def _project(
    launch: Launcher,
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    batch_invariant: bool,
    projecting: Projecting,
) -> Tensor:
    """`linear` computed by the kernel `_matmul`."""
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
    usual = projecting.tiling or _tiling(
        tokens, form["BITS"], form["WIDTH"], offset, x.dtype, launch.target, batch_invariant
    )
    many = batch_invariant and form["BITS"] == 16 and tokens > FUSED_TOKENS
    tiling = projecting.wide if many and projecting.wide is not None else usual
    rows, columns = triton.cdiv(outputs, tiling.outputs), triton.cdiv(tokens, tiling.tokens)
    tiles = triton.cdiv(inputs, tile)
    step = projecting.step if tiles % projecting.step == 0 else 1
    blocks = triton.cdiv(outputs, usual.outputs)
    tiles_per_split, splits = split_inputs(blocks, tiles, launch.target, usual.programs, step)
    apart = splits > 1 and rows * columns < launch.target.multiprocessors
    sums, counters, folded = split_sums(launch, splits if apart else 1, y, projecting.folded)
    later = apart and not folded
    launch(
        _matmul,
        (rows * columns, splits if apart else 1),
        x,
        *operands,
        None if later else bias,
        sums if later else y,
        sums,
        counters,
        tokens,
        outputs,
        inputs,
        tiles_per_split,
        1 if apart else splits,
        **form,
        OUTPUTS=tiling.outputs,
        TOKENS=tiling.tokens,
        WHOLE_TILES=inputs % tile == 0,
        STEP=step,
        LEAN=projecting.lean,
        FOLDED=folded,
        HIP=launch.target.backend == "hip",
        DEPENDENT=launch.dependent,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if later:
        add_splits(launch, sums, bias, y)
    return y


def _tiling(
    tokens: int, bits: int, width: int, offset: bool, dtype: torch.dtype, target: Target, batch_invariant: bool
) -> Tiling:
    """The tiling for a number of tokens and a form of weight.

    With `batch_invariant`, the tile of tokens has one width for all numbers of tokens: the largest at which a single
    token is still bound by memory, not by arithmetic.
    """
    # A tile of 8 tokens and 16 values is too small for every thread to take part in an asynchronous copy.
    narrowest = 8 if target.backend == "cuda" and width >= 32 else 16
    # Before Hopper, and on AMD, x is read from registers too. They have no room for 64 tokens beside the sums that
    # offsets need.
    crowded = offset and not (target.backend == "cuda" and int(target.arch) >= 90)
    widest = 32 if bits == 4 and (batch_invariant or crowded) else 64
    wide = widest if batch_invariant else min(max(narrowest, triton.next_power_of_2(tokens)), widest)
    if dtype == torch.float32:
        return Tiling(OUTPUTS, 16, num_warps=8, num_stages=2)
    num_stages = 2 if target.shared_memory < 100_000 else min(1 + VALUES_UNDER_WAY // width, 6)
    return Tiling(OUTPUTS, wide, 4 if wide <= target.warp_size // 2 else 8, num_stages)


def split_inputs(rows: int, tiles: int, target: Target, programs: int | None = None, step: int = 1) -> tuple[int, int]:
    """(tiles in a split, splits) for a weight of `rows` blocks of outputs, with `tiles` tiles in each row.

    Splitting aims at `programs` on a multiprocessor, by default PROGRAMS_PER_MULTIPROCESSOR. A split has a multiple of
    `step` tiles if a row has.
    """
    wanted = (programs or PROGRAMS_PER_MULTIPROCESSOR) * target.multiprocessors // rows
    splits = max(1, min(wanted, tiles // TILES_PER_SPLIT, MOST_SPLITS))
    tiles_per_split = triton.cdiv(triton.cdiv(tiles, splits), step) * step
    return tiles_per_split, triton.cdiv(tiles, tiles_per_split)


def split_sums(launch: Launcher, splits: int, y: Tensor, folded: bool) -> tuple[Tensor, Tensor, int]:
    """Memory for the sums of the splits of a product `y` [tokens, out], which programs compute apart, and counters.

    The sums are [splits, tokens, out] float32. The counters are for the last of a tile's programs, and the third result
    is the FOLDED argument of `store_results`. Results that are not needed are `y` and 0.
    """
    if splits == 1:
        return y, y, 0
    sums = torch.empty(splits, *y.shape, dtype=torch.float32, device=y.device)
    # Products that leave no multiprocessor idle are not split among programs.
    return (sums, arrivals(launch.target.multiprocessors, y.device), splits) if folded else (sums, y, 0)


def add_splits(launch: Launcher, sums: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Write sum(sums over splits) + bias to `y` [tokens, out]; `sums` is [splits, tokens, out] float32."""
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
        DEPENDENT=launch.dependent,
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
    sums,
    arrivals,
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
    STEP: tl.constexpr,
    LEAN: tl.constexpr,
    FOLDED: tl.constexpr,
    HIP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """y[t, n] = sum over k of w[n, k] x[t, k] + bias[n], for the inputs k of some splits.

    Program (i, j) of the grid computes tile i of OUTPUTS * TOKENS results over `splits` splits, from j * splits on.

    `x` is [tokens, inputs]. `weight` is [outputs, inputs] in x's dtype if BITS is 16, otherwise the codes of a
    `PackedWeight`. The results' place is told in `store_results`.

    In the dots, rows are outputs, since there are always many of them, and columns are tokens. The weight is thus the
    operand that tensor cores read from registers, where the codes are converted.
    """
    wait_for_kernels_before(DEPENDENT)
    n, t = place_of(tokens, outputs, OUTPUTS, TOKENS)  # [OUTPUTS], [TOKENS]
    tiles = tl.cdiv(inputs, 16 // BITS * WIDTH)
    first = tl.program_id(1) * splits * tiles_per_split
    total = tl.zeros([OUTPUTS, TOKENS], tl.float32)  # [OUTPUTS, TOKENS]
    for split in range(splits):
        begin = first + split * tiles_per_split
        end = tl.minimum(begin + tiles_per_split, tiles)
        if BITS == 16:
            total += _sum_dense(x, weight, n, t, tokens, outputs, inputs, begin, end, WIDTH, WHOLE_TILES)
        else:
            total += _sum_quantized(
                x, weight, scales, offsets, n, t, tokens, outputs, inputs, begin, end,
                BITS, ZERO, GROUP, WIDTH, WHOLE_TILES, STEP, LEAN,
            )  # fmt: skip
    store_results(total, bias, y, sums, arrivals, n, t, tokens, outputs, FOLDED, HIP)


@triton.jit
def store_results(total, bias, y, sums, arrivals, n, t, tokens, outputs, FOLDED: tl.constexpr, HIP: tl.constexpr):
    """Store the products `total` [OUTPUTS, TOKENS] of a program's inputs, plus `bias` [outputs] if there is one.

    They go to `y`, which is [tokens, outputs] or, for `_add_splits`, [grid's second size, tokens, outputs] float32. If
    the grid's second size is that of FOLDED splits, they go to `sums`, which is that instead, and the last program to
    arrive at its tile's counter in `arrivals` adds them up as `_add_splits` does. FOLDED is 0 otherwise.
    """
    there = (n < outputs)[:, None] & (t < tokens)[None, :]  # [OUTPUTS, TOKENS]
    tile = t.to(tl.int64)[None, :] * outputs + n[:, None]  # [OUTPUTS, TOKENS]
    place = tl.program_id(1).to(tl.int64) * tokens * outputs + tile  # [OUTPUTS, TOKENS]
    if FOLDED:
        tl.store(sums + place, total, mask=there)
        if last_to_arrive(arrivals + tl.program_id(0), FOLDED, HIP):
            whole = tl.zeros_like(total)  # [OUTPUTS, TOKENS]
            for split in tl.static_range(FOLDED):
                whole += tl.load(sums + split * tokens.to(tl.int64) * outputs + tile, mask=there, other=0.0)
            _store_biased(y + tile, whole, bias, n, outputs, there)
    else:
        _store_biased(y + place, total, bias, n, outputs, there)


@triton.jit
def _store_biased(place, total, bias, n, outputs, there):
    """Store `total` [OUTPUTS, TOKENS] plus the bias of the outputs `n` [OUTPUTS] at `place`, where it is `there`."""
    if bias is not None:
        total += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[:, None]
    tl.store(place, total.to(place.dtype.element_ty), mask=there)


@triton.jit
def place_of(tokens, outputs, OUTPUTS: tl.constexpr, TOKENS: tl.constexpr):
    """The outputs [OUTPUTS] and the tokens [TOKENS] of a program's tile; the grid's first size is the number of tiles.

    Programs are ordered so that neighbours share a block of the weight and a block of x, and find them in the cache.
    """
    BLOCK: tl.constexpr = 8
    columns = tl.cdiv(tokens, TOKENS)
    block = tl.program_id(0) // (BLOCK * columns) * BLOCK
    height = tl.minimum(tl.cdiv(outputs, OUTPUTS) - block, BLOCK)
    within = tl.program_id(0) - block * columns
    n = (block + within % height) * OUTPUTS + tl.arange(0, OUTPUTS)  # [OUTPUTS]
    t = within // height * TOKENS + tl.arange(0, TOKENS)  # [TOKENS]
    return n, t


@triton.jit
def _sum_dense(x, weight, n, t, tokens, outputs, inputs, begin, end, TILE: tl.constexpr, WHOLE_TILES: tl.constexpr):
    """W x^T, [OUTPUTS, TOKENS] float32, over the input tiles `begin` to `end` - 1.

    The outputs are `n` [OUTPUTS] and the tokens `t` [TOKENS]; a tile has TILE inputs.
    """
    precision: tl.constexpr = "ieee" if x.dtype.element_ty == tl.float32 else "tf32"
    # Rows past the end read the last row again; they are not stored.
    row = weight + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * inputs  # [OUTPUTS, 1]
    token = x + t.to(tl.int64)[:, None] * inputs  # [TOKENS, 1]
    total = tl.zeros([n.shape[0], t.shape[0]], tl.float32)  # [OUTPUTS, TOKENS]
    for tile in range(begin, end):
        k = (tile * TILE + tl.arange(0, TILE))[None, :]  # [1, TILE]
        if WHOLE_TILES:
            numbers = tl.load(row + k)  # [OUTPUTS, TILE]
            values = tl.load(token + k, mask=(t < tokens)[:, None], other=0.0)  # [TOKENS, TILE]
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
    STEP: tl.constexpr,
    LEAN: tl.constexpr,
):
    """W x^T, [OUTPUTS, TOKENS] float32, of a `PackedWeight` over the input tiles `begin` to `end` - 1.

    Their number is a multiple of STEP.

    sum(w x) = sum over groups of (scale * sum((code - zero) x) + offset * sum(x))

    The tensor cores multiply small integers, which every dtype represents exactly; scales are applied in float32.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    precision: tl.constexpr = "ieee" if dtype == tl.float32 else "tf32"
    TILE: tl.constexpr = 16 // BITS * WIDTH
    WORDS: tl.constexpr = WIDTH // 2
    SPAN: tl.constexpr = STEP * TILE
    GROUPS: tl.constexpr = SPAN // GROUP if SPAN > GROUP else 1

    row = codes + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * (tl.cdiv(inputs, TILE) * WORDS)  # [OUTPUTS, 1]
    token = x + t.to(tl.int64)[:, None] * inputs  # [TOKENS, 1]
    one = tl.full([n.shape[0], WORDS], 1.0, dtype)  # [OUTPUTS, WORDS]
    # Made by `join`, as `integers` makes its result: the compiler then gives both operands the same layout, and the two
    # dots share one copy of the values.
    ones = tl.join(one, one).reshape(n.shape[0], WIDTH)  # [OUTPUTS, WIDTH]
    total = tl.zeros([n.shape[0], t.shape[0]], tl.float32)  # [OUTPUTS, TOKENS]
    # The compiler pipelines only loads that feed a dot, and only in a loop that carries nothing for longer than to the
    # next turn, so scales and offsets are loaded one step ahead by hand.
    next_scales = _groups(scales, begin * TILE // GROUP, n, outputs, GROUPS)  # GROUPS times [OUTPUTS]
    if offsets is not None:
        next_offsets = _groups(offsets, begin * TILE // GROUP, n, outputs, GROUPS)  # GROUPS times [OUTPUTS]
    for tile in range(begin, end, STEP):
        ahead = tl.minimum(tile + STEP, end - STEP) * TILE // GROUP
        step_scales = next_scales
        next_scales = _groups(scales, ahead, n, outputs, GROUPS)
        if offsets is not None:
            step_offsets = next_offsets
            next_offsets = _groups(offsets, ahead, n, outputs, GROUPS)
        for start in tl.static_range(0, SPAN, WIDTH):
            if start % TILE == 0:
                word = (tile + start // TILE) * WORDS + tl.arange(0, WORDS)  # [WORDS]
                words = tl.load(row + word[None, :])  # [OUTPUTS, WORDS]
            k = (tile * TILE + start + tl.arange(0, WIDTH))[None, :]  # [1, WIDTH]
            if WHOLE_TILES:
                values = tl.trans(tl.load(token + k, mask=(t < tokens)[:, None], other=0.0))  # [WIDTH, TOKENS]
            else:
                values = tl.trans(tl.load(token + k, mask=(t < tokens)[:, None] & (k < inputs), other=0.0))
            if start % GROUP == 0:
                part = tl.zeros_like(total)  # [OUTPUTS, TOKENS]
                values_sum = tl.zeros_like(total)  # [OUTPUTS, TOKENS]
            numbers = integers(words, start % TILE // WIDTH, BITS, ZERO, dtype, LEAN)  # [OUTPUTS, WIDTH]
            part = tl.dot(numbers, values, part, input_precision=precision, out_dtype=tl.float32)
            if offsets is not None:
                # A dot with ones: the tensor cores are not busy, and a sum across the lanes of a warp would be slower.
                values_sum = tl.dot(ones, values, values_sum, input_precision=precision, out_dtype=tl.float32)
            if (start + WIDTH) % GROUP == 0 or start + WIDTH == SPAN:
                total += (step_scales[start // GROUP].to(tl.float32) * code_unit(dtype))[:, None] * part
                if offsets is not None:
                    total += step_offsets[start // GROUP].to(tl.float32)[:, None] * values_sum
    return total


@triton.jit
def _groups(numbers, group, n, outputs, COUNT: tl.constexpr):
    """Rows `group` to `group` + COUNT - 1 of the scales or offsets [groups, outputs], a tuple of COUNT [OUTPUTS]."""
    row = (tl.load(numbers + group * outputs + n, mask=n < outputs, other=0.0),)  # [OUTPUTS]
    if COUNT == 1:
        return row
    else:
        return row + _groups(numbers, group + 1, n, outputs, COUNT - 1)


@triton.jit(do_not_specialize=["tokens"])
def _add_splits(sums, bias, y, tokens, outputs, SPLITS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    """y[t, n] = sums[0, t, n] + sums[1, t, n] + ... + bias[n], added in this order; the grid is (blocks, tokens)."""
    wait_for_kernels_before(DEPENDENT)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = n < outputs  # [BLOCK]
    place = tl.program_id(1).to(tl.int64) * outputs + n  # [BLOCK]
    total = tl.zeros([BLOCK], tl.float32)  # [BLOCK]
    for split in tl.static_range(SPLITS):
        total += tl.load(sums + split * tokens.to(tl.int64) * outputs + place, mask=there, other=0.0)
    if bias is not None:
        total += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=there)
