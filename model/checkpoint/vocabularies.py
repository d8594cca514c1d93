"""The tokens of two checkpoints, compared as their files list them. No tokenizer is built for it."""

import json
from collections.abc import Mapping
from typing import Any

from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.tokenizer_data import HuggingFaceTokenizer, TokenizerData


def first_difference(data: TokenizerData, other: TokenizerData) -> str | None:
    """The first id that is another token in the other vocabulary, in words; None if there is none.

    One vocabulary may have more tokens than the other, behind those that both have: padding, or tokens added later.
    Raises CheckpointError if the files of one cannot be read.
    """
    mine, others = _tokens(data), _tokens(other)
    for token in sorted(mine.keys() & others.keys()):
        if mine[token] != others[token]:
            return f"token {token} is {label(mine[token])}, not {label(others[token])}"
    return None if mine.keys() & others.keys() else "they have no token in common"


def _tokens(data: TokenizerData) -> Mapping[int, str]:
    """The text of each token as the file spells it, by its id."""
    try:
        if isinstance(data, HuggingFaceTokenizer):
            return _huggingface_tokens(json.loads(data.tokenizer_json))
        tokens: Any = data.metadata["tokenizer.ggml.tokens"]
        return dict(enumerate(tokens))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the tokens of a model cannot be read: {label(str(error))}") from None


def _huggingface_tokens(file: Mapping[str, Any]) -> Mapping[int, str]:
    vocabulary = file["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram has pairs of a token and its score.
        found = {token: text for token, (text, *_) in enumerate(vocabulary)}
    else:
        found = {token: text for text, token in vocabulary.items()}
    return found | {token["id"]: token["content"] for token in file.get("added_tokens") or ()}
