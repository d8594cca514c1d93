"""What several test files share: the real model, once fetched, and a server that runs it."""

import os
from pathlib import Path

import pytest
import torch

from model.checkpoint.source import DEFAULT_MODEL, resolve

pytest_plugins = ["tests.compile_gate"]

# The oracles read local files; nothing in a test may look for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

# Read when a kernel's module is imported: without a GPU, kernels run in Triton's interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu need a GPU to mean anything."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def model_home() -> Path:
    """Where fetched models are kept: the user's own cache, so that tests fetch the model once a machine."""
    return Path(os.environ.get("HEADLIGHT_HOME", "~/.cache/headlight")).expanduser()


@pytest.fixture(scope="session")
def smollm2(model_home: Path) -> Path:
    """The default model's GGUF file."""
    return resolve(DEFAULT_MODEL, model_home).path
