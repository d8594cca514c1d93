"""Log-probabilities of a token and of the likeliest ones, by the definition of `kernels/reference.py`.

A row of logits is read once and nothing is sorted: the sum of exponentials is relative to the highest logit so far
(Milakov and Gimelshein, arXiv 1805.02867), and the likeliest tokens are kept in a heap whose root is the least of them,
which few others are above once some of the row has been seen.
"""

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.arguments import LogprobsArguments, StepWords
from kernels.cpu.exponentials import find_peak, mass_and_count
from kernels.cpu.instructions import doubles, floats, from_bits, unpack, words
from kernels.cpu.operation import Function

BLOCK = 1024
"""Number of logits that are read together while they stay in the first-level cache, and summed up in float32."""
PART = 64
"""Number of logits that are compared with the heap's root at once, in a block that has one above it."""
LOWEST = np.finfo(np.float32).min
"""The least finite number, so that no logit is relative to -inf."""


def define_logprobs() -> Function:
    """A row of `Backend.log_probabilities` for each row of logits. Each chunk of work is a row.

    Its arguments are `LogprobsArguments`.
    """

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: LogprobsArguments = unpack(LogprobsArguments, arguments)
        rows, vocab, most = unpack(StepWords, args.step).rows, args.vocab, args.most
        if chunk < 0:
            return rows
        row, token = args.logits + 4 * vocab * chunk, words(args.tokens, rows)[chunk]
        at = args.out + 8 * (2 + 2 * most) * chunk
        entry, tops, ids = doubles(at, 2), doubles(at + 16, most), doubles(at + 16 + 8 * most, most)
        chosen: Any = floats(row, vocab)[token]
        for index in range(most):
            tops[index] = floats(row, most)[index]
            ids[index] = index
        for index in range(most // 2 - 1, -1, -1):
            _sink(tops, ids, index, most)
        peak: Any = LOWEST
        total, above = np.float64(0), np.int64(0)
        for base in range(0, vocab, BLOCK):
            count = min(BLOCK, vocab - base)
            block = row + 4 * base
            local: Any = find_peak(block, count)
            if local > peak or local != local:
                total *= np.exp(np.float64(peak) - np.float64(local))
                peak = local
            both: Any = mass_and_count(block, count, peak, chosen)
            total += np.float64(from_bits(np.int32(both)))
            above += both >> 32
            if most > 0 and base + count > most and np.float64(local) > tops[0]:
                _take(block, count, base, tops, ids, most)
        if not total > 0:
            # There is a NaN or an infinite logit, or none that is finite.
            entry[0], entry[1] = np.nan, 1
            for index in range(most):
                tops[index], ids[index] = np.nan, index
            return 0
        for last in range(most - 1, 0, -1):
            tops[0], tops[last] = tops[last], tops[0]
            ids[0], ids[last] = ids[last], ids[0]
            _sink(tops, ids, 0, last)
        entry[0] = np.float64(chosen)
        # In two loops, lest the compiler first add up the peak and the mass, which is lost where logits are large.
        scores, mass = doubles(at, 2 + most), np.log(total)
        for index in range(2 + most):
            scores[index] -= np.float64(peak)
        for index in range(2 + most):
            scores[index] -= mass
        entry[1] = 1 + above
        return 0

    return run


@njit
def _take(block: int, size: int, base: int, tops: Any, ids: Any, most: int) -> None:
    """Take a block's logits above the least of a heap of `most` into the heap; the block's first token is `base`.

    The heap begins as the row's first `most` tokens. Every later one has a higher id, so it loses where it ties.
    """
    for begin in range(0, size, PART):
        count = min(PART, size - begin)
        part = block + 4 * begin
        if np.float64(find_peak(part, count)) > tops[0]:
            logits = floats(part, count)
            for index in range(count):
                token, logit = base + begin + index, np.float64(logits[index])
                if token >= most and logit > tops[0]:
                    tops[0], ids[0] = logit, token
                    _sink(tops, ids, 0, most)


@njit
def _sink(tops: Any, ids: Any, place: int, count: int) -> None:
    """Let the entry at a `place` of a heap sink to where no entry below it is worse."""
    while 2 * place + 1 < count:
        worse = 2 * place + 1
        if worse + 1 < count and _better(tops, ids, worse, worse + 1):
            worse += 1
        if not _better(tops, ids, place, worse):
            return
        tops[place], tops[worse] = tops[worse], tops[place]
        ids[place], ids[worse] = ids[worse], ids[place]
        place = worse


@njit(inline="always")
def _better(tops: Any, ids: Any, first: int, second: int) -> Any:
    """Whether the `first` entry is likelier than the `second`, or as likely with a lower id."""
    return tops[first] > tops[second] or (tops[first] == tops[second] and ids[first] < ids[second])
