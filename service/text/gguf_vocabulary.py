"""Rebuilds the tokenizer that a GGUF file's metadata describes (github.com/ggml-org/ggml, docs/gguf.md)."""

import logging
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from model.checkpoint.config import Config
from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.tokenizer_data import GgufTokenizer
from service.text.markers import END_TEXTS, is_bracketed, is_content, is_marker, template_markers
from service.text.merges import merges_by_rank
from service.text.pretokenizers import WORD_RULES
from service.text.spelling import WORD_MARK
from service.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_STRIPS_NOTHING = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""Special tokens of Phi-3 that keep the white space after them; its others swallow it, unrecorded in GGUF files."""


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`, with SentencePiece's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def gguf_vocabulary(data: GgufTokenizer) -> Vocabulary:
    """The vocabulary that a file's metadata describes. Raises CheckpointError."""
    file = _Metadata(data.metadata)
    match file.keys.text("tokenizer.ggml.model"):
        case "gpt2":
            backend, add_bos = _byte_level(file)
        case "llama":
            backend, add_bos = _sentencepiece(file)
        case kind:
            raise CheckpointError(f"tokenizer.ggml.model {label(kind)} is not supported")
    bos, eos = file.token("bos"), file.token("eos")
    return Vocabulary(
        backend=backend,
        prefix_ids=(bos,) if file.keys.flag("tokenizer.ggml.add_bos_token", add_bos) and bos is not None else (),
        suffix_ids=(eos,) if file.keys.flag("tokenizer.ggml.add_eos_token", False) and eos is not None else (),
        bos_token_id=bos,
        eos_token_ids=file.ends,
        named_tokens=file.named_tokens,
        chat_template=file.chat_template,
    )


