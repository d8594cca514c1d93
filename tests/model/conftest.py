"""The default model in transformers, as an oracle of the model's tests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def transformers_smollm2(smollm2: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Any:
    """The default model in float32. Transformers reads its file in half a minute, so one worker does it for all."""
    if worker_id == "master":
        return _read(smollm2)
    kept = tmp_path_factory.getbasetemp().parent / "transformers-smollm2.pt"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            torch.save(_read(smollm2), kept)
    return torch.load(kept, weights_only=False)


def _read(file: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
