"""The engine's arrays as NumPy's."""

import numpy as np
from numpy.typing import NDArray

from model.contract import Array


def to_numpy(array: Array) -> NDArray[np.float32]:
    """The array's numbers, in its shape."""
    return np.frombuffer(array.data, "<f4").reshape(*array.shape)
