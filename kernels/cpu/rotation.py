"""Rotary positions: queries and keys are normed and rotated, and keys and values stored in the cache."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from kernels.cpu import vectors as v
from kernels.cpu.arguments import RotateArguments, StepWords
from kernels.cpu.instructions import floats, from_bits, instruction, unpack, words
from kernels.cpu.norms import scale_row, sum_squares
from kernels.cpu.operation import Function
from kernels.cpu.rows import LANES, copy_row, load, over_row, place
from kernels.cpu.storage import store, store_beside

TOKENS_A_CHUNK = 2
"""Number of tokens in a chunk of work."""


def define_rotate(stored: int, paired: bool) -> Function:
    """Norm and rotate queries and keys, and store keys and values in the cache in the form `stored` (`storage.py`).

    With `paired`, values are stored as `matrix_attention.py` wants them. Its arguments are `RotateArguments`.
    """

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: RotateArguments = unpack(RotateArguments, arguments)
        step: StepWords = unpack(StepWords, args.step)
        if chunk < 0:
            return (step.rows + TOKENS_A_CHUNK - 1) // TOKENS_A_CHUNK
        heads, kv_heads, dim = args.heads, args.kv_heads, args.dim
        slots = words(step.slots, step.rows)
        for row in range(chunk * TOKENS_A_CHUNK, min(step.rows, chunk * TOKENS_A_CHUNK + TOKENS_A_CHUNK)):
            qkv = args.qkv + row * (heads + 2 * kv_heads) * dim * 4
            for head in range(heads):
                _turn(args, row, qkv + head * dim * 4, args.query_norm, args.queries + (row * heads + head) * dim * 4)
            if slots[row] < 0:
                continue
            for head in range(kv_heads):
                value = qkv + (heads + kv_heads + head) * dim * 4
                _turn(args, row, qkv + (heads + head) * dim * 4, args.key_norm, scratch)
                at = slots[row] * args.slot_bytes + head * dim * stored
                key_scale, value_scale = np.float32(1), np.float32(1)
                if args.key_scales != 0:
                    key_scale, value_scale = (
                        floats(args.key_scales, kv_heads)[head],
                        floats(args.value_scales, kv_heads)[head],
                    )
                store(stored, floats(scratch, dim), args.keys + at, dim, key_scale)
                if paired:
                    pair, other = slots[row] // 2 * 2 * args.slot_bytes, slots[row] % 2
                    store_beside(value, dim, args.values + pair + (2 * head * dim + other) * stored)
                else:
                    store(stored, floats(value, dim), args.values + at, dim, value_scale)
        return 0

    return run


@njit(inline="always")
def _turn(args: RotateArguments, row: int, head: int, weight: int, out: int) -> None:
    """Write one head [dim] of a token to `out` [dim], RMS-normed by the weight (0: none), with pairs rotated."""
    dim, half, source = args.dim, args.half, head
    if weight != 0:
        mean: Any = sum_squares(head, dim, np.float32(0)) / np.float32(dim)
        scale_row(head, weight, np.float32(1) / np.float32(math.sqrt(mean + from_bits(np.int32(args.eps)))), dim, out)
        source = out
    turn_row(source, args.cos + row * half * 4, args.sin + row * half * 4, half, out)
    if source != out:
        copy_row(source + 8 * half, dim - 2 * half, out + 8 * half)


def _emit_turn(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    row, cosines, sines, half, out = values

    def turn(first: v.Value, lanes: int, carried: list[v.Value]) -> list[v.Value]:
        second = builder.add(first, half)
        a, b = (load(builder, place(builder, row, index), lanes) for index in (first, second))
        cos, sin = (load(builder, place(builder, table, first), lanes) for table in (cosines, sines))
        v.store(builder, builder.fsub(builder.fmul(a, cos), builder.fmul(b, sin)), place(builder, out, first))
        v.store(builder, v.fma(builder, b, cos, builder.fmul(a, sin)), place(builder, out, second))
        return carried

    over_row(builder, half, [], turn, lanes=LANES)
    return half


_ADDRESS = _COUNT = types.int64

turn_row = instruction(types.int64, [_ADDRESS, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS], _emit_turn)
"""(row, cos, sin, half, out): write a row's first 2 * half numbers, each rotated with the one `half` behind; returns
half. It may be done in place.
"""
