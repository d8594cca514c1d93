"""Grammars of requests: compiled, and followed token by token, in threads beside the engine's loop.

It knows the bytes of tokens and the package llguidance; it does not know the queue, the model, or HTTP.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ALL_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from service.engine.closings import WATCHED, Closings, closing_after
from service.engine.grammar_source import GrammarError, check, compiled, mask_of
from service.engine.grammar_trial import Trial
from service.engine.messages import Grammar

COMPILE_SECONDS = 10.0
"""Time that a request's grammar may take to compile, the wait for other requests' grammars included."""

_COMPILERS = 2
_MOST_KEPT = 512
"""Compiled grammars that are kept, the ones waiting to be compiled included."""
_MOST_KEPT_SECONDS = 5.0
"""Seconds in which all kept grammars were compiled. Memory goes with time: a second makes about 100 MB."""


class Vocabulary(Protocol):
    """The tokens of a model, as a tokenizer knows them."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> Collection[int]: ...

    def token_bytes(self, token: int) -> bytes: ...

    def is_special(self, token: int) -> bool: ...

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool) -> list[int]: ...


@dataclass(slots=True)
class _Compiled:
    """A grammar in llguidance's form, for the tokens of a tokenizer."""

    source: str
    tokens: "_Tokens"
    seconds: float
    """Time in which it was compiled."""
    worn: bool = False
    """Whether its matchers cannot go on. All copies of a matcher fill one table of states, which is bounded."""


@dataclass(frozen=True, slots=True)
class _State:
    """A place in a grammar, and the mask of the tokens that may come next."""

    grammar: _Compiled
    matcher: LLMatcher
    mask: bytes
    beginning: bool = False
    """Whether other requests begin here, so that the matcher must be copied before it moves on."""
    alone: bool = False
    """Whether the matcher has a table of states of its own."""
    closing: Sequence[int] | None = None
    """A closing from here, once so few tokens are left that one is needed."""
    approved: tuple[int, Sequence[int]] | None = None
    """A token that may come next, and the closing after it."""
    open: bool = False
    """Whether no closing was found when one was first needed, so that the text may be cut."""


class Guide:
    """The place of one request in its grammar.

    Compilation and masks are made in threads; nothing here but `mask` waits for them.
    """

    def __init__(self, field: str, start: "Future[_State]", pool: Executor) -> None:
        """`field` is the one of `Grammar`."""
        self.field = field
        self._state = start
        self._pool = pool
        self._drawn: list[int] = []
        self._closing: Sequence[int] | None = None
        """The closing behind the newest token, if it is known."""
        self._left: int | None = None
        """Number of tokens that may follow the newest one, if they are few enough for the closing to matter."""

    @property
    def pending(self) -> "Future[_State]":
        """The newest work in the threads."""
        return self._state

    @property
    def ready(self) -> bool:
        """Whether the mask of the next draw is ready."""
        return self._state.done() and self.failure is None

    @property
    def failure(self) -> Exception | None:
        """The reason why there will be no mask: a GrammarError, or a bug."""
        if not self._state.done():
            return None
        try:
            error = self._state.exception()
        except CancelledError:
            return GrammarError("the server has too many grammars to compile")
        if error is None or isinstance(error, Exception):
            return error
        return GrammarError("the grammar cannot be followed")  # A panic of the package is no Exception.

    @property
    def mask(self) -> bytes:
        """The tokens that the next draw may give, as in `Draw.allowed`. Raises as `failure` says."""
        return self._state.result().mask

    def keeps(self, token: int, left: int) -> bool:
        """Whether a drawn token stays: the text can be ended within `left` more tokens, or could not be before either.

        If it does not stay, it is to be drawn again: a thread finds out whether the text can be ended after it. If not,
        the next draw gives the token that leads to the end instead.
        """
        state = self._state.result()
        self._closing, self._left = None, None
        if left >= WATCHED or state.open or token in state.grammar.tokens.ends:
            return True
        if state.approved is not None and state.approved[0] == token:
            self._closing = state.approved[1]
        elif state.closing is not None:
            self._closing = closing_after(state.matcher.deep_copy(), token, state.closing, left)
        self._left = left
        if self._closing is None:
            self._state = self._pool.submit(_weigh, state, token, left)
        return self._closing is not None

    def advance(self, tokens: Sequence[int]) -> None:
        """Move on by drawn tokens, and begin the mask of the draw after them."""
        self._drawn += tokens
        self._state = self._pool.submit(_advance, self._state.result(), tokens, self._drawn, self._closing, self._left)


