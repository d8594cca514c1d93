"""The engine's arrays as NumPy's, and those as JSON."""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from model.array import Array
from service.api.schemas.arrays import rounded

_PIECE = 4096
"""Numbers that are written at once. Meanwhile no other thread runs, and nobody else is answered."""


def to_numpy(array: Array) -> NDArray[np.float32]:
    """The array's numbers, in its shape."""
    return np.frombuffer(array.data, "<f4").reshape(*array.shape)


def to_json(answer: BaseModel) -> bytes:
    """An answer with large arrays as JSON, without the fields that were not set."""
    return msgspec.json.encode(answer.model_dump(exclude_unset=True), enc_hook=_written)


def _written(array: Any) -> msgspec.Raw:
    if not isinstance(array, np.ndarray):
        raise NotImplementedError(f"{type(array)} in an answer")
    return msgspec.Raw(_pieces(array))


def _pieces(array: NDArray[Any]) -> bytes:
    if array.size <= _PIECE or array.ndim == 1:
        return msgspec.json.encode(rounded(array))
    return b"[" + b",".join(_pieces(part) for part in array) + b"]"
