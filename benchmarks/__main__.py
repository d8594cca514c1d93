"""`python -m benchmarks`: measures the kernels and the decoder on this machine's GPU; prints a table, writes JSON.

Every measurement comes from the run itself; floors are computed from rates measured in the same run. A child process
measures, and writes each result to the file at once. If a section fails, hangs or breaks the device, only that section
is lost, and a new process continues with the rest. `--variants` measures kernels in every size that could be chosen
for them instead, and prints a table to choose from. `--smoke` runs the same code on a CPU with tiny shapes.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from benchmarks.report import Report
from benchmarks.timing import Clock

RESULTS = Path(__file__).parent / "results"
GRACE = 15.0
"""Seconds that a process may take to start and stop, in addition to its time for measuring."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and measure; returns the exit status.

    The status is 1 if a measurement failed, and 2 if there is no GPU.
    """
    options = _parser().parse_args(arguments)
    if options.smoke:
        # Triton reads this variable when the sections import it.
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("torch sees no GPU: --smoke only tries the code, without measuring")
        return 2
    from benchmarks.sections import SECTIONS, VARIANTS
    from benchmarks.worker import work

    if options.work is not None:
        work(options.work.split(","), options.out, seconds=options.budget, smoke=False, variants=options.variants)
        return 0
    chip = "smoke" if options.smoke else re.sub(r"\W+", "-", torch.cuda.get_device_name().lower())
    kind = "variants-" if options.variants else ""
    path = options.out / f"{chip}-{kind}{datetime.now():%Y-%m-%d-%H%M%S}.json"
    chosen = [name for name in (VARIANTS if options.variants else SECTIONS) if options.only in name]
    start = partial(_start_here if options.smoke else _start_apart, path, options.variants)
    return measure_all(chosen, path, options.budget, start)


def measure_all(names: Sequence[str], path: Path, seconds: float, start: Callable[[Sequence[str], float], None]) -> int:
    """Measure the sections `names` with `start` in at most `seconds`, print the table, and return the exit status.

    `start` is called again for the sections that are left, as long as each call begins at least one.
    """
    clock = Clock(seconds)
    left, before = [*names], 0
    while left and len(left) != before and clock.left() > 0:
        before = len(left)
        start(left, clock.left())
        left = _left(left, path)
    if not path.exists():
        print("nothing was measured")
        return 1
    report = Report.load(path)
    for name in left:
        report.fail(f"section {name}: {'no time' if clock.left() <= 0 else 'not begun'}")
    print(report.table())
    print(f"written to {path}")
    return int(bool(report.errors))


def _left(names: Sequence[str], path: Path) -> list[str]:
    """The sections that no process has begun. A section that was begun and did not end is reported as failed."""
    if not path.exists():
        return [*names]
    report = Report.load(path)
    for name in names:
        if report.sections.get(name) is False:
            report.fail(f"section {name}: its process ended before it did")
    return [name for name in names if name not in report.sections]


def _start_here(path: Path, variants: bool, names: Sequence[str], seconds: float) -> None:
    from benchmarks.worker import work

    work(names, path, seconds=seconds, smoke=True, variants=variants)


def _start_apart(path: Path, variants: bool, names: Sequence[str], seconds: float) -> None:
    command = [sys.executable, "-m", "benchmarks", "--work", ",".join(names), "--out", str(path)]
    command += ["--variants"] if variants else []
    try:
        subprocess.run([*command, "--budget", str(seconds)], check=False, timeout=max(seconds, 0) + GRACE)
    except subprocess.TimeoutExpired:
        print("a process that hung was ended", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="for all of it")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="sections whose name contains it")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="for the JSON file")
    parser.add_argument("--smoke", action="store_true", help="try the code on a CPU with tiny shapes; no measurement")
    parser.add_argument("--variants", action="store_true", help="kernels in every size that could be chosen")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # Sections that a child measures.
    return parser


if __name__ == "__main__":
    sys.exit(main())
