"""Rebuilds the tokenizer that a GGUF file's metadata describes (github.com/ggml-org/ggml, docs/gguf.md)."""

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, decoders, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.tokenizer_data import GgufTokenizer
from service.text.merges import merges_by_rank
from service.text.pretokenizers import WORD_RULES
from service.text.spelling import WORD_MARK
from service.text.vocabulary import Vocabulary

_END_TOKENS = frozenset(
    {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"}
)
"""Control tokens that end a turn in the families served here; many files name only one of several."""

_STRIPS_NOTHING = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""Phi-3's other special tokens swallow the white space after them, which its GGUF files do not record."""


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`; SentencePiece's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def gguf_vocabulary(data: GgufTokenizer) -> Vocabulary:
    """Raises CheckpointError."""
    file = _Metadata(data.metadata)
    match file.text("tokenizer.ggml.model"):
        case "gpt2":
            backend, add_bos = _byte_level(file)
        case "llama":
            backend, add_bos = _sentencepiece(file)
        case kind:
            raise CheckpointError(f"tokenizer.ggml.model {label(kind)} is not supported")
    bos, eos = file.token("bos"), file.token("eos")
    named = {"bos": bos, "eos": eos, "unk": file.token("unknown"), "pad": file.token("padding")}
    declared_ends = (eos, file.token("eot"), file.token("eom"))
    known_ends = (token for token in file.of_type(TokenType.CONTROL) if file.tokens[token] in _END_TOKENS)
    return Vocabulary(
        backend=backend,
        prefix_ids=(bos,) if file.flag("tokenizer.ggml.add_bos_token", add_bos) and bos is not None else (),
        suffix_ids=(eos,) if file.flag("tokenizer.ggml.add_eos_token", False) and eos is not None else (),
        bos_token_id=bos,
        eos_token_ids=frozenset(token for token in (*declared_ends, *known_ends) if token is not None),
        named_tokens={f"{name}_token": file.tokens[token] for name, token in named.items() if token is not None},
        chat_template=file.text("tokenizer.chat_template") if "tokenizer.chat_template" in data.metadata else None,
    )


class _Metadata:
    """Typed access to the keys of a tokenizer."""

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._metadata = metadata
        self.architecture = self.text("general.architecture")
        self.tokens: list[str] = self.array("tokenizer.ggml.tokens", str)
        self.types: list[int] = (
            self.array("tokenizer.ggml.token_type", int)
            if "tokenizer.ggml.token_type" in metadata
            else [TokenType.NORMAL] * len(self.tokens)
        )
        if not self.tokens or len(self.types) != len(self.tokens):
            raise CheckpointError(f"tokenizer.ggml has {len(self.tokens)} tokens and {len(self.types)} token types")
        if len(set(self.tokens)) != len(self.tokens):
            raise CheckpointError("tokenizer.ggml.tokens names a token twice")

    def text(self, key: str) -> str:
        value = self._metadata.get(key)
        if not isinstance(value, str):
            raise CheckpointError(f"{key} is {'missing' if value is None else 'not text'}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{key} is not true or false")
        return value

    def array(self, key: str, kind: type) -> list[Any]:
        value = self._metadata.get(key)
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise CheckpointError(f"{key} is {'missing' if value is None else f'not an array of {kind.__name__}'}")
        return value

    def token(self, name: str) -> int | None:
        """The id under `tokenizer.ggml.<name>_token_id`, if there is one."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self._metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise CheckpointError(f"{key} is {label(value)}, which is no token of {len(self.tokens)}")
        return value

    def of_type(self, *kinds: TokenType) -> Iterator[int]:
        return (token for token, kind in enumerate(self.types) if kind in kinds)

    def refuse(self, *keys: str) -> None:
        for key in keys:
            if self._metadata.get(key):
                raise CheckpointError(f"{key} is not supported")


def _byte_level(file: _Metadata) -> tuple[Backend, bool]:
    """Byte-level BPE, and whether it begins a text with the beginning-of-sequence token by default."""
    name = file.text("tokenizer.ggml.pre")
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
    """SentencePiece's BPE with scores, as merges; likewise."""
    file.refuse("tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap")
    gemma = file.architecture.startswith("gemma")
    # Gemma's files spell its tokens for runs of spaces with spaces; merging forms them from marks like any other.
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
    space_prefix = file.flag("tokenizer.ggml.add_space_prefix", not gemma)
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
