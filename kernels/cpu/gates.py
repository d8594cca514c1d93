"""Activation functions, and gates of them, over a row of numbers in LLVM instructions."""

from collections.abc import Callable

from llvmlite import ir

from kernels.backend import ActivationKind
from kernels.cpu import vectors as v
from kernels.cpu.rows import mapped

Activation = Callable[[ir.IRBuilder, v.Value], v.Value]


def _share(builder: ir.IRBuilder, x: v.Value, y: v.Value) -> v.Value:
    """The number x / (1 + e^-y)."""
    return builder.fdiv(x, builder.fadd(v.exp(builder, builder.fneg(y)), v.like(x, 1)))


def _silu(builder: ir.IRBuilder, x: v.Value) -> v.Value:
    return _share(builder, x, x)


def _gelu(builder: ir.IRBuilder, x: v.Value) -> v.Value:
    """The number x times the normal distribution's share below it; this share errs by up to 1e-7.

    Source: Abramowitz and Stegun, "Handbook of mathematical functions", 1964, formula 7.1.26.
    """
    z = builder.fmul(v.larger(builder, x, builder.fneg(x)), v.like(x, 0.7071067811865476))
    t = builder.fdiv(v.like(x, 1), v.fma(builder, z, v.like(x, 0.3275911), v.like(x, 1)))
    p = v.like(x, 0.5 * 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = v.fma(builder, p, t, v.like(x, 0.5 * coefficient))
    tail = builder.fmul(builder.fmul(p, t), v.exp(builder, builder.fmul(builder.fmul(x, x), v.like(x, -0.5))))
    below = builder.fcmp_ordered("<", x, v.like(x, 0))
    return builder.fmul(x, builder.select(below, tail, builder.fsub(v.like(x, 1), tail)))


def _gelu_tanh(builder: ir.IRBuilder, x: v.Value) -> v.Value:
    cube = builder.fmul(builder.fmul(x, x), x)
    # (1 + tanh(y)) / 2 is computed as 1 / (1 + e^-2y), which loses no precision where tanh is near -1.
    inner = v.fma(builder, cube, v.like(x, 0.044715), x)
    return _share(builder, x, builder.fmul(inner, v.like(x, 2 * 0.7978845608028654)))


_KINDS: dict[ActivationKind, Activation] = {"silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh}


def _gate(activation: Activation) -> Callable[..., v.Value]:
    return lambda builder, gate, up: builder.fmul(activation(builder, gate), up)


GATES = {kind: _gate(activation) for kind, activation in _KINDS.items()}
"""(builder, gate, up): the activation function of the gate, times up."""
ACTIVATE = {kind: mapped(1, 0, activation) for kind, activation in _KINDS.items()}
"""(x, size, out): write the activation function of every number of a row; returns the size."""
GATE = {kind: mapped(2, 0, gate) for kind, gate in GATES.items()}
"""(gate, up, size, out): write the activation function of the gate, times up; returns the size."""
