"""The report of a run, as a table and as JSON. All numbers except the targets are measured in the run itself."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of the report: a unit of time or, if `rate`, of work a second."""

    name: str
    scale: float
    """Units in a second or, if `rate`, in one operation, byte or token a second."""
    rate: bool = False

    def show(self, seconds: float, work: float) -> float:
        """The value in this unit, where `work` operations, bytes or tokens took `seconds`."""
        return self.scale * (work / seconds if self.rate else seconds)


MICROSECONDS = Unit("us", 1e6)
MILLISECONDS = Unit("ms", 1e3)
TERAFLOPS = Unit("TFLOP/s", 1e-12, rate=True)
GIGABYTES = Unit("GB/s", 1e-9, rate=True)
TOKENS_A_SECOND = Unit("tokens/s", 1.0, rate=True)
UNITS = {unit.name: unit for unit in (MICROSECONDS, MILLISECONDS, TERAFLOPS, GIGABYTES, TOKENS_A_SECOND)}


@dataclass(slots=True)
class Row:
    """One measurement, with its floor, its target and the measurements of peers."""

    section: str
    case: str
    unit: Unit
    seconds: float
    floor: float | None = None
    """Seconds that the chip would take at the rates measured in this run."""
    work: float = 0.0
    """Operations, bytes or tokens, as `unit` needs."""
    target: float | None = None
    """The value to reach, in `unit`."""
    peers: dict[str, float] = field(default_factory=dict)
    """Peer -> seconds."""
    variant: str = ""
    """The variant of a kernel, where several are measured for the same case."""

    def shown(self, seconds: float) -> float:
        """`seconds` in the row's unit."""
        return self.unit.show(seconds, self.work)

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None if there is no target."""
        if self.target is None:
            return None
        value = self.shown(self.seconds)
        return value >= self.target if self.unit.rate else value <= self.target

    def content(self) -> dict[str, Any]:
        """The row's fields and the values derived from them, for JSON."""
        return asdict(self) | {"unit": self.unit.name, "value": self.shown(self.seconds), "reached": self.reached}

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Row":
        """The row whose `content()` is `content`."""
        fields = {name: value for name, value in content.items() if name not in ("value", "reached")}
        return cls(**fields | {"unit": UNITS[fields["unit"]]})


class Report:
    """The rows and notes of a run. Each is printed to stderr and saved in the file at `path` at once.

    `facts` describe the chip and the libraries. Rows of a smoke run have no targets.
    """

    def __init__(self, facts: dict[str, Any], path: Path, *, smoke: bool) -> None:
        self.facts = facts
        self.smoke = smoke
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.errors: list[str] = []
        """Failures of our own measurements."""
        self.failures: dict[str, list[str]] = {}
        """Failures of peers: reason -> cases."""
        self.sections: dict[str, bool] = {}
        """Sections that have begun -> whether they have ended."""
        self._path = path

    @classmethod
    def load(cls, path: Path) -> "Report":
        """The report saved at `path`, to be continued in the same file."""
        content = json.loads(path.read_text())
        report = cls(content["facts"], path, smoke=content["smoke"])
        report.rows = [Row.of(row) for row in content["rows"]]
        report.notes, report.errors = content["notes"], content["errors"]
        report.failures, report.sections = content["failures"], content["sections"]
        return report

    def add(self, row: Row) -> None:
        if self.smoke:
            row.target = None
        self.rows.append(row)
        self._say(_line(row))

    def add_peer(self, row: Row, name: str, seconds: float) -> None:
        row.peers[name] = seconds
        self._say(f"    {name}: {row.shown(seconds):.5g} {row.unit.name}")

    def fail_peer(self, row: Row, reason: str) -> None:
        """Report that a peer of `row` could not be measured."""
        self.failures.setdefault(reason, []).append(f"{row.section} {row.case}")
        self._say(f"    {reason}")

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._say(text)

    def fail(self, text: str) -> None:
        """Report that one of our own measurements failed."""
        self.errors.append(text)
        self._say(text)

    def mark(self, section: str, *, ended: bool) -> None:
        self.sections[section] = ended
        self.save()

    def row(self, section: str, case: str) -> Row | None:
        """The row of a case, or None if it was not measured."""
        return next((row for row in self.rows if (row.section, row.case) == (section, case)), None)

    def table(self) -> str:
        """The rows by section, then failures, notes and errors, as text."""
        lines = ["SMOKE: tiny shapes, interpreted on a CPU. NOT A MEASUREMENT."] if self.smoke else []
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        for section in dict.fromkeys(row.section for row in self.rows):
            rows = [row for row in self.rows if row.section == section]
            lines += ["", section, *(_choice(rows) if rows[0].variant else [HEADER, *map(_line, rows)])]
        failures = [f"{reason} ({'; '.join(where)})" for reason, where in self.failures.items()]
        return "\n".join([*lines, "", *failures, *self.notes, *self.errors])

    def save(self) -> None:
        content = {
            "smoke": self.smoke,
            "facts": self.facts,
            "rows": [row.content() for row in self.rows],
            "notes": self.notes,
            "errors": self.errors,
            "failures": self.failures,
            "sections": self.sections,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Written to a draft first, so that the file is whole even if the process is killed meanwhile.
        draft = self._path.with_suffix(".part")
        draft.write_text(json.dumps(content, indent=1) + "\n")
        draft.replace(self._path)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self.save()


def _choice(rows: Sequence[Row]) -> list[str]:
    """A line for each variant and a column for each case, numbered; the fastest of a column is starred."""
    cases = list(dict.fromkeys(row.case for row in rows))
    least = {case: min(row.seconds for row in rows if row.case == case) for case in cases}
    units = {row.case: row.unit.name for row in rows}
    lines = [f"  ({number}) {case}, {units[case]}" for number, case in enumerate(cases, 1)]
    width = max(len("variant"), *(len(row.variant) for row in rows))
    lines.append(f"  {'variant':<{width}}" + "".join(f"{f'({number})':>10}" for number in range(1, len(cases) + 1)))
    for variant in dict.fromkeys(row.variant for row in rows):
        found = {row.case: row for row in rows if row.variant == variant}
        lines.append(f"  {variant:<{width}}" + "".join(f"{_cell(found.get(case), least[case]):>10}" for case in cases))
    return lines


def _cell(row: Row | None, least: float) -> str:
    if row is None:
        return "-"
    return f"{row.shown(row.seconds):.4g}{'*' if row.seconds == least else ' '}"


HEADER = f"  {'case':<44} {'value':>10} {'unit':<9} {'floor':>10} {'of floor':>8} {'target':>8}      peers"


def _line(row: Row) -> str:
    floor = "" if row.floor is None else f"{row.shown(row.floor):.5g}"
    share = "" if row.floor is None else f"{row.floor / row.seconds:.1%}"
    target = "" if row.target is None else f"{row.target:.5g}"
    verdict = {None: "", True: "met", False: "MISS"}[row.reached]
    peers = ", ".join(f"{name} {row.shown(seconds):.5g}" for name, seconds in row.peers.items())
    value = f"{row.shown(row.seconds):.5g}"
    case = f"{row.variant}: {row.case}" if row.variant else row.case
    return f"  {case:<44} {value:>10} {row.unit.name:<9} {floor:>10} {share:>8} {target:>8} {verdict:<4} {peers}"
