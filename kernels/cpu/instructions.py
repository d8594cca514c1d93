"""Functions that kernels need and Numba lacks: memory by address, atomic words, calls by address, bits of floats.

Kernels take addresses and not arrays, so that one list of integers describes any operation to any thread.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from kernels.cpu import vectors as v
from kernels.cpu.target import features

FLAGS = {"contract", "reassoc", "nsz"}
"""Permissions for LLVM in float arithmetic: fused multiply-add, sums in any order, no signed zeros. NaN is kept."""

Emit = Callable[[ir.IRBuilder, Sequence[v.Value]], v.Value]


def instruction(result: types.Type, arguments: Sequence[types.Type], emit: Emit) -> Any:
    """A function for kernels that compiles to the instructions of `emit`, and returns the value that `emit` returns."""

    def typed(_: Any, *__: Any) -> Any:
        def generate(_: Any, builder: ir.IRBuilder, __: Any, values: Sequence[v.Value]) -> Any:
            return emit(builder, values)

        return result(*arguments), generate

    names = ", ".join(f"a{index}" for index in range(len(arguments)))
    scope: dict[str, Any] = {"typed": typed}
    # Numba takes the number of parameters from the function's signature, so it is written out for each function.
    exec(f"def function(context, {names}): return typed(context, {names})", scope)
    return intrinsic(scope["function"])


def _pointer(kind: types.Type, element: ir.Type) -> Any:
    def emit(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
        return builder.inttoptr(values[0], element.as_pointer())

    return instruction(types.CPointer(kind), [types.int64], emit)


_float32_at = _pointer(types.float32, v.F32)
_float64_at = _pointer(types.float64, ir.DoubleType())
_int64_at = _pointer(types.int64, v.I64)
_int32_at = _pointer(types.int32, v.I32)
_uint16_at = _pointer(types.uint16, v.I16)
_uint8_at = _pointer(types.uint8, v.I8)
_int8_at = _pointer(types.int8, v.I8)


@njit(inline="always")
def floats(address: int, count: int) -> Any:
    """The `count` float32 numbers at `address`."""
    return carray(_float32_at(address), count)


@njit(inline="always")
def doubles(address: int, count: int) -> Any:
    """The `count` float64 numbers at `address`."""
    return carray(_float64_at(address), count)


@njit(inline="always")
def words(address: int, count: int) -> Any:
    """The `count` int64 numbers at `address`."""
    return carray(_int64_at(address), count)


@intrinsic
def unpack(_: Any, arguments: Any, address: Any) -> Any:
    """The words at `address` as named `arguments`, a class of `arguments.py`."""
    kind = arguments.instance_class
    words = types.NamedUniTuple(types.int64, len(kind._fields), kind)

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[v.Value]) -> v.Value:
        fields = [v.load(builder, v.I64, values[1], 8 * index) for index in range(len(kind._fields))]
        return context.make_tuple(builder, words, fields)

    return words(arguments, types.int64), generate


@njit(inline="always")
def integers(address: int, count: int) -> Any:
    """The `count` int32 numbers at `address`."""
    return carray(_int32_at(address), count)


@njit(inline="always")
def halves(address: int, count: int) -> Any:
    """The `count` uint16 numbers at `address`."""
    return carray(_uint16_at(address), count)


@njit(inline="always")
def octets(address: int, count: int) -> Any:
    """The `count` uint8 numbers at `address`."""
    return carray(_uint8_at(address), count)


@njit(inline="always")
def signed_octets(address: int, count: int) -> Any:
    """The `count` int8 numbers at `address`."""
    return carray(_int8_at(address), count)


bits_of = instruction(types.int32, [types.float32], lambda builder, values: builder.bitcast(values[0], v.I32))
"""The bits of a float32, as an int32."""
from_bits = instruction(types.float32, [types.int32], lambda builder, values: builder.bitcast(values[0], v.F32))
"""The float32 with the bits of an int32."""
SIGNLESS = np.int32(0x7FFFFFFF)
"""Mask of a float32's bits without the sign."""
INFINITY = np.int32(0x7F800000)
"""The bits of float32's infinity; the bits of a NaN, without the sign, are larger."""


