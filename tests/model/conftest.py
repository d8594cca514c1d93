"""The default model in transformers, as an oracle of the model's tests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def transformers_smollm2(smollm2: Path) -> Any:
    """The default model in float32; transformers takes half a minute to read its file, so that it is read once."""
    return AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
