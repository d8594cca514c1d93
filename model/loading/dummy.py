"""Random weights in place of a checkpoint's, for tests and for measuring a model's speed and memory without a file."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.backend import Backend
from model.checkpoint.checkpoint import Quantized
from model.families.table import FAMILIES
from model.loading.weights import assemble_weights
from model.runner_config import Rounding
from model.spec import DecoderSpec
from model.weights import DecoderWeights

SPREAD = 0.02
"""Standard deviation of norms about 1 and of biases about 0."""


def dummy_weights(
    spec: DecoderSpec, backend: Backend, dtype: torch.dtype, device: torch.device, *, rounding: Rounding = "none"
) -> DecoderWeights:
    """Random weights for `spec`, made on `device` and packed by `backend`; every call on one kind of device agrees.

    Norm weights are near 1. Matrices have a standard deviation of 1 / sqrt(inputs), so that outputs are about as large
    as inputs. Tensors that the family may omit, such as some biases, are left out. Raises KeyError for an unknown
    family.
    """
    names = {family.name: family.names for family in FAMILIES}[spec.family]
    return assemble_weights(spec, names, _RandomReader(device, dtype, names.norm_offset), backend, rounding=rounding)


@dataclass(frozen=True, slots=True)
class _RandomReader:
    """`model.loading.tensor_reader.TensorReader` that has a random tensor for every name and shape."""

    device: torch.device
    dtype: torch.dtype
    norm_offset: float
    """Number that the loader adds to norm weights after reading them (`TensorNames.norm_offset`)."""

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def has(self, name: str) -> bool:
        return False

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        pass

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.load(name, shape)

    def load(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) > 1:
            return self._normal(name, shape, 0.0, shape[-1] ** -0.5)
        return self._normal(name, shape, 0.0 if name.endswith(".bias") else 1.0 - self.norm_offset, SPREAD)

    def read_quantized(self, name: str, shape: tuple[int, int]) -> Quantized | None:
        return None

    def _normal(self, name: str, shape: tuple[int, ...], mean: float, deviation: float) -> Tensor:
        # Tensors are read in any order, by several threads.
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        return self.empty(*shape).normal_(mean, deviation, generator=generator)
