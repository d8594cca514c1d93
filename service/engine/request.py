"""One request as the engine sees it: its known tokens, how many of them are computed, and the blocks that hold them.

It does not know the queue it stands in, how blocks are found, or text.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from model.contract import LATE, NOTHING, Draw, Wanted
from model.sampling_params import SamplingParams
from service.engine.guides import Guide
from service.engine.messages import FinishReason, RequestTimes


@dataclass(slots=True, eq=False)
class Request:
    """A prompt that grows by one token a draw.

    The known tokens are the prompt and the output. Behind them come the promised tokens: their draws are in flight, and
    their ids are not known on this side yet. The first `computed` tokens of all have their keys and values in `blocks`,
    or will have once the steps in flight have run. Prefill, decoding and recomputation are the same thing: a request is
    `behind`, and catches up.
    """

    id: int
    prompt: Sequence[int]
    params: SamplingParams
    cache_salt: str = ""
    caller: str = ""
    patience: float | None = None
    """Seconds that the request may wait for its first step; None means without limit."""
    wanted: Wanted = NOTHING
    collected: int = 0
    """Number of leading positions of which everything that is wanted has been reported."""
    search: int | None = None
    """Id of the client's request whose beam search it is a beam of, if it is one."""
    guide: Guide | None = None
    """Its place in its grammar, if it has one."""
    arrival: int = 0
    """Number of the request in the order in which the scheduler got them."""
    output: list[int] = field(default_factory=list)
    promised: int = 0
    """Number of tokens whose draws are in flight, without those that depend on a draft."""
    drafts: Sequence[int] = ()
    """Drafts in flight: guesses of the tokens that follow, whose fate the step in flight decides."""
    reach: int = 4
    """Limit of drafts in its next step: twice as many as the last ones if all were right, else one more than were."""
    computed: int = 0
    blocks: "array[int]" = field(default_factory=lambda: array("i"))
    """Block table, in an array so that tables of steps are made of it without a look at each number."""
    chain: list[bytes] = field(default_factory=list)
    """Keys of the leading full blocks, as many as were needed so far; the pool appends to it."""
    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Position behind the newest occurrence of each run of a few tokens, as far as drafts were looked up."""
    placed: int = 0
    """Number of known tokens whose runs are in `places`."""
    published: int = 0
    """Number of leading blocks that were found in the prefix cache or published to it."""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache at the first admission; None before that."""
    counted: int = 0
    """Prompt tokens that the statistics have counted; recomputation does not count again."""
    submitted: float = 0.0
    """Moment of submission, in seconds on the engine's clock as the moments below."""
    queue: float | None = None
    """Seconds until its first step was planned; None before that."""
    prefill: float | None = None
    """Seconds from there to its first token; None before that."""
    first_drawn: float = 0.0
    """Moment of its first token, once it has one."""
    last_drawn: float = 0.0
    """Moment of its newest token, once it has one."""
    void: bool = False
    """Whether the older of its chunks in flight is to be dropped, together with what it draws (`take_back`)."""
    ended: bool = False
    """Its last delta is made; results of steps in flight for it are dropped."""
    row: int = 0
    """Its row in the runner's sampling state, while it owns blocks."""
    fresh: bool = True
    """Nothing that it needs is in its row: it has drawn nothing since it got that, or a draw was taken back."""
    plain: bool = False
    """Whether it wanted tokens alone when it got its row."""
    turn: int = 0
    """Number of its newest turn to look inside (`inspection_turns.py`)."""
    longest: int = field(init=False)
    """Number of tokens to compute in all: prompt and output without the last output token, which no other follows."""
    wishes: bool = field(init=False)
    """Whether anything is wanted of it beside drawn tokens."""
    inspects: bool = field(init=False)
    """Whether it looks inside."""

    def __post_init__(self) -> None:
        self.longest = len(self.prompt) + max(0, self.params.max_tokens - 1)
        self.wishes = self.wanted.first(len(self.prompt)) is not None
        self.inspects = self.wanted.inspect is not None

    @property
    def addressee(self) -> int:
        """Id of the client's request to which its news are sent."""
        return self.id if self.search is None else self.search

    @property
    def known(self) -> int:
        """Number of tokens in prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def drawn(self) -> int:
        """Number of output tokens, promised ones included."""
        return len(self.output) + self.promised

    @property
    def length(self) -> int:
        """Number of tokens to compute: known and promised ones, except the last that `max_tokens` allows, which no
        token follows.
        """
        length = len(self.prompt) + len(self.output) + self.promised
        return length if length < self.longest else self.longest

    @property
    def reusable(self) -> int:
        """Number of leading tokens whose keys and values may come from the prefix cache instead of being computed.

        At least one token is computed, because the next token's logits come from it, and so is every position of which
        something is still wanted.
        """
        first = self.wanted.first(len(self.prompt))
        return self.known - 1 if first is None else min(self.known - 1, max(first, self.collected))

    @property
    def behind(self) -> int:
        """Number of tokens not computed yet; 1 while decoding, 0 once the last is promised."""
        return self.length - self.computed

    @property
    def awaits_mask(self) -> bool:
        """Whether its next draw cannot be planned yet, because threads still work on its grammar."""
        return self.guide is not None and not self.guide.ready

    @property
    def times(self) -> RequestTimes:
        """Durations of its phases so far."""
        decode = None if self.prefill is None else self.last_drawn - self.first_drawn
        return RequestTimes(self.queue, self.prefill, decode)

    @property
    def wants_tokens_alone(self) -> bool:
        """Whether nothing but its tokens is wanted of it, and nothing but its parameters restricts them."""
        return not self.wishes and self.search is None and self.guide is None and self.params.logprobs is None

    @property
    def decodes_plainly(self) -> bool:
        """Whether its next tokens are drawn one a step with nothing beside them; `behind` is then 1 until the last."""
        return self.plain and not self.fresh and not self.drafts

    def expired(self, now: float) -> bool:
        """Whether it has outlasted its patience; a preempted request has had its first step in time."""
        return self.patience is not None and self.queue is None and now - self.submitted > self.patience

    def begin(self, now: float) -> None:
        """Note that its first step is planned."""
        self.queue = now - self.submitted

    def note_draw(self, now: float) -> None:
        """Note the moment of a token."""
        self.last_drawn = now
        if self.prefill is None:
            self.first_drawn = now
            self.prefill = now - self.submitted - (self.queue or 0.0)

    def take_back(self, start: int) -> None:
        """Have the tokens from position `start` on computed and drawn from again; its chunk in flight becomes void."""
        self.void = self.promised > 0
        self.fresh = True  # The token that was drawn is in its row.
        self.promised = 0
        self.computed = start

    def append(self, token: int) -> FinishReason | None:
        """Append a drawn token to the output; returns the reason if the token ends the request."""
        self.output.append(token)
        if token in self.params.stop_token_ids:
            return "stop"
        return "length" if len(self.output) >= self.params.max_tokens else None

    def draws(self) -> list[Draw]:
        """The draws of the token that follows all others, and of one more behind each draft.

        They refer to `prompt` and `output` and copy neither.
        """
        allowed = None
        if self.guide is not None:
            allowed = LATE if self.promised else self.guide.mask
        asked = self.wanted.inspect if self.wishes else None
        candidates = asked.distribution if asked is not None and asked.generated else None
        first = len(self.output) + self.promised
        return [
            Draw(self.params, self.prompt, self.output, index, self.row, self.fresh, allowed, candidates)
            for index in range(first, first + 1 + len(self.drafts))
        ]

    def tokens(self, start: int, stop: int) -> Sequence[int]:
        """The known tokens at positions `start` to `stop` - 1."""
        boundary = len(self.prompt)
        if start >= boundary:
            return self.output[start - boundary : stop - boundary]
        if stop <= boundary:
            return self.prompt[start:stop]
        return [*self.prompt[start:], *self.output[: stop - boundary]]
