"""Runs steps: a plan's integers become tensors, the decoder computes logits, and logits become tokens.

The scheduler decides which chunks make a step; the runner computes any plan.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kernels.backend import KVCache, SamplingBatch
from model.batch import Batch, make_batch
from model.contract import Chunk, ChunkResult, DeviceLostError, Draws, StepPlan, StepResult
from model.decoder import Passed
from model.drafter import AnyDecoder, Drafter
from model.embedding_table import EmbeddingTable
from model.extras import Extras
from model.limits import ModelLimits, RunnerInfo
from model.position_encoding import encoding_width
from model.sampling.choice import Choice, choose, read_choice
from model.sampling.memory import TokenMemory
from model.sampling.settings import BatchSettings, settings_of
from model.size import model_size
from model.transfer import Moment, to_host


class ModelRunner:
    """`model.contract.Runner` made of a decoder and its KV cache.

    On a CUDA device `start` queues the work and returns at once, so that the host can prepare the next step while the
    device computes. Only a step that first captures a graph makes the host wait.
    """

    def __init__(
        self,
        decoder: AnyDecoder,
        cache: KVCache,
        max_context: int,
        drafter: Drafter | None = None,
    ) -> None:
        """Without a `drafter` no plan may leave drafts open."""
        self._decoder = decoder
        self._drafter = drafter
        self._cache = cache
        self._device = decoder.weights.device
        self._limits = ModelLimits(
            vocab_size=decoder.spec.vocab_size,
            max_context=max_context,
            num_blocks=cache.blocks,
            block_size=cache.block_size,
            layers=len(decoder.spec.layers),
            heads=decoder.spec.heads,
            encoding_width=encoding_width(decoder.spec),
            size=model_size(decoder.spec, decoder.weights),
        )
        self._embeddings = EmbeddingTable(decoder.weights, decoder.spec.vocab_size, decoder.backend)
        self._memory = TokenMemory(max_context, decoder.backend, self._device)
        self._settings: BatchSettings | None = None
        """The settings of the newest step with draws."""
        self._drawn = torch.zeros(0, dtype=torch.int64, device=self._device)
        """Tokens [draws] int64 that the newest step draws; `Chunk.follows` of the next step are indices into it."""

    @property
    def limits(self) -> ModelLimits:
        return self._limits

    @property
    def info(self) -> RunnerInfo:
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else str(self._device)
        return RunnerInfo(
            device=name,
            dtype=_name(self._decoder.weights.dtype),
            cache_dtype=_name(self._cache.layers[0].keys.dtype),
            backend=self._decoder.backend.name,
        )

    @property
    def lookahead(self) -> int:
        return 1 if self._device.type == "cuda" else 0

    @torch.inference_mode()
    def start(self, plan: StepPlan) -> "RunningStep":
        with _device_errors():
            return self._start(plan)

    def _start(self, plan: StepPlan) -> "RunningStep":
        began = Moment(self._device)
        batch = make_batch(plan, self._cache.block_size, self._device)
        extras = Extras(plan, batch, self._cache.block_size, self._decoder.backend)
        tokens = self._drafter.fill(plan, batch, self._drawn) if self._drafter else batch.known_tokens(self._drawn)
        extras.look_up(tokens, self._embeddings, self._decoder)
        draws = plan.draws()
        choose_tokens = self._compute(tokens, batch, extras, draws)
        computed = Moment(self._device)
        guesses = Guesses(to_host(tokens), batch.begins) if self._drafter else None
        step = RunningStep(plan, draws, guesses, extras, self._device, began, computed, choose_tokens)
        if not plan.awaits_masks:
            step.draw()
        return step

    def _compute(self, tokens: Tensor, batch: Batch, extras: Extras, draws: Draws) -> Callable[[], Choice | None]:
        """Run the pass of a batch's `tokens`; returns what makes its draws, and then whatever needs the drawn tokens.

        A pass may draw by itself, if nothing is done with the logits but to draw from them.
        """
        if not draws:
            passed = extras.run(tokens, batch, self._cache, self._decoder, None)
            return partial(extras.take, passed.hidden, self._drawn[:0], self._decoder)
        self._settings = settings = settings_of(draws, self._device, self._settings)
        sampling = settings.batch(draws)
        alone = settings.draws_alone(draws)
        passed = extras.run(tokens, batch, self._cache, self._decoder, sampling if alone else None)
        return partial(self._draw, passed, extras, draws, settings, sampling)

    def _draw(
        self, passed: Passed, extras: Extras, draws: Draws, settings: BatchSettings, sampling: SamplingBatch
    ) -> Choice:
        """Draw from the logits of a pass, unless it has drawn by itself; returns the choice on its way to the host."""
        if passed.drawn is not None:
            choice = Choice(passed.drawn, None)
        else:
            assert passed.logits is not None
            choice = choose(self._decoder.backend, passed.logits, draws, self._memory, settings, sampling)
        self._drawn = choice.tokens
        extras.take(passed.hidden, choice.tokens, self._decoder)
        return choice.to_host()


@dataclass(frozen=True, slots=True)
class Guesses:
    """The tokens of a batch, guessed drafts among them, on their way to host memory."""

    tokens: Tensor
    """[tokens] int64."""
    begins: Sequence[int]
    """[others]: as in `Batch`."""

    def add(self, chunks: Sequence[Chunk], results: Sequence[ChunkResult]) -> None:
        """Tell the result of each chunk the drafts that it left open."""
        for chunk, result, begin in zip(chunks, results, self.begins, strict=True):
            if chunk.is_open:
                result.drafts = self.tokens[begin + chunk.known : begin + len(chunk.tokens)].tolist()


@dataclass(slots=True)
class RunningStep:
    """`model.contract.PendingStep` between its start and its end. Durations are measured on the device's clock."""

    plan: StepPlan
    draws: Draws
    """The plan's draws."""
    guesses: Guesses | None
    """None if there is no draft model."""
    extras: Extras
    device: torch.device
    began: Moment
    computed: Moment
    choose: Callable[[], Choice | None]
    """Makes the draws, and what needs their tokens; the result is in host memory once the step has ended."""
    choice: Choice | None = None
    """The drawn tokens; None if there are no draws, or not yet."""
    drawing: Moment | None = None
    """Begin of the draws; None before."""
    ended: Moment | None = None
    """End of the step; None before the draws have begun."""

    @torch.inference_mode()
    def draw(self) -> None:
        with _device_errors():
            self.drawing = Moment(self.device)
            self.choice = self.choose()
            self.ended = Moment(self.device)
        # It holds the pass's logits, whose memory the next step needs.
        self.choose = _drawn_already

    def result(self) -> StepResult:
        assert self.ended is not None, "the draws have not begun"
        assert self.drawing is not None
        with _device_errors():
            self.ended.wait()
        others, tokens = chunk_results(self.plan, self.draws, self.choice)
        if self.guesses is not None:
            self.guesses.add(self.plan.others, others)
        return StepResult(
            self.extras.add(others),
            tokens,
            self.computed.seconds_since(self.began),
            self.ended.seconds_since(self.drawing),
        )


def _drawn_already() -> Choice | None:
    raise AssertionError("a step draws once")


def chunk_results(plan: StepPlan, draws: Draws, choice: Choice | None) -> tuple[list[ChunkResult], list[int]]:
    """The results of a plan's other chunks, and the tokens of its plain decoding.

    `draws` are all of the plan's. The choice is in host memory, and None if there are no draws.
    """
    plain = len(plan.decoding)
    if choice is None:
        return [ChunkResult()] * len(plan.others), []
    tokens, logprobs = read_choice(choice, draws)
    shown = choice.distributions()
    results, begin = [], plain
    for chunk in plan.others:
        end = begin + len(chunk.draws)
        result = ChunkResult(tokens[begin:end], logprobs[begin:end])
        if shown:
            result.distributions = [shown[row] for row in range(begin, end) if row in shown]
        results.append(result)
        begin = end
    return results, tokens[:plain]


@contextmanager
def _device_errors() -> Iterator[None]:
    """Raise DeviceLostError for an error from which a device never recovers, such as an illegal memory access."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLostError(str(error)) from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
