"""The chip that kernels are compiled for, and the launcher that starts them. Knows nothing of what kernels compute.

In this package `launch` is always a `Launcher`; calling it starts a kernel.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from triton import knobs


@dataclass(frozen=True, slots=True)
class Target:
    """The properties of a chip that tile sizes depend on."""

    backend: Literal["cuda", "hip"]
    arch: int | str
    """The compute capability times 10 (90), or a gfx name ("gfx942")."""
    warp_size: int
    """Threads."""
    shared_memory: int
    """Bytes that one program may use."""
    multiprocessors: int

    @property
    def launches_early(self) -> bool:
        """Whether a kernel can be launched before the one before it has ended, as `kernels.gpu.dependent` needs."""
        return self.backend == "cuda" and int(self.arch) >= 90


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 166_912, 108),
    "sm_90": Target("cuda", 90, 32, 232_448, 132),
    "sm_100": Target("cuda", 100, 32, 232_448, 148),
    "gfx942": Target("hip", "gfx942", 64, 65_536, 304),
}
"""The chips that every kernel is compiled for ahead of time: A100, H100 and H200, B200, MI300X."""


class Launcher(Protocol):
    """Starts kernels, or only records which ones would be started."""

    @property
    def target(self) -> Target: ...

    @property
    def dependent(self) -> bool:
        """Whether kernels with a constexpr argument DEPENDENT get True for it; see `kernels.gpu.dependent`."""

    @property
    def compiles_gluon(self) -> bool:
        """Whether kernels in Gluon can be started. Triton has no interpreter for them."""

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: object, num_warps: int, num_stages: int, **constants: Any
    ) -> None:
        """Start `kernel` on `grid`, programs in each dimension.

        `arguments` are the kernel's run-time arguments in order, `constants` its constexpr arguments by name.
        """


@dataclass(frozen=True, slots=True)
class JitLauncher:
    """Starts kernels through Triton's JIT, which compiles on first use, or interprets if TRITON_INTERPRET=1 is set.

    Raises ValueError if it is to be `dependent` on a target without early launches.
    """

    target: Target
    dependent: bool = False
    """Has not run on a GPU yet, so that it is not the default; `python -m benchmarks --variants` measures it."""

    @property
    def compiles_gluon(self) -> bool:
        return not knobs.runtime.interpret

    def __post_init__(self) -> None:
        if self.dependent and not self.target.launches_early:
            raise ValueError(f"{self.target.arch} launches no kernel before the one before it has ended")

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: object, num_warps: int, num_stages: int, **constants: Any
    ) -> None:
        # Triton knows the option for NVIDIA's chips alone.
        options = {"launch_pdl": True} if constants.get("DEPENDENT") else {}
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants, **options)


def device_target(device: torch.device) -> Target:
    """The chip of `device`, as torch describes it. On a CPU, Triton's interpreter stands in for an H100."""
    if device.type == "cpu":
        return TARGETS["sm_90"]
    chip = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        arch = chip.gcnArchName.split(":")[0]
        return Target("hip", arch, 64, 65_536, chip.multi_processor_count)
    return Target(
        "cuda",
        chip.major * 10 + chip.minor,
        32,
        chip.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # Missing in the stub.
        chip.multi_processor_count,
    )
