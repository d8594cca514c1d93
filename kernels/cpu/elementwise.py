"""Operations that treat each token by itself: embedding, norms, rotary angles and rotation, activations."""

import math
from typing import Any

import numpy as np
from numba import njit

from kernels.backend import ActivationKind
from kernels.cpu.activations import Rounding
from kernels.cpu.arguments import (
    ActivationArguments,
    AnglesArguments,
    EmbedArguments,
    GatedArguments,
    KeepArguments,
    NormArguments,
    StepWords,
)
from kernels.cpu.gates import ACTIVATE, GATE
from kernels.cpu.instructions import (
    floats,
    from_bits,
    half_to_float,
    halves,
    octets,
    signed_octets,
    unpack,
    words,
)
from kernels.cpu.norms import add_rows, scale_row, shift_row, sum_row, sum_squares
from kernels.cpu.operation import Function
from kernels.cpu.panels import LANES, Format
from kernels.cpu.rounding import by_unit, round_row

TOKENS_A_CHUNK = 2
"""Number of tokens in a chunk of work."""
LIGHT = 8
"""Number of tokens in a chunk of norms or activations, which take less time for a token than other operations.

Chunks of 2 tokens would not be faster where there are few: on two threads, 8 tokens take as long in one chunk as in 4.
"""
UNROUNDED = Rounding(Format(4, 32, True), 0)
"""A rounding that stands for none where constants are needed."""


def define_norm(mean: bool, rounding: Rounding | None) -> Function:
    """Add x to the residual stream and norm the sum: RMS norm, or layer norm where the `mean` is subtracted.

    The normed numbers are also rounded if there is a `rounding`.

    Its arguments are `NormArguments`.

    Sources: Zhang and Sennrich, arXiv 1910.07467; Ba et al., arXiv 1607.06450.
    """
    rounds = rounding is not None
    group, low, split, count, unit_from = (rounding or UNROUNDED).constants

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: NormArguments = unpack(NormArguments, arguments)
        rows, size = unpack(StepWords, args.step).rows, args.size
        if chunk < 0:
            return (rows + LIGHT - 1) // LIGHT
        eps = from_bits(np.int32(args.eps))
        for row in range(chunk * LIGHT, min(rows, chunk * LIGHT + LIGHT)):
            at = row * size * 4
            stream, normed = args.stream + at, args.normed + at if args.normed != 0 else scratch
            centre, total = np.float32(0), np.float32(0)
            if args.residual != 0:
                total = add_rows(args.x + at, args.residual + at, stream, size)
            if mean:
                centre = sum_row(stream, size) / np.float32(size)
            if mean or args.residual == 0:
                total = sum_squares(stream, size, centre)
            factor = np.float32(1) / np.float32(math.sqrt(total / np.float32(size) + eps))
            if mean:
                shift_row(stream, args.weight, args.bias, factor, centre, size, normed)
            else:
                scale_row(stream, args.weight, factor, size, normed)
            if rounds:
                round_row(group, low, split, count, unit_from, row, rows, normed, size, args.rounded, args.sums)
        return 0

    return run


def define_angles() -> Function:
    """Cosine and sine of every token's rotary angles (Su et al., arXiv 2104.09864), times a magnitude.

    Its arguments are `AnglesArguments`.
    """

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: AnglesArguments = unpack(AnglesArguments, arguments)
        step, half = unpack(StepWords, args.step), args.half
        if chunk < 0:
            return (step.rows + TOKENS_A_CHUNK - 1) // TOKENS_A_CHUNK
        frequencies, positions = floats(args.frequencies, half), words(step.positions, step.rows)
        magnitude = from_bits(np.int32(args.magnitude))
        for row in range(chunk * TOKENS_A_CHUNK, min(step.rows, chunk * TOKENS_A_CHUNK + TOKENS_A_CHUNK)):
            cos, sin = floats(args.cos + row * half * 4, half), floats(args.sin + row * half * 4, half)
            position = np.float32(positions[row])
            for i in range(half):
                angle = position * frequencies[i]
                cos[i] = np.float32(math.cos(angle)) * magnitude
                sin[i] = np.float32(math.sin(angle)) * magnitude
        return 0

    return run


def define_activation(kind: ActivationKind) -> Function:
    """The activation function `kind` of every number. Its arguments are `ActivationArguments`."""
    activate = ACTIVATE[kind]

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: ActivationArguments = unpack(ActivationArguments, arguments)
        rows, size = unpack(StepWords, args.step).rows, args.size
        if chunk < 0:
            return (rows + LIGHT - 1) // LIGHT
        for row in range(chunk * LIGHT, min(rows, chunk * LIGHT + LIGHT)):
            at = row * size * 4
            activate(args.x + at, size, args.out + at)
        return 0

    return run


