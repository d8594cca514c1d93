"""Edits of logits before the draw, by the definitions of `kernels/reference_edits.py`."""

from typing import Any

import numpy as np

from kernels.cpu.arguments import CountArguments, PenaliseArguments, RestrictArguments, StepWords
from kernels.cpu.instructions import floats, integers, octets, unpack, words
from kernels.cpu.operation import Function

FORBIDDEN = np.float32(-np.inf)


def define_count() -> Function:
    """`Backend.count_tokens`. Each chunk of work is a drawn token; the arguments are `CountArguments`."""

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: CountArguments = unpack(CountArguments, arguments)
        rows = unpack(StepWords, args.step).rows
        if chunk < 0:
            return rows
        request, token = words(args.requests, rows)[chunk], words(args.drawn, rows)[chunk]
        if token < 0:
            return 0
        length = integers(args.lengths + 4 * request, 1)
        tokens = integers(args.tokens + 4 * args.stride * request, args.stride)
        times = integers(args.times + 4 * args.stride * request, args.stride)
        place = 0
        while place < length[0] and tokens[place] != token:
            place += 1
        if place == length[0]:
            tokens[place], times[place], length[0] = token, 0, place + 1
        times[place] += 1
        return 0

    return run


def define_penalise() -> Function:
    """`Backend.penalise`. Each chunk of work is a penalised row; the arguments are `PenaliseArguments`."""

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: PenaliseArguments = unpack(PenaliseArguments, arguments)
        rows = unpack(StepWords, args.step).rows
        if chunk < 0:
            return rows
        row, request = words(args.rows, rows)[chunk], words(args.requests, rows)[chunk]
        logits = floats(args.logits + 4 * args.vocab * row, args.vocab)
        tokens = integers(args.tokens + 4 * args.stride * request, args.stride)
        times = integers(args.times + 4 * args.stride * request, args.stride)
        repetition: Any = floats(args.repetition, rows)[chunk]
        presence: Any = floats(args.presence, rows)[chunk]
        frequency: Any = floats(args.frequency, rows)[chunk]
        for place in range(integers(args.lengths + 4 * request, 1)[0]):
            score: Any = logits[tokens[place]]
            score = score / repetition if score > 0 else score * repetition
            if times[place] > 0:
                score -= presence
                score -= frequency * np.float32(times[place])
            logits[tokens[place]] = score
        return 0

    return run


def define_restrict() -> Function:
    """`Backend.restrict`. Each chunk of work is a restricted row; the arguments are `RestrictArguments`."""

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: RestrictArguments = unpack(RestrictArguments, arguments)
        rows, vocab = unpack(StepWords, args.step).rows, args.vocab
        if chunk < 0:
            return rows
        logits = floats(args.logits + 4 * vocab * words(args.rows, rows)[chunk], vocab)
        mask = octets(args.masks + args.stride * chunk, args.stride)
        for octet in range(-(-vocab // 8)):
            allowed = mask[octet]
            # Most masks allow nearly all tokens, or nearly none.
            if allowed != 255:
                for bit in range(min(8, vocab - 8 * octet)):
                    if not allowed >> bit & 1:
                        logits[8 * octet + bit] = FORBIDDEN
        return 0

    return run
