"""What several test files share: the real model, once fetched, and a server that runs it."""

import os
from importlib.util import find_spec
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
    if find_spec("triton"):
        from tests.interpreter import replace_once_a_launch

        replace_once_a_launch()


LONGEST = {
    "tests/service/test_end_to_end.py",
    "tests/loadtests/test_run.py",
    "tests/service/test_cli.py",
    "tests/service/page/test_page.py",
    "tests/service/engine/test_grammars.py",
    "tests/kernels/gpu/test_sampling.py",
    "tests/service/processes/test_api_processes.py",
    "tests/service/api/test_large_bodies.py",
    "tests/model/test_smollm2.py",
    "tests/model/test_beam_search.py",
    "tests/model/test_inspection_alike.py",
    "tests/kernels/gpu/test_attention.py",
    "tests/kernels/test_aot.py",
}
"""Files that take a minute or nearly one. They come first: one that began last would leave the other core idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, and tests marked gpu need a GPU to mean anything."""
    items.sort(key=lambda item: item.nodeid.split("::")[0] not in LONGEST)
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
