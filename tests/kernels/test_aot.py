"""The ahead-of-time gate: what it refuses, that it compiles what would be launched, and every kernel through it.

Triton is interpreted in this process; the gate has processes of its own, where it is not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.aot.resources import MOST_SPILLS, Resources, faults, inner_spills
from kernels.gpu.launch import TARGETS

ROOT = Path(__file__).parents[2]
CHIPS = "sm_90", "gfx942"
"""One of each maker."""
FITS = Resources(128, 0, 0, 0, 1000, 8, 4, needs_tensor_core=True)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )


def toy(call: str) -> subprocess.CompletedProcess[str]:
    return run("-c", f"import sys; from tests.kernels import aot_toys; sys.exit(aot_toys.{call})")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gate keeps its figures of the toys."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def verdicts(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[str]]:
    """What the gate finds against each toy on a chip of each maker."""
    rows = tmp_path_factory.mktemp("rows") / "rows.json"
    toys = ["fits", "dot", "float32 dot", "spills", "shared memory", "broken"]
    done = toy(f"gate({str(store)!r}, {str(rows)!r}, {toys}, {CHIPS})")
    assert done.returncode == 1, done.stdout + done.stderr
    return {(row["case"], row["chip"]): row["faults"] for row in json.loads(rows.read_text())}


@pytest.fixture(scope="module")
def findings() -> dict[str, object]:
    """What the toys say of how launches are recorded; in one process, which takes seconds to import Triton."""
    done = toy("print_findings()")
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("what", ["fits", "dot", "float32 dot"])
def test_what_the_gate_lets_through(what: str, chip: str, verdicts: dict[tuple[str, str], list[str]]) -> None:
    assert verdicts[what, chip] == []


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
    ("what", "fault"),
    [("spills", "spills registers"), ("shared memory", "bytes of shared memory"), ("broken", "does not compile")],
)
def test_what_the_gate_refuses(what: str, fault: str, chip: str, verdicts: dict[tuple[str, str], list[str]]) -> None:
    assert any(fault in found for found in verdicts[what, chip])


def test_figures_are_kept_and_failures_are_not(
    verdicts: dict[tuple[str, str], list[str]], store: Path, tmp_path: Path
) -> None:
    kept = list(store.iterdir())
    assert len(kept) == len(verdicts) - len(CHIPS), "all but the broken one"
    for entry in kept:
        entry.write_text(json.dumps(json.loads(entry.read_text()) | {"registers": 12345}))
    rows = tmp_path / "rows.json"
    toy(f"gate({str(store)!r}, {str(rows)!r}, ['fits', 'broken'], {CHIPS})")
    assert [row.get("registers") for row in json.loads(rows.read_text())].count(12345) == len(CHIPS)
    assert len(list(store.iterdir())) == len(kept)


def test_what_is_recorded_is_what_would_be_launched(findings: dict[str, object]) -> None:
    assert findings["recorded otherwise than launched"] == []


def test_variants_differ_as_tritons_do(findings: dict[str, object]) -> None:
    # count is 1; neither 1 nor divisible by 16; divisible by 16.
    assert findings["variants"] == 3


def test_only_chips_that_launch_kernels_early_wait_within_them(findings: dict[str, object]) -> None:
    assert findings["waits"] == {"sm_80": [0, 0], "sm_90": [1, 1], "sm_100": [1, 1], "gfx942": [0, 0]}


def test_every_chip_gets_every_kernel(findings: dict[str, object]) -> None:
    assert findings["left out"] == []


@pytest.mark.parametrize(
    ("resources", "chip", "expected"),
    [
        (FITS, "sm_90", []),
        (Resources(255, 3, 1, 16, 0, 0, 0, needs_tensor_core=False), "sm_90", ["spills registers: 3 STL/LDL"]),
        (Resources(255, MOST_SPILLS, 0, 16, 0, 0, 0, needs_tensor_core=False), "sm_90", []),
        (
            Resources(255, MOST_SPILLS + 1, 0, 16, 0, 0, 0, needs_tensor_core=False),
            "sm_90",
            [f"spills registers: {MOST_SPILLS + 1} STL/LDL"],
        ),
        (Resources(255, 0, 0, 16, 0, 0, 0, needs_tensor_core=False), "sm_90", ["uses 16 bytes of local memory"]),
        (Resources(255, 0, 0, 16, 0, 0, 0, needs_tensor_core=False), "gfx942", []),
        (
            Resources(255, 0, 0, 0, 65_537, 8, 0, needs_tensor_core=True),
            "gfx942",
            ["takes 65537 bytes of shared memory of 65536"],
        ),
        (
            Resources(99, 0, 0, 0, 0, 0, 0, needs_tensor_core=True),
            "sm_80",
            ["has a dot and no tensor-core instruction"],
        ),
    ],
)
def test_faults(resources: Resources, chip: str, expected: list[str]) -> None:
    assert faults(resources, TARGETS[chip]) == expected


CODE = """
        /*0010*/                   STL [R1], R7 ;
        /*0020*/                   LDL R8, [R1] ;
        /*0030*/                   FADD R8, R8, R7 ;
        /*0040*/               {inner} ;
        /*0050*/              @!P3 BRA 0x30 ;
        /*0060*/               @P1 BRA 0x20 ;
        /*0070*/                   BRA 0x70;
"""


def test_spills_count_in_loops_without_loops_in_them() -> None:
    assert inner_spills(CODE.format(inner="@P1 BRA 0x60")) == 0
    assert inner_spills(CODE.format(inner="    LDL R9, [R1+0x4]")) == 1
    assert inner_spills(CODE.format(inner="@!P0 STL.64 [R1], R4")) == 1


def test_the_gate_says_that_the_interpreter_compiles_nothing() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "kernels.aot"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stdout
