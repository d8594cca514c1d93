"""Two runs beside each other: what became faster, what slower, and what chance explains.

    python -m loadtests.versus build/before build/after

Each folder is the --results of a run. A latency's change is sure if the 99% interval of the ratio, by a bootstrap over
the requests, leaves 1 out. The exit status is 1 if a latency surely became worse, 2 if a folder has no run, else 0.
`comparison.html` in the second folder has the plots.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.charts import Axis, Layer, chart
from loadtests.figures import Spread
from loadtests.tables import Markup, number, page, table

LATENCIES = {
    "ttft": "time to first token, s",
    "seconds_per_token": "time per output token, s",
    "seconds": "end to end, s",
}
"""Columns of requests.jsonl, and what they are."""
RATES = {"requests_per_second": "requests/s", "tokens_per_second": "tokens/s", "error_rate": "error rate"}
"""Figures of a summary of which there is but one a run."""
_DRAWS = 1000
_INTERVAL = (0.005, 0.995)
"""Quantiles of the interval; among several figures one lies outside of a 95% interval too often by chance."""
_OWN = ("run", "url", "load_generator")
"""Settings that may differ between runs that are compared."""
_HEADS = ("figure", "change", "before", "after", "ratio", "99% interval")

Numbers = npt.NDArray[np.float64]


class RunError(ValueError):
    """A folder is not that of a run. The message is one line."""


@dataclass(frozen=True, slots=True)
class Results:
    """Results that a run left in its folder."""

    settings: dict[str, Any]
    total: dict[str, Any]
    requests: list[dict[str, Any]]
    """The measured ones, without those that failed."""

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Read a folder. Raises RunError if it has no run."""
        try:
            summary = json.loads((folder / "summary.json").read_text())
            lines = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
            requests = [line for line in lines if not line["warmup"] and line["error"] is None]
            return cls(summary["settings"], summary["total"], requests)
        except OSError as error:
            raise RunError(f"{error.filename}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder} does not have a run's results: {error}") from None

    def values(self, column: str) -> Numbers:
        """The values of a latency; abandoned requests have no end."""
        rows = (row for row in self.requests if column == "ttft" or not row["abandoned"])
        return np.array([row[column] for row in rows if row[column] is not None], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of both runs. Less is better, if there is an interval."""

    figure: str
    before: float | None
    after: float | None
    interval: tuple[float, float] | None = None
    """Bounds of the ratio; None where there is one number a run, or too few requests."""

    @property
    def ratio(self) -> float | None:
        """After divided by before."""
        return self.after / self.before if self.before and self.after is not None else None

    @property
    def better(self) -> bool | None:
        """Whether the change is for the better; None if it may be chance."""
        if self.interval is None or self.interval[0] <= 1 <= self.interval[1]:
            return None
        return self.interval[1] < 1


def compare(before: Results, after: Results) -> list[Change]:
    """The changes from one run to another."""
    changes = [change for column in LATENCIES for change in _latency(column, before, after)]
    return changes + [Change(text, before.total[name], after.total[name]) for name, text in RATES.items()]


def _latency(column: str, before: Results, after: Results) -> Iterator[Change]:
    old, new = before.values(column), after.values(column)
    first, second = Spread.of(old), Spread.of(new)
    for name, share in (("median", 0.5), ("p95", 0.95)):
        one, other = (spread.quantile(share) if spread else None for spread in (first, second))
        interval = None if one is None or other is None else _interval(old, new, share)
        yield Change(f"{LATENCIES[column]}, {name}", one, other, interval)


def _interval(before: Numbers, after: Numbers, share: float) -> tuple[float, float] | None:
    """The 99% interval of the ratio of quantiles, by drawing the requests of both runs again.

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife" (Annals of Statistics, 1979).
    """
    rng = np.random.default_rng(0)

    def draws(values: Numbers) -> Numbers:
        # Some at a time: all draws of very many requests would need too much memory.
        rows = max(min(_DRAWS, 1_000_000 // len(values)), 1)
        parts = (rng.choice(values, (rows, len(values))) for _ in range(math.ceil(_DRAWS / rows)))
        return np.concatenate([np.quantile(part, share, axis=1) for part in parts])[:_DRAWS]

    old, new = draws(before), draws(after)
    if not old.all():
        return None
    low, high = np.quantile(new / old, _INTERVAL)
    return float(low), float(high)


def differing(before: Results, after: Results) -> list[tuple[str, str, str]]:
    """(setting, before, after) of all settings that differ and matter."""
    names = [name for name in before.settings | after.settings if name not in _OWN]
    pairs = [(name, before.settings.get(name), after.settings.get(name)) for name in names]
    return [(name, str(old), str(new)) for name, old, new in pairs if old != new]


def _cells(change: Change) -> tuple[str, ...]:
    interval = "" if change.interval is None else "{:.2f} to {:.2f}".format(*change.interval)
    ratio = "" if change.ratio is None else f"{change.ratio:.2f}"
    word = {True: "better", False: "WORSE", None: "chance?" if change.interval else ""}[change.better]
    return change.figure, word, number(change.before), number(change.after), ratio, interval


def lines(changes: Sequence[Change], differences: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """The comparison as Markdown."""
    for name, old, new in differences:
        yield f"{name} differs: {old} before, {new} after"
    if differences:
        yield ""
    yield f"| {' | '.join(_HEADS)} |"
    yield "|---" * len(_HEADS) + "|"
    for change in changes:
        yield f"| {' | '.join(_cells(change))} |"


def render(before: Results, after: Results, changes: Sequence[Change]) -> str:
    """The comparison as an HTML document."""
    title = f"Two load tests: {before.settings['model']}, {after.settings['model']}"
    kinds = {True: "yes", False: "no", None: "unclear"}
    rows = [
        (figure, Markup(f'<span class="{kinds[change.better]}">{word}</span>'), *numbers)
        for change in changes
        for figure, word, *numbers in [_cells(change)]
    ]
    differences = differing(before, after)
    body = [f"<h1>{escape(title)}</h1>", table(rows, _HEADS), '<div class="charts">']
    body += [_shares(text, before.values(column), after.values(column)) for column, text in LATENCIES.items()]
    body += ["</div>", "<h2>Settings that differ</h2>"]
    body.append(table(differences, ("", "before", "after"), words=True) if differences else "<p>None.</p>")
    return page(title, body)


def _shares(text: str, before: Numbers, after: Numbers) -> str:
    """Which share of the requests took at most how long."""

    def layer(label: str, values: Numbers) -> Layer:
        shares = np.linspace(0, 1, min(len(values), 100) + 1)[1:]
        return Layer(label, [(float(np.quantile(values, share)), float(100 * share)) for share in shares])

    name = text.removesuffix(", s")
    layers = [layer("before", before), layer("after", after)]
    return chart(name.capitalize(), Axis("seconds"), Axis("% of requests"), layers, empty="no request had one")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, compare, print; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.versus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="folder of the results of a run")
    parser.add_argument("after", type=Path, help="folder of the results of another")
    options = parser.parse_args(arguments)
    try:
        before, after = Results.load(options.before), Results.load(options.after)
    except RunError as error:
        print(f"versus: {error}", file=sys.stderr)
        return 2
    changes = compare(before, after)
    path = options.after / "comparison.html"
    path.write_text(render(before, after, changes))
    print("\n".join(lines(changes, differing(before, after))))
    print(f"\nplots: {path}")
    return 1 if any(change.better is False for change in changes) else 0


if __name__ == "__main__":
    sys.exit(main())
