"""Which tokens may be drawn, and which completions are chosen, through the API."""

from model.contract import SamplingParams
from service.engine.messages import Delta, Refusal
from tests.service.api.fakes import calling


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
