"""A draft model changes how many steps there are, and nothing of what is drawn."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats

from kernels.backend import KVCache
from model.batch import batch_layout
from model.contract import INVALID_TOKEN, Chunk, Draw, StepPlan
from model.decoder import Decoder
from model.drafter import AnyDecoder, Drafter
from model.graphs import GraphedDecoder
from model.runner import ModelRunner
from model.sampling_params import SamplingParams
from model.spec import DecoderSpec, LayerSpec
from service.engine.core import EngineCore
from service.engine.drafts import DraftPolicy, leave_open
from service.engine.messages import Counters, Delta, EngineRequest, Submit
from tests.dummies import SMALL, RerunCapture, empty_cache, make_decoder

BLOCK_SIZE = 4
OTHER = replace(SMALL, layers=(LayerSpec(),), hidden_size=32, heads=2, kv_heads=1)
"""A model that knows nothing of what the other would draw, with caches of another shape."""
NARROW = replace(OTHER, vocab_size=SMALL.vocab_size - 5)
WIDE = replace(OTHER, vocab_size=SMALL.vocab_size + 5)

PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "logit_bias": ((96, 2.5), (2, 1.5))},
    {"temperature": 1.0, "stop_token_ids": (3, 95), "min_tokens": 5},
    {"temperature": 1.0, "logprobs": 2},
    {"temperature": 1.0, "presence_penalty": 1.0},
]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3], [20, 21, 22] * 5, [96, 95, 94, 93], [5, 6, 7, 8, 9, 10, 11]]


class Engine:
    """An engine for a small model, and for a draft model if there is one."""

    def __init__(
        self,
        draft: DecoderSpec | None = None,
        blocks: int = 80,
        draft_tokens: int = 4,
        draft_running: int = 8,
        graphed: bool = False,
        **settings: int,
    ) -> None:
        self.target = make_decoder()
        self.cache = empty_cache(self.target, blocks=blocks, block_size=BLOCK_SIZE)
        self.captures: list[RerunCapture] = []
        self.draft_cache: KVCache | None = None
        drafter = None
        if draft is not None:
            decoder = make_decoder(draft)
            self.draft_cache = empty_cache(decoder, blocks=blocks, block_size=BLOCK_SIZE)
            quick: AnyDecoder = self.graphed(decoder, self.draft_cache) if graphed else decoder
            drafter = Drafter(quick, self.draft_cache, SMALL.vocab_size)
        quick = self.graphed(self.target, self.cache) if graphed else self.target
        self.core = EngineCore(
            ModelRunner(quick, self.cache, SMALL.max_context, drafter),
            **{"token_budget": 64, "max_running": 8, **settings},
            drafts=DraftPolicy(guess=leave_open, tokens=draft_tokens if drafter else 0, running=draft_running),
        )
        self.submitted = 0

    def graphed(self, decoder: Decoder, cache: KVCache) -> GraphedDecoder:
        self.captures.append(RerunCapture())
        return GraphedDecoder(
            decoder, cache, max_batch=8, max_context=SMALL.max_context, token_budget=64, capture=self.captures[-1]
        )

    def complete(self, prompts: Sequence[Sequence[int]], **params: Any) -> list[list[Delta]]:
        """The deltas of each prompt, all of them at work together."""
        first = self.submitted
        for seed, prompt in enumerate(prompts):
            asked = SamplingParams(**({"max_tokens": 24, "seed": seed} | params))
            self.core.submit(Submit(self.submitted, EngineRequest([*prompt], asked)))
            self.submitted += 1
        deltas: list[list[Delta]] = [[] for _ in prompts]
        while report := self.core.step():
            for delta in report.deltas:
                deltas[delta.id - first].append(delta)
        self.core.check()
        return deltas

    @property
    def counters(self) -> Counters:
        return self.core.stats().totals


def tokens(deltas: Sequence[Sequence[Delta]]) -> list[list[int]]:
    return [[token for delta in each for token in delta.tokens] for each in deltas]


@pytest.mark.parametrize(
    ("draft", "params"),
    [
        *[pytest.param(draft, params, id="-".join(params)) for draft in (SMALL, OTHER) for params in PARAMS],
        *[pytest.param(draft, PARAMS[at], id=f"{draft.vocab_size}") for draft in (NARROW, WIDE) for at in (3, 4)],
    ],
)
def test_every_token_is_that_of_single_steps(draft: DecoderSpec, params: dict[str, Any]) -> None:
    plain, engine = Engine(), Engine(draft)
    slow, fast = plain.complete(PROMPTS, **params), engine.complete(PROMPTS, **params)
    assert tokens(fast) == tokens(slow)
    assert [each[-1].finish_reason for each in fast] == [each[-1].finish_reason for each in slow]
    for one, other in zip(fast, slow, strict=True):
        chosen = [[entry.chosen for delta in each for entry in delta.logprobs or ()] for each in (one, other)]
        assert chosen[0] == pytest.approx(chosen[1], abs=1e-4)
    counters = engine.counters
    assert (counters.drafts > 0) == ("presence_penalty" not in params)
    if draft is SMALL:
        assert counters.accepted_tokens >= counters.drafted_tokens - 4 * len(PROMPTS) * ("stop_token_ids" in params)
    else:
        assert counters.accepted_tokens <= counters.drafted_tokens / 2


@pytest.mark.parametrize(
    "settings",
    [
        {"token_budget": 8, "max_running": 3},
        {"blocks": 15},
        {"draft_running": 2, "max_running": 4},
        {"draft_tokens": 1},
        {"draft_tokens": 16},
    ],
    ids=["chunked", "preempted", "loaded", "one", "many"],
)
@pytest.mark.parametrize("draft", [SMALL, OTHER], ids=["itself", "other"])
def test_its_cache_covers_what_the_models_own_covers(draft: DecoderSpec, settings: dict[str, int]) -> None:
    """Through chunked prompts, prefix hits, preemption, and steps without drafts: the model as its own draft model is
    right every time, which it could not be if it found anything but its own keys and values of the very same tokens.
    """
    plain, engine = Engine(**settings), Engine(draft, **settings)
    shared = list(range(30, 42))
    first = [[*shared, *prompt] for prompt in PROMPTS]
    second = [[*shared, *prompt] for prompt in [[1, 2], *PROMPTS[1:]]]
    for prompts, temperature in ((first, 0.0), (second, 1.0)):
        params = {"temperature": temperature, "max_tokens": 16}
        assert tokens(engine.complete(prompts, **params)) == tokens(plain.complete(prompts, **params))
    counters = engine.counters
    assert counters.drafts > 0
    assert counters.prefix_hits > 0
    assert (counters.preemptions > 0) == ("blocks" in settings)
    if draft is SMALL:
        assert counters.accepted_tokens == counters.drafted_tokens
        assert counters.steps < plain.counters.steps
    else:
        assert counters.accepted_tokens < counters.drafted_tokens


def test_graphs_are_replayed_for_both_models() -> None:
    plain, engine = Engine(), Engine(SMALL, graphed=True)
    assert tokens(engine.complete(PROMPTS, temperature=1.0)) == tokens(plain.complete(PROMPTS, temperature=1.0))
    assert engine.counters.accepted_tokens == engine.counters.drafted_tokens > 0
    assert [capture.replays > capture.captures > 0 for capture in engine.captures] == [True, True]


def test_slots_without_drafts_hold_the_same_in_both_caches() -> None:
    """The same model twice, whatever was accepted last: every published position has its keys and values in both."""
    engine = Engine(SMALL)
    engine.complete(PROMPTS, temperature=1.0)
    assert engine.draft_cache is not None
    pool = engine.core._pool
    found = sorted(pool._found_under.values())
    assert len(found) > 10
    for layer, other in zip(engine.cache.layers, engine.draft_cache.layers, strict=True):
        torch.testing.assert_close(layer.keys[found], other.keys[found], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.values[found], other.values[found], rtol=1e-4, atol=1e-5)


def test_what_was_guessed_is_told_of_each_chunk() -> None:
    """Chunks with different numbers of drafts, among others in no order of length."""
    target, draft = make_decoder(), make_decoder()
    cache, drafts = (empty_cache(decoder, blocks=64, block_size=BLOCK_SIZE) for decoder in (target, draft))
    runner = ModelRunner(target, cache, SMALL.max_context, Drafter(draft, drafts, SMALL.vocab_size))
    prompts = [[index + 1] * (5 + index) for index in range(4)]

    def draws(index: int, first: int, count: int) -> list[Draw]:
        params = SamplingParams(max_tokens=9, seed=index)
        return [Draw(params, prompts[index], [], place, index, place == 0) for place in range(first, first + count)]

    tables = [range(16 * index, 16 * index + 16) for index in range(4)]
    started = [Chunk(prompts[index], 0, tables[index], draws(index, 0, 1)) for index in range(3)]
    first = [chunk.tokens[0] for chunk in runner.start(StepPlan(started)).result().chunks]
    counts = [2, 0, 3]
    going = [
        Chunk(
            [first[index], *[INVALID_TOKEN] * count],
            len(prompts[index]),
            tables[index],
            draws(index, 1, 1 + count),
        )
        for index, count in enumerate(counts)
    ]
    new = Chunk(prompts[3], 0, tables[3], draws(3, 0, 1))
    results = runner.start(StepPlan([going[0], new, *going[1:]])).result().chunks
    assert [len(result.drafts) for result in results] == [2, 0, 0, 3]
    # The draft model is the model itself, so that its guesses are what is drawn.
    assert [[*result.drafts] for result in results] == [
        [*result.tokens[:count]] for result, count in zip(results, [2, 0, 0, 3], strict=True)
    ]


@pytest.mark.parametrize("draft", [SMALL, OTHER], ids=["itself", "other"])
def test_tokens_are_distributed_as_the_model_says_whatever_is_guessed(draft: DecoderSpec) -> None:
    """The second token of many completions of one prompt, by the model's own probabilities of it."""
    prompt, count, temperature = [5, 6, 7], 3000, 2.0
    bias = ((1, 100.0), (2, 100.0), (3, 100.0), (4, 100.0))  # Four tokens alone, so that each is drawn often.
    engine = Engine(draft, blocks=2048, token_budget=512, max_running=64, draft_running=64)
    completed = tokens(engine.complete([prompt] * count, temperature=temperature, max_tokens=3, logit_bias=bias))
    assert engine.counters.accepted_tokens > 0
    for first in range(1, 5):
        seconds = [each[1] for each in completed if each[0] == first]
        logits = logits_of(engine.target, [*prompt, first])[1:5]
        chances = (logits / temperature).softmax(-1).double()
        seen = [seconds.count(token) for token in range(1, 5)]
        expected = (chances / chances.sum() * sum(seen)).tolist()
        assert min(expected) > 5
        assert stats.chisquare(seen, expected).pvalue > 1e-4


@torch.inference_mode()
def logits_of(decoder: Decoder, known: Sequence[int]) -> torch.Tensor:
    """Logits [vocab] behind some tokens."""
    cache = empty_cache(decoder, blocks=8, block_size=BLOCK_SIZE)
    layout = batch_layout([Chunk(known, 0, range(8))], BLOCK_SIZE, decoder.weights.device)
    return decoder.logits(decoder.forward(torch.tensor(known), layout, cache))[-1]
