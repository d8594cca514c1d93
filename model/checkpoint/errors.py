"""The error of finding, downloading and reading models."""

import reprlib

LONGEST_LABEL = 100


class CheckpointError(Exception):
    """A model cannot be found, downloaded or read. The message is one line, with the file's name and the reason."""


def label(value: object) -> str:
    """A value from a file in a form for error messages: escaped, so that it stays on one line, and shortened."""
    shortener = reprlib.Repr()
    shortener.maxstring = LONGEST_LABEL
    return shortener.repr(value)
