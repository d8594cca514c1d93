"""The way of a thread through a program, in functions to compile: tickets are opened, chunks are taken, runs awaited.

`program.py` says what a program is.
"""

from collections.abc import Callable
from typing import NamedTuple

from numba import njit

from kernels.cpu.instructions import (
    add_to_word,
    await_byte,
    call_operation,
    exchange_word,
    give_way,
    pause,
    read_word,
    unpack,
    words,
    write_word,
)
from kernels.cpu.operation import LINE, WORDS

Walk = Callable[[int, int], int]
"""(run, scratch) -> a number; both are addresses, the first of a `Run`."""

SHIFT = 32
"""Bits of a ticket for a chunk: a ticket is epoch << SHIFT | the next free chunk of a thread's share of an operation.

Every run has an epoch of its own. A thread that is late for its run sees another epoch in the ticket, and leaves.
"""
CHUNK = (1 << SHIFT) - 1
"""Mask of a ticket's chunk."""
SPINS = 2000
"""Number of reads of a word, about 20 ns each, before a waiting thread offers its core to others."""


class Run(NamedTuple):
    """The words that say what a thread is to run; the first two are addresses."""

    program: int
    tickets: int
    length: int
    epoch: int
    shares: int
    """Number of threads that may take part: each has a share of every operation's chunks."""


def define_open() -> Walk:
    """Count the chunks of every operation, and open its tickets so that threads can take them; returns their number."""

    def open_tickets(record: int, scratch: int) -> int:
        run: Run = unpack(Run, record)
        program, tickets, length, epoch, shares = run
        total = 0
        for index in range(length):
            arguments = program + index * (WORDS + 1) * 8
            counts = tickets + index * (1 + shares) * LINE
            chunks = call_operation(words(arguments, 1)[0], arguments + 8, -1, scratch)
            words(counts, 2)[1] = chunks
            total += chunks
            write_word(counts, epoch << SHIFT)
            for share in range(shares):
                write_word(counts + (1 + share) * LINE, epoch << SHIFT | _begin(chunks, share, shares))
        return total

    return open_tickets


def define_run() -> Callable[[int, int, int], int]:
    """Run one thread's part of a program: (run, scratch, the thread's share) -> 0.

    It is 1 if the run ended before this thread reached its end.
    """

    def run(record: int, scratch: int, share: int) -> int:
        return walk(record, scratch, share)

    return run


def define_serve() -> Callable[[int, int, int, int, int], int]:
    """Take part in one run for each byte that is read from a file, until its end; returns 0.

    The arguments are the file's descriptor, the address of a word with the address of the current `Run`, that of the
    thread's two words, that of its scratch memory, and its share. The first of the two words is 1 while the thread may
    read a run.
    """

    def serve(pipe: int, current: int, mine: int, scratch: int, share: int) -> int:
        while True:
            read = await_byte(pipe, mine + 8)
            if read == 0:
                return 0
            if read == 1:
                write_word(mine, 1)
                walk(read_word(current), scratch, share)
                write_word(mine, 0)

    return serve


@njit(inline="always")
def walk(record: int, scratch: int, own: int) -> int:
    """See `define_run`."""
    run: Run = unpack(Run, record)
    program, tickets, length, epoch, shares = run
    for index in range(length):
        arguments = program + index * (WORDS + 1) * 8
        counts = tickets + index * (1 + shares) * LINE
        # Each thread's own share comes first: it has the same tokens in every operation, often still in its cache.
        for other in range(shares):
            share = (own + other) % shares
            ticket = counts + (1 + share) * LINE
            while True:
                taken = read_word(ticket)
                if taken >> SHIFT != epoch:
                    return 1
                # If a later run has begun, this number is that run's. The ticket has changed then: no chunk is taken.
                chunk, chunks = taken & CHUNK, read_word(counts + 8)
                if chunk >= _begin(chunks, share + 1, shares):
                    break
                if exchange_word(ticket, taken, taken + 1) != 0:
                    call_operation(words(arguments, 1)[0], arguments + 8, chunk, scratch)
                    add_to_word(counts, 1)
        wanted = (epoch << SHIFT) + read_word(counts + 8)
        spins = 0
        while read_word(counts) < wanted:
            pause(0)
            spins += 1
            if spins >= SPINS:
                give_way(0)
                spins = 0
    return 0


@njit(inline="always")
def _begin(chunks: int, share: int, shares: int) -> int:
    """The first of an operation's chunks in a share."""
    return chunks * share // shares
