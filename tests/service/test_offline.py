"""The offline API on a tiny model: the results of the server's own door and engine, in the order of the prompts."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headlight import LLM, RequestError, SamplingParams
from model.checkpoint.errors import CheckpointError
from service.api.schemas.chat import ChatBody
from service.api.schemas.completions import CompletionBody
from service.engine.status import EngineDead
from service.progress import Progress
from service.settings import SettingsError
from tests.service.dummy_model import SETTINGS, TEMPLATE, dummy

GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("model")
    dummy(folder, TEMPLATE)
    with LLM(str(folder), **SETTINGS) as llm:
        yield llm


def test_results_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    """Also when there are more than run at once, of different lengths."""
    prompts = [f"{number} and more" for number in range(30)]
    params = [SamplingParams(temperature=0, max_tokens=1 + number % 5, ignore_eos=True) for number in range(30)]
    results = llm.generate(prompts, params)
    assert len({tuple(result.prompt_token_ids) for result in results}) == 30
    assert [len(result.outputs[0].token_ids) for result in results] == [1 + number % 5 for number in range(30)]
    for number in (0, 7, 29):
        [alone] = llm.generate(prompts[number], params[number])
        assert alone.prompt_token_ids == results[number].prompt_token_ids
        assert alone.outputs == results[number].outputs


def test_token_ids_are_a_prompt(llm: LLM) -> None:
    [text] = llm.generate("hi", GREEDY)
    ids = text.prompt_token_ids
    assert [result.outputs for result in llm.generate([ids, "hi"], GREEDY)] == [text.outputs, text.outputs]
    assert llm.generate(ids, GREEDY)[0].outputs == text.outputs
    assert llm.generate([]) == []


def test_a_chat_answers_with_a_message(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "hi"}]
    [one] = llm.chat(conversation, GREEDY)
    assert one.outputs[0].message is not None
    assert one.outputs[0].message["content"] == one.outputs[0].text
    two = llm.chat([conversation, conversation], SamplingParams(max_tokens=3, seed=1, n=2, logprobs=2))
    assert [len(result.outputs) for result in two] == [2, 2]
    logprobs = two[0].outputs[0].logprobs
    assert logprobs is not None
    assert len(logprobs[0].top_tokens) == 2


def test_a_token_that_ends_the_completion_has_its_log_probability(llm: LLM) -> None:
    [free] = llm.generate("hi", GREEDY)
    ends = [free.outputs[0].token_ids[0]]
    [ended] = llm.generate("hi", SamplingParams(temperature=0, max_tokens=5, stop_token_ids=ends, logprobs=0))
    [output] = ended.outputs
    assert (output.token_ids, output.finish_reason) == (ends, "stop")
    assert output.logprobs is not None
    assert [entry.rank for entry in output.logprobs] == [1]


def test_scores_of_a_prompt(llm: LLM) -> None:
    [result] = llm.generate("hi!", SamplingParams(max_tokens=1, prompt_logprobs=1))
    assert result.prompt_logprobs is not None
    assert [entry is None for entry in result.prompt_logprobs] == [True, False, False]


@pytest.mark.parametrize(
    ("params", "fields", "words", "param"),
    [
        ({"temperature": 3}, {}, "temperature: should be at most 2", "temperature"),
        ({"logprobs": 1000}, {}, "more than the 20", "logprobs"),
        ({"stop": ["a"] * 17}, {}, "stop: ", "stop"),
        ({"max_tokens": 10**6}, {}, "1000000 in the completion", "max_tokens"),
        ({}, {"nonsense": 1}, "nonsense: unknown field", "nonsense"),
        ({}, {"suffix": "x"}, "suffix: is not supported", "suffix"),
        ({}, {"stream": True}, "stream: does not go", "stream"),
        ({}, {"prompt": "other"}, "prompt: does not go", "prompt"),
        ({}, {"inspect": {}}, "inspect: says nothing to look at", "inspect"),
        ({"max_tokens": 1}, {"inspect": {"attention": [[9, 9]]}}, "inspect.attention: has a head", "inspect.attention"),
        ({}, {"model": "other"}, "'other' does not exist", "model"),
        ({"logit_bias": {"1": object()}}, {}, "not JSON", None),
        ({"temperature": float("nan")}, {}, "NaN", None),
    ],
)
def test_what_is_refused_is_refused_by_name(
    llm: LLM, params: dict[str, Any], fields: dict[str, Any], words: str, param: str | None
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        llm.generate(["one", "two"], SamplingParams(**params), **fields)
    assert caught.value.param == param


def test_the_refused_prompt_is_named(llm: LLM) -> None:
    with pytest.raises(RequestError, match=r"^Prompt 1: prompt: has no tokens\.$"):
        llm.generate(["one", "", "three"])
    with pytest.raises(RequestError, match="2 prompts and 1 sampling_params"):
        llm.generate(["one", "two"], [GREEDY])


async def test_a_program_with_a_loop_may_call_it(llm: LLM) -> None:
    assert asyncio.get_running_loop().is_running()
    assert llm.generate("hi", GREEDY)


def test_a_closed_one_says_so(tmp_path: Path) -> None:
    dummy(tmp_path)
    llm = LLM(str(tmp_path), **SETTINGS)
    with pytest.raises(RequestError, match="chat template"):
        llm.chat([{"role": "user", "content": "hi"}])
    llm.close()
    llm.close()
    with pytest.raises(EngineDead, match="stopped"):
        llm.generate("hi")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"port": 1}, SettingsError),
        ({"nonsense": 1}, SettingsError),
        ({"token_budget": 0}, SettingsError),
        ({"device": "abacus"}, EngineDead),
    ],
)
def test_what_cannot_start_says_why(settings: dict[str, Any], error: type[Exception], tmp_path: Path) -> None:
    dummy(tmp_path)
    with pytest.raises(error) as caught:
        LLM(str(tmp_path), **SETTINGS | settings)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        LLM(str(tmp_path / "none"))


def test_params_are_fields_of_both_kinds_of_requests() -> None:
    assert set(SamplingParams.__dataclass_fields__) <= CompletionBody.model_fields.keys() & ChatBody.model_fields.keys()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress_is_shown_on_a_terminal_alone(stream: io.StringIO) -> None:
    moments = iter(range(100))
    with Progress(4, "prompts", stream=stream, clock=lambda: next(moments)) as progress:
        progress.add(10)
    assert ("1/4 prompts" in stream.getvalue()) is stream.isatty()
    assert bool(stream.getvalue()) is stream.isatty()
