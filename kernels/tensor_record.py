"""A dataclass that owns tensors: what is done to all of them alike is said once, not field by field."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Self

from torch import Tensor


class TensorRecord:
    """Base of dataclasses; the fields that hold tensors are found by looking at them."""

    __slots__ = ()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names of their fields, in order."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same record with `function` applied to each tensor."""
        return self.with_tensors({name: function(tensor) for name, tensor in self.tensors().items()})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same record with other tensors, by the names of their fields."""
        changes: dict[str, Any] = dict(tensors)
        return replace(self, **changes)  # type: ignore[type-var]