class _Metadata:
    """The tokens of a tokenizer, their types, and its other keys.

    Every method raises CheckpointError for a value of the wrong kind.
    """

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self.keys = Config(metadata, "the tokenizer")
        self.architecture = self.keys.text("general.architecture")
        self.tokens: list[str] = self.array("tokenizer.ggml.tokens", str)
        if not self.tokens or len(set(self.tokens)) != len(self.tokens):
            raise CheckpointError(f"tokenizer.ggml.tokens {'names a token twice' if self.tokens else 'is empty'}")
        template = "tokenizer.chat_template"
        self.chat_template = None if self.keys.get(template) is None else self.keys.text(template)
        named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        self.named_tokens = {
            f"{name}_token": self.tokens[token] for name, key in named.items() if (token := self.token(key)) is not None
        }
        """Texts of bos_token, eos_token, ..., under the names that chat templates use."""
        declared_ends = (self.token(name) for name in ("eos", "eot", "eom"))
        known_ends = (token for token, text in enumerate(self.tokens) if text in END_TEXTS)
        self.ends = frozenset(token for token in (*declared_ends, *known_ends) if token is not None)
        """All tokens that end a completion."""
        self.types = self._types()
        """Types of the tokens. Where a token's use contradicts its type in the file, its use decides."""

    def _types(self) -> list[int]:
        labelled = self.keys.get("tokenizer.ggml.token_type") is not None
        types = self.array("tokenizer.ggml.token_type", int) if labelled else [TokenType.NORMAL] * len(self.tokens)
        if len(types) != len(self.tokens):
            raise CheckpointError(f"tokenizer.ggml has {len(self.tokens)} tokens and {len(types)} token types")
        written = template_markers(self.chat_template, self.named_tokens)
        if labelled:
            typed = dict(zip(self.tokens, types, strict=True))
            written = frozenset(
                text for text in written if not (is_bracketed(text) and typed.get(text) == TokenType.NORMAL)
            )
        named = {*self.named_tokens.values(), *(self.tokens[token] for token in self.ends)}
        control = {text for text in named if is_marker(text)} | {text for text in written if not is_content(text)}
        used_as = dict.fromkeys(written, TokenType.USER_DEFINED) | dict.fromkeys(control, TokenType.CONTROL)
        vague = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
        return [
            used_as.get(text, kind) if kind in vague else kind for text, kind in zip(self.tokens, types, strict=True)
        ]

    def pre_tokenizer(self) -> str:
        """The name of the rule that cuts words; files older than these names get llama.cpp's default."""
        if self.keys.get("tokenizer.ggml.pre") not in (None, ""):
            return self.keys.text("tokenizer.ggml.pre")
        logger.warning("tokenizer.ggml.pre is missing: words are cut by llama.cpp's default, perhaps not the model's")
        return "default"

    def array(self, key: str, kind: type) -> list[Any]:
        value = self.keys.get(key)
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise CheckpointError(f"{key} is {'missing' if value is None else f'not an array of {kind.__name__}'}")
        return value

    def token(self, name: str) -> int | None:
        """The id under `tokenizer.ggml.<name>_token_id`, if there is one."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.keys.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise CheckpointError(f"{key} is {label(value)}, which is no token of {len(self.tokens)}")
        return value

    def refuse(self, *keys: str) -> None:
        for key in keys:
            if self.keys.get(key):
                raise CheckpointError(f"{key} is not supported")


def _byte_level(file: _Metadata) -> tuple[Backend, bool]:
    """A byte-level BPE backend, and whether a text begins with the beginning-of-sequence token by default."""
    name = file.pre_tokenizer()
    if name not in WORD_RULES:
        raise CheckpointError(f"tokenizer.ggml.pre {label(name)} is not supported; known are {', '.join(WORD_RULES)}")
    rule = WORD_RULES[name]
    merges = [tuple(merge.split(" ")) for merge in file.array("tokenizer.ggml.merges", str)]
    backend = Backend(_bpe(file.tokens, merges, ignore_merges=rule.ignore_merges))
    if rule.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = rule.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, file.tokens, file.types)
    return backend, rule.add_bos


def _sentencepiece(file: _Metadata) -> tuple[Backend, bool]:
    """SentencePiece's BPE with scores, as a backend with merges.

    The flag says whether a text begins with the beginning-of-sequence token by default.
    """
    file.refuse("tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap")
    gemma = file.architecture.startswith("gemma")
    # Gemma's files spell tokens for runs of spaces with spaces; merging forms them from word marks like any other.
    runs = {token for token, text in enumerate(file.tokens) if text and not text.strip(" ")}
    tokens = [WORD_MARK * len(text) if token in runs else text for token, text in enumerate(file.tokens)]
    types = [TokenType.NORMAL if token in runs else kind for token, kind in enumerate(file.types)]

    mergeable = {
        text: token
        for token, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.NORMAL, TokenType.USER_DEFINED)
    }
    # Gemma's scores do not follow the order of its merges; the order of its tokens does.
    ranks = mergeable if gemma else _ranks_by_score(mergeable, file.array("tokenizer.ggml.scores", float))
    unknown = file.token("unknown")
    backend = Backend(
        _bpe(
            tokens,
            merges_by_rank(ranks),
            byte_fallback=True,
            fuse_unk=True,
            unk_token=None if unknown is None else tokens[unknown],
        )
    )
    space_prefix = file.keys.flag("tokenizer.ggml.add_space_prefix", not gemma)
    spaces = normalizers.Replace(" ", WORD_MARK)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_MARK), spaces]) if space_prefix else spaces
    strip = [decoders.Strip(" ", 1, 0)] if space_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(backend, tokens, types, swallow_space=file.architecture == "phi3")
    return backend, True


def _ranks_by_score(pieces: Mapping[str, int], scores: list[float]) -> Mapping[str, int]:
    if len(scores) <= max(pieces.values(), default=-1):
        raise CheckpointError(f"tokenizer.ggml.scores has {len(scores)} entries, fewer than there are tokens")
    ordered = sorted(pieces, key=lambda text: (-scores[pieces[text]], pieces[text]))
    return {text: rank for rank, text in enumerate(ordered)}


def _bpe(tokens: list[str], merges: list[Any], **options: Any) -> BPE:
    try:
        return BPE({text: token for token, text in enumerate(tokens)}, merges, **options)
    except Exception as error:  # The package raises bare exceptions.
        raise CheckpointError(f"tokenizer.ggml.merges do not fit the tokens: {label(str(error))}") from None


def _add_tokens(backend: Backend, tokens: list[str], types: list[int], swallow_space: bool = False) -> None:
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    backend.add_tokens(
        [
            AddedToken(
                text,
                special=kind in special,
                normalized=False,
                rstrip=swallow_space and kind in special and text not in _STRIPS_NOTHING,
            )
            for text, kind in zip(tokens, types, strict=True)
            if kind in special or kind == TokenType.USER_DEFINED
        ]
    )
