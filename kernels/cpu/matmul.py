"""A projection in two operations: activations are rounded, then multiplied with panels of the weight."""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit

from kernels.cpu import vectors as v
from kernels.cpu.activations import DEPTH, MOST_ROWS, SUMS_BYTES, TILE, TOKENS, Rounding, parts
from kernels.cpu.arguments import MultiplyArguments, StepWords
from kernels.cpu.beside import work_on_rows
from kernels.cpu.instructions import unpack, words
from kernels.cpu.matrix_tile import PANELS, REST, RING, STEPS, configure, panels_product
from kernels.cpu.matrix_unit import release
from kernels.cpu.operation import Function
from kernels.cpu.panels import LANES, RANKED_PANELS, Format
from kernels.cpu.ranks import LOWEST, highest_rank
from kernels.cpu.rounding import by_unit
from kernels.cpu.rows import add_row, copy_row
from kernels.cpu.target import REGISTER_BYTES, dot_path
from kernels.cpu.tile import multiply_tile

CHUNK_BYTES = 12 * 1024
"""Bytes of panels in a chunk of work, few enough to stay in a core's first-level cache while all tokens use them."""
LEAST_ROWS = 128
"""Tokens of a block, at least, if not all are one: each block needs the weights unpacked once more."""
BEHIND = REST + 4 * MOST_ROWS * PANELS * LANES
WORK = BEHIND + 4 * MOST_ROWS * PANELS * LANES
"""Places in scratch memory: behind the unit's outputs lie those to be ranked, and behind these the words of `_Rows`."""


class _Rows(NamedTuple):
    """Rows of outputs to be written, PANELS * LANES of each, as words of memory."""

    begin: v.Value
    end: v.Value
    made: v.Value
    """Address of the first row as the unit writes it."""
    out: v.Value
    """Address of the first row's place."""
    stride: v.Value
    """Bytes from a row's place to the next."""
    residual: v.Value
    """Address of what is added to the first row, in rows like those of `out`; 0 if nothing is."""


def _emit_row(builder: ir.IRBuilder, told: _Rows, row: v.Value) -> None:
    source = builder.add(told.made, builder.mul(row, ir.Constant(v.I64, 4 * PANELS * LANES)))
    offset = builder.mul(row, told.stride)
    place, added = (builder.add(base, offset) for base in (told.out, told.residual))
    numbers = v.load(builder, v.vector(v.F32, PANELS * LANES), source)
    with builder.if_else(builder.icmp_signed("==", told.residual, ir.Constant(v.I64, 0))) as (alone, both):
        with alone:
            v.store(builder, numbers, place)
        with both:
            v.store(builder, builder.fadd(numbers, v.load(builder, numbers.type, added)), place)


write_rows, write_beside = work_on_rows(_Rows, _emit_row)
"""Outputs go to memory that is often in no cache, which takes as long as a fifth of the product."""


def _most_tokens(form: Format) -> int:
    """Limit of tokens in a tile: their accumulators must leave enough registers for a group's weights."""
    return TILE if dot_path() == "avx512-vnni" or (dot_path() == "avx2" and form.bits == 4) else TILE // 2


