"""The activations of an MLP, plain or gated."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backend import ActivationKind
from kernels.gpu.dependent import wait_for_kernels_before
from kernels.gpu.launch import Launcher


def activation(launch: Launcher, x: Tensor, kind: ActivationKind) -> Tensor:
    """See `Backend.activation`."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _activate(launch, x, out, kind, gated=False)
    return out


def gated_activation(launch: Launcher, gate_up: Tensor, kind: ActivationKind) -> Tensor:
    """See `Backend.gated_activation`."""
    tokens, width = gate_up.shape
    out = torch.empty(tokens, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    _activate(launch, gate_up, out, kind, gated=True)
    return out


def _activate(launch: Launcher, x: Tensor, out: Tensor, kind: ActivationKind, *, gated: bool) -> None:
    size = out.shape[-1]
    block = min(1024, triton.next_power_of_2(size))
    launch(
        activate_rows,
        (out.shape[:-1].numel(), triton.cdiv(size, block)),
        x.contiguous(),
        out,
        # Each thread handles one 16-byte vector in the 16-bit dtypes.
        num_warps=max(1, block // (8 * launch.target.warp_size)),
        num_stages=1,
        SIZE=size,
        KIND=kind,
        GATED=gated,
        BLOCK=block,
        DEPENDENT=launch.dependent,
    )


@triton.jit
def activate_rows(
    x,
    out,
    SIZE: tl.constexpr,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """`out[i] = act(x[i])` or, if GATED, `act(x[i]) * x[SIZE + i]`, for each row; rows of `out` have SIZE elements.

    The grid is (rows, blocks of BLOCK elements).
    """
    wait_for_kernels_before(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = at < SIZE  # [BLOCK]
    source = x + row * (2 * SIZE if GATED else SIZE) + at  # [BLOCK]
    gate = tl.load(source, mask=inside, other=0.0)  # [BLOCK]
    result = act(gate.to(tl.float32), KIND).to(gate.dtype)  # [BLOCK]
    if GATED:
        up = tl.load(source + SIZE, mask=inside, other=0.0)  # [BLOCK]
        result = (result.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)
    tl.store(out + row * SIZE + at, result, mask=inside)


@triton.jit
def act(x, KIND: tl.constexpr):
    """The activation KIND of float32 x, in any shape (Hendrycks and Gimpel, arXiv 1606.08415).

    silu: x s(x), where s is the logistic function; gelu: x / 2 (1 + erf(x / sqrt 2)); gelu_tanh:
    x / 2 (1 + tanh(u)) = x s(2u), where u = sqrt(2 / pi) (x + 0.044715 x^3).
    """
    if KIND == "silu":
        return x * logistic(x)
    elif KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(KIND == "gelu_tanh")
        return x * logistic(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def logistic(x):
    """1 / (1 + exp(-x)) in any shape, computed from exp(-|x|), which cannot overflow."""
    decay = tl.exp(-tl.abs(x))  # Shape of x.
    return tl.where(x < 0.0, decay, 1.0) / (1.0 + decay)
