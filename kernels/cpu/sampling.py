"""The likeliest token of each row of logits."""

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.instructions import INFINITY, SIGNLESS, floats, from_bits, integers, words
from kernels.cpu.operation import Operation, operation


@cache
def greedy_operation() -> Operation:
    """The likeliest token of each row, the lowest id where several tie; -1 where the largest logit is not finite.

    Record: rows, logits, vocab, tokens. Logits are [rows, vocab] float32, tokens [rows] int64. Each chunk of work is a
    row.
    """

    def run(arguments: int, chunk: int, scratch: int) -> int:
        r = words(arguments, 4)
        if chunk < 0:
            return words(r[0], 1)[0]
        words(r[3], chunk + 1)[chunk] = _likeliest(r[1] + 4 * r[2] * chunk, r[2])
        return 0

    return operation(run)


@njit(inline="always")
def _likeliest(logits: int, vocab: int) -> Any:
    """The likeliest token of a row [vocab], or -1."""
    bits, row = integers(logits, vocab), floats(logits, vocab)
    highest, largest = np.int32(-(2**31)), np.int32(0)
    for token in range(vocab):
        # As integers, the bits of negative floats are in the opposite order, until all but the sign are inverted.
        highest = max(highest, bits[token] ^ ((bits[token] >> np.int32(31)) & SIGNLESS))
        largest = max(largest, bits[token] & SIGNLESS)
    value = from_bits(highest ^ ((highest >> np.int32(31)) & SIGNLESS))
    unknown = largest > INFINITY
    if unknown or value - value != np.float32(0):
        return np.int64(-1)
    for token in range(vocab):
        if row[token] == value:
            return np.int64(token)
    return np.int64(-1)
