"""The resources that a compiled kernel takes, read from its machine code.

NVIDIA's machine code is disassembled with the cuobjdump that comes with Triton, unless it can have nothing that is
counted. AMD's assembly states the figures.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import triton
from triton import knobs
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from kernels.aot.record import FP_FUSION, Variant, gpu_target
from kernels.gpu.launch import Target

TENSOR_CORE = re.compile(r"HMMA|IMMA|HGMMA|IGMMA|QGMMA|UTC[A-Z]*MMA|v_mfma\w*")
"""Matrix instructions: NVIDIA's machine names of mma.sync, wgmma and tcgen05, and AMD's names."""
ASYNC_COPY = re.compile(r"LDGSTS|UTMALDG")
"""Copies from global to shared memory that bypass registers: cp.async and the bulk tensor copy."""
PTX_ASYNC_COPY = re.compile(r"cp\.async")
"""The same copies in PTX."""
LOCAL_MEMORY = re.compile(r"STL|LDL")
"""Stores to local memory and loads from it."""

MOST_SPILLS = 48
"""Limit of spills outside of innermost loops, where each is paid a few times in the life of a program.

Versions of NVIDIA's assembler differ by such spills: the sampler has 43 on sm_100 with Triton 3.7.1, and none with 3.9.
Within an innermost loop none is allowed.
"""

SASS_OPCODE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", re.MULTILINE)
SASS_BRANCH = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?BRA\b[^;]*?\b0x([0-9a-f]+)", re.MULTILINE)
AMD_OPCODE = re.compile(r"^\s+([a-z]\w+)\s", re.MULTILINE)
DOT = re.compile(r"(?:tt\.dot(?:_scaled)?|ttng\.warp_group_dot) .*? : (?:tensor|!ttg\.memdesc)<[\dx]+x(\w+)")
"""A dot in Triton's IR; the group is the type of its left operand."""


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of one compiled variant. Instructions are counted where they stand in the code, not as executed."""

    registers: int
    """Registers of a thread; on AMD only vector registers."""
    spills: int
    """Loads and stores of local memory; on AMD the number of spilled vector registers."""
    inner_spills: int
    """Spills in loops that have no loop in them; on AMD all."""
    stack: int
    """Bytes of local memory of a thread. The gate ignores it on AMD, where scalar registers are spilled to it."""
    shared_memory: int
    """Bytes of a program."""
    tensor_core: int
    """Tensor-core instructions."""
    async_copies: int
    """Asynchronous copy instructions; 0 on AMD."""
    needs_tensor_core: bool
    """Whether there is a dot whose operands are narrower than float32."""


def faults(resources: Resources, target: Target) -> list[str]:
    """The reasons, in words, why the gate refuses a variant with these resources on `target`; empty if it passes."""
    found = []
    if resources.inner_spills or resources.spills > MOST_SPILLS:
        found.append(f"spills registers: {resources.spills} {'registers' if target.backend == 'hip' else 'STL/LDL'}")
    elif resources.stack and not resources.spills and target.backend == "cuda":
        found.append(f"uses {resources.stack} bytes of local memory")
    if resources.shared_memory > target.shared_memory:
        found.append(f"takes {resources.shared_memory} bytes of shared memory of {target.shared_memory}")
    if resources.needs_tensor_core and not resources.tensor_core:
        found.append("has a dot and no tensor-core instruction")
    return found


def compile_variant(variant: Variant) -> Resources:
    """Compile a variant for its target, without a GPU. Raises any exception of Triton's compiler."""
    kernel = compiled(variant)
    return _read_amd(kernel) if variant.target.backend == "hip" else _read_nvidia(kernel)


def compiled(variant: Variant) -> Any:
    """The variant as Triton's compiler makes it for its target. Raises any exception of the compiler."""
    kernel = variant.resolve()
    kind = GluonASTSource if kernel.is_gluon() else ASTSource
    source = kind(kernel, variant.signature, variant.constants, variant.attributes)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": FP_FUSION}
    return triton.compile(source, target=gpu_target(variant.target), options=options)


def _read_nvidia(kernel: Any) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = _cuobjdump("-res-usage", cubin.name)
        stack = _figure(r"\bSTACK:(\d+)", usage) + _figure(r"\bLOCAL:(\d+)", usage)
        # Disassembling takes as long as compiling a small kernel, and most of those have nothing that is counted.
        counts = stack or _dots(kernel) or PTX_ASYNC_COPY.search(kernel.asm["ptx"])
        code = _cuobjdump("-sass", cubin.name) if counts else ""
    opcodes = [opcode for _, opcode in SASS_OPCODE.findall(code)]
    return Resources(
        registers=_figure(r"\bREG:(\d+)", usage),
        spills=_count(LOCAL_MEMORY, opcodes),
        inner_spills=inner_spills(code),
        stack=stack,
        shared_memory=kernel.metadata.shared,
        tensor_core=_count(TENSOR_CORE, opcodes),
        async_copies=_count(ASYNC_COPY, opcodes),
        needs_tensor_core=_needs_tensor_core(kernel),
    )


def inner_spills(code: str) -> int:
    """The number of spills in loops without loops in them, in NVIDIA's disassembled code.

    A loop is what lies between a branch and an earlier place that it goes to.
    """
    branches = [(int(target, 16), int(place, 16)) for place, target in SASS_BRANCH.findall(code)]
    loops = {(first, last) for first, last in branches if first < last}
    innermost = [
        (first, last) for first, last in loops if not any(first <= a and b <= last for a, b in loops - {(first, last)})
    ]
    spills = [int(place, 16) for place, opcode in SASS_OPCODE.findall(code) if LOCAL_MEMORY.fullmatch(opcode)]
    return sum(any(first <= place <= last for first, last in innermost) for place in spills)


def _read_amd(kernel: Any) -> Resources:
    assembly = kernel.asm["amdgcn"]
    opcodes = AMD_OPCODE.findall(assembly)
    return Resources(
        registers=_figure(r"\.vgpr_count:\s+(\d+)", assembly),
        spills=_figure(r"\.vgpr_spill_count:\s+(\d+)", assembly),
        inner_spills=_figure(r"\.vgpr_spill_count:\s+(\d+)", assembly),
        stack=_figure(r"\.private_segment_fixed_size:\s+(\d+)", assembly),
        shared_memory=kernel.metadata.shared,
        tensor_core=_count(TENSOR_CORE, opcodes),
        async_copies=0,
        needs_tensor_core=_needs_tensor_core(kernel),
    )


def _needs_tensor_core(kernel: Any) -> bool:
    return any(operand != "f32" for operand in _dots(kernel))


def _dots(kernel: Any) -> list[str]:
    """The type of the left operand of each dot. Gluon has no Triton IR, but names the tensor cores' dots itself."""
    return DOT.findall(kernel.asm.get("ttir") or kernel.asm["ttgir"])


def _cuobjdump(what: str, path: str) -> str:
    command = [knobs.nvidia.cuobjdump.path, what, path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _figure(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        # A figure that cannot be read must not count as 0.
        raise ValueError(f"no {pattern} in what the compiler says of its kernel")
    return int(found.group(1))


def _count(kind: re.Pattern[str], opcodes: list[str]) -> int:
    return sum(kind.fullmatch(opcode) is not None for opcode in opcodes)