def define_gated(kind: ActivationKind, few: int, rounding: Rounding | None) -> Function:
    """The activation function `kind` of the gate, times up (Shazeer, arXiv 2002.05202); rounded too, if so asked.

    It does nothing in steps of `few` tokens or more, unless that is 0. Its arguments are `GatedArguments`.
    """
    write, rounds = GATE[kind], rounding is not None
    group, low, split, count, unit_from = (rounding or UNROUNDED).constants

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: GatedArguments = unpack(GatedArguments, arguments)
        rows, size = unpack(StepWords, args.step).rows, args.size
        if chunk < 0:
            return 0 if by_unit(few, rows) else (rows + LIGHT - 1) // LIGHT
        for row in range(chunk * LIGHT, min(rows, chunk * LIGHT + LIGHT)):
            gate, out = args.gate_up + row * size * 8, args.out + row * size * 4
            write(gate, gate + size * 4, size, out)
            if rounds:
                round_row(group, low, split, count, unit_from, row, rows, out, size, args.rounded, args.sums)
        return 0

    return run


def define_embed(form: Format) -> Function:
    """The tokens' rows of an embedding table in panels, times a scale, with learned position embeddings added.

    Its arguments are `EmbedArguments`.
    """
    bits, group, offsets = form.bits, form.group, form.offsets
    group_bytes, codes_bytes, offsets_place = form.group_bytes, form.codes_bytes, form.offsets_place

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: EmbedArguments = unpack(EmbedArguments, arguments)
        step, groups, size = unpack(StepWords, args.step), args.groups, args.size
        if chunk < 0:
            return (step.rows + TOKENS_A_CHUNK - 1) // TOKENS_A_CHUNK
        factor = from_bits(np.int32(args.scale))
        for row in range(chunk * TOKENS_A_CHUNK, min(step.rows, chunk * TOKENS_A_CHUNK + TOKENS_A_CHUNK)):
            token = words(step.token_ids, step.rows)[row]
            lane = token % LANES
            out = floats(args.out + row * size * 4, size)
            for g in range(groups):
                at = args.panels + (token // LANES * groups + g) * group_bytes
                scale, offset = np.float32(1), np.float32(0)
                if bits <= 8:
                    scale = half_to_float(halves(at + codes_bytes, LANES)[lane])
                    if offsets == 2:
                        offset = half_to_float(halves(at + offsets_place, LANES)[lane])
                    elif offsets == 4:
                        offset = floats(at + offsets_place, LANES)[lane]
                for i in range(min(group, size - g * group)):
                    out[g * group + i] = (scale * _code(bits, offsets, group, at, lane, i) + offset) * factor
            if args.learned != 0:
                learned = floats(args.learned + words(step.positions, step.rows)[row] * size * 4, size)
                for i in range(size):
                    out[i] += learned[i]
        return 0

    return run


@njit(inline="always")
def _code(bits: int, unsigned: int, group: int, at: int, lane: int, i: int) -> Any:
    """The code of output `lane` and input `i` in the group at address `at`, as float32; `panels.py` has the layout."""
    if bits == 4:
        half = group // 2
        inner = i % half
        byte = octets(at, group * LANES // 2)[inner // 4 * 4 * LANES + lane * 4 + inner % 4]
        return np.float32(byte >> 4 if i >= half else byte & 15)
    if bits == 8 and unsigned:
        return np.float32(octets(at, group * LANES)[i // 2 * 2 * LANES + lane * 2 + i % 2])
    if bits == 8:
        return np.float32(signed_octets(at, group * LANES)[i // 2 * 2 * LANES + lane * 2 + i % 2])
    if bits == 16:
        return from_bits(np.int32(halves(at, group * LANES)[i * LANES + lane]) << np.int32(16))
    return floats(at, group * LANES)[i * LANES + lane]


def define_keep() -> Function:
    """Copy the rows that the step names. Its arguments are `KeepArguments`."""

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: KeepArguments = unpack(KeepArguments, arguments)
        step, size = unpack(StepWords, args.step), args.size
        if chunk < 0:
            return 1
        places = words(step.places, step.kept)
        for row in range(len(places)):
            x, out = floats(args.x + places[row] * size * 4, size), floats(args.out + row * size * 4, size)
            for i in range(size):
                out[i] = x[i]
        return 0

    return run
