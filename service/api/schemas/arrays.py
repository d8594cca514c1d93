"""Arrays in answers, which stay NumPy's until they are written."""

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, WithJsonSchema


def rounded(array: NDArray[Any]) -> list[Any]:
    """The numbers as nested lists; fractions to six digits behind the point, so that they are short in JSON."""
    numbers: list[Any] = (array if array.dtype.kind == "i" else array.astype(np.float64).round(6)).tolist()
    return numbers


ArrayData = Annotated[
    Any,
    PlainSerializer(lambda data: rounded(data) if isinstance(data, np.ndarray) else data, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {}}, {"type": "string"}]}),
]
"""A NumPy array, which becomes nested lists in JSON, or its base64, or None."""
