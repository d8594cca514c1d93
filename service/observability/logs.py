"""Log lines, as text for a person or as JSON for a collector, the same for every library of a process.

A line has a message and fields: `log.info("...", extra={"fields": {...}})`. Knows nothing of the things logged.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]


def configure(format: LogFormat, level: str, process: Literal["supervisor", "api", "engine"]) -> None:
    """Send this process's log lines of `level` and above, Python's warnings included, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(process) if format == "json" else TextLines(process))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)


class TextLines(logging.Formatter):
    """Lines of the form: time, level, process, logger: message, and the fields as name=value."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())])


class JsonLines(logging.Formatter):
    """Lines of one JSON object each: line breaks are escaped, a traceback is one string."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a line, with seconds rounded to the microsecond: more digits are noise."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()}
