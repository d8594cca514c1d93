"""What a kernel is compiled for and how it is started. It knows nothing of what the kernels compute."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch


@dataclass(frozen=True, slots=True)
class Target:
    """The chip that tile sizes are chosen for."""

    backend: Literal["cuda", "hip"]
    arch: int | str
    """A compute capability (90), or a gfx name."""
    warp_size: int
    shared_memory: int
    """Bytes that one program may use."""
    multiprocessors: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 166_912, 108),
    "sm_90": Target("cuda", 90, 32, 232_448, 132),
    "sm_100": Target("cuda", 100, 32, 232_448, 148),
    "gfx942": Target("hip", "gfx942", 64, 65_536, 304),
}
"""The chips every kernel is compiled for ahead of time: A100, H100 and H200, B200, MI300X."""


class Launcher(Protocol):
    """Starts a kernel, or only notes what would be started."""

    @property
    def target(self) -> Target: ...

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: object, num_warps: int, num_stages: int, **constants: Any
    ) -> None:
        """`arguments` are the kernel's run-time arguments in order, `constants` its constexpr ones by name."""


@dataclass(frozen=True, slots=True)
class JitLauncher:
    """Compiles a kernel when it is first needed and runs it; under TRITON_INTERPRET=1, interprets it."""

    target: Target

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: object, num_warps: int, num_stages: int, **constants: Any
    ) -> None:
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)


def device_target(device: torch.device) -> Target:
    """The chip behind `device`, by what torch says of it; on a CPU, what the interpreter plays: an H100."""
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
        chip.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # It has it; its stub does not.
        chip.multi_processor_count,
    )
