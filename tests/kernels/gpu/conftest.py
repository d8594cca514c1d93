"""What tests of kernels share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def poisoned_allocations() -> Iterator[None]:
    """What no kernel writes of an uninitialised tensor is NaN, or an integer's greatest: torch's deterministic mode.

    On a GPU that mode would want cuBLAS set up before the process starts.
    """
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)
