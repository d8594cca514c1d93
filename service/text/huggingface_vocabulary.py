"""Reads the tokenizer of a Hugging Face folder: tokenizer.json, and what tokenizer_config.json changes about it.

As in transformers (5), add_bos_token and add_eos_token change nothing: the post-processor in tokenizer.json decides.
"""

from collections.abc import Iterator, Mapping

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import Metaspace

from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.tokenizer_data import HuggingFaceTokenizer
from service.text.vocabulary import Vocabulary


def huggingface_vocabulary(data: HuggingFaceTokenizer) -> Vocabulary:
    """Raises CheckpointError."""
    backend = _backend(data.tokenizer_json)
    named = dict(_named_tokens(data.config))
    _add_configured_tokens(backend, data.config)
    _add_special_tokens(backend, [*named.values(), *_extra_tokens(data.config)])
    if _is_rebuilt_llama(backend, data):
        _set_llama_prefix(backend, data.config)
    bos, eos = (backend.token_to_id(named[name]) if name in named else None for name in ("bos_token", "eos_token"))
    prefix_ids, suffix_ids = _frame(backend)
    return Vocabulary(
        backend=backend,
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
        bos_token_id=bos,
        eos_token_ids=frozenset(data.eos_token_ids if eos is None else (*data.eos_token_ids, eos)),
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
    """bos_token, eos_token, ...: each a string, or an object with its text as `content`."""
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
    """The tokens that tokenizer_config.json lists and an older tokenizer.json lacks."""
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
    """Make tokens of the vocabulary special; the model has no embedding for any that are not in it."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    known = [text for text in texts if text not in added and backend.token_to_id(text) is not None]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in known])


def _is_rebuilt_llama(backend: Backend, data: HuggingFaceTokenizer) -> bool:
    """Whether transformers (5) replaces the prefix rules of tokenizer.json by those of its LlamaTokenizer."""
    named = str(data.config.get("tokenizer_class", "")).removesuffix("Fast") == "LlamaTokenizer"
    byte_level = backend.decoder is not None and b'"ByteLevel"' in backend.decoder.__getstate__()
    return data.model_type == "llama" and named and not byte_level


def _set_llama_prefix(backend: Backend, config: Mapping[str, object]) -> None:
    """A space before the text; in the legacy form, after each special token too."""
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
