"""`python -m kernels.aot`: compiles the kernel variants that the server starts, for every chip, without a GPU.

Each chip gets every variant that a model family is served with; with --extent, only those that are nearest to their
limits, or also combinations that no family is served with.

Prints a row for each variant. The exit status is 1 if a variant spills registers where it costs, takes more shared
memory than its chip has, has a dot without a tensor-core instruction, or does not compile. It is 2 if there is nothing
to compile.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from kernels.aot.build import build
from kernels.aot.cases import Extent, record
from kernels.aot.report import report
from kernels.gpu.launch import TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, compile, print the table; returns the exit status."""
    options = _parser().parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("with TRITON_INTERPRET=1 kernels are interpreted and there is nothing to compile: unset it")
        return 2
    chips = options.target or list(TARGETS)
    variants = [variant for chip in chips for variant in record(TARGETS[chip], options.only, options.extent)]
    if not variants:
        print(f"no kernel is launched by a case named like {options.only!r}")
        return 2
    return report(build(variants, options.store, options.jobs), options.json)


def _parser() -> argparse.ArgumentParser:
    home = Path(os.environ.get("HEADLIGHT_HOME", "~/.cache/headlight")).expanduser()
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="may be repeated; default: all chips")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only cases whose name contains it")
    parser.add_argument("--extent", choices=get_args(Extent), default="served", help="which cases (default: served)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, with their constants")
    parser.add_argument("--store", type=Path, default=home / "aot", help="where figures are kept between runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
