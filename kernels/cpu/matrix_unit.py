"""Instructions of the matrix unit of Intel CPUs (AMX), whose registers ("tiles") have up to 16 rows of up to 64 bytes.

Where the CPU has no such unit they compile to nothing, since callers' branches that are never taken are compiled too.
"""

from collections.abc import Sequence

from llvmlite import ir
from numba import types

from kernels.cpu import vectors as v
from kernels.cpu.instructions import instruction
from kernels.cpu.target import CONFIGURATION_BYTES, matrix_unit


def configure(builder: ir.IRBuilder, place: v.Value, shapes: Sequence[tuple[v.Value, v.Value]]) -> None:
    """Give the calling thread's registers their shapes, pairs of the bytes in a row and the number of rows (i64).

    The configuration is written to `place`, and all registers become 0.
    """
    v.store(builder, v.filled(v.I8, CONFIGURATION_BYTES, 0), place)
    v.store(builder, ir.Constant(v.I8, 1), place)
    for register, (width, rows) in enumerate(shapes):
        v.store(builder, builder.trunc(width, v.I16), place, 16 + 2 * register)
        v.store(builder, builder.trunc(rows, v.I8), place, 48 + register)
    _call(builder, "ldtilecfg", _pointer(builder, place))


def _emit_release(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    _call(builder, "tilerelease")
    return values[0]


release = instruction(types.int64, [types.int64], _emit_release)
"""Free the calling thread's registers, which the system would save at every switch: (anything) -> the same."""


def clear(builder: ir.IRBuilder, register: int) -> None:
    """Set a register to 0."""
    _call(builder, "tilezero", _index(register))


def load(builder: ir.IRBuilder, register: int, address: v.Value, stride: v.Value) -> None:
    """Load a register whose rows lie `stride` bytes apart."""
    _call(builder, "tileloadd64", _index(register), _pointer(builder, address), stride)


def load_passing(builder: ir.IRBuilder, register: int, address: v.Value, stride: v.Value) -> None:
    """`load` of what need not be kept in the first-level cache."""
    _call(builder, "tileloaddt164", _index(register), _pointer(builder, address), stride)


def store(builder: ir.IRBuilder, register: int, address: v.Value, stride: v.Value) -> None:
    """Store a register in rows `stride` bytes apart."""
    _call(builder, "tilestored64", _index(register), _pointer(builder, address), stride)


def multiply(builder: ir.IRBuilder, name: str, sums: int, a: int, b: int) -> None:
    """Add the product of registers a and b to the register `sums`; `name` is the instruction's, and says the types."""
    _call(builder, name, *map(_index, (sums, a, b)))


def _call(builder: ir.IRBuilder, name: str, *arguments: v.Value) -> None:
    if matrix_unit():
        v.call(builder, f"llvm.x86.{name}", ir.VoidType(), arguments)


def _index(register: int) -> v.Value:
    return ir.Constant(v.I8, register)


def _pointer(builder: ir.IRBuilder, address: v.Value) -> v.Value:
    return builder.inttoptr(address, v.I8.as_pointer())
