"""The weights by which the sampler draws tokens, for those who look at them, and what they come to.

They are those that `sampling.py` lets race, written to memory; tokens of which it would draw none in 10^38 still have
their weights here. The definition is in `reference_sampling.py`.
"""

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.arguments import StepWords, WeighArguments
from kernels.cpu.instructions import FLAGS, doubles, exp, floats, next_above, unpack, words
from kernels.cpu.operation import Function
from kernels.cpu.operations import WEIGHED_FIGURES as FIGURES
from kernels.cpu.sampling import BLOCK, find, find_cut, find_peak

DEEP = np.float32(-87)
"""The least exponent of a weight that float32 holds with all of its digits; `exp` gives 0 soon below."""
LIFT = np.float32(64 * np.log(2))
LIFTED = np.float32(2.0**-64)
"""The number that is added to exponents below `DEEP`, and the factor that makes up for this."""


def define_weigh() -> Function:
    """A row of `Backend.weigh` for each row of logits. Each chunk of work is a row.

    Its arguments are `WeighArguments`.
    """

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: WeighArguments = unpack(WeighArguments, arguments)
        step: StepWords = unpack(StepWords, args.step)
        rows, vocab = step.rows, args.vocab
        if chunk < 0:
            return rows
        row, out = args.logits + 4 * vocab * chunk, args.weights + 4 * vocab * chunk
        figures = doubles(args.figures + 8 * FIGURES * chunk, FIGURES)
        before = 0 if args.weights_before == 0 else args.weights_before + 4 * vocab * chunk
        peak: Any = find_peak(row, vocab)
        if peak - peak != np.float32(0):
            _clear(floats(out, vocab), figures)
            return 0
        temperature: Any = floats(step.temperature, rows)[chunk]
        least: Any = floats(step.min_p, rows)[chunk]
        if temperature > 0:
            top_k, top_p = words(step.top_k, rows)[chunk], floats(step.top_p, rows)[chunk]
            cut, last = find_cut(row, vocab, peak, temperature, top_k, top_p, scratch)
        else:
            temperature, least = np.float32(1), np.float32(0)
            cut, last = peak, find(row, vocab, peak, 1)
        for index in range(FIGURES):
            figures[index] = 0
        _weigh_part(row, 0, last + 1, peak, temperature, cut, least, before, out, figures)
        _weigh_part(row, last + 1, vocab, peak, temperature, next_above(cut), least, before, out, figures)
        total = figures[0]
        figures[2] = (
            np.float64(1)
            if before == 0
            else figures[2] / doubles(args.figures_before + 8 * FIGURES * chunk, FIGURES)[0]
        )
        figures[3] = np.log(total) - figures[3] / total
        return 0

    return run


@njit
def _weigh_part(
    row: int,
    begin: int,
    end: int,
    peak: Any,
    temperature: Any,
    cut: Any,
    least: Any,
    before: int,
    out: int,
    figures: Any,
) -> None:
    """Write the weights of the tokens `begin` to `end` - 1, and add them up in the row's `figures`.

    The figures are the sum of the weights, the number of those above 0, the sum of the weights that the same tokens had
    before, and the sum of the weights times their logarithms.
    """
    for base in range(begin, end, BLOCK):
        count, at = min(BLOCK, end - base), 4 * base
        figures[0] += _weigh(row + at, count, peak, temperature, cut, least, out + at)
        figures[1] += _count(out + at, count)
        if before != 0:
            figures[2] += _sum_where(out + at, before + at, count)
        figures[3] += _information(row + at, out + at, count, peak, temperature)


@njit(inline="always", fastmath=FLAGS)
def _weigh(row: int, count: int, peak: Any, temperature: Any, cut: Any, least: Any, out: int) -> Any:
    """Write e^((logit - peak) / temperature), or 0 below the `least` weight or the cut; returns the sum."""
    logits, weights, total = floats(row, count), floats(out, count), np.float64(0)
    for index in range(count):
        exponent = (logits[index] - peak) / temperature
        deep = exponent < DEEP
        weight = exp(exponent + LIFT if deep else exponent)
        weight = weight * LIFTED if deep else weight
        weight = weight if logits[index] >= cut and weight >= least else np.float32(0)
        weights[index] = weight
        total += np.float64(weight)
    return total


@njit(inline="always")
def _count(at: int, count: int) -> Any:
    """Number of weights above 0."""
    weights, kept = floats(at, count), np.int32(0)
    for index in range(count):
        kept += np.int32(weights[index] > np.float32(0))
    return np.float64(kept)


@njit(inline="always", fastmath=FLAGS)
def _sum_where(at: int, before: int, count: int) -> Any:
    """The sum of the weights `before`, where the weights are above 0."""
    weights, others, total = floats(at, count), floats(before, count), np.float64(0)
    for index in range(count):
        total += np.float64(others[index] if weights[index] > np.float32(0) else np.float32(0))
    return total


@njit(inline="always", fastmath=FLAGS)
def _information(row: int, at: int, count: int, peak: Any, temperature: Any) -> Any:
    """The sum of weights times their logarithms."""
    logits, weights, total = floats(row, count), floats(at, count), np.float64(0)
    for index in range(count):
        product = weights[index] * ((logits[index] - peak) / temperature)
        total += np.float64(product if weights[index] > np.float32(0) else np.float32(0))
    return total


@njit(inline="always")
def _clear(weights: Any, figures: Any) -> None:
    """The weights and figures of a row from which nothing can be drawn."""
    for token in range(len(weights)):
        weights[token] = np.float32(0)
    for index in range(FIGURES):
        figures[index] = 0
