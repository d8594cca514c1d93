"""`python -m kernels.bench`: what the kernels and the decoder reach on this machine's GPU, as a table and as JSON.

Nothing that it prints as a measurement is remembered from elsewhere: floors follow from rates measured in the same
run. A section that fails is a note, and the rest goes on. `--smoke` runs the same code on a CPU with tiny shapes.
"""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if a section failed, 2 where there is nothing to measure on."""
    options = _parser().parse_args(arguments)
    if options.smoke:
        # Read when Triton is imported, which the sections do.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from kernels.bench.sections import SECTIONS, make_bench

    device = torch.device("cpu" if options.smoke else "cuda")
    if not options.smoke and not torch.cuda.is_available():
        print("torch sees no GPU: --smoke only tries the code, without measuring")
        return 2
    bench = make_bench(device, seconds=options.budget, smoke=options.smoke)
    chip = re.sub(r"\W+", "-", str(bench.report.facts["chip"]).lower())
    path = options.out / f"{chip}-{date.today().isoformat()}.json"
    chosen = {name: measure for name, measure in SECTIONS.items() if options.only in name}
    failed = 0
    for name, measure in chosen.items():
        if bench.clock.left() < 0:
            bench.report.note(f"section {name} left out: no time")
            continue
        failed += not _run(name, partial(measure, bench), bench.report.note)
        bench.report.save(path)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(bench.report.table())
    print(f"written to {path}")
    return int(failed > 0)


def _run(name: str, measure: Callable[[], None], note: Callable[[str], None]) -> bool:
    """Whether it went through; what did not is a note."""
    try:
        measure()
    except Exception as error:
        traceback.print_exc()
        note(f"section {name} failed: {type(error).__name__}: {error}")
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="no section begins after it")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="sections whose name contains it")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="for the JSON file")
    parser.add_argument("--smoke", action="store_true", help="try the code on a CPU with tiny shapes; no measurement")
    return parser


if __name__ == "__main__":
    sys.exit(main())
