"""Drawing a token from each row of logits, by the definition and with the random numbers of `reference_sampling.py`.

A row is read a few times and nothing is sorted: the filters' cut is found digit by digit in a histogram of the logits'
bits, and the race is run over the whole row. Only a row with more tokens at the cut than are kept is read once more,
for the last of those that are. The vector arithmetic stands in `race.py`.
"""

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.arguments import SampleArguments, StepWords
from kernels.cpu.instructions import (
    INFINITY,
    SIGNLESS,
    doubles,
    exp,
    floats,
    from_bits,
    integers,
    next_above,
    unpack,
    words,
)
from kernels.cpu.operation import Function
from kernels.cpu.race import run_race, weigh, winner_of

DIGITS = ((21, 11), (10, 11), (0, 10))
"""(lowest bit, number of bits) of the digits of a logit's key."""
BINS = 2048
BLOCK = 1024
"""Number of logits that are weighed at a time."""


def define_sample() -> Function:
    """A token of each row; -1 where the largest logit is not finite.

    Each chunk of work is a row. Its arguments are `SampleArguments`.
    """

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: SampleArguments = unpack(SampleArguments, arguments)
        step: StepWords = unpack(StepWords, args.step)
        rows, vocab = step.rows, args.vocab
        if chunk < 0:
            return rows
        row, tokens = args.logits + 4 * vocab * chunk, words(step.drawn, rows)
        peak: Any = find_peak(row, vocab)
        temperature: Any = floats(step.temperature, rows)[chunk]
        if peak - peak != np.float32(0):
            tokens[chunk] = -1
        elif temperature > 0:
            top_k, top_p = words(step.top_k, rows)[chunk], floats(step.top_p, rows)[chunk]
            cut, last = find_cut(row, vocab, peak, temperature, top_k, top_p, scratch)
            key: Any = _stream_key(words(step.seed, rows)[chunk], words(step.counter, rows)[chunk])
            least: Any = floats(step.min_p, rows)[chunk]
            tokens[chunk] = _draw(row, vocab, peak, temperature, cut, last, least, key)
        else:
            tokens[chunk] = find(row, vocab, peak, 1)
        return 0

    return run


@njit(inline="always")
def find_peak(row: int, vocab: int) -> Any:
    """The largest logit of a row; a NaN if there is one."""
    bits = integers(row, vocab)
    highest, largest = np.int32(-(2**31)), np.int32(0)
    for token in range(vocab):
        # As integers, the bits of negative floats are in the opposite order, until all but the sign are inverted.
        highest = max(highest, bits[token] ^ ((bits[token] >> np.int32(31)) & SIGNLESS))
        largest = max(largest, bits[token] & SIGNLESS)
    found = from_bits(highest ^ ((highest >> np.int32(31)) & SIGNLESS))
    return found if largest <= INFINITY else np.float32(np.nan)


@njit(inline="always")
def find(row: int, vocab: int, value: Any, count: int) -> Any:
    """The token that is number `count`, from 1 on, of those with the logit `value`."""
    logits = floats(row, vocab)
    for token in range(vocab):
        if logits[token] == value:
            count -= 1
            if count == 0:
                return np.int64(token)
    return np.int64(-1)


@njit(inline="always")
def _draw(row: int, vocab: int, peak: Any, temperature: Any, cut: Any, last: int, least: Any, key: Any) -> Any:
    """The winner of the race among the tokens above the cut, and those at the cut up to the token `last`."""
    result = run_race(row, 0, last + 1, peak, temperature, cut, least, key)
    if last + 1 < vocab:
        result = max(result, run_race(row, last + 1, vocab, peak, temperature, next_above(cut), least, key))
    return winner_of(result)