def define_multiply(rounding: Rounding) -> Function:
    """Multiply activations with a weight in panels of the rounding's form, and add a bias.

    Its arguments are `MultiplyArguments`. The ranks of outputs can be written instead, of up to MOST_ROWS rows.
    """
    form, unit_from = rounding.form, rounding.unit_from
    bits, group, offsets, most = form.bits, form.group, form.offsets, _most_tokens(form)
    group_bytes, input_bytes = form.group_bytes, form.group_input_bytes
    count, rounded, told_words = parts(form), int(rounding.needed), len(_Rows._fields)
    multiply_block = block_product(panels_product(write_beside))

    @njit(inline="always")
    def by_tiles(
        args: MultiplyArguments, rows: int, first: int, last: int, out: int, out_stride: int, scratch: int
    ) -> None:
        """Multiply all tokens, up to `most` at a time, with the panels from `first` to `last` - 1.

        Outputs go to `out`, in rows `out_stride` bytes apart.
        """
        groups, outputs = args.groups, args.outputs
        stride = groups * input_bytes
        row = 0
        while row < rows:
            x, sums = args.x + row * stride, args.sums
            if rounded:
                place = row // TOKENS * groups * TOKENS + row % TOKENS
                x, sums = args.rounded + place * input_bytes, sums + place * SUMS_BYTES
            tokens = 1
            # Rounded activations are as many as fill a tile, and one large tile takes less time than two.
            while tokens < most and (tokens < rows - row if rounded else 2 * tokens <= rows - row):
                tokens *= 2
            for index in range(first, last):
                panel = args.panels + index * groups * group_bytes
                if tokens == 8:
                    multiply_tile(bits, group, offsets, 8, panel, x, stride, sums, groups, scratch)
                elif tokens == 4:
                    multiply_tile(bits, group, offsets, 4, panel, x, stride, sums, groups, scratch)
                elif tokens == 2:
                    multiply_tile(bits, group, offsets, 2, panel, x, stride, sums, groups, scratch)
                else:
                    multiply_tile(bits, group, offsets, 1, panel, x, stride, sums, groups, scratch)
                place = out + out_stride * row + 4 * LANES * (index - first)
                wide, there = min(LANES, outputs - index * LANES), min(tokens, rows - row)
                _write(args, scratch, 4 * LANES, there, index * LANES, wide, args.bias, place, out_stride)
            row += tokens

    @njit(inline="always")
    def by_matrix_unit(
        args: MultiplyArguments, top: int, many: int, first: int, last: int, out: int, out_stride: int, scratch: int
    ) -> None:
        """Multiply `many` tokens from `top` on, up to MOST_ROWS, by the matrix unit with up to PANELS panels.

        Outputs go to `out`, that of the first token, in rows `out_stride` bytes apart.
        """
        full = (first + PANELS) * LANES <= args.outputs
        begun, bias = (args.bias + 4 * first * LANES, 0) if full and args.bias != 0 else (0, args.bias)
        place, stride = (out, out_stride) if full or args.ranks != 0 else (scratch + BEHIND, 4 * PANELS * LANES)
        told = words(scratch + WORK, told_words)
        told[2], told[3], told[4] = scratch + REST, place, stride
        told[5] = args.residual + (out - args.out) if full and args.residual != 0 else 0
        # fmt: off
        multiply_block(
            bits, group, offsets, count, group_bytes, args, top, many, first, last - 1,
            begun, scratch + REST, 4 * PANELS * LANES, scratch, scratch + WORK,
        )
        # fmt: on
        told[0], told[1] = told[1], many
        write_rows(scratch + WORK)
        if not full:
            wide = min(PANELS * LANES, args.outputs - first * LANES)
            _write(args, place, stride, many, first * LANES, wide, bias, out, out_stride)
        release(0)

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: MultiplyArguments = unpack(MultiplyArguments, arguments)
        rows, outputs = unpack(StepWords, args.step).rows, args.outputs
        panels = (outputs + LANES - 1) // LANES
        unit, ranked = by_unit(unit_from, rows), args.ranks != 0
        share = PANELS if unit else 1 if ranked else max(1, CHUNK_BYTES // (args.groups * group_bytes))
        span = RANKED_PANELS if ranked else share
        spans, block = (panels + span - 1) // span, rows_a_block(rows, args.threads) if unit else max(1, rows)
        if chunk < 0:
            return 0 if args.few != 0 and unit else spans * ((rows + block - 1) // block)
        top, part = chunk // spans * block, chunk % spans
        many = min(block, rows - top)
        for first in range(part * span, min(panels, part * span + span), share):
            last = min(panels, first + share)
            out, stride = args.out + 4 * (top * outputs + LANES * first), 4 * outputs
            if ranked:
                out, stride = scratch + BEHIND, 4 * LANES * share
            if unit:
                by_matrix_unit(args, top, many, first, last, out, stride, scratch)
            else:
                by_tiles(args, rows, first, last, out, stride, scratch)
            if ranked:
                ranks = words(args.ranks + 8 * (rows * part + top), many)
                begin, wide = first * LANES, min(outputs, last * LANES) - first * LANES
                for row in range(many):
                    before = LOWEST if first == part * span else ranks[row]
                    ranks[row] = highest_rank(out + stride * row, wide, begin, before)
        return 0

    return run


@njit(inline="always")
def rows_a_block(rows: int, threads: int) -> int:
    """Tokens that a chunk of work multiplies by the matrix unit, up to MOST_ROWS in whole pairs of tiles.

    With many tokens each thread has some of its own, since activations, unlike weights, are read again and again.
    """
    blocks = max(1, min(threads, rows // LEAST_ROWS))
    pairs = (rows + 2 * TOKENS * blocks - 1) // (2 * TOKENS * blocks)
    return min(MOST_ROWS, max(1, pairs) * 2 * TOKENS)


def block_product(multiply_panels: Any) -> Any:
    """A function for kernels that multiplies a block of tokens, see `multiply_block`, by a `panels_product`."""

    @njit(inline="always")
    def multiply_block(
        bits: int,
        group: int,
        offsets: int,
        count: int,
        group_bytes: int,
        args: MultiplyArguments,
        top: int,
        many: int,
        first: int,
        last: int,
        begun: int,
        out: int,
        out_stride: int,
        scratch: int,
        work: int,
    ) -> None:
        """Multiply `many` tokens from `top` on, up to MOST_ROWS, with the panels `first` and `last` by the matrix unit.

        `count` is the number of parts of an activation. Outputs are [many, PANELS * LANES] float32 in rows `out_stride`
        bytes apart; they begin with the numbers [PANELS * LANES] at `begun`, or with 0 if that is 0.

        The first two words at `work`, if that is not 0, become the last rows before that have all of their outputs, a
        beginning and an end, while the unit multiplies others.
        """
        groups = args.groups
        steps = groups * group // DEPTH
        tile_bytes = steps * count * REGISTER_BYTES
        begun_stride = 0
        for step in range(0, steps, STEPS):
            size = min(STEPS, steps - step)
            at = args.panels + (first * groups + step * (DEPTH // group)) * group_bytes
            beside = at + (last - first) * groups * group_bytes
            before = row = 0
            while row < many:
                left = many - row
                if row == 0 or left < TOKENS:
                    configure(scratch, min(left, TOKENS))
                tokens = 2 * TOKENS if left >= 2 * TOKENS else min(left, TOKENS)
                tiles, keeps = (tokens + TOKENS - 1) // TOKENS, 0
                if row == 0:
                    keeps = RING if tokens == many else STEPS
                x = args.rounded + (top + row) // TOKENS * tile_bytes + step * count * REGISTER_BYTES
                start, place = begun + begun_stride * row, out + out_stride * row
                if work != 0:
                    done = words(work, 2)
                    done[0], done[1] = before, row if step + size == steps else before
                # fmt: off
                multiply_panels(
                    bits, group, offsets, tiles, keeps, at, beside, args.exponent, size,
                    x, tile_bytes, start, begun_stride, place, out_stride, scratch, work,
                )
                # fmt: on
                before, row = row, row + tokens
            begun, begun_stride = out, out_stride

    return multiply_block


@njit(inline="always")
def _write(
    args: MultiplyArguments,
    made: int,
    made_stride: int,
    count: int,
    begin: int,
    many: int,
    bias: int,
    out: int,
    stride: int,
) -> None:
    """Write `many` outputs from `begin` on, in `count` rows, from `made` to `out`; add the residual.

    The `bias` [outputs] is added to `made` before, if it is not 0. Rows of `made` lie `made_stride` bytes apart; those
    of `out`, and of the residual, `stride` bytes.
    """
    for t in range(count):
        done, place = made + made_stride * t, out + stride * t
        if bias != 0:
            add_row(done, bias + 4 * begin, many, done)
        if args.residual != 0:
            add_row(done, args.residual + (place - args.out), many, place)
        else:
            copy_row(done, many, place)
