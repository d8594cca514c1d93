"""Text to tokens and back, over the tokenizers package.

It owns the rules that the package leaves to its caller: which special tokens a text may contain, and the exact bytes of
each token. It knows nothing of templates, or of how tokens reach a client.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from model.checkpoint.tokenizer_data import GgufTokenizer, TokenizerData
from service.text.fewest_tokens import FewestTokens
from service.text.gguf_vocabulary import gguf_vocabulary
from service.text.huggingface_vocabulary import huggingface_vocabulary
from service.text.spans import Span, ends_of, joined
from service.text.spelling import WORD_MARK, spelling_of
from service.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class InvalidTextError(ValueError):
    """The text is no Unicode text: it holds lone surrogates."""


def load_tokenizer(data: TokenizerData) -> "VocabularyTokenizer":
    """Build a checkpoint's tokenizer. Raises CheckpointError if it is broken or of an unsupported kind."""
    if isinstance(data, GgufTokenizer):
        return VocabularyTokenizer(gguf_vocabulary(data))
    return VocabularyTokenizer(huggingface_vocabulary(data))


class VocabularyTokenizer:
    """The `Tokenizer` of one model's vocabulary. Immutable once built, so threads may share it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._backend = vocabulary.backend
        self._prefix_ids = list(vocabulary.prefix_ids)
        self._suffix_ids = list(vocabulary.suffix_ids)
        self.bos_token_id = vocabulary.bos_token_id
        self.eos_token_ids = vocabulary.eos_token_ids
        if not self.eos_token_ids:
            logger.warning("the model's files name no token that ends a completion: each runs to its full length")
        self.tokenizer_class = vocabulary.tokenizer_class
        self.named_tokens = vocabulary.named_tokens
        self.chat_template = vocabulary.chat_template
        self.vocab_size: int = 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)

        self._added = self._backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token for token, added in self._added.items() if added.special)
        self.special_texts = frozenset(self._added[token].content for token in self._special_ids) - {""}
        self._special_beginnings = frozenset(
            text[:length] for text in self.special_texts for length in range(1, len(text))
        )
        self._longest_beginning = max(map(len, self._special_beginnings), default=0)
        # It would add special tokens, which is done here, and leave white space out of the places of tokens.
        self._backend.post_processor = None
        # Special tokens are found by the matcher, and only where the caller wants them; never by the backend itself.
        self._backend.encode_special_tokens = True
        self._matched_ids, self._matcher = _matcher(self._backend)
        self._prepends_first = _take_over_first_prefix(self._backend)

        self._spelling = spelling_of(self._backend)
        # If the decoder drops a leading space that the encoder did not put there, that space belongs to the text.
        self._drops_leading_space = self._spelling.leading_space and (
            self._prepends_first or _prepends_always(self._backend)
        )
        self.fewest_tokens = FewestTokens(self._backend)
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool, most: int | None = None) -> list[int]:
        self.fewest_tokens.check(text, most)
        ids = self.encode_pieces(self.split(text, parse_special=parse_special))
        return [*self._prefix_ids, *ids, *self._suffix_ids] if add_special_tokens else ids

    def locate(self, text: str, *, add_special_tokens: bool, parse_special: bool) -> tuple[list[int], list[Span]]:
        cut = list(self._cut(text, parse_special))
        pieces = self._with_first_space([piece for piece, _, _ in cut])
        spaced = bool(cut) and pieces[0] != cut[0][0]
        texts = [piece for piece in pieces if isinstance(piece, str)]
        encoded = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        ids: list[int] = []
        ends: list[int] = []
        for piece, start, stop in cut:
            if isinstance(piece, int):
                ids.append(piece)
                ends.append(stop)
            else:
                found = next(encoded)
                ids += found.ids
                ends += ends_of(found.offsets, start, int(spaced and start == 0))
        spans = joined(ends, len(text))
        if not add_special_tokens:
            return ids, spans
        before, after = [(0, 0)] * len(self._prefix_ids), [(len(text), len(text))] * len(self._suffix_ids)
        return [*self._prefix_ids, *ids, *self._suffix_ids], [*before, *spans, *after]

    def split(self, text: str, *, parse_special: bool = True) -> Iterator[str | int]:
        """The added tokens in a text, as ids, and the texts between them. Raises InvalidTextError."""
        for piece, _, _ in self._cut(text, parse_special):
            yield piece

    def _cut(self, text: str, parse_special: bool) -> Iterator[tuple[str | int, int, int]]:
        """The pieces of `split`, with the places where each begins and ends."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidTextError("the text holds lone surrogates, which are not Unicode characters") from None
        [found] = self._matcher.encode_batch([text], add_special_tokens=False)
        end = 0
        for index, (start, stop) in zip(found.ids, found.offsets, strict=True):
            token = self._matched_ids[index]
            if token in self._special_ids and not parse_special:
                continue
            if start > end:
                yield text[end:start], end, start
            yield token, start, stop
            end = stop
        if end < len(text):
            yield text[end:], end, len(text)

    def encode_pieces(self, pieces: Iterable[str | int]) -> list[int]:
        """The tokens of a text that `split` has cut; special tokens written out in its texts are plain text."""
        pieces = self._with_first_space(list(pieces))
        texts = [piece for piece in pieces if isinstance(piece, str)]
        # A batch, even of one text, is encoded without holding the interpreter's lock.
        encoded = iter(self._backend.encode_batch_fast(texts, add_special_tokens=False))
        ids: list[int] = []
        for piece in pieces:
            ids += next(encoded).ids if isinstance(piece, str) else [piece]
        return ids

    def _with_first_space(self, pieces: list[str | int]) -> list[str | int]:
        """The pieces of a text with the space that the model expects before it."""
        first = pieces[0] if pieces else 0
        if not self._prepends_first or isinstance(first, int) or first.startswith((" ", WORD_MARK)):
            return pieces
        return [f" {first}", *pieces[1:]]

    def may_spell_special(self, text: str) -> bool:
        """Whether a text spells out a special token, or ends in the beginning of one that other text could complete.

        White space at the text's end does not count, because templates remove it. Raises InvalidTextError.
        """
        end = text.rstrip()
        return any(
            end[-length:] in self._special_beginnings for length in range(1, min(len(end), self._longest_beginning) + 1)
        ) or self.spells_special(text)

    def spells_special(self, text: str) -> bool:
        return any(piece in self._special_ids for piece in self.split(text))

    def token_bytes(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def is_special(self, token: int) -> bool:
        return token in self._special_ids

    def special_text(self, token: int) -> str | None:
        return self._added[token].content if token in self._special_ids else None

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True, continuation: bool = False) -> str:
        skipped = self._special_ids if skip_special_tokens else frozenset()
        data = b"".join(self.token_bytes(token) for token in tokens if token not in skipped)
        text = data.decode(errors="replace")
        return text.removeprefix(" ") if self._drops_leading_space and not continuation else text

    def _spell(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return self._spelling.added(added.content)
        spelt: str | None = self._backend.id_to_token(token)
        return b"" if spelt is None else self._spelling.token(spelt)


def _matcher(backend: Backend) -> tuple[list[int], Backend]:
    """A backend that knows only the added tokens of another backend, so that encoding finds just them.

    The list maps the matcher's ids to the other's. Added tokens that match normalised text are left out, unless they
    are special.
    """
    added = {
        token: text
        for token, text in sorted(backend.get_added_tokens_decoder().items())
        if text.content and (text.special or not text.normalized)
    }
    matcher = Backend(BPE(cache_capacity=0))
    matcher.add_tokens(list(added.values()))
    return list(added), matcher


def _take_over_first_prefix(backend: Backend) -> bool:
    """Whether a space goes before the start of a text, but not after its special tokens; the backend stops adding it.

    The backend could not tell the start of a text from the start of a piece.
    """
    if backend.pre_tokenizer is None:
        return False
    state = json.loads(backend.pre_tokenizer.__getstate__())
    if state["type"] != "Metaspace" or state["prepend_scheme"] != "first":
        return False
    backend.pre_tokenizer.prepend_scheme = "never"
    return True


def _prepends_always(backend: Backend) -> bool:
    """Whether encoding puts a space before a text."""
    first = backend.encode("a", add_special_tokens=False).tokens[:1]
    return bool(first) and first[0].startswith(WORD_MARK)
