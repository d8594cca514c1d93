"""A projection to a gate and what it is multiplied with, whose product is rounded for the next projection.

The matrix unit computes 32 outputs of each for all tokens, and they become inputs of the next projection at once. Their
float32 numbers, several times as many bytes, never leave the second-level cache.
"""

from kernels.backend import ActivationKind
from kernels.cpu.activations import DEPTH, MOST_ROWS, TOKENS, Rounding, parts
from kernels.cpu.arguments import MultiplyArguments, StepWords
from kernels.cpu.gates import GATE
from kernels.cpu.instructions import unpack
from kernels.cpu.matmul import multiply_block, rows_a_block
from kernels.cpu.matrix_tile import PANELS, REST, round_inputs
from kernels.cpu.matrix_unit import release
from kernels.cpu.operation import Function
from kernels.cpu.panels import LANES
from kernels.cpu.rounding import by_unit
from kernels.cpu.target import REGISTER_BYTES

PRODUCTS = REST + 4 * MOST_ROWS * 2 * PANELS * LANES
"""Place in scratch memory: behind outputs [MOST_ROWS, gate and up, PANELS * LANES] float32 lie their products."""


def define_gated_multiply(rounding: Rounding, kind: ActivationKind, made: Rounding) -> Function:
    """Multiply activations with a weight in panels: first those of the gate, then those of what it is multiplied with.

    The products are rounded as in `made`. The operation does nothing in steps in which the matrix unit does not
    multiply. Its arguments are `MultiplyArguments`.
    """
    form, unit_from = rounding.form, rounding.unit_from
    bits, group, offsets, group_bytes, count = form.bits, form.group, form.offsets, form.group_bytes, parts(form)
    _, _, made_split, made_count, _ = made.constants
    multiply_gate, half_bytes = GATE[kind], 4 * PANELS * LANES

    def run(arguments: int, chunk: int, scratch: int) -> int:
        args: MultiplyArguments = unpack(MultiplyArguments, arguments)
        rows, size = unpack(StepWords, args.step).rows, args.outputs // 2
        spans, block = size // DEPTH, rows_a_block(rows, args.threads)
        if chunk < 0:
            return spans * ((rows + block - 1) // block) if by_unit(unit_from, rows) else 0
        outputs, products = scratch + REST, scratch + PRODUCTS
        top, index = chunk // spans * block, chunk % spans
        many = min(block, rows - top)
        for half in range(2):
            first, out = index * PANELS + half * (size // LANES), outputs + half * half_bytes
            begun = args.bias + 4 * first * LANES if args.bias != 0 else 0
            # fmt: off
            multiply_block(
                bits, group, offsets, count, group_bytes, args, top, many, first, first + PANELS - 1,
                begun, out, 2 * half_bytes, scratch,
            )
            # fmt: on
        for row in range(many):
            gate, token = outputs + 2 * half_bytes * row, top + row
            multiply_gate(gate, gate + half_bytes, DEPTH, products)
            tile = (token // TOKENS * spans + index) * made_count
            place = args.out + tile * REGISTER_BYTES + token % TOKENS * 2 * DEPTH
            round_inputs(made_split, made_count, products, place)
        release(0)
        return 0

    return run
