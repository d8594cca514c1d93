"""Which tokens may be drawn, and which completions are chosen, through the API."""

from collections.abc import Iterator

import pytest

from model.sampling_params import SamplingParams
from model.token_logprobs import TokenLogprobs
from service.engine.messages import BeamSearch, Delta, Refusal
from tests.service.api.fakes import EOS, TIMES, FakeClient, calling


async def test_allowed_tokens_and_bad_words_reach_the_engine_in_both_routes() -> None:
    fields = {"allowed_token_ids": [9, 0, 70], "bad_words": ["ab", " ab", "c"]}
    async with calling() as caller:
        for call in (caller.complete, caller.chat):
            assert (await call(**fields)).status_code == 200
            mask = caller.engine.params.allowed
            assert mask is not None
            assert [token for token in range(8 * len(mask)) if mask[token // 8] >> token % 8 & 1] == [0, 9, 70]
            assert caller.engine.params.bad_words == ((97, 98), (32, 97, 98), (99,), (32, 99))
            assert (await call(bad_words=[], allowed_token_ids=None)).status_code == 200
            assert caller.engine.params.allowed is None
            assert not caller.engine.params.restricts


async def test_nothing_to_draw_is_the_requests_own_fault() -> None:
    async with calling() as caller:
        refusal = Refusal("nothing_to_draw", "nothing is left", 0.0)
        caller.engine.scripted = [Delta(0, [], None, "refused", refusal=refusal)]
        answer = await caller.complete(allowed_token_ids=[9])
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "nothing_to_draw"


def test_only_words_of_several_tokens_depend_on_the_output() -> None:
    assert not SamplingParams(max_tokens=1, bad_words=((1,), (2,))).reads_output
    assert SamplingParams(max_tokens=1, bad_words=((1,), (2, 3))).reads_output


class Unequal(FakeClient):
    """Says a token whose log-probability is the next of `means`, and then an end token that is twice as likely."""

    def __init__(self, *means: float) -> None:
        super().__init__()
        self.means = iter(means)

    def script(self, params: SamplingParams) -> Iterator[Delta]:
        mean = next(self.means)
        asked = params.logprobs is not None
        for token, share, reason in ((ord("a") + int(-mean), 1.5, None), (EOS, 0.5, "stop")):
            logprobs = [TokenLogprobs(share * mean, [], [], 1)] if asked else None
            yield Delta(0, [token], logprobs, reason, times=TIMES)


@pytest.mark.parametrize("logprobs", [None, 0])
async def test_best_of_keeps_those_of_the_highest_mean_logprob(logprobs: int | None) -> None:
    async with calling(engine=Unequal(-3.0, -1.0, -2.0, -5.0, -6.0, -4.0)) as caller:
        answer = (await caller.complete(prompt=["x", "yz"], best_of=3, n=2, logprobs=logprobs, echo=True)).json()
        assert [choice["text"] for choice in answer["choices"]] == ["xb", "xc", "yze", "yzf"]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert all((choice["logprobs"] is None) == (logprobs is None) for choice in answer["choices"])
        assert answer["usage"]["completion_tokens"] == 12
        assert answer["usage"]["prompt_tokens"] == len("x") + len("yz") + 2
        seeds = {stream.params.seed for stream in caller.engine.streams}
        assert len(seeds) == 3


async def test_best_of_n_is_n() -> None:
    async with calling() as caller:
        assert (await caller.complete(best_of=2, n=2, stream=True)).status_code == 200
        assert caller.engine.params.logprobs is None


async def test_a_beam_search_answers_with_several_choices_of_one_generation() -> None:
    async with calling() as caller:
        fields = {"use_beam_search": True, "n": 2, "max_tokens": 5, "length_penalty": 3, "best_of": 4, "seed": 7}
        answer = (await caller.complete(**fields, prompt=["x", "y"], echo=True)).json()
        assert [choice["text"] for choice in answer["choices"]] == ["xaaa", "xbbb", "yaaa", "ybbb"]
        assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
        assert answer["choices"][0]["logprobs"] is None
        assert answer["usage"]["completion_tokens"] == 16
        first, _ = caller.engine.streams
        assert first.beams == BeamSearch(4, 2, 3.0, False, None)
        assert first.params == SamplingParams(max_tokens=5, stop_token_ids=(EOS,), temperature=0.0, logprobs=5)


async def test_the_completions_of_a_beam_search_have_log_probabilities() -> None:
    async with calling() as caller:
        answer = (await caller.complete(use_beam_search=True, n=2, length_penalty=3, logprobs=1)).json()
        for choice, letter in zip(answer["choices"], "ab", strict=True):
            assert choice["logprobs"]["tokens"] == [letter] * 3 + ["</s>"]
            assert choice["logprobs"]["top_logprobs"][0] == {letter: -0.5}


async def test_a_beam_search_in_a_chat() -> None:
    async with calling() as caller:
        answer = (await caller.chat(use_beam_search=True, n=3, early_stopping="never", temperature=0)).json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == ["a", "b", "c"]
        assert caller.engine.streams[0].beams == BeamSearch(3, 3, 1.0, "never", None)


@pytest.mark.parametrize("order", ["transformers", "vllm", "llama.cpp"])
async def test_the_filters_come_in_the_order_that_the_operator_chose(order: str) -> None:
    async with calling(filter_order=order) as caller:
        assert (await caller.complete(min_p=0.1)).status_code == 200
        assert caller.engine.params.filter_order == order
