"""Requests from a JSONL file: texts or lengths, and the times at which they are sent if the file is a trace.

A line is an object with either `messages`, as in a chat, or `prompt`, a text, or `input_length`, a number of tokens,
which will be random words. `output_length` is the number of tokens to answer, and `timestamp` the milliseconds from the
start; `hash_ids` are the blocks of 512 tokens that a prompt shares with other lines. Lengths, times and blocks have the
names of Mooncake's traces (Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025).
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from loadtests.workloads import WORKLOADS, Message, words

FIELDS = ("messages", "prompt", "input_length", "output_length", "timestamp", "hash_ids")
CONTENTS = FIELDS[:3]
BLOCK_TOKENS = 512
THINK_SECONDS = 1.0
"""The mean of a user's thinking time after an answer; an open loop has none."""
_ANSWER = WORKLOADS["mix"].output
"""The lengths of answers where a line has none."""


class DatasetError(ValueError):
    """A dataset cannot be used. The message is one line with the file and the number of the line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One request."""

    messages: tuple[Message, ...] = ()
    """Empty if the prompt is random words."""
    input_length: int = 0
    output_length: int | None = None
    blocks: tuple[int, ...] = ()
    at: float | None = None
    """Seconds from the start."""

    @property
    def prompt_tokens(self) -> int:
        """About the number of tokens of the prompt."""
        return self.input_length or sum(len(message["content"].split()) for message in self.messages)

    def scaled(self, factor: float) -> "Entry":
        """The entry with its lengths multiplied; texts stay as they are."""
        length = None if self.output_length is None else max(round(self.output_length * factor), 1)
        return replace(self, input_length=round(self.input_length * factor), output_length=length)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The requests of a file, in its order."""

    entries: tuple[Entry, ...]
    factor: float = 1.0

    @property
    def times(self) -> list[float] | None:
        """The seconds at which the entries are sent; None if they have none."""
        times = [entry.at for entry in self.entries if entry.at is not None]
        return times or None

    @property
    def means(self) -> tuple[float, float, float]:
        """The mean tokens of prompt and completion, and the mean seconds of thinking."""
        outputs = (entry.output_length or _ANSWER.mean * self.factor for entry in self.entries)
        return mean(entry.prompt_tokens for entry in self.entries), mean(outputs), THINK_SECONDS * self.factor

    def scaled(self, factor: float) -> "Dataset":
        """The dataset with lengths and thinking times multiplied; texts stay as they are."""
        return Dataset(tuple(entry.scaled(factor) for entry in self.entries), factor)

    def user(self, seed: int, run: str, name: str, max_context: int | None) -> "Reader":
        """A user that begins at an entry of its own: at the one with the number `name`, if it is a number."""
        start = int(name) if name.isdigit() else random.Random(f"{seed}/{name}").randrange(len(self.entries))
        return Reader(self, start, f"{seed}/{run}/{name}", run)


class Reader:
    """A user that sends the entries of a dataset, each of which is a conversation."""

    begins = True

    def __init__(self, dataset: Dataset, start: int, seed: str, run: str) -> None:
        self._dataset = dataset
        self._next = start
        self._rng = random.Random(seed)
        self._run = run

    def ask(self) -> tuple[list[Message], int]:
        """(messages, limit of output tokens) of the next entry."""
        entry = self._dataset.entries[self._next % len(self._dataset.entries)]
        self._next += 1
        output = entry.output_length or _ANSWER.scaled(self._dataset.factor).draw(self._rng)
        return list(entry.messages) or [{"role": "user", "content": self._words(entry)}], output

    def _words(self, entry: Entry) -> str:
        # A block has the same words in every prompt that has it, and others in the next run.
        shared = " ".join(words(random.Random(f"{self._run}/{block}"), BLOCK_TOKENS) for block in entry.blocks).split()
        own = max(entry.input_length - len(shared), 0)
        return " ".join(shared[: entry.input_length] + words(self._rng, own).split())

    def take(self, text: str, tokens: int) -> None:
        """Nothing: an entry has its whole conversation."""

    def give_up(self) -> None:
        """Nothing: the next entry is another conversation."""

    def think(self) -> float:
        """Seconds until the next question."""
        return self._rng.expovariate(1 / (THINK_SECONDS * self._dataset.factor))


@cache
def load_dataset(path: Path) -> Dataset:
    """Read a JSONL file. Raises DatasetError, for unknown fields too."""
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not lines:
        raise DatasetError(f"{path}: no request in it")
    entries = [_entry(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]
    times = [entry.at for entry in entries if entry.at is not None]
    if len(times) not in (0, len(entries)) or times != sorted(times):
        raise DatasetError(f"{path}: either every line has a timestamp, in rising order, or none has")
    return Dataset(tuple(entries))


def _entry(where: str, line: str) -> Entry:
    try:
        fields = json.loads(line)
    except ValueError:
        raise DatasetError(f"{where}: no JSON") from None
    if not isinstance(fields, dict):
        raise DatasetError(f"{where}: should be an object")
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise DatasetError(f"{where}: there is no field {unknown[0]!r}; there are {', '.join(FIELDS)}")
    contents = [name for name in CONTENTS if name in fields]
    if len(contents) != 1:
        raise DatasetError(f"{where}: should have exactly one of {', '.join(CONTENTS)}")
    output, at = _number(where, fields, "output_length", 1), _number(where, fields, "timestamp", 0)
    return Entry(
        messages=_messages(where, fields),
        input_length=int(_number(where, fields, "input_length", 1) or 0),
        output_length=None if output is None else int(output),
        blocks=_blocks(where, fields),
        at=None if at is None else at / 1000,
    )


def _messages(where: str, fields: Mapping[str, Any]) -> tuple[Message, ...]:
    if "prompt" in fields:
        if not isinstance(fields["prompt"], str) or not fields["prompt"]:
            raise DatasetError(f"{where}: prompt should be a text")
        return ({"role": "user", "content": fields["prompt"]},)
    messages = fields.get("messages", ())
    if not isinstance(messages, list | tuple) or messages == [] or not all(map(_is_message, messages)):
        raise DatasetError(f"{where}: messages should be a list of objects with role and content, both texts")
    return tuple(messages)


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"role", "content"}
        and all(isinstance(text, str) for text in value.values())
    )


def _number(where: str, fields: Mapping[str, Any], name: str, least: int) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise DatasetError(f"{where}: {name} should be a number of at least {least} (got {value!r})")
    return value


def _blocks(where: str, fields: Mapping[str, Any]) -> tuple[int, ...]:
    blocks = fields.get("hash_ids", ())
    if not isinstance(blocks, list | tuple) or not all(isinstance(block, int) for block in blocks):
        raise DatasetError(f"{where}: hash_ids should be a list of integers")
    if blocks and "input_length" not in fields:
        raise DatasetError(f"{where}: hash_ids need input_length")
    return tuple(blocks)