class Grammars:
    """Compiles grammars for one vocabulary, and keeps the latest.

    A grammar is compiled here only after a trial in another process, which has limits of time and memory.
    """

    def __init__(self, read_vocabulary: Callable[[], Vocabulary], width: int) -> None:
        """`read_vocabulary` is called in a thread, once there is a grammar.

        `width` is the number of tokens in a mask, that of the logits.
        """
        self._compilers = ThreadPoolExecutor(_COMPILERS, "grammar")
        self._maskers = ThreadPoolExecutor(os.cpu_count(), "mask")
        self._trial = Trial()
        self._read_tokens = lambda: _Tokens(read_vocabulary(), width)
        self._kept: OrderedDict[tuple[str, str], Future[_State]] = OrderedDict()

    @cached_property
    def _tokens(self) -> "Future[_Tokens]":
        """The vocabulary, which takes tens of megabytes: most engines never see a grammar, and never read it."""
        return self._compilers.submit(self._read_tokens)

    def guide(self, grammar: Grammar) -> Guide:
        """The beginning of a grammar, which is compiled in a thread unless it is known."""
        key = grammar.kind, grammar.source
        if key not in self._kept or _worn(self._kept[key]):
            self._kept[key] = self._compilers.submit(_compile, grammar, self._tokens, self._trial)
        self._kept.move_to_end(key)
        start = self._kept[key]
        while len(self._kept) > _MOST_KEPT or sum(map(_seconds, self._kept.values())) > _MOST_KEPT_SECONDS:
            _, oldest = self._kept.popitem(last=False)
            oldest.cancel()
        return Guide(grammar.field, start, self._maskers)


def _result(start: "Future[_State]") -> _Compiled | None:
    """The grammar that a thread has compiled; None if it is not done, or has failed."""
    succeeded = start.done() and not start.cancelled() and start.exception() is None
    return start.result().grammar if succeeded else None


def _seconds(start: "Future[_State]") -> float:
    grammar = _result(start)
    return 0.0 if grammar is None else grammar.seconds


def _worn(start: "Future[_State]") -> bool:
    grammar = _result(start)
    return grammar is not None and grammar.worn


def wait_for_masks(guides: Sequence[Guide], seconds: float, which: str = ALL_COMPLETED) -> None:
    """Wait until the threads have done what they do for these guides, all or the first of it, for at most `seconds`."""
    pending = [guide.pending for guide in guides if not guide.pending.done()]
    if pending:
        wait(pending, timeout=seconds, return_when=which)


