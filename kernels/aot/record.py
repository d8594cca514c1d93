"""What would be compiled: launches are recorded, as Triton itself would specialise them, and nothing runs.

It knows how Triton tells one compiled variant of a kernel from another, and nothing of what the kernels compute.
"""

import hashlib
import importlib
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from kernels.gpu.launch import Target

FP_FUSION = True
"""Named because Triton's default is about to change; a launch's is still to fuse."""

Path = tuple[int, ...]
"""Where an argument stands: its index, as Triton's compiler names it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel with everything that its machine code depends on. Plain data, so that it goes to other processes."""

    kernel: str
    """module:function"""
    label: str
    """The first case that launches it."""
    target: Target
    signature: dict[str, str]
    """Parameter -> Triton's type, or "constexpr"."""
    constants: dict[Path, Any]
    """Constexpr parameters, and those that Triton makes constant by their value: 1 and None."""
    attributes: dict[Path, list[list[Any]]]
    """What Triton takes as known of an argument, such as [["tt.divisibility", 16]]."""
    num_warps: int
    num_stages: int

    def resolve(self) -> Any:
        """The kernel itself."""
        module, name = self.kernel.split(":")
        return getattr(importlib.import_module(module), name)

    def key(self) -> str:
        """Equal for variants with equal machine code, also in a later run; another source or Triton, another key."""
        parts = (
            triton.__version__,
            self.kernel,
            self.resolve().cache_key,
            self.target,
            sorted(self.signature.items()),
            sorted((path, repr(value)) for path, value in self.constants.items()),
            sorted(self.attributes.items()),
            self.num_warps,
            self.num_stages,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def constexprs(self) -> str:
        """The constexpr parameters, for people: NAME=value, ..."""
        names = list(self.signature)
        return ", ".join(f"{names[path[0]]}={value}" for path, value in sorted(self.constants.items()))


def gpu_target(target: Target) -> Any:
    """`target` as Triton's compiler names it."""
    return GPUTarget(target.backend, target.arch, target.warp_size)


class RecordingLauncher:
    """A `kernels.gpu.launch.Launcher` that notes each distinct variant in `variants` and launches nothing.

    Tensors may be on the `meta` device. Raises TypeError for what is not a plain @triton.jit function, whose variants
    would not be known from its arguments alone.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.label = ""
        """What the variants to come are for."""
        self.variants: dict[str, Variant] = {}
        """By key."""
        self._compiler = make_backend(gpu_target(target))

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: object, num_warps: int, num_stages: int, **constants: Any
    ) -> None:
        if not isinstance(kernel, JITFunction):
            raise TypeError(f"{kernel!r} is not a @triton.jit function")
        bind = create_function_from_signature(kernel.signature, kernel.params, self._compiler)
        asked = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": FP_FUSION}
        bound, specialization, options = bind(*arguments, **asked, **constants)
        # Triton's own packing, so that what is compiled ahead of time is what a launch would compile.
        _, signature, values, attributes = kernel._pack_args(self._compiler, options, bound, specialization, options)
        variant = Variant(
            f"{kernel.fn.__module__}:{kernel.fn.__name__}",
            self.label,
            self.target,
            signature,
            values,
            attributes,
            num_warps,
            num_stages,
        )
        self.variants.setdefault(variant.key(), variant)