@njit
def find_cut(row: int, vocab: int, peak: Any, temperature: Any, top_k: int, top_p: Any, scratch: int) -> Any:
    """The least logit that top-k and then top-p keep, and the last token with this logit that they keep.

    These are -inf and the row's last token if they keep all.
    """
    cut, tied, kept = np.float32(-np.inf), 0, 0
    if 0 < top_k < vocab:
        cut, tied, kept = _descend(row, vocab, peak, temperature, cut, np.float64(top_k), False, scratch)
    if top_p < np.float32(1):
        mass = _total_mass(row, vocab, peak, temperature, cut, scratch)
        mass -= np.float64(tied - kept) * np.float64(exp((cut - peak) / temperature))
        least, most = cut, kept
        cut, tied, kept = _descend(row, vocab, peak, temperature, cut, np.float64(top_p) * mass, True, scratch)
        if cut == least:
            kept = min(kept, most)
    return cut, (find(row, vocab, cut, kept) if kept < tied else vocab - 1)


@njit
def _total_mass(row: int, vocab: int, peak: Any, temperature: Any, cut: Any, scratch: int) -> Any:
    """The sum of the weights of all logits from `cut` on."""
    total = np.float64(0)
    for base in range(0, vocab, BLOCK):
        count = min(BLOCK, vocab - base)
        weigh(row + 4 * base, count, peak, temperature, cut, scratch)
        weights = floats(scratch, count)
        for index in range(count):
            total += np.float64(weights[index])
    return total


@njit
def _descend(
    row: int, vocab: int, peak: Any, temperature: Any, least: Any, wanted: Any, weighted: bool, scratch: int
) -> Any:
    """The logit at which a walk from the largest logit down, to `least`, has gathered what is `wanted`.

    Each logit gives its weight if the walk is `weighted`, else 1. If all together give less, the walk ends at the last.
    Beside that logit, the number of tokens that have it, and how many of them the walk needs.
    """
    logits, bits = floats(row, vocab), integers(row, vocab)
    gains = doubles(scratch + 4 * BLOCK, BINS)
    prefix, gathered = 0, np.float64(0)
    for shift, width in DIGITS:
        for index in range(BINS):
            gains[index] = 0
        for base in range(0, vocab, BLOCK):
            count = min(BLOCK, vocab - base)
            if weighted and shift == DIGITS[0][0]:
                weigh(row + 4 * base, count, peak, temperature, least, scratch)
            weights = floats(scratch, count)
            for index in range(count):
                token = base + index
                key = _key(bits[token])
                if logits[token] < least or key >> (shift + width) != prefix:
                    continue
                gain = np.float64(1)
                if weighted and shift == DIGITS[0][0]:
                    gain = np.float64(weights[index])
                elif weighted:
                    gain = np.float64(exp((logits[token] - peak) / temperature))
                gains[key >> shift & (1 << width) - 1] += gain
        digit, last = (1 << width) - 1, -1
        while digit >= 0:
            if gains[digit] > 0:
                last = digit
                if gathered + gains[digit] >= wanted:
                    break
                gathered += gains[digit]
            digit -= 1
        if digit < 0:
            # The walk has come to the last logit that gives anything.
            gathered -= gains[last]
        prefix = prefix << width | last
    cut = _from_key(prefix)
    gain = np.float64(exp((cut - peak) / temperature)) if weighted else np.float64(1)
    # All that the last digit's bin has gained is from tokens with one logit.
    tied = gains[last] / gain
    needed = min(max(np.ceil((wanted - gathered) / gain), np.float64(1)), tied)
    return cut, np.int64(tied), np.int64(needed)


@njit(inline="always")
def _key(bits: Any) -> Any:
    """A number in (0, 2^32), from a logit's bits (int32), that is in the order of logits; -0 and 0 have the same."""
    number = np.int64(bits)
    return (number if number >= 0 else -(1 << 31) - number) + (1 << 31)


@njit(inline="always")
def _from_key(key: Any) -> Any:
    """The logit with a key."""
    number = key - (1 << 31)
    return from_bits(np.int32(number if number >= 0 else -(1 << 31) - number))


@njit(inline="always")
def _hash(x: Any) -> Any:
    """SplitMix64's output function of a uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(inline="always")
def _stream_key(seed: int, counter: int) -> Any:
    """A row's key; see `stream_keys` of the reference."""
    increment = np.uint64(0x9E3779B97F4A7C15)
    return np.int64(_hash(_hash(np.uint64(seed) + increment) + np.uint64(counter + 1) * increment))
