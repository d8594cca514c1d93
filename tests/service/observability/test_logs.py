"""Log lines: their two forms, and what they may never say."""

import json
import logging
import sys
import warnings
from io import StringIO

import pytest

from service.observability.logs import JsonLines, TextLines, configure


def record(message: str = "it is %s", *arguments: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("some.module").makeRecord(
        "some.module", logging.WARNING, "file.py", 1, message, arguments or ("so",), None, extra=extra
    )


def test_json() -> None:
    line = JsonLines("api").format(record(fields={"status": 200, "seconds": 0.123456789, "ids": ["a"], "none": None}))
    entry = json.loads(line)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "warning", "process": "api", "logger": "some.module", "message": "it is so",
        "status": 200, "seconds": 0.123457, "ids": ["a"], "none": None,
    }  # fmt: skip


def test_json_is_one_line_whatever_it_holds() -> None:
    try:
        raise ValueError("a\nb\u2028c \ud800")
    except ValueError:
        entry = record('a "quoted"\r\n%s', object, fields={"odd": {1, 2}, "bytes": b"\xff"})
        entry.exc_info = sys.exc_info()
    line = JsonLines("engine").format(entry)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert "Traceback" in json.loads(line)["exception"]


def test_text() -> None:
    line = TextLines("api").format(record(fields={"status": 200, "seconds": 0.123456789}))
    assert line.endswith(" WARNING api some.module: it is so status=200 seconds=0.123457")


@pytest.mark.parametrize(("format", "mark"), [("json", '"process": "engine"'), ("text", " engine ")])
def test_every_library_and_warnings_go_the_same_way(format: str, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = StringIO()
    root = logging.getLogger()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    try:
        configure(format, "info", "engine")  # type: ignore[arg-type]
        logging.getLogger("uvicorn.error").error("shutting down")
        logging.getLogger("some.library").debug("unseen")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
    lines = out.getvalue().splitlines()
    assert "shutting down" in lines[0]
    assert "DeprecationWarning: old" in out.getvalue()
    assert mark in lines[0]
    assert mark in lines[1]
    assert "unseen" not in out.getvalue()
