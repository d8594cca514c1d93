"""Projections with weights in e4m3. Knows nothing of the model around them.

Where the tensor cores multiply e4m3 numbers, activations are rounded to them as well, by `_quantize`: each token has a
scale for each run of inputs that shares one in the weight, so that products are scaled only after they are added up.
Elsewhere, weights are converted to the activations' dtype in registers, right before the tensor cores use them.

Hopper's tensor cores add products of e4m3 numbers with fewer bits than float32 has. Their sums are therefore moved to a
float32 sum after each tile of inputs. How the inputs are split among programs is told in `matmul`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import Fp8Weight
from kernels.gpu.dependent import wait_for_kernels_before
from kernels.gpu.fp8 import converts_e4m3, decode_e4m3, encode_e4m3
from kernels.gpu.launch import Launcher, Target
from kernels.gpu.matmul import add_splits, place_of, split_inputs, split_sums, store_results
from kernels.reference import E4M3_MAX, LEAST_MAXIMUM

TILE = 128
"""Inputs in a tile, or fewer if a scale is shared by fewer. The tensor cores' own sums run over a tile."""
QUANTIZED_INPUTS = 2048
"""Inputs that a program of `_quantize` rounds, unless a single scale is shared by more."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """The tile of results and the launch options of `_matmul`."""

    outputs: int
    tokens: int
    num_warps: int
    num_stages: int


def linear(
    launch: Launcher, x: Tensor, weight: Fp8Weight, bias: Tensor | None, *, batch_invariant: bool, folded: bool = False
) -> Tensor:
    """X W^T + bias, [tokens, in] -> [tokens, out], in x's dtype; sums are float32.

    With `batch_invariant`, no bit of a row's result depends on the number of rows or on the other rows. For `folded`,
    see `matmul.Projecting`.
    """
    x = x.contiguous()
    tokens, inputs = x.shape
    outputs = weight.shape[0]
    y = x.new_empty(tokens, outputs)
    if tokens == 0:
        return y
    operands: tuple[Tensor, Tensor, Tensor | None]
    if converts_e4m3(launch.target):
        codes, x_scales = quantize(launch, x, weight.width)
        operands = codes, weight.numbers, x_scales
    else:
        operands = x, weight.numbers.view(torch.uint8), None
    tile = min(max(triton.next_power_of_2(weight.width), 32), TILE)
    tiling = _tiling(tokens, tile, operands[0].dtype, launch.target, batch_invariant)
    rows, columns = triton.cdiv(outputs, tiling.outputs), triton.cdiv(tokens, tiling.tokens)
    tiles_per_split, splits = split_inputs(rows, triton.cdiv(inputs, tile), launch.target)
    apart = splits > 1 and rows * columns < launch.target.multiprocessors
    if not (apart or batch_invariant):
        tiles_per_split, splits = triton.cdiv(inputs, tile), 1
    sums, counters, folding = split_sums(launch, splits if apart else 1, y, folded)
    later = apart and not folding
    launch(
        _matmul,
        (rows * columns, splits if apart else 1),
        *operands,
        weight.scales,
        None if later else bias,
        sums if later else y,
        sums,
        counters,
        tokens,
        outputs,
        inputs,
        tiles_per_split,
        SPLITS=1 if apart else splits,
        HEIGHT=weight.height,
        WIDTH=weight.width,
        TILE=tile,
        OUTPUTS=tiling.outputs,
        TOKENS=tiling.tokens,
        WHOLE_TILES=inputs % tile == 0,
        # A product after the sum might be fused with the addition of splits, but only where one program computes them.
        ONE_WIDTH=weight.width >= inputs and not batch_invariant,
        ONE_HEIGHT=weight.height >= outputs or weight.height % tiling.outputs == 0,
        FOLDED=folding,
        HIP=launch.target.backend == "hip",
        DEPENDENT=launch.dependent,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if later:
        add_splits(launch, sums, bias, y)
    return y


def _tiling(tokens: int, tile: int, operand: torch.dtype, target: Target, batch_invariant: bool) -> Tiling:
    """The tiling for a number of tokens. With `batch_invariant` it is the same for all numbers."""
    if operand == torch.float32:
        return Tiling(64, 16, num_warps=8, num_stages=2)
    native = operand.itemsize == 1
    if native and tokens > 64 and not batch_invariant:
        # From Blackwell on, tensor cores add up in a memory of their own, and a tile's sums take registers twice.
        outputs, wide = 128, 64 if int(target.arch) >= 100 else 128
    else:
        outputs, wide = 64, 64 if batch_invariant else min(max(16, triton.next_power_of_2(tokens)), 64)
    # Small programs share a multiprocessor's memory; one with large tiles takes all its registers.
    programs = 1 if outputs == 128 else 2
    stages = target.shared_memory // programs // (tile * (outputs + wide * operand.itemsize))
    num_warps = 8 if outputs == 128 or (wide == 64 and target.warp_size == 64) else 4
    return Tiling(outputs, wide, num_warps, max(2, min(stages, 5)))


def quantize(launch: Launcher, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Activations [tokens, in] as e4m3 numbers, and their scales [runs, tokens] float32 for runs of `width` inputs.

    See `kernels.reference.quantize_e4m3`.
    """
    tokens, inputs = x.shape
    width = min(width, inputs)
    runs = triton.cdiv(inputs, width)
    numbers = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty(runs, tokens, dtype=torch.float32, device=x.device)
    padded = triton.next_power_of_2(width)
    together = max(1, QUANTIZED_INPUTS // padded)
    launch(
        _quantize,
        (triton.cdiv(runs, together), tokens),
        x,
        numbers.view(torch.uint8),
        scales,
        tokens,
        inputs,
        runs,
        E4M3_MAX,
        LEAST_MAXIMUM,
        WIDTH=width,
        PADDED=padded,
        RUNS=together,
        DEPENDENT=launch.dependent,
        num_warps=min(16, max(4, padded // 1024)),
        num_stages=1,
    )
    return numbers, scales


@triton.jit(do_not_specialize=["tokens", "runs"])
def _quantize(
    x,
    codes,
    scales,
    tokens,
    inputs,
    runs,
    most,
    least,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    RUNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """codes[t, k] = e4m3(x[t, k] / scales[run of k, t]), where a scale is the run's largest magnitude / `most`.

    The grid is (blocks of RUNS runs, tokens).
    """
    wait_for_kernels_before(DEPENDENT)
    t = tl.program_id(1)
    run = tl.program_id(0) * RUNS + tl.arange(0, RUNS)  # [RUNS]
    within = tl.arange(0, PADDED)[None, :]  # [1, PADDED]
    k = run[:, None] * WIDTH + within  # [RUNS, PADDED]
    there = (within < WIDTH) & (k < inputs)  # [RUNS, PADDED]
    place = t.to(tl.int64) * inputs + k  # [RUNS, PADDED]
    values = tl.load(x + place, mask=there, other=0.0).to(tl.float32)  # [RUNS, PADDED]
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(values), 1), least), most)  # [RUNS]
    tl.store(scales + run * tokens + t, scale, mask=run < runs)
    whole = tl.zeros_like(values) + scale[:, None]  # [RUNS, PADDED]
    tl.store(codes + place, encode_e4m3(tl.div_rn(values, whole)), mask=there)


@triton.jit(do_not_specialize=["tokens", "tiles_per_split"])
def _matmul(
    x,
    weight,
    x_scales,
    scales,
    bias,
    y,
    sums,
    arrivals,
    tokens,
    outputs,
    inputs,
    tiles_per_split,
    SPLITS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TOKENS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    ONE_WIDTH: tl.constexpr,
    ONE_HEIGHT: tl.constexpr,
    FOLDED: tl.constexpr,
    HIP: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """y[t, n] = sum over k of w[n, k] x[t, k] + bias[n], for the inputs k of some splits.

    Program (i, j) of the grid computes tile i of OUTPUTS * TOKENS results over SPLITS splits, from j * SPLITS on.

    `x` is [tokens, inputs], and `weight` [outputs, inputs]: both e4m3 numbers, `x` with `x_scales` as `quantize` makes
    them; or activations of a wider dtype, without scales, and codes as uint8. `scales` is [blocks of HEIGHT outputs,
    blocks of WIDTH inputs]. The results' place is told in `store_results`.

    As in `matmul`, rows of the dots are outputs, and columns are tokens.
    """
    wait_for_kernels_before(DEPENDENT)
    n, t = place_of(tokens, outputs, OUTPUTS, TOKENS)  # [OUTPUTS], [TOKENS]
    tiles = tl.cdiv(inputs, TILE)
    begin = tl.program_id(1) * SPLITS * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, tiles)
    total = _sum(
        x, weight, x_scales, scales, n, t, tokens, outputs, inputs, begin, end,
        HEIGHT, WIDTH, TILE, WHOLE_TILES, ONE_WIDTH, ONE_HEIGHT,
    )  # fmt: skip
    for _ in range(1, SPLITS):
        begin, end = end, tl.minimum(end + tiles_per_split, tiles)
        total += _sum(
            x, weight, x_scales, scales, n, t, tokens, outputs, inputs, begin, end,
            HEIGHT, WIDTH, TILE, WHOLE_TILES, ONE_WIDTH, ONE_HEIGHT,
        )  # fmt: skip
    store_results(total, bias, y, sums, arrivals, n, t, tokens, outputs, FOLDED, HIP)


@triton.jit
def _sum(
    x,
    weight,
    x_scales,
    scales,
    n,
    t,
    tokens,
    outputs,
    inputs,
    begin,
    end,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    ONE_WIDTH: tl.constexpr,
    ONE_HEIGHT: tl.constexpr,
):
    """W x^T, [OUTPUTS, TOKENS] float32, over the input tiles `begin` to `end` - 1.

    sum(w x) = sum over blocks of (scale * x_scale * sum(numbers of w * numbers of x))

    With ONE_WIDTH, there is one block in a row, and its scales are applied to the whole sum; with ONE_HEIGHT, all the
    program's outputs are in one block.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    precision: tl.constexpr = "ieee" if dtype == tl.float32 else "tf32"
    zero: tl.constexpr = 0 if x_scales is None else 0.0
    # Rows past the end read the last row again; they are not stored.
    row = weight + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * inputs  # [OUTPUTS, 1]
    token = x + t.to(tl.int64)[:, None] * inputs  # [TOKENS, 1]
    widths = tl.cdiv(inputs, WIDTH)
    total = tl.zeros([n.shape[0], t.shape[0]], tl.float32)  # [OUTPUTS, TOKENS]
    # The compiler pipelines only loads that feed a dot, so scales are loaded one tile ahead by hand.
    # [OUTPUTS or 1, 1], [1, TOKENS or 1]
    next_own, next_of_x = _scales(
        x_scales, scales, n, t, tokens, outputs, widths, begin * TILE // WIDTH, HEIGHT, ONE_HEIGHT
    )
    for tile in range(begin, end):
        k = (tile * TILE + tl.arange(0, TILE))[None, :]  # [1, TILE]
        if WHOLE_TILES:
            numbers = tl.load(row + k)  # [OUTPUTS, TILE]
            values = tl.load(token + k, mask=(t < tokens)[:, None], other=0.0)  # [TOKENS, TILE]
        else:
            numbers = tl.load(row + k, mask=k < inputs, other=zero)
            values = tl.load(token + k, mask=(t < tokens)[:, None] & (k < inputs), other=0.0)
        if x_scales is None:
            numbers = decode_e4m3(numbers, False).to(dtype)
        part = tl.dot(numbers, tl.trans(values), input_precision=precision, out_dtype=tl.float32)  # [OUTPUTS, TOKENS]
        if ONE_WIDTH:
            total += part
        else:
            total += part * next_of_x * next_own
            block = tl.minimum(tile + 1, end - 1) * TILE // WIDTH
            next_own, next_of_x = _scales(x_scales, scales, n, t, tokens, outputs, widths, block, HEIGHT, ONE_HEIGHT)
    if ONE_WIDTH:
        total *= next_of_x * next_own
    return total


@triton.jit
def _scales(x_scales, scales, n, t, tokens, outputs, widths, block, HEIGHT: tl.constexpr, ONE_HEIGHT: tl.constexpr):
    """Two factors of the results of a tile of inputs, which lies in the block `block` of `widths`.

    They are [OUTPUTS, 1] and [1, TOKENS], or one of them is [1, 1] and the number 1.
    """
    one = tl.full([1, 1], 1.0, tl.float32)  # [1, 1]
    if x_scales is None:
        of_x = one
    else:
        of_x = tl.load(x_scales + block.to(tl.int64) * tokens + t, mask=t < tokens, other=0.0)[None, :]  # [1, TOKENS]
    if ONE_HEIGHT:
        # The tile's outputs share one scale, that of the first.
        own = tl.load(scales + (tl.min(n, 0) // HEIGHT).to(tl.int64) * widths + block)
        return one, of_x * own
    else:
        height = tl.minimum(n, outputs - 1) // HEIGHT  # [OUTPUTS]
        return tl.load(scales + height.to(tl.int64) * widths + block)[:, None], of_x
