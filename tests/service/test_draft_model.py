"""A draft model from the settings to the engine's process: it is loaded, guesses, and must know the same tokens."""

import asyncio
import json
from pathlib import Path

import pytest

from model.sampling_params import SamplingParams
from service import cli
from service.engine.client import ChannelClient
from service.engine.messages import Counters, EngineRequest
from service.local_engine import running_engine
from service.settings import Settings
from tests.service.dummy_model import CONFIG, SETTINGS, dummy

PROMPT = [7, 8, 9]


async def completed(settings: Settings) -> tuple[list[int], Counters]:
    """A completion, and the engine's counts."""
    async with running_engine(settings) as context:
        assert isinstance(context.client, ChannelClient)
        asked = EngineRequest(PROMPT, SamplingParams(max_tokens=40, seed=5))
        with context.client.submit(asked) as stream:
            tokens = [token async for delta in stream for token in delta.tokens]
        return tokens, context.client.stats.totals


def test_it_guesses_and_the_completion_is_the_same(tmp_path: Path) -> None:
    dummy(tmp_path)
    tokens, without = asyncio.run(completed(Settings(model=str(tmp_path), **SETTINGS)))
    drafted, counters = asyncio.run(completed(Settings(model=str(tmp_path), draft_model=str(tmp_path), **SETTINGS)))
    assert drafted == tokens
    assert len(tokens) == 40
    assert without.drafts == 0
    assert counters.accepted_tokens == counters.drafted_tokens > 30 > counters.steps - counters.drafts


def test_it_is_fetched_with_the_model(tmp_path: Path, smollm2: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dummy(tmp_path)
    assert cli.main(["fetch", str(tmp_path), "--draft-model", "smollm2-135m-instruct"]) == 0
    assert capfd.readouterr().out == f"{tmp_path}\n{smollm2}\n"


def test_what_cannot_guess_for_a_model_is_one_line(
    tmp_path: Path, smollm2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = dummy(tmp_path)
    short = tmp_path / "short"
    short.mkdir()
    dummy(short)
    (short / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 32}))
    for draft, words in ((smollm2, "needs the vocabulary of the model"), (short, "the draft model's 32")):
        assert cli.main(["complete", "hi", *flags, "--draft-model", str(draft)]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("headlight: ")
        assert words in line
