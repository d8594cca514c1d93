"""Reads the tokenizer of a Hugging Face folder: tokenizer.json, and the changes that tokenizer_config.json makes to it.

As in transformers (5), add_bos_token and add_eos_token change nothing: the post-processor in tokenizer.json decides.
"""

from collections.abc import Iterable, Iterator, Mapping

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import Metaspace

from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.tokenizer_data import HuggingFaceTokenizer
from service.text.markers import END_TEXTS, is_bracketed, is_content, is_marker, template_markers
from service.text.vocabulary import Vocabulary

_ID_BOUND = 1 << 32
"""Bound of the package's ids, which have 32 bits. A vocabulary may have gaps, so its size is no bound."""


def huggingface_vocabulary(data: HuggingFaceTokenizer) -> Vocabulary:
    """The vocabulary of a folder's tokenizer files. Raises CheckpointError."""
    backend = _backend(data.tokenizer_json)
    named = dict(_named_tokens(data.config))
    _add_configured_tokens(backend, data.config)
    _add_special_tokens(backend, [*named.values(), *_extra_tokens(data.config)])
    if _is_rebuilt_llama(backend, data):
        _set_llama_prefix(backend, data.config)
    bos, eos = (backend.token_to_id(named[name]) if name in named else None for name in ("bos_token", "eos_token"))
    written = template_markers(data.chat_template, named)
    known_ends = (backend.token_to_id(text) for text in sorted(written & END_TEXTS))
    ends = frozenset(token for token in (*data.eos_token_ids, eos, *known_ends) if token is not None)
    structure = [named[name] for name in ("bos_token", "unk_token", "pad_token") if is_marker(named.get(name, ""))]
    structure += [*_markers_of(backend, ends), *(text for text in sorted(written) if not is_content(text))]
    _make_special(backend, structure)
    prefix_ids, suffix_ids = _frame(backend)
    kind = data.config.get("tokenizer_class")
    return Vocabulary(
        **({"tokenizer_class": kind} if isinstance(kind, str) else {}),
        backend=backend,
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
        bos_token_id=bos,
        eos_token_ids=ends,
        named_tokens=named,
        chat_template=data.chat_template,
    )


def _backend(tokenizer_json: bytes) -> Backend:
    try:
        backend = Backend.from_buffer(tokenizer_json)
    except Exception as error:  # The package raises bare exceptions.
        raise CheckpointError(f"tokenizer.json cannot be read: {label(str(error))}") from None
    backend.no_truncation()
    backend.no_padding()
    return backend


def _named_tokens(config: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Names and texts of bos_token, eos_token, ...: each is a string, or an object with its text as `content`."""
    for name, value in config.items():
        if name.endswith("_token"):
            match value:
                case str(text) | {"content": str(text)}:
                    yield name, text


def _extra_tokens(config: Mapping[str, object]) -> Iterator[str]:
    for name in ("additional_special_tokens", "extra_special_tokens"):
        match config.get(name):
            case [*tokens]:
                for token in tokens:
                    match token:
                        case str(text) | {"content": str(text)}:
                            yield text


def _add_configured_tokens(backend: Backend, config: Mapping[str, object]) -> None:
    """Add the tokens that tokenizer_config.json lists and an older tokenizer.json lacks."""
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise CheckpointError("tokenizer_config.json: added_tokens_decoder is no object")
    try:
        tokens = {int(number): AddedToken(**spec) for number, spec in listed.items()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"tokenizer_config.json: added_tokens_decoder: {label(str(error))}") from None
    for number, token in sorted(tokens.items()):
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != number:
            raise CheckpointError(
                f"tokenizer_config.json gives {label(token.content)} the id {number}, against tokenizer.json"
            )


def _add_special_tokens(backend: Backend, texts: list[str]) -> None:
    """Make tokens of the vocabulary special; others are left out, because the model has no embedding for them."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    known = [text for text in texts if text not in added and backend.token_to_id(text) is not None]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in known])


def _markers_of(backend: Backend, ends: Iterable[int]) -> Iterator[str]:
    """The texts of end tokens, except ordinary words that happen to end a completion."""
    for token in sorted(ends):
        text = backend.id_to_token(token) if 0 <= token < _ID_BOUND else None
        if text is not None and is_marker(text):
            yield text


def _make_special(backend: Backend, texts: Iterable[str]) -> None:
    """Make markers special that the files list as ordinary tokens, or as tokens added as ordinary text."""
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for text in texts:
        token = added.get(text)
        ordinary = token is None and is_bracketed(text)
        if backend.token_to_id(text) is not None and not ordinary and (token is None or not token.special):
            around = {} if token is None else {"lstrip": token.lstrip, "rstrip": token.rstrip}
            backend.add_special_tokens([AddedToken(text, special=True, normalized=False, **around)])


def _is_rebuilt_llama(backend: Backend, data: HuggingFaceTokenizer) -> bool:
    """Whether transformers (5) replaces the prefix rules of tokenizer.json by those of its LlamaTokenizer."""
    named = str(data.config.get("tokenizer_class", "")).removesuffix("Fast") == "LlamaTokenizer"
    byte_level = backend.decoder is not None and b'"ByteLevel"' in backend.decoder.__getstate__()
    return data.model_type == "llama" and named and not byte_level


def _set_llama_prefix(backend: Backend, config: Mapping[str, object]) -> None:
    """Put a space before the text; in the legacy form, after each special token too."""
    scheme = "always" if config.get("legacy") else "first"
    backend.normalizer = None
    backend.pre_tokenizer = Metaspace(
        prepend_scheme="never" if config.get("add_prefix_space") is False else scheme, split=False
    )


def _frame(backend: Backend) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the post-processor puts before and after a text."""
    plain = backend.encode("a", add_special_tokens=False).ids
    framed = backend.encode("a").ids
    for start in range(len(framed) - len(plain) + 1):
        if plain and framed[start : start + len(plain)] == plain:
            return tuple(framed[:start]), tuple(framed[start + len(plain) :])
    raise CheckpointError("tokenizer.json: the post-processor does more than frame a text, which is not supported")
