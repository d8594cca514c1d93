"""Every operation, and the place of its definition, whose docstring names the arguments that it takes."""

from collections.abc import Callable

from kernels.backend import ActivationKind
from kernels.cpu.activations import Rounding
from kernels.cpu.operation import Operation, operation
from kernels.cpu.panels import Format

embed_operation: Callable[[Format], Operation] = operation("elementwise:define_embed")
norm_operation: Callable[[bool, Rounding | None], Operation] = operation("elementwise:define_norm")
round_operation: Callable[[Rounding], Operation] = operation("rounding:define_round")
multiply_operation: Callable[[Rounding], Operation] = operation("matmul:define_multiply")
angles_operation: Callable[[], Operation] = operation("elementwise:define_angles")
rotate_operation: Callable[[int, bool], Operation] = operation("rotation:define_rotate")
attend_operation: Callable[[int, int, int, bool], Operation] = operation("attention:define_attend")
weights_operation: Callable[[int, int, int, bool], Operation] = operation("attention_weights:define_weights")
activation_operation: Callable[[ActivationKind], Operation] = operation("elementwise:define_activation")
gated_operation: Callable[[ActivationKind, int, Rounding | None], Operation] = operation("elementwise:define_gated")
gated_multiply_operation: Callable[[Rounding, ActivationKind, Rounding], Operation] = operation(
    "gated_matmul:define_gated_multiply"
)
keep_operation: Callable[[], Operation] = operation("elementwise:define_keep")
pick_operation: Callable[[], Operation] = operation("ranks:define_pick")
count_operation: Callable[[], Operation] = operation("edits:define_count")
penalise_operation: Callable[[], Operation] = operation("edits:define_penalise")
restrict_operation: Callable[[], Operation] = operation("edits:define_restrict")
sample_operation: Callable[[], Operation] = operation("sampling:define_sample")
logprobs_operation: Callable[[], Operation] = operation("logprobs:define_logprobs")
weigh_operation: Callable[[], Operation] = operation("stages:define_weigh")
WEIGHED_FIGURES = 4
"""Number of the figures that `weigh_operation` writes for a row."""
