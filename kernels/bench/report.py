"""What was measured, as one table and as JSON. Every number in it comes from the run itself, but for the targets."""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number of seconds is shown as: itself, or the work done in a second."""

    name: str
    scale: float
    rate: bool = False

    def show(self, seconds: float, work: float) -> float:
        """`work` is how much is done in `seconds`, in operations, bytes or tokens."""
        return self.scale * (work / seconds if self.rate else seconds)


MICROSECONDS = Unit("us", 1e6)
MILLISECONDS = Unit("ms", 1e3)
TERAFLOPS = Unit("TFLOP/s", 1e-12, rate=True)
GIGABYTES = Unit("GB/s", 1e-9, rate=True)
TOKENS = Unit("tokens/s", 1.0, rate=True)


@dataclass(slots=True)
class Row:
    """One measurement beside what bounds it and what others reach."""

    section: str
    case: str
    unit: Unit
    seconds: float
    floor: float | None = None
    """Seconds that the chip would take at the rates measured in this run."""
    work: float = 0.0
    target: float | None = None
    """In `unit`."""
    peers: dict[str, float] = field(default_factory=dict)
    """Seconds."""

    def shown(self, seconds: float) -> float:
        """In the row's unit."""
        return self.unit.show(seconds, self.work)

    @property
    def reached(self) -> bool | None:
        """Whether the target is; None if there is none."""
        if self.target is None:
            return None
        value = self.shown(self.seconds)
        return value >= self.target if self.unit.rate else value <= self.target


class Report:
    """Rows and notes as they come, on stderr; the table at the end. `facts` say where they were measured."""

    def __init__(self, facts: dict[str, Any], *, smoke: bool) -> None:
        self.facts = facts
        self.smoke = smoke
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.failures: dict[str, list[str]] = {}
        """What a peer says, and where it says so."""

    def add(self, row: Row) -> None:
        if self.smoke:
            row.target = None
        self.rows.append(row)
        print(_line(row), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(text, file=sys.stderr, flush=True)

    def fail(self, reason: str, row: Row) -> None:
        """A peer of a row that could not be measured."""
        self.failures.setdefault(reason, []).append(f"{row.section} {row.case}")

    def table(self) -> str:
        """The rows under their sections, then the notes."""
        lines = ["SMOKE: tiny shapes, interpreted on a CPU. NOT A MEASUREMENT."] if self.smoke else []
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        for section in dict.fromkeys(row.section for row in self.rows):
            lines += ["", section, HEADER, *(_line(row) for row in self.rows if row.section == section)]
        failures = [f"{reason} ({'; '.join(where)})" for reason, where in self.failures.items()]
        return "\n".join([*lines, "", *self.notes, *failures])

    def save(self, path: Path) -> None:
        rows = [
            asdict(row) | {"unit": row.unit.name, "value": row.shown(row.seconds), "reached": row.reached}
            for row in self.rows
        ]
        content = {
            "smoke": self.smoke,
            "facts": self.facts,
            "rows": rows,
            "notes": self.notes,
            "failures": self.failures,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


HEADER = f"  {'case':<44} {'value':>10} {'unit':<9} {'floor':>10} {'of floor':>8} {'target':>8}      peers"


def _line(row: Row) -> str:
    floor = "" if row.floor is None else f"{row.shown(row.floor):.5g}"
    share = "" if row.floor is None else f"{row.floor / row.seconds:.1%}"
    target = "" if row.target is None else f"{row.target:g}"
    verdict = {None: "", True: "met", False: "MISS"}[row.reached]
    peers = ", ".join(f"{name} {row.shown(seconds):.5g}" for name, seconds in row.peers.items())
    value = f"{row.shown(row.seconds):.5g}"
    return f"  {row.case:<44} {value:>10} {row.unit.name:<9} {floor:>10} {share:>8} {target:>8} {verdict:<4} {peers}"
