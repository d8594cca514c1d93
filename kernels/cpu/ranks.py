"""Ranks of logits: integers in the order of the logits, each with its token, so that the highest one is a greedy draw.

A projection to logits can leave the highest rank of every few hundred outputs behind, in place of the outputs: of many
tokens these are several megabytes, which take longer to write and to read again than to compute.
"""

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.arguments import PickArguments, StepWords
from kernels.cpu.instructions import INFINITY, SIGNLESS, integers, unpack, words
from kernels.cpu.operation import Function

LOWEST = -(1 << 63)
"""A rank below those of all logits."""
TOKEN = (1 << 32) - 1
"""Mask of a rank's lower half, the inverted token: of equal logits the first has the highest rank."""


@njit(inline="always")
def highest_rank(logits: int, count: int, first: int, before: Any) -> Any:
    """The highest of a rank `before` and those of `count` logits of the tokens from `first` on."""
    bits = integers(logits, count)
    for index in range(count):
        size = bits[index] & SIGNLESS
        key = -size if bits[index] < 0 else size
        # A NaN has the highest rank of all, so that it is noticed.
        key = SIGNLESS if size > INFINITY else key
        before = max(before, np.int64(key) << 32 | (TOKEN - first - index))
    return before


def define_pick() -> Function:
    """The token of each row's highest rank; -1 where this logit is not finite. Its arguments are `PickArguments`."""

    def run(arguments: int, chunk: int, scratch: int) -> int:
        if chunk < 0:
            return 1
        args: PickArguments = unpack(PickArguments, arguments)
        step: StepWords = unpack(StepWords, args.step)
        rows, tokens = step.rows, words(step.drawn, step.rows)
        ranks = words(args.ranks, args.chunks * rows)
        for row in range(rows):
            best = LOWEST
            for part in range(args.chunks):
                best = max(best, ranks[part * rows + row])
            finite = -np.int64(INFINITY) < best >> 32 < np.int64(INFINITY)
            tokens[row] = TOKEN - (best & TOKEN) if finite else -1
        return 0

    return run
