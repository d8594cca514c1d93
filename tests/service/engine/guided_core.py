"""Engines for requests with a grammar: one with a fake runner, one with a random model."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from model.contract import NOTHING, Wanted
from model.runner import ModelRunner
from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.drafts import DraftPolicy, look_up
from service.engine.grammar_tokens import Vocabulary
from service.engine.messages import Delta, EngineRequest, Grammar, Submit
from tests.dummies import SMALL, empty_cache, make_decoder
from tests.service.engine.fakes import FakeRunner
from tests.service.engine.guided import JSON_WORDS, WordVocabulary

LETTERS = WordVocabulary([b"a", b"b", b"c", b"ab", b"bc", b"abc", b"d"])
"""As many tokens as the fake runner draws from."""
END = 7


CHARACTERS = WordVocabulary([bytes([byte]) for byte in range(256)])


def regex(source: str) -> Grammar:
    return Grammar("regex", source, "structured_outputs.regex")


def json_grammar(schema: Any) -> Grammar:
    return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema), "response_format")


def run(core: EngineCore, messages: Sequence[Submit]) -> dict[int, list[Delta]]:
    deltas: dict[int, list[Delta]] = {message.id: [] for message in messages}
    for message in messages:
        core.submit(message)
    deadline = time.monotonic() + 120
    while report := core.step():
        assert time.monotonic() < deadline
        for delta in report.deltas:
            deltas[delta.id].append(delta)
    core.check()
    assert core.stats().blocks_used == 0
    return deltas


def fake_core(
    blocks: int = 64,
    lookahead: int = 0,
    read_vocabulary: Callable[[], Vocabulary] = lambda: LETTERS,
    runner: FakeRunner | None = None,
    drafts: int = 4,
) -> EngineCore:
    return EngineCore(
        runner or FakeRunner(blocks, 4, lookahead),
        token_budget=16,
        max_running=8,
        # Requests with a grammar step aside, which the runner holds them to.
        drafts=DraftPolicy(guess=look_up, tokens=drafts, running=8),
        read_vocabulary=read_vocabulary,
    )


def outcome(deltas: Sequence[Delta]) -> tuple[list[int], str | None, Any]:
    logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
    return [token for delta in deltas for token in delta.tokens], deltas[-1].finish_reason, logprobs


def text(deltas: Sequence[Delta], vocabulary: WordVocabulary = LETTERS) -> str:
    assert deltas[-1].finish_reason in ("stop", "length"), deltas[-1]
    return vocabulary.text(outcome(deltas)[0])


def ask(
    id: int, grammar: Grammar | None, prompt: Sequence[int] = (1, 2), wanted: Wanted = NOTHING, **params: Any
) -> Submit:
    settings = {"max_tokens": 40, "stop_token_ids": (END,)} | params
    return Submit(id, EngineRequest([*prompt], SamplingParams(**settings), grammar=grammar, wanted=wanted))


class EagerRunner(ModelRunner):
    """A runner on a CPU whose steps are started ahead, as on a GPU."""

    lookahead = 1


def model_core(
    words: WordVocabulary = JSON_WORDS, max_running: int = 32, runner_kind: type[ModelRunner] = ModelRunner
) -> EngineCore:
    """A random model, whose logits are wider than the vocabulary."""
    decoder = make_decoder(replace(SMALL, vocab_size=words.vocab_size + 11, max_context=1024))
    runner = runner_kind(decoder, empty_cache(decoder, blocks=8192), decoder.spec.max_context)
    return EngineCore(runner, token_budget=128, max_running=max_running, read_vocabulary=lambda: words)
