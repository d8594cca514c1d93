"""Beam search: the likeliest completions of a prompt, by a search that keeps a number of beams at every length.

A beam is a request of its own, whose tokens are not drawn but told. All beams of a search wait for each other before
the next token. Nothing here knows of blocks.

Source: the search of transformers (`GenerationMixin._beam_search`), whose results these are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from model.token_logprobs import TokenLogprobs
from service.engine.messages import Beam, BeamSearch
from service.engine.request import Request


@dataclass(frozen=True, slots=True)
class Candidate:
    """A beam with one more token."""

    parent: Request
    token: int
    score: float
    """The sum of the log-probabilities of all its tokens."""
    entry: TokenLogprobs
    """The new token's own."""


@dataclass(slots=True, eq=False)
class Beams:
    """One search: the requests that are its beams, and the completions that have ended."""

    search: BeamSearch
    requests: list[Request] = field(default_factory=list)
    """The beams, the likeliest first."""
    scores: dict[Request, float] = field(default_factory=dict)
    """The sum of the log-probabilities of each beam's tokens."""
    entries: dict[Request, list[TokenLogprobs]] = field(default_factory=dict)
    """Log-probabilities of each beam's tokens."""
    landed: dict[Request, TokenLogprobs] = field(default_factory=dict)
    """The likeliest next tokens of the beams that have been computed since the last token was chosen."""
    finished: list[Beam] = field(default_factory=list)
    """The best completions that have ended, the best first."""

    def begin(self, request: Request) -> None:
        """Begin the search with its only beam, the client's own request."""
        self._keep([request], [0.0], [[]])

    @property
    def complete(self) -> bool:
        """Whether every beam has been computed, so that the next token can be chosen."""
        return len(self.landed) == len(self.requests)

    def advance(self) -> list[Candidate]:
        """The beams that go on, the likeliest first; none if the search has ended. All beams must have landed."""
        ranked = self._ranked()
        params = self.requests[0].params
        length = len(self.requests[0].output) + 1
        cut = length >= params.max_tokens
        stops = frozenset(params.stop_token_ids)
        for candidate in ranked[: self.search.width]:
            if cut or candidate.token in stops:
                self._finish(candidate, length, candidate.token in stops)
        if cut:
            return []
        going = [candidate for candidate in ranked if candidate.token not in stops][: self.search.width]
        return going if going and self._may_improve(going[0].score, length, params.max_tokens) else []

    def adopt(self, requests: list[Request], going: Sequence[Candidate]) -> None:
        """Go on with these requests, each as the beam of its candidate."""
        scores = [candidate.score for candidate in going]
        self._keep(requests, scores, [[*self.entries[candidate.parent], candidate.entry] for candidate in going])

    def _keep(self, requests: list[Request], scores: list[float], entries: list[list[TokenLogprobs]]) -> None:
        self.requests = requests
        self.scores = dict(zip(requests, scores, strict=True))
        self.entries = dict(zip(requests, entries, strict=True))
        self.landed = {}

    def _ranked(self) -> list[Candidate]:
        """All known continuations of all beams, the likeliest first; of equal ones that of the earlier beam."""
        return sorted(
            (
                Candidate(
                    request, token, self.scores[request] + logprob, replace(entry, chosen=logprob, rank=1 + place)
                )
                for request in self.requests
                for entry in [self.landed[request]]
                for place, (token, logprob) in enumerate(zip(entry.top_tokens, entry.top_logprobs, strict=True))
            ),
            key=lambda candidate: -candidate.score,
        )

    def _finish(self, candidate: Candidate, length: int, stopped: bool) -> None:
        beam = Beam(
            tokens=[*candidate.parent.output, candidate.token],
            logprobs=self._reported([*self.entries[candidate.parent], candidate.entry]),
            score=self._penalised(candidate.score, length),
            finish_reason="stop" if stopped else "length",
        )
        self.finished = sorted([*self.finished, beam], key=lambda each: -each.score)[: self.search.width]

    def _reported(self, entries: list[TokenLogprobs]) -> list[TokenLogprobs] | None:
        """Log-probabilities with as many likeliest tokens beside each as were asked for."""
        most = self.search.logprobs
        if most is None:
            return None
        return [
            replace(entry, top_tokens=entry.top_tokens[:most], top_logprobs=entry.top_logprobs[:most])
            for entry in entries
        ]

    def _may_improve(self, best: float, length: int, max_tokens: int) -> bool:
        """Whether the search goes on, where `best` is the score of its likeliest beam, of `length` tokens."""
        if len(self.finished) < self.search.width:
            return True
        if self.search.early_stopping is True:
            return False
        hoped = max_tokens if self.search.early_stopping == "never" and self.search.length_penalty > 0 else length
        return self._penalised(best, hoped) > self.finished[-1].score

    def _penalised(self, score: float, length: int) -> float:
        return float(score / length**self.search.length_penalty)
