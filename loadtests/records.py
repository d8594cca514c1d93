"""One record for each request of a run, as JSON lines and as CSV. Knows nothing of figures."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.sse import Answer

COLUMNS = (
    *("began", "warmup", "seconds", "ttft", "seconds_per_token", "prompt_tokens", "cached_tokens", "completion_tokens"),
    *("model", "error", "abandoned"),
)
"""Columns of the CSV. `began` is in seconds from the end of the warm-up, at which measuring begins."""


def write(folder: Path, answers: Sequence[Answer], start: float) -> None:
    """Write requests.jsonl and requests.csv. `start` is the time of day at which measuring began.

    The JSON lines have the `gaps` between the events of each request too.
    """
    rows = [(_record(answer, start), answer.gaps) for answer in sorted(answers, key=lambda answer: answer.began)]
    with (folder / "requests.jsonl").open("w") as lines:
        lines.writelines(json.dumps(record | {"gaps": [round(gap, 6) for gap in gaps]}) + "\n" for record, gaps in rows)
    with (folder / "requests.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(record for record, _ in rows)


def _record(answer: Answer, start: float) -> dict[str, Any]:
    derived = {"began": answer.began - start, "warmup": answer.began < start}
    record = {name: derived[name] if name in derived else getattr(answer, name) for name in COLUMNS}
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in record.items()}
