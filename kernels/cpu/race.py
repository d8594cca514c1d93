"""The exponential race over a row of logits in LLVM instructions; `kernels/reference_sampling.py` says what it is."""

from collections.abc import Sequence

from llvmlite import ir
from numba import types

from kernels.cpu import vectors as v
from kernels.cpu.instructions import instruction
from kernels.cpu.rows import LANES, load, over_row, place, spread


def _emit_weigh(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    row, count, peak, temperature, cut, out = values

    def write(first: v.Value, lanes: int, carried: list[v.Value]) -> list[v.Value]:
        logits = load(builder, place(builder, row, first), lanes)
        v.store(builder, _weights(builder, logits, peak, temperature, cut), place(builder, out, first))
        return carried

    over_row(builder, count, [], write)
    return count


weigh = instruction(
    types.int64, [types.int64, types.int64, types.float32, types.float32, types.float32, types.int64], _emit_weigh
)
"""(logits, count, peak, temperature, cut, out): write e^((logit - peak) / temperature), or 0 below the cut."""


def _emit_race(builder: ir.IRBuilder, values: Sequence[v.Value]) -> v.Value:
    row, begin, end, peak, temperature, cut, least, key = values
    low, high = builder.trunc(key, v.I32), builder.trunc(builder.lshr(key, ir.Constant(v.I64, 32)), v.I32)

    def compete(first: v.Value, lanes: int, carried: list[v.Value]) -> list[v.Value]:
        first = builder.add(begin, first)
        logits = load(builder, place(builder, row, first), lanes)
        weights = _weights(builder, logits, peak, temperature, cut)
        kept = builder.fcmp_ordered(">=", weights, spread(builder, least, lanes))
        weights = builder.select(kept, weights, v.like(weights, 0))
        tokens = spread(builder, builder.trunc(first, v.I32), lanes)
        if lanes > 1:
            tokens = builder.add(tokens, ir.Constant(tokens.type, list(range(lanes))))
        keys = [spread(builder, half, lanes) for half in (low, high)]
        times = _exponential(builder, _uniform(builder, tokens, *keys))
        speeds = builder.fdiv(weights, times)
        best, winners = carried
        faster = builder.fcmp_ordered(">", speeds, best)
        return [builder.select(faster, speeds, best), builder.select(faster, tokens, winners)]

    def merge(carried: list[v.Value]) -> list[v.Value]:
        """The best of all lanes, as scalars; the lowest token where several are as fast."""
        best, winners = carried
        fastest = v.across(builder, lambda a, b: v.larger(builder, a, b), best)
        among = builder.fcmp_ordered("==", best, spread(builder, fastest, LANES))
        places = builder.select(among, winners, v.like(winners, 2**31 - 1))
        return [fastest, v.across(builder, lambda a, b: builder.select(builder.icmp_signed("<", a, b), a, b), places)]

    none = [v.filled(v.F32, LANES, 0), v.filled(v.I32, LANES, -1)]
    speed, winner = over_row(builder, builder.sub(end, begin), none, compete, merge)
    # The bits of numbers that are not negative are in the order of the numbers.
    above = builder.shl(builder.zext(builder.bitcast(speed, v.I32), v.I64), ir.Constant(v.I64, 32))
    return builder.or_(above, builder.zext(builder.not_(winner), v.I64))


run_race = instruction(
    types.int64,
    [types.int64, types.int64, types.int64, types.float32, types.float32, types.float32, types.float32, types.int64],
    _emit_race,
)
"""(logits, begin, end, peak, temperature, cut, least weight, key): the result of the race among tokens from `begin` on.

The largest of several parts' results is that of all of them: the speed stands above the token, of which low ones are
larger.
"""
winner_of = instruction(
    types.int64,
    [types.int64],
    lambda builder, values: builder.sext(builder.not_(builder.trunc(values[0], v.I32)), v.I64),
)
"""The token that has won a race with this result; -1 if none has a weight."""


def _weights(builder: ir.IRBuilder, logits: v.Value, peak: v.Value, temperature: v.Value, cut: v.Value) -> v.Value:
    lanes = logits.type.count if isinstance(logits.type, ir.VectorType) else 1
    distance = builder.fsub(logits, spread(builder, peak, lanes))
    weights = v.exp(builder, builder.fdiv(distance, spread(builder, temperature, lanes)))
    kept = builder.fcmp_ordered(">=", logits, spread(builder, cut, lanes))
    return builder.select(kept, weights, v.like(weights, 0))


def _uniform(builder: ir.IRBuilder, tokens: v.Value, low: v.Value, high: v.Value) -> v.Value:
    """The uniform random number of each token, from the halves of the row's key; see `uniforms` of the reference."""
    x = _hash(builder, builder.xor(tokens, low))
    x = _hash(builder, builder.xor(x, high))
    kind = ir.VectorType(v.F32, x.type.count) if isinstance(x.type, ir.VectorType) else v.F32
    number = builder.uitofp(x, kind)
    u = builder.fmul(builder.fadd(number, v.like(number, 0.5)), v.like(number, 2.0**-32))
    return v.smaller(builder, u, v.like(u, 1 - 2.0**-24))


def _hash(builder: ir.IRBuilder, x: v.Value) -> v.Value:
    """See `hash_32` of the reference."""
    for shift, multiplier in ((16, 0x21F0AAAD), (15, 0xD35A2D97 - 2**32)):
        x = builder.xor(x, builder.lshr(x, v.like(x, shift)))
        x = builder.mul(x, v.like(x, multiplier))
    return builder.xor(x, builder.lshr(x, v.like(x, 15)))


def _exponential(builder: ir.IRBuilder, u: v.Value) -> v.Value:
    """-ln(1 - u) for u in (0, 1).

    1 - u is rounded; the quotient of u and what is really left out makes up for it (Higham, "Accuracy and stability of
    numerical algorithms", 2002, section 1.14.1).
    """
    one = v.like(u, 1)
    rest = v.rounded(builder, builder.fsub(one, u))
    taken = builder.fsub(one, rest)
    time = builder.fmul(builder.fneg(v.log(builder, rest)), builder.fdiv(u, taken))
    return builder.select(builder.fcmp_ordered("==", taken, v.like(u, 0)), u, time)
