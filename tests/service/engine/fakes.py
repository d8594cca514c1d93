"""A model that costs nothing but keeps a real cache: what it answers depends on what its blocks hold."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from model.contract import INVALID_TOKEN, Chunk, ModelLimits, SamplingParams, StepPlan, StepResult, TokenLogprobs

VOCAB_SIZE = 8
POISON = -2
"""What a slot holds whose key or value is not a number."""


class CacheCorruptError(BaseException):
    """The cache does not hold what the plan says; not an Exception, lest the engine take it for a failing step."""


def next_token(tokens: Sequence[int]) -> int:
    digest = hashlib.sha256(",".join(map(str, tokens)).encode()).digest()
    return digest[0] % VOCAB_SIZE


def output_alone(prompt: Sequence[int], params: SamplingParams) -> tuple[list[int], str]:
    """What a request gets, and why it ends, when no engine is in the way."""
    output: list[int] = []
    while True:
        output.append(next_token([*prompt, *output]))
        if output[-1] in params.stop_token_ids:
            return output, "stop"
        if len(output) == params.max_tokens:
            return output, "length"


class FakeRunner:
    """Stores each chunk's tokens in its slots and draws from what it finds there."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.limits = ModelLimits(VOCAB_SIZE, num_blocks * block_size, num_blocks, block_size)
        self.plans: list[StepPlan] = []
        self.poisoned_chunks: set[int] = set()
        """Indices of chunks of the next step whose keys and values come out as NaN."""
        self.failure: Exception | None = None
        """Raised by the next step."""
        self._slots: dict[int, int] = {}

    def run(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        poisoned, self.poisoned_chunks = self.poisoned_chunks, set()
        failure, self.failure = self.failure, None
        self._check_blocks(plan)
        for index, chunk in enumerate(plan.chunks):
            for offset, token in enumerate(chunk.tokens):
                stored = POISON if index in poisoned or failure else token
                self._slots[self._slot(chunk, chunk.start + offset)] = stored
        if failure is not None:
            raise failure
        drawing = [chunk for chunk in plan.chunks if chunk.draw is not None]
        tokens = [self._draw(chunk) for chunk in drawing]
        logprobs = [
            TokenLogprobs(-float(token), [token], [-float(token)])
            if chunk.draw and chunk.draw.params.logprobs
            else None
            for chunk, token in zip(drawing, tokens, strict=True)
        ]
        return StepResult(tokens, logprobs, forward_seconds=0.5, sample_seconds=0.25)

    def _slot(self, chunk: Chunk, position: int) -> int:
        size = self.limits.block_size
        return chunk.blocks[position // size] * size + position % size

    def _check_blocks(self, plan: StepPlan) -> None:
        size = self.limits.block_size
        tables = Counter(block for chunk in plan.chunks for block in set(chunk.blocks))
        for chunk in plan.chunks:
            if not chunk.tokens:
                raise CacheCorruptError("an empty chunk")
            stop = chunk.start + len(chunk.tokens)
            if len(chunk.blocks) * size < stop:
                raise CacheCorruptError("the block table is too short")
            written = chunk.blocks[chunk.start // size : (stop - 1) // size + 1]
            if any(tables[block] > 1 for block in written):
                raise CacheCorruptError("a block is written that another request reads")

    def _draw(self, chunk: Chunk) -> int:
        assert chunk.draw is not None
        stop = chunk.start + len(chunk.tokens)
        stored = [self._slots[self._slot(chunk, position)] for position in range(stop)]
        if POISON in stored:
            return INVALID_TOKEN
        if stored != [*chunk.draw.prompt, *chunk.draw.output]:
            raise CacheCorruptError("the blocks hold other tokens than the request's")
        return next_token(stored)
