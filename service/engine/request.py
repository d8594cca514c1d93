"""One request as the engine sees it: what is known of it, what is computed, and which blocks hold that.

Knows nothing of the queue it stands in, of how blocks are found, or of text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from model.contract import Draw, SamplingParams
from service.engine.messages import RequestTimes


@dataclass(slots=True, eq=False)
class Request:
    """A prompt that grows by one token a draw.

    The known tokens are the prompt and the output. Behind them come those whose draws are in flight: promised, but
    not known on this side yet. The first `computed` tokens of all have their keys and values in `blocks`, or will have
    once the steps in flight have run. Being behind is all there is to prefill, to decoding and to recomputation.
    """

    id: int
    prompt: Sequence[int]
    params: SamplingParams
    cache_salt: str = ""
    caller: str = ""
    patience: float | None = None
    """Seconds that it may wait for its first step."""
    arrival: int = 0
    """Which of the scheduler's requests it is, in the order in which they were added."""
    output: list[int] = field(default_factory=list)
    promised: int = 0
    """Tokens whose draws are in flight."""
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    chain: list[bytes] = field(default_factory=list)
    """The keys of the leading full blocks, as far as anybody asked for them; the pool appends."""
    published: int = 0
    """How many leading blocks were found in the prefix cache or offered to it."""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache when first admitted; None before that."""
    counted: int = 0
    """How far into the prompt the statistics have got; recomputation does not count again."""
    submitted: float = 0.0
    """This and the three below are moments, in seconds on the engine's clock."""
    planned: float | None = None
    """Its first step was planned."""
    first_drawn: float | None = None
    last_drawn: float | None = None
    ended: bool = False
    """Its last delta is made. What steps in flight still compute for it is dropped."""
    row: int = 0
    """Its place among those that run, while it owns blocks."""
    fresh: bool = True
    """It has drawn nothing since it has that place."""

    @property
    def known(self) -> int:
        """Tokens in prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def drawn(self) -> int:
        """Tokens of the output, promised ones included."""
        return len(self.output) + self.promised

    @property
    def length(self) -> int:
        """Tokens to compute: known and promised ones, but for the last that `max_tokens` allows: nothing follows it."""
        return len(self.prompt) + min(self.drawn, self.params.max_tokens - 1)

    @property
    def behind(self) -> int:
        """Tokens that are not computed yet; 1 while decoding, 0 once the last is promised."""
        return self.length - self.computed

    @property
    def times(self) -> RequestTimes:
        """How long it has been where."""
        return RequestTimes(
            _between(self.submitted, self.planned),
            _between(self.planned, self.first_drawn),
            _between(self.first_drawn, self.last_drawn),
        )

    def draw(self) -> Draw:
        """The draw of the token that follows all others. It refers to `prompt` and `output` and copies neither."""
        return Draw(self.params, self.prompt, self.output, self.drawn, self.row, self.fresh)

    def tokens(self, start: int, stop: int) -> Sequence[int]:
        """The known tokens at positions start to stop - 1."""
        boundary = len(self.prompt)
        if start >= boundary:
            return self.output[start - boundary : stop - boundary]
        if stop <= boundary:
            return self.prompt[start:stop]
        return [*self.prompt[start:], *self.output[: stop - boundary]]


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
