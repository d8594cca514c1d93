"""Records the kernel variants that Triton would compile for a series of calls, without running anything.

Knows how Triton tells compiled variants of a kernel apart, and nothing of what kernels compute.
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
"""Set explicitly because Triton announces a change of its default; kernels started by the JIT are still fused."""

Path = tuple[int, ...]
"""The place of an argument: its index in a tuple, as Triton's compiler has it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel with everything that its machine code depends on. It is plain data, so it can be sent to processes."""

    kernel: str
    """The kernel's name, module:function."""
    label: str
    """The name of the first case that starts it."""
    target: Target
    signature: dict[str, str]
    """Parameter -> Triton's type, or "constexpr"."""
    constants: dict[Path, Any]
    """Constexpr parameters, and those that Triton makes constants because their value is 1 or None."""
    attributes: dict[Path, list[list[Any]]]
    """Properties of an argument that Triton relies on, such as [["tt.divisibility", 16]]."""
    num_warps: int
    num_stages: int

    def resolve(self) -> Any:
        """The kernel function."""
        module, name = self.kernel.split(":")
        return getattr(importlib.import_module(module), name)

    def key(self) -> str:
        """A hash of everything that the machine code depends on, Triton's version and the kernel's source included.

        It is the same in every run.
        """
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
        """The constexpr parameters as readable text: NAME=value, ..."""
        names = list(self.signature)
        return ", ".join(f"{names[path[0]]}={value}" for path, value in sorted(self.constants.items()))


def gpu_target(target: Target) -> Any:
    """`target` as an object of Triton's compiler."""
    return GPUTarget(target.backend, target.arch, target.warp_size)


class RecordingLauncher:
    """A `kernels.gpu.launch.Launcher` that records each distinct variant in `variants` and starts nothing.

    Tensors may be on the `meta` device. Raises TypeError for a kernel that is not a plain @triton.jit function, since
    its arguments alone would not determine its variants.
    """

    compiles_gluon = True

    def __init__(self, target: Target) -> None:
        self.target = target
        self.dependent = False
        self.label = ""
        """The label of variants that are recorded from now on."""
        self.variants: dict[str, Variant] = {}
        """The variants recorded so far, by `Variant.key`."""
        self._compiler = make_backend(gpu_target(target))

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: object, num_warps: int, num_stages: int, **constants: Any
    ) -> None:
        if not isinstance(kernel, JITFunction):
            raise TypeError(f"{kernel!r} is not a @triton.jit function")
        bind = create_function_from_signature(kernel.signature, kernel.params, self._compiler)
        asked = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": FP_FUSION}
        bound, specialization, options = bind(*arguments, **asked, **constants)
        # Triton's own function, so that the variant compiled ahead of time is the one that the JIT would compile.
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
