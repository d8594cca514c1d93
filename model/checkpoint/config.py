"""Typed access to a model's configuration: every value is checked when it is read.

Keys are config.json's, under Llama's names. Their meaning for a model is not known here.
"""

from collections.abc import Iterable, Mapping
from typing import Self

from model.checkpoint.errors import LONGEST_LABEL, CheckpointError, label

LARGEST_INTEGER = 1 << 24
"""Limit of sizes and contexts, above that of any model: a larger integer is an error in the file or an attack."""
LARGEST_NUMBER = 1e12
"""Limit of other numbers."""


class Config:
    """Unchecked values from a file, read through methods that check them. A null value counts as absent.

    A method that reads a value raises CheckpointError if the value is of another type or out of range, or if it is
    absent and there is no default. In messages, `source` names the file, `names` gives the file's own name of a key
    where it differs from the key, and `prefix` stands before the key.
    """

    def __init__(
        self, values: Mapping[str, object], source: str, names: Mapping[str, str] | None = None, prefix: str = ""
    ) -> None:
        self._values = values
        self._source = source
        self._names = names or {}
        self._prefix = prefix

    def get(self, key: str) -> object:
        """The unchecked value; None if it is absent."""
        return self._values.get(key)

    def integer(self, key: str, default: int | None = None, most: int = LARGEST_INTEGER) -> int:
        """An integer from 1 to `most`."""
        value = self._present(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.refusal(key, f"is {label(value)}, not an integer from 1 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST_NUMBER:
            raise self.refusal(key, f"is {label(value)}, not a positive number")
        return float(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` numbers above 0."""
        values = self._present(key, None)
        if not isinstance(values, list) or len(values) != count:
            raise self.refusal(key, f"is {label(values)}, not a list of {count} numbers")
        items = Config(
            {f"{key}[{index}]": value for index, value in enumerate(values)}, self._source, prefix=self._prefix
        )
        return tuple(items.number(f"{key}[{index}]") for index in range(count))

    def flag(self, key: str, default: bool) -> bool:
        value = self._present(key, default)
        if type(value) is not bool:
            raise self.refusal(key, f"is {label(value)}, neither true nor false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._present(key, default)
        if type(value) is not str:
            raise self.refusal(key, f"is {label(value)}, not a string")
        return value

    def within(self, key: str, default: float, least: float, most: float) -> float:
        """A number from `least` to `most`."""
        value = self._present(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.refusal(key, f"is {label(value)}, not a number from {least:g} to {most:g}")
        return float(value)

    def section(self, key: str) -> Self | None:
        """The object under `key` as a configuration of its own; None if it is absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refusal(key, f"is {label(value)}, not an object")
        return type(self)(value, self._source, prefix=f"{self._name(key)}.")

    def required(self, key: str) -> Self:
        """The object under `key` as a configuration of its own. Raises CheckpointError if it is absent."""
        section = self.section(key)
        if section is None:
            raise self.refusal(key, "is missing")
        return section

    def over(self, other: "Config") -> "Config":
        """A configuration with these values, and with the values of `other` for keys that are absent here."""
        present = {key: value for key, value in self._values.items() if value is not None}
        return Config({**other._values, **present}, self._source, self._names, self._prefix)

    def present(self) -> Iterable[str]:
        """Keys that have a value, in the file's order."""
        return [key for key, value in self._values.items() if value is not None]

    def empty(self) -> "Config":
        """A configuration of the same file in which every value is absent."""
        return Config({}, self._source)

    def require(self, key: str, expected: object) -> None:
        """Raise CheckpointError if the value is present and is not `expected`."""
        value = self.get(key)
        if value is not None and (value != expected or type(value) is not type(expected)):
            raise self.refusal(key, f"is {label(value)}, which is not supported")

    def refusal(self, key: str, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: {self._name(key)} {reason}")

    def _present(self, key: str, default: object) -> object:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.refusal(key, "is missing")
        return value

    def _name(self, key: str) -> str:
        name = self._names.get(key, key)
        # The key itself may come from the file.
        return self._prefix + (name if name.isprintable() and len(name) <= LONGEST_LABEL else label(name))
