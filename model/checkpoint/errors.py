"""The one error of finding, fetching and reading models."""

import reprlib

LONGEST_LABEL = 100


class CheckpointError(Exception):
    """A model cannot be found, fetched or read: one line that names the file and says what is wrong with it."""


def label(value: object) -> str:
    """A value out of a file for such a line: escaped, so that it stays one line, and shortened."""
    shortener = reprlib.Repr()
    shortener.maxstring = LONGEST_LABEL
    return shortener.repr(value)
