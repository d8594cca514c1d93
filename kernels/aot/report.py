"""The table of the compile gate, and its verdict."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from kernels.aot.build import Outcome
from kernels.aot.record import Variant
from kernels.aot.resources import Resources, faults
from kernels.gpu.launch import TARGETS

COLUMNS = "{:<44} {:<7} {:>5} {:>6} {:>5} {:>6} {:>7} {:>5} {:>5}  {}"


def report(built: Iterable[tuple[Variant, Outcome]], file: Path | None) -> int:
    """Print the table and the gate's faults, write the rows to `file` as JSON, and return the exit status."""
    rows = sorted(built, key=_order)
    print(
        COLUMNS.format(
            "kernel", "chip", "warps", "stages", "regs", "spills", "shared", "mma", "async", "case: constants"
        )
    )
    for variant, outcome in rows:
        print(_line(variant, outcome))
    if file is not None:
        file.write_text(json.dumps([_json_row(variant, outcome) for variant, outcome in rows], indent=1))
    refused: dict[tuple[str, str], list[Variant]] = {}
    for variant, outcome in rows:
        for fault in _refusals(variant, outcome):
            refused.setdefault((variant.kernel, fault), []).append(variant)
    print(f"{len(rows)} variants, {sum(map(len, refused.values()))} faults")
    for (kernel, fault), variants in refused.items():
        print(f"{kernel} {fault}")
        for variant in variants:
            print(f"    on {_chip(variant)} for {variant.label}: {variant.constexprs()}")
    return 1 if refused else 0


def _order(row: tuple[Variant, Outcome]) -> tuple[str, str, str, str]:
    variant = row[0]
    return variant.kernel, variant.label, variant.constexprs(), _chip(variant)


def _refusals(variant: Variant, outcome: Outcome) -> list[str]:
    return faults(outcome, variant.target) if isinstance(outcome, Resources) else [outcome]


def _line(variant: Variant, outcome: Outcome) -> str:
    figures: tuple[object, ...] = ("-",) * 5
    if isinstance(outcome, Resources):
        taken = outcome
        figures = (taken.registers, taken.spills, taken.shared_memory, taken.tensor_core, taken.async_copies)
    kernel = variant.kernel.removeprefix("kernels.gpu.")
    what = f"{variant.label}: {variant.constexprs()}"
    return COLUMNS.format(kernel, _chip(variant), variant.num_warps, variant.num_stages, *figures, what)


def _json_row(variant: Variant, outcome: Outcome) -> dict[str, object]:
    return {
        "kernel": variant.kernel,
        "chip": _chip(variant),
        "case": variant.label,
        "warps": variant.num_warps,
        "stages": variant.num_stages,
        "signature": variant.signature,
        "constants": variant.constexprs(),
        "faults": _refusals(variant, outcome),
        **(asdict(outcome) if isinstance(outcome, Resources) else {}),
    }


def _chip(variant: Variant) -> str:
    return next(name for name, target in TARGETS.items() if target == variant.target)