@njit(inline="always")
def next_above(x: Any) -> Any:
    """The least float32 above another that is neither a NaN nor infinity; the lowest finite one above -inf.

    NumPy's function of this kind would be a call of Numba's runtime, for which Numba would have to be imported.
    """
    bits = bits_of(x)
    if x == np.float32(0):
        return from_bits(np.int32(1))
    return from_bits(np.int32(bits + 1 if bits >= 0 else bits - 1))


def _half_to_float(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    one = builder.bitcast(values[0], v.vector(v.I16, 1))
    return builder.extract_element(v.halves_to_floats(builder, one), ir.Constant(v.I32, 0))


half_to_float = instruction(types.float32, [types.uint16], _half_to_float)
"""The float32 that equals a finite float16, from the float16's bits as a uint16."""


def _word(builder: ir.IRBuilder, address: v.Value) -> v.Value:
    return builder.inttoptr(address, v.I64.as_pointer())


def _exchange(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    address, expected, wanted = values
    pair = builder.cmpxchg(_word(builder, address), expected, wanted, "acq_rel", "acquire")
    return builder.zext(builder.extract_value(pair, 1), v.I64)


def _call(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    function, *arguments = values
    kind = ir.FunctionType(v.I64, [v.I64] * len(arguments))
    return builder.call(builder.inttoptr(function, kind.as_pointer()), arguments)


def _pause(builder: ir.IRBuilder, _: Sequence[v.Value]) -> v.Value:
    if "sse2" in features():
        _external(builder, "llvm.x86.sse2.pause", ir.VoidType())
    return ir.Constant(v.I64, 0)


def _give_way(builder: ir.IRBuilder, _: Sequence[v.Value]) -> v.Value:
    return builder.zext(_external(builder, "sched_yield", v.I32), v.I64)


def _await_byte(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    descriptor, address = values
    arguments = [builder.trunc(descriptor, v.I32), address, ir.Constant(v.I64, 1)]
    return _external(builder, "read", v.I64, arguments)


def _external(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[v.Value] = ()) -> v.Value:
    """A call of a function of LLVM's or of the C library."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    known = builder.module.globals.get(name)
    return builder.call(known or ir.Function(builder.module, kind, name), arguments)


def _prefetch(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    v.prefetch(builder, values[0])
    return values[0]


_W = types.int64
read_word = instruction(_W, [_W], lambda builder, values: builder.load_atomic(_word(builder, values[0]), "seq_cst", 8))
"""(address): read the word there, written by any thread, in sequentially consistent order."""
add_to_word = instruction(
    _W, [_W, _W], lambda builder, values: builder.atomic_rmw("add", _word(builder, values[0]), values[1], "acq_rel")
)
"""(address, number): add to the word there; returns the word before the addition."""
exchange_word = instruction(_W, [_W, _W, _W], _exchange)
"""(address, expected, wanted): replace the word there by `wanted` if it is `expected`; returns 1 if it was, else 0."""
call_operation = instruction(_W, [_W, _W, _W, _W], _call)
"""(function, arguments, chunk, scratch): call the `Operation` whose address is `function`; returns its result."""
pause = instruction(_W, [_W], _pause)
"""(0): rest the core for a moment, in a loop that waits for another thread."""
give_way = instruction(_W, [_W], _give_way)
"""(0): give the core to another thread that is ready to run, if there is one."""
await_byte = instruction(_W, [_W, _W], _await_byte)
"""(descriptor, address): wait for a byte of a file, which is written there. Returns 1, 0 at the end of the file, or -1
if a signal came first.
"""

prefetch = instruction(_W, [_W], _prefetch)
"""(address): begin to bring the cache line there into the second-level cache; returns the address."""


def _write(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    builder.store_atomic(values[1], _word(builder, values[0]), "seq_cst", 8)
    return values[1]


write_word = instruction(_W, [_W, _W], _write)
"""(address, number): write the word there, in sequentially consistent order; returns it."""

exp = instruction(types.float32, [types.float32], lambda builder, values: v.exp(builder, values[0]))
"""(x): e^x in float32, to 2 units in the last place. LLVM vectorises it in loops, but not libm's."""
