"""The parts of a tokenizer, the same for every file format."""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer as Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A backend of the tokenizers package, and the checkpoint's rules for its use."""

    backend: Backend
    prefix_ids: tuple[int, ...]
    """Tokens that the model expects before a text, such as the beginning-of-sequence token."""
    suffix_ids: tuple[int, ...]
    bos_token_id: int | None
    eos_token_ids: frozenset[int]
    named_tokens: Mapping[str, str]
    """Texts of bos_token, eos_token, ..., under the names that chat templates use."""
    chat_template: str | None
    """Jinja source of the template, if there is one."""
    tokenizer_class: str = "PreTrainedTokenizerFast"
    """The class of transformers that reads the same files."""
