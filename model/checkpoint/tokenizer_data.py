"""The data of a tokenizer as a checkpoint stores it. The tokenizer itself is built elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HuggingFaceTokenizer:
    """The files that describe the tokenizer of a Hugging Face folder."""

    tokenizer_json: bytes
    """Contents of tokenizer.json."""
    config: Mapping[str, object]
    """Contents of tokenizer_config.json; empty if there is no such file."""
    chat_template: str | None
    """Jinja source of the chat template, from chat_template.jinja or else from tokenizer_config.json."""
    eos_token_ids: tuple[int, ...]
    """End tokens, from generation_config.json or else from config.json; empty if neither names any."""
    model_type: str = ""
    """Key of config.json; the tokenizers of some families are read by special rules."""


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """The metadata of a GGUF file, its `tokenizer.*` keys among them."""

    metadata: Mapping[str, object]


TokenizerData = HuggingFaceTokenizer | GgufTokenizer
