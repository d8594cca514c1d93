"""Kernels that the gate must refuse, and what it makes of them. For processes where Triton does not interpret."""

# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from kernels.aot.build import build
from kernels.aot.cases import EARLY, HOPPERS, TIGHTEST, record
from kernels.aot.record import RecordingLauncher, gpu_target
from kernels.aot.report import report
from kernels.aot.resources import compiled
from kernels.gpu.launch import TARGETS


@triton.jit
def centre(x, out, SIZE: tl.constexpr):
    """All of a row is held by one program: with few threads, in more registers than they have."""
    at = tl.arange(0, SIZE)
    row = tl.load(x + at)
    tl.store(out + at, row - tl.sum(row) / SIZE + tl.max(row))


@triton.jit
def multiply(a, b, out, width, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, width, K):
        left = tl.load(a + rows[:, None] * width + start + inner)
        right = tl.load(b + columns[None, :] * width + start + inner[:, None])
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=tl.float32)
    tl.store(out + rows[:, None] * N + columns, total.to(out.dtype.element_ty))


@triton.jit
def takes_anything(pointer, other, count, size, scale, flag, NAME: tl.constexpr, TYPE: tl.constexpr = tl.float16):
    tl.store(pointer, 0)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def gate(store: str, rows: str, what: Sequence[str], chips: Sequence[str]) -> int:
    """The gate over toys."""
    launchers = [RecordingLauncher(TARGETS[chip]) for chip in chips]
    for launch, label in product(launchers, what):
        launch.label = label
        _launch(launch, label)
    variants = [variant for launch in launchers for variant in launch.variants.values()]
    return report(build(variants, Path(store), jobs=2), Path(rows))


def _launch(launch: RecordingLauncher, what: str) -> None:
    wide = meta(1 << 20, dtype=torch.float32)
    match what:
        case "fits":
            launch(centre, (1,), wide, wide, num_warps=4, num_stages=1, SIZE=1024)
        case "dot":
            launch(multiply, (1,), *[meta(4096, 64)] * 3, 64, num_warps=4, num_stages=2, M=64, N=64, K=32)
        case "float32 dot":
            floats = [meta(4096, 64, dtype=torch.float32)] * 3
            launch(multiply, (1,), *floats, 64, num_warps=4, num_stages=2, M=32, N=32, K=16)
        case "spills":
            # 512 elements a thread on AMD, where a thread has 512 registers; 256 elsewhere.
            size = 32768 if launch.target.backend == "hip" else 8192
            launch(centre, (1,), wide, wide, num_warps=1, num_stages=1, SIZE=size)
        case "shared memory":
            launch(multiply, (1,), *[meta(4096, 4096)] * 3, 4096, num_warps=8, num_stages=5, M=128, N=256, K=128)
        case "broken":
            launch(multiply, (1,), *[meta(4096, 64)] * 3, 64, num_warps=4, num_stages=2, M=48, N=64, K=32)


CALLS: list[tuple[tuple[object, ...], dict[str, object]]] = [
    ((meta(64, 64), meta(64), 16, 3, 0.5, True), {"NAME": 4}),
    ((meta(64, 64)[:, 1:], meta(64)[8:], 1, 1 << 40, 2.0, False), {"NAME": "name"}),
    ((meta(4, dtype=torch.int64), None, 0, -32, 1.0, True), {"NAME": None, "TYPE": tl.bfloat16}),
    ((meta(4, dtype=torch.float8_e4m3fn), None, (1 << 31) - 1, 1, 0.0, 1), {"NAME": True}),
    ((meta(4, dtype=torch.uint8), meta(4, dtype=torch.bool), 17, 1 << 31, 0.0, 48), {"NAME": (1, 2)}),
]


class NoDevice:
    """As much of a driver as Triton asks for before it compiles."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> Any:
        return self.target.arch

    def get_current_stream(self, device: Any) -> int:
        return 0


def print_findings() -> None:
    """Print as one line of JSON which chips wait within kernels, what is recorded otherwise than launched, how many
    variants differ, and what is left out of the tightest cases.
    """
    findings = {
        "waits": waits(),
        "recorded otherwise than launched": recorded_otherwise(),
        "variants": distinct_variants(),
        "left out": left_out(),
    }
    print(json.dumps(findings))


def waits() -> dict[str, list[int]]:
    """How often a norm that is launched early, where a chip can do so, waits and launches the next kernel."""
    counts = {}
    for chip, target in TARGETS.items():
        (norm,) = (variant for variant in record(target, EARLY, "all") if variant.kernel.endswith(":add_norm_rows"))
        assembly = compiled(norm).asm
        code = assembly.get("ptx") or assembly["amdgcn"]
        counts[chip] = [code.count(f"griddepcontrol.{what}") for what in ("wait", "launch_dependents")]
    return counts


def recorded_otherwise() -> list[str]:
    """The calls whose record is not what Triton would compile for them, on any chip."""
    wrong = []
    for target in TARGETS.values():
        driver.set_active(NoDevice(gpu_target(target)))
        for arguments, constants in CALLS:
            launched: dict[str, Any] = {}

            def keep(compile: dict[str, Any], launched: dict[str, Any] = launched, **rest: object) -> bool:
                launched.update(compile)
                return True  # As if it were compiled already.

            knobs.runtime.jit_cache_hook = keep
            takes_anything[(1,)](*arguments, num_warps=2, num_stages=5, **constants)
            launch = RecordingLauncher(target)
            launch(takes_anything, (1,), *arguments, num_warps=2, num_stages=5, **constants)
            (variant,) = launch.variants.values()
            ours = (variant.signature, variant.constants, [variant.attributes], variant.num_warps, variant.num_stages)
            theirs = tuple(launched[key] for key in ("signature", "constants", "configs", "num_warps", "num_stages"))
            if ours != theirs or not launched["enable_fp_fusion"]:
                wrong.append(f"{target.arch}: {arguments} {constants} {ours} {theirs}")
    return wrong


def distinct_variants() -> int:
    """How many variants a kernel has for aligned and unaligned, one and other, launched twice each."""
    launch = RecordingLauncher(TARGETS["sm_90"])
    for _ in range(2):
        for count in (1, 2, 3, 16, 32):
            launch(takes_anything, (1,), meta(4), None, count, 2, 0.5, True, num_warps=4, num_stages=1, NAME=0)
    return len(launch.variants)


def left_out() -> list[str]:
    """The served kernels that a chip's tightest cases do not start, and the ones of these cases that start nothing of
    their own.
    """
    missing: list[str] = []
    for target in TARGETS.values():
        tightest = record(target, extent="tightest")
        missing += {variant.kernel for variant in record(target)} - {variant.kernel for variant in tightest}
        other_chips = {HOPPERS} if target.arch != 90 else set()
        missing += TIGHTEST - other_chips - {variant.label for variant in tightest}
    return missing
