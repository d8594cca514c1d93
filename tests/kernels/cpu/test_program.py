"""Programs run each chunk once, and a thread that is late for its run touches nothing."""

import threading
import weakref

import numpy as np

from kernels.cpu.compiler import compiled
from kernels.cpu.instructions import add_to_word, words
from kernels.cpu.machine_code import load
from kernels.cpu.operation import Operation
from kernels.cpu.program import Program, Workers


def count_chunks(record: int, chunk: int, scratch: int) -> int:
    """As many chunks as a word says, each of which counts itself."""
    r = words(record, 2)
    if chunk < 0:
        return words(r[0], 1)[0]
    add_to_word(r[1] + 8 * chunk, 1)
    return 0


def note_chunks(record: int, chunk: int, scratch: int) -> int:
    """Ten chunks, each of which writes how many came before it."""
    r = words(record, 1)
    if chunk < 0:
        return 10
    words(r[0], 11)[chunk] = add_to_word(r[0] + 80, 1)
    return 0


ADDRESSES = {function.__name__: load(compiled(function)) for function in (count_chunks, note_chunks)}


class Unkept(Operation):
    """An operation that no file keeps."""

    @property
    def address(self) -> int:
        return ADDRESSES[self.definition]


COUNT, NOTE = (Unkept(name, ()) for name in ADDRESSES)


def test_a_late_thread_does_nothing_whatever_has_become_of_the_run() -> None:
    chunks, done = np.array([5]), np.zeros(64, np.int64)
    program = Program([(COUNT, (chunks.ctypes.data, done.ctypes.data))] * 2, 1)
    workers = Workers(1)
    workers.run(program)
    assert done.tolist() == [2] * 5 + [0] * 59
    run = program.run.copy()
    late = run.ctypes.data, workers._scratch[0], 0
    # The words that the run read are those of another batch by now.
    chunks[0] = 40
    workers._work(*late)
    assert done.tolist() == [2] * 5 + [0] * 59
    # Another run of the same program is none of its business either, and loses no chunk to it.
    workers.run(program)
    workers._work(*late)
    assert done.tolist() == [4] * 5 + [2] * 35 + [0] * 24


def test_every_chunk_is_done_once_by_threads_that_come_and_go() -> None:
    before = threading.enumerate()
    workers = Workers(3)
    for count in (1, 7, 64, 3) * 50:
        chunks, done = np.array([count]), np.zeros(64, np.int64)
        # A program of its own, gone with what it reads as soon as it has run.
        workers.run(Program([(COUNT, (chunks.ctypes.data, done.ctypes.data))] * 3, 3))
        assert done.tolist() == [3] * count + [0] * (64 - count)
    workers.close()
    for thread in threading.enumerate():
        if thread.name.startswith("kernels-") and thread not in before:
            thread.join(10)
            assert not thread.is_alive()


def test_a_thread_begins_with_its_own_share_and_takes_those_of_others_then() -> None:
    noted = np.zeros(11, np.int64)
    program, workers = Program([(NOTE, (noted.ctypes.data,))], 3), Workers(1)
    workers.run(program)
    assert noted.tolist() == [*range(10), 10]
    for share, order in ((1, [7, 8, 9, 0, 1, 2, 3, 4, 5, 6]), (2, [4, 5, 6, 7, 8, 9, 0, 1, 2, 3])):
        noted[:] = 0
        program.run[3] += 1
        workers._open(program.address, workers._scratch[0])
        workers._work(program.address, workers._scratch[0], share)
        assert noted.tolist() == [*order, 10]


def test_only_the_first_operations_run_where_so_many_are_asked_for() -> None:
    chunks, done = np.array([3]), np.zeros(64, np.int64)
    program = Program([(COUNT, (chunks.ctypes.data, done.ctypes.data))] * 5, 2)
    workers = Workers(2)
    for operations in (2, 5, None, 0):
        done[:] = 0
        workers.run(program, operations=operations)
        assert done.tolist() == [5 if operations is None else operations] * 3 + [0] * 61


def test_a_program_lives_while_a_thread_may_read_it() -> None:
    def run() -> "weakref.ref[Program]":
        program = Program([(COUNT, (chunks.ctypes.data, done.ctypes.data))], 1)
        workers.run(program)
        return weakref.ref(program)

    chunks, done = np.array([1]), np.zeros(64, np.int64)
    workers = Workers(1)
    workers._awake[0, 0] = 1
    late, later = run(), run()
    assert late() is not None
    workers._awake[0, 0] = 0
    current = run()
    assert late() is None
    assert later() is not None, "a thread that woke before this run would have read it"
    assert current() is not None
    run()
    assert later() is None
