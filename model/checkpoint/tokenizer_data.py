"""The raw material of a tokenizer, as a checkpoint holds it. It knows nothing of how a tokenizer is built from it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HuggingFaceTokenizer:
    """The files that describe the tokenizer of a Hugging Face folder."""

    tokenizer_json: bytes
    """tokenizer.json as it is on disk."""
    config: Mapping[str, object]
    """tokenizer_config.json, or empty."""
    chat_template: str | None
    """Jinja source: chat_template.jinja if there is one, else the configuration's."""
    eos_token_ids: tuple[int, ...]
    """Of generation_config.json, else of config.json; empty where neither names one."""
    model_type: str = ""
    """Of config.json: the tokenizers of some families are read by rules of their own."""


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """The metadata of a GGUF file, its `tokenizer.*` keys among them."""

    metadata: Mapping[str, object]


TokenizerData = HuggingFaceTokenizer | GgufTokenizer