def _mask_of(tokens: Sequence[int], size: int) -> bytes:
    """The mask, of `size` bytes, of a few tokens."""
    mask = bytearray(size)
    for token in tokens:
        mask[token // 8] |= 1 << token % 8
    return bytes(mask)


def _ends(vocabulary: Vocabulary, width: int) -> list[int]:
    ends = sorted(token for token in vocabulary.eos_token_ids if token < width)
    if not ends:
        raise GrammarError("the model has no token that ends a completion")
    return ends


class _Tokens:
    """A vocabulary in the form that the package asks for, cut or padded to the width of the logits."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        self.tokens = [vocabulary.token_bytes(token) for token in range(width)]
        self.special_token_ids = [token for token in range(width) if vocabulary.is_special(token)]
        self.ends = _ends(vocabulary, width)
        self.eos_token_id = self.ends[0]
        self._vocabulary = vocabulary
        self._longest = max(map(len, self.tokens))
        self._ids = {spelt: token for token, spelt in enumerate(self.tokens) if not vocabulary.is_special(token)}
        self.closings = Closings(self.tokens, self.ends)
        self.tokenizer = LLTokenizer(TokenizerWrapper(self), n_vocab=width, eos_token=self.ends)

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of text that a grammar leaves no choice about; they spell exactly this text."""
        if isinstance(text, bytes):
            raise TypeError("text is a string")  # The package asks by trying.
        spelt = text.encode()
        tokens = self._vocabulary.encode(text, add_special_tokens=False, parse_special=False)
        # A tokenizer may put a space before a text.
        known = all(token < len(self.tokens) for token in tokens)
        return tokens if known and b"".join(map(self.tokens.__getitem__, tokens)) == spelt else self._greedy(spelt)

    def _greedy(self, spelt: bytes) -> list[int]:
        """The longest token at each place; text that no token begins ends the list."""
        tokens: list[int] = []
        start = 0
        while start < len(spelt):
            stops = range(min(start + self._longest, len(spelt)), start, -1)
            stop = next((stop for stop in stops if spelt[start:stop] in self._ids), None)
            if stop is None:
                break
            tokens.append(self._ids[spelt[start:stop]])
            start = stop
        return tokens


def _compile(grammar: Grammar, tokens: "Future[_Tokens]", trial: Trial) -> _State:
    """The beginning of a grammar. Raises GrammarError."""
    source = trial(grammar)
    began = time.monotonic()
    matcher = compiled(source, tokens.result().tokenizer)
    mask = mask_of(matcher)
    made = _Compiled(source, tokens.result(), time.monotonic() - began)
    return _State(made, matcher, mask, beginning=True)


def _advance(
    state: _State,
    tokens: Sequence[int],
    drawn: Sequence[int],
    closing: Sequence[int] | None,
    left: int | None,
) -> _State:
    """The place after newly drawn `tokens`, the last of all that were `drawn`. Raises GrammarError.

    `closing` leads from there to an end of the text; if it takes all of the `left` tokens, no other one may follow.
    """
    moved = _moved(state, tokens, drawn)
    if closing and len(closing) == left:
        moved = replace(moved, mask=_mask_of(closing[:1], len(moved.mask)))
    return replace(moved, closing=closing, open=state.open)


def _moved(state: _State, tokens: Sequence[int], drawn: Sequence[int]) -> _State:
    try:
        matcher = state.matcher.deep_copy() if state.beginning else state.matcher
        return _State(state.grammar, matcher, _mask_after(matcher, tokens), alone=state.alone)
    except GrammarError:
        if state.alone:
            raise
    # Other requests of the same grammar may have filled the states: only with states of its own is a failure its own.
    state.grammar.worn = True
    matcher = compiled(state.grammar.source, state.grammar.tokens.tokenizer)
    return _State(state.grammar, matcher, _mask_after(matcher, drawn), alone=True)


def _weigh(state: _State, token: int, left: int) -> _State:
    """The same place, when it is known whether the text can be ended within `left` tokens after this one.

    If it cannot, while it could be before, only the token that leads to the end may come next.
    """
    tokens = state.grammar.tokens
    closing = state.closing
    if closing is None:
        closing = tokens.closings.find(state.matcher.deep_copy(), left + 1)
    if closing is None:
        return replace(state, open=True)
    matcher = state.matcher.deep_copy()
    after = closing_after(matcher, token, closing, left)
    if after is None and not matcher.is_error():
        after = tokens.closings.find(matcher, left)
    if after is not None:
        return replace(state, closing=closing, approved=(token, after))
    return replace(state, closing=closing, mask=_mask_of(closing[:1] or tokens.ends, len(state.mask)))


def _mask_after(matcher: LLMatcher, tokens: Sequence[int]) -> bytes:
    """Move a matcher on by drawn tokens; returns the mask of the next draw."""
    for token in tokens:
        matcher.consume_token(token)
        check(matcher)
    return mask_of(matcher)
