"""Grammars of requests: compiled in threads beside the engine's loop, and kept.

It knows the bytes of tokens and the package llguidance; it does not know the queue, the model, or HTTP.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

from service.engine.closings import WATCHED
from service.engine.grammar_places import Compiled, Masks, Place
from service.engine.grammar_source import compiled
from service.engine.grammar_tokens import GrammarTokens, Vocabulary
from service.engine.grammar_trial import Trial
from service.engine.guides import Guide, Movers
from service.engine.messages import Grammar

COMPILE_SECONDS = 10.0
"""Time that a request's grammar may take to compile, the wait for other requests' grammars included."""

_COMPILERS = 2
_MOST_KEPT = 512
"""Compiled grammars that are kept, the ones waiting to be compiled included."""
_MOST_KEPT_SECONDS = 5.0
"""Seconds in which all kept grammars were compiled. Memory goes with time: a second makes about 100 MB."""


class Grammars:
    """Compiles grammars for one vocabulary, and keeps the latest.

    A grammar is compiled here only after a trial in another process, which has limits of time and memory.
    """

    def __init__(self, read_vocabulary: Callable[[], Vocabulary], width: int) -> None:
        """`read_vocabulary` is called in a thread, once there is a grammar.

        `width` is the number of tokens in a mask, that of the logits.
        """
        self._compilers = ThreadPoolExecutor(_COMPILERS, "grammar")
        self._movers = Movers(width)
        self._trial = Trial()
        self._read_tokens = lambda: GrammarTokens(read_vocabulary(), width)
        self._kept: OrderedDict[tuple[str, str], Future[Place]] = OrderedDict()

    @cached_property
    def _tokens(self) -> "Future[GrammarTokens]":
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
        return Guide(grammar.field, start, self._movers)

    def begin_moves(self) -> None:
        """Have threads make the masks of the draws that follow the newest ones."""
        self._movers.begin()


def _result(start: "Future[Place]") -> Compiled | None:
    """The grammar that a thread has compiled; None if it is not done, or has failed."""
    succeeded = start.done() and not start.cancelled() and start.exception() is None
    return start.result().grammar if succeeded else None


def _seconds(start: "Future[Place]") -> float:
    grammar = _result(start)
    return 0.0 if grammar is None else grammar.seconds


def _worn(start: "Future[Place]") -> bool:
    grammar = _result(start)
    return grammar is not None and grammar.worn


def _compile(grammar: Grammar, tokens: "Future[GrammarTokens]", trial: Trial) -> Place:
    """The beginning of a grammar. Raises GrammarError."""
    source = trial(grammar)
    began = time.monotonic()
    matcher = compiled(source, tokens.result().tokenizer)
    mask = Masks(tokens.result().width).read(matcher)
    made = Compiled(source, tokens.result(), time.monotonic() - began)
    # Requests that begin here need not look for one, each for itself and while others wait for their masks.
    closing = made.tokens.closings.find(matcher.deep_copy(), WATCHED)
    return Place(made, matcher, mask, beginning=True, closing=closing)
