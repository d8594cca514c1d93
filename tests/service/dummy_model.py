"""A tiny model with random weights and a token for each byte, for commands and programs with an engine of their own."""

import json
from pathlib import Path
from typing import Any

from tests.byte_tokenizer import save_byte_tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
SETTINGS: dict[str, Any] = {
    "load_format": "dummy",
    "device": "cpu",
    "backend": "reference",
    "cache_memory": "1MB",
    "max_running": 4,
}


def dummy(folder: Path, template: str = "") -> tuple[str, ...]:
    """The flags of a command for the model, which is put into a folder."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_byte_tokenizer(folder)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    flags = [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ("--model", str(folder), *flags)
