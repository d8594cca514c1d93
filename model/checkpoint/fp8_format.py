"""Hugging Face's formats of FP8 weights: a tensor of e4m3 numbers, and beside it one of scales.

A layer is quantised if the file has its scales; a layer that was left unquantised has a plain weight. Files and
configurations are not known here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.fp8_quantized import Fp8Quantized
from model.checkpoint.packed_formats import PackedTensor, Shape

SCALES = ("weight_scale_inv", "weight_scale")
"""The names of the tensor of scales. Under either name it is multiplied with the weight's numbers."""
INPUT_SCALES = ("input_scale", "activation_scale")
"""The names of the scale of a layer's activations, where it was chosen when the model was quantised."""


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """The format with its parameters from config.json."""

    block: tuple[int | None, int | None]
    """(outputs, inputs) that share a scale; None: all."""
    static_inputs: bool = False
    """Whether layers have a scale of their activations. It is not read: activations are scaled by token here."""

    def block_of(self, shape: Shape) -> tuple[int, int]:
        """(outputs, inputs) that share a scale in a weight of the shape (out, in)."""
        height, width = self.block
        return min(height or shape[0], shape[0]), min(width or shape[1], shape[1])

    def scales_shape(self, shape: Shape) -> tuple[int, int]:
        """Shape of the scales of a weight of the shape (out, in)."""
        height, width = self.block_of(shape)
        return -(-shape[0] // height), -(-shape[1] // width)

    def find(self, shapes: Mapping[str, Shape], source: str) -> dict[str, PackedTensor]:
        """Every FP8 weight among the tensors of `shapes`, by its name; its parts are "weight", "scales" and "inputs".

        Raises CheckpointError, with a message that begins with `source`, if the tensors of a layer do not fit together.
        """
        found: dict[str, PackedTensor] = {}
        for name in shapes:
            layer, _, last = name.rpartition(".")
            if last in SCALES:
                weight = f"{layer}.weight"
                if weight in found:
                    raise CheckpointError(f"{source}: the tensor {label(weight)} has two tensors of scales")
                found[weight] = self._tensor(layer, name, shapes, source)
        return found

    def _tensor(self, layer: str, scales: str, shapes: Mapping[str, Shape], source: str) -> PackedTensor:
        weight = f"{layer}.weight"
        shape = shapes.get(weight, ())
        if len(shape) != 2:
            raise CheckpointError(f"{source}: the tensor {label(scales)} stands beside no matrix {label(weight)}")
        expected = self.scales_shape(shape)
        # Dimensions of 1 at the end may be left out.
        if (*shapes[scales], 1, 1)[:2] != expected or len(shapes[scales]) > 2:
            raise CheckpointError(
                f"{source}: the tensor {label(scales)} has the shape {shapes[scales]}, and {label(weight)} asks for "
                f"{expected} in blocks of {self.block_of(shape)}"
            )
        parts = {"weight": weight, "scales": scales}
        for name in INPUT_SCALES:
            if self.static_inputs and shapes.get(f"{layer}.{name}") in ((), (1,)):
                parts["inputs"] = f"{layer}.{name}"
        return PackedTensor(shape, parts)

    def unpack(self, codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32]) -> Fp8Quantized:
        """The weight, from tensors whose shapes have been checked; `codes` are [out, in]."""
        return Fp8Quantized(codes, scales.reshape(self.scales_shape(codes.shape)), self.block_of(codes.shape))
