"""A model that costs nothing but keeps a real cache: what it answers depends on what its blocks hold."""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from model.contract import INVALID_TOKEN, LATE, Chunk, ChunkResult, Draw, StepPlan, StepResult
from model.limits import ModelLimits, RunnerInfo
from model.sampling_params import SamplingParams
from model.token_logprobs import TokenLogprobs

VOCAB_SIZE = 8
POISON = -2
"""What a slot holds whose key or value is not a number."""


class BrokenPromiseError(BaseException):
    """The engine asks for what the contract rules out; not an Exception, lest it be taken for a failing step."""


def next_token(tokens: Sequence[int], allowed: bytes | None = None) -> int:
    digest = hashlib.sha256(",".join(map(str, tokens)).encode()).digest()
    choices = [token for token in range(VOCAB_SIZE) if allowed is None or allowed[token // 8] >> token % 8 & 1]
    return choices[digest[0] % len(choices)] if choices else INVALID_TOKEN


def half_wrong(tokens: Sequence[int], count: int) -> list[int]:
    """Guesses of the tokens to come, of which about half are right."""
    drafts: list[int] = []
    while len(drafts) < count:
        token = next_token([*tokens, *drafts])
        drafts.append(token if sum(tokens) % 3 else (token + len(drafts)) % VOCAB_SIZE)
    return drafts


def output_alone(prompt: Sequence[int], params: SamplingParams) -> tuple[list[int], str]:
    """What a request gets, and why it ends, when no engine is in the way."""
    output: list[int] = []
    while True:
        output.append(next_token([*prompt, *output]))
        if output[-1] in params.stop_token_ids:
            return output, "stop"
        if len(output) == params.max_tokens:
            return output, "length"


@dataclass
class FakeStep:
    """A step whose outcome is settled. It is told when it is asked for, and in turn."""

    runner: "FakeRunner"
    outcome: StepResult | Exception | None
    """None until its draws, which await masks, are made."""
    make: Callable[[], StepResult]
    """Makes the draws."""

    def draw(self) -> None:
        if isinstance(self.outcome, StepResult):
            raise BrokenPromiseError("draws are made twice")
        if self.runner.in_flight[0] is not self:
            raise BrokenPromiseError("draws that await masks are made before the step before has landed")
        refusal, self.runner.draw_refusal = self.runner.draw_refusal, None
        if refusal is not None:
            self.runner.in_flight.clear()
            raise refusal
        self.outcome = self.outcome or self.make()

    def result(self) -> StepResult:
        if self.outcome is None:
            raise BrokenPromiseError("a result is asked for before the draws are made")
        if not self.runner.in_flight or self.runner.in_flight.popleft() is not self:
            raise BrokenPromiseError("a result is asked for out of turn")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class FakeRunner:
    """Stores each chunk's tokens in its slots and draws from what it finds there. It guesses drafts left open."""

    def __init__(self, num_blocks: int, block_size: int, lookahead: int = 0) -> None:
        self.limits = ModelLimits(
            VOCAB_SIZE, num_blocks * block_size, num_blocks, block_size, layers=2, heads=2, encoding_width=8
        )
        self.info = RunnerInfo(device="cpu", dtype="int", cache_dtype="int", backend="fake")
        self.lookahead = lookahead
        self.plans: list[StepPlan] = []
        self.in_flight: deque[FakeStep] = deque()
        self.poisoned_chunks: set[int] = set()
        """Indices of chunks of the next step whose keys and values come out as NaN."""
        self.refusal: Exception | None = None
        """Raised instead of starting the next step."""
        self.draw_refusal: Exception | None = None
        """Raised instead of making the next draws that await masks."""
        self.failure: Exception | None = None
        """Raised where the next step's result is asked for."""
        self.broken: type[Exception] = RuntimeError
        """What a step with one of `faulty` raises."""
        self.faulty: set[int] = set()
        """First prompt tokens of requests with which no step can be started."""
        self._slots: dict[int, int] = {}
        self._places: dict[int, Sequence[int]] = {}
        """The output of the request that each place among the running belongs to."""
        self._drawn: list[tuple[Draw, int]] = []
        """The draws of the newest step, with their tokens."""

    def start(self, plan: StepPlan) -> FakeStep:
        """Compute at once: whatever the host does later comes too late for this step, as it would on a device."""
        refusal, self.refusal = self.refusal, None
        failure, self.failure = self.failure, None
        poisoned, self.poisoned_chunks = self.poisoned_chunks, set()
        if len(self.in_flight) > self.lookahead:
            raise BrokenPromiseError("too many steps are in flight")
        if self.in_flight and self.in_flight[-1].outcome is None:
            raise BrokenPromiseError("a step is started before the draws of the one before are made")
        self.plans.append(plan)
        self._check_blocks(plan)
        if refusal is not None:
            raise refusal
        if any(chunk.draws and chunk.draws[0].prompt[0] in self.faulty for chunk in plan.chunks):
            raise self.broken("a request that no step can be started with")
        filled = [self._filled(chunk) for chunk in plan.chunks]
        for index, chunk in enumerate(filled):
            unsound = index in poisoned or failure is not None
            for position, token in enumerate(self._tokens(chunk), chunk.start):
                self._slots[self._slot(chunk, position)] = POISON if unsound or token == INVALID_TOKEN else token
        places = [chunk.draws[0].row for chunk in plan.chunks if chunk.draws]
        if len(set(places)) != len(places):
            raise BrokenPromiseError("two requests have one place")
        followed, self._drawn = self._drawn, []
        self._check_draws(plan)
        make = partial(self._result_of, plan, filled, followed)
        outcome = None if plan.awaits_masks else make()
        self.in_flight.append(FakeStep(self, failure or outcome, make))
        return self.in_flight[-1]

    def _result_of(self, plan: StepPlan, filled: Sequence[Chunk], followed: list[tuple[Draw, int]]) -> StepResult:
        """Make the draws of a plan, whose chunks are `filled`; `followed` are those of the step before."""
        chunks = [self._result(chunk, followed) for chunk in filled]
        for chunk, asked, told in zip(filled, plan.chunks, chunks, strict=True):
            told.drafts = chunk.tokens[chunk.known :] if asked.is_open else ()
        plain = len(plan.decoding)
        tokens = [token for chunk in chunks[:plain] for token in chunk.tokens]
        return StepResult(chunks[plain:], tokens, forward_seconds=0.5, sample_seconds=0.25)

    def _filled(self, chunk: Chunk) -> Chunk:
        """A chunk with guesses in place of the drafts that it leaves open, as a draft model makes them."""
        if not chunk.is_open:
            return chunk
        open_drafts = chunk.tokens[chunk.known :]
        if set(open_drafts) != {INVALID_TOKEN}:
            raise BrokenPromiseError("some drafts are open and others are not")
        known = chunk.tokens[: chunk.known]
        before = [self._slots[self._slot(chunk, position)] for position in range(chunk.start)]
        return replace(chunk, tokens=[*known, *half_wrong([*before, *known], len(open_drafts))])

    def _result(self, chunk: Chunk, followed: list[tuple[Draw, int]]) -> ChunkResult:
        """Draw what a chunk asks for; `followed` are the draws of the step before this one."""
        if len(chunk.draws) > 1 and chunk.draws[0].params.reads_output:
            raise BrokenPromiseError("a draw depends on a draft")
        tokens = [self._draw(chunk, draw, ahead, followed) for ahead, draw in enumerate(chunk.draws)]
        self._drawn += zip(chunk.draws, tokens, strict=True)
        asked = [draw.params.logprobs is not None for draw in chunk.draws]
        logprobs = [
            TokenLogprobs(-float(token), [token], [-float(token)], 1) if asks else None
            for asks, token in zip(asked, tokens, strict=True)
        ]
        return ChunkResult(tokens, logprobs, self._scores(chunk))

    def _scores(self, chunk: Chunk) -> Sequence[TokenLogprobs]:
        """Each scored token's log-probability is its position, and its top token is itself."""
        if chunk.scores is None:
            return ()
        known = [*chunk.tokens[1:], *([] if chunk.next is None else [chunk.next])]
        return [
            TokenLogprobs(float(chunk.start + index + 1), [known[index]], [0.0], 1)
            for index in range(chunk.scores.first, len(known))
        ]

    def _slot(self, chunk: Chunk, position: int) -> int:
        size = self.limits.block_size
        return chunk.blocks[position // size] * size + position % size

    def _check_blocks(self, plan: StepPlan) -> None:
        size = self.limits.block_size
        tables = Counter(block for chunk in plan.chunks for block in set(chunk.blocks))
        for chunk in plan.chunks:
            if not chunk.tokens:
                raise BrokenPromiseError("an empty chunk")
            stop = chunk.start + len(chunk.tokens)
            if len(chunk.blocks) * size < stop:
                raise BrokenPromiseError("the block table is too short")
            written = chunk.blocks[chunk.start // size : (stop - 1) // size + 1]
            if any(tables[block] > 1 for block in written):
                raise BrokenPromiseError("a block is written that another request reads")

    def _check_draws(self, plan: StepPlan) -> None:
        """Check what holds of draws when their step is started; the outputs grow until the draws are made."""
        for chunk in plan.chunks:
            promised = chunk.follows is not None
            for drafts, draw in enumerate(chunk.draws):
                if draw.allowed is not None and (drafts or promised != (draw.allowed is LATE)):
                    raise BrokenPromiseError("a mask is made before the token that it depends on")
                if draw.index != len(draw.output) + promised + drafts:
                    raise BrokenPromiseError("a draw has the index of another token")

    def _tokens(self, chunk: Chunk) -> Sequence[int]:
        """The tokens of a chunk, the one it follows among them."""
        *known, last = chunk.tokens
        if INVALID_TOKEN in known or (last == INVALID_TOKEN) != (chunk.follows is not None):
            raise BrokenPromiseError("a token is missing that no draw will give")
        if chunk.follows is None:
            return chunk.tokens
        if not self.in_flight or not 0 <= chunk.follows < len(self._drawn):
            raise BrokenPromiseError("a chunk follows a draw that is not in flight")
        draw, token = self._drawn[chunk.follows]
        if len(chunk.draws) != 1 or draw.output is not chunk.draws[0].output:
            raise BrokenPromiseError("a chunk follows the draw of another request")
        return [*known, token]

    def _draw(self, chunk: Chunk, draw: Draw, drafts: int, followed: list[tuple[Draw, int]]) -> int:
        """The token that is drawn behind so many of the chunk's drafts."""
        promised = chunk.follows is not None
        if draw.allowed is LATE:
            raise BrokenPromiseError("a draw is made without its mask")
        if draw.index >= draw.params.max_tokens:
            raise BrokenPromiseError("a token is drawn that nobody asked for")
        if draw.fresh:
            self._places[draw.row] = draw.output
        elif self._places.get(draw.row) is not draw.output:
            raise BrokenPromiseError("a draw has the place of another request")
        stop = chunk.start + chunk.known
        stored = [self._slots[self._slot(chunk, position)] for position in range(stop + drafts)]
        if POISON in stored:
            return INVALID_TOKEN
        before = [token for other, token in followed if other.output is draw.output] if promised else []
        # The output has the followed token already if that has landed meanwhile.
        if stored[:stop] != [*draw.prompt, *[*draw.output, *before][: draw.index - drafts]]:
            raise BrokenPromiseError("the blocks hold other tokens than the request's")
        return next_token(stored, draw.allowed)
