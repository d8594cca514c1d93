"""Which backend computes: by name, or the best for a device. Imports none before it is asked for."""

import logging

import torch

from kernels.backend import Backend

logger = logging.getLogger(__name__)


def load_backend(
    device: torch.device,
    name: str = "auto",
    *,
    batch_invariant: bool = False,
    dtype: torch.dtype = torch.float32,
    threads: int = 1,
) -> Backend:
    """The backend called `name`, or the best one for activations of `dtype` on `device` if it is "auto".

    `batch_invariant` asks that no row's result depend, in any bit, on the rows beside it; `threads` are those of a CPU.
    Raises ValueError for a name this build does not have, or that cannot do what is asked of it on `device`.
    """
    if name == "auto":
        name = "triton" if device.type == "cuda" else _best_on_cpu(dtype)
    match name:
        case "cpu":
            if device.type != "cpu":
                raise ValueError(f"the cpu backend does not run on {device.type}")
            if dtype != torch.float32:
                raise ValueError("the cpu backend computes in float32: use dtype=float32, or the reference backend")
            try:
                from kernels.cpu.backend import CpuBackend
                from kernels.cpu.build import check_compiler

                check_compiler()
            except ImportError as error:
                raise ValueError(f"the cpu backend needs Numba, which cannot be used here: {error}") from None
            return CpuBackend(threads, batch_invariant=batch_invariant)
        case "reference":
            from kernels.reference import ReferenceBackend

            if batch_invariant:
                raise ValueError(
                    "the reference backend cannot promise batch invariance: use the cpu or the triton backend"
                )
            return ReferenceBackend()
        case "triton":
            from kernels.gpu.backend import load_triton

            return load_triton(device, batch_invariant=batch_invariant)
    raise ValueError(f"unknown backend {name!r}: this build has auto, cpu, reference, triton")


def _best_on_cpu(dtype: torch.dtype) -> str:
    if dtype != torch.float32:
        return "reference"
    try:
        from kernels.cpu.build import check_compiler
        from kernels.cpu.target import dot_path

        check_compiler()
    except ImportError as error:
        logger.warning("computing by the slow reference backend, since Numba cannot be used here: %s", error)
        return "reference"
    # Portable arithmetic may be slower than torch's own.
    return "reference" if dot_path() == "portable" else "cpu"
