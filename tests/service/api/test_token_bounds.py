"""Token ids are bounded where they come in, whatever named them, for models with fewer or more ids than tokenizers."""

from dataclasses import replace
from typing import Any

import pytest

from tests.service.api.fakes import BOS, EOS, HI, LIMITS, VOCAB_SIZE, Caller, calling

NARROW = replace(LIMITS, vocab_size=EOS)
"""Logits without a column for the end token, which the tokenizer still has."""
WIDE = replace(LIMITS, vocab_size=VOCAB_SIZE + 60)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [65, EOS]},
        {"prompt": [[65], [EOS]]},
        {"prompt": [65, -1], "echo": True},
        {"prompt": [65, 2**62], "echo": True},
        {"prompt": "its text spells </s>"},
        {"prompt": "hi", "stop_token_ids": [EOS]},
        {"prompt": "hi", "logit_bias": {str(EOS): 1}},
    ],
    ids=str,
)
async def test_an_id_that_the_model_does_not_know_is_refused_before_the_engine(body: dict[str, Any]) -> None:
    async with calling() as caller:
        caller.engine.limits = NARROW
        answer = await caller.http.post("/v1/completions", json=body)
        assert answer.status_code == 400, answer.text
        assert "token id" in answer.json()["error"]["message"]
        assert not caller.engine.streams


async def test_what_a_template_writes_is_bounded_too() -> None:
    async with calling() as caller:
        caller.engine.limits = replace(LIMITS, vocab_size=BOS)
        answer = await caller.chat(add_special_tokens=True)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "messages"


@pytest.mark.parametrize("minimum", [0, 3])
async def test_an_end_token_that_no_step_can_draw_ends_nothing_and_breaks_nothing(minimum: int) -> None:
    async with calling() as caller:
        caller.engine.limits = NARROW
        for answer in (
            await caller.complete(max_tokens=5, min_tokens=minimum),
            await caller.chat(max_tokens=5, min_tokens=minimum),
        ):
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["finish_reason"] == "length"
            assert caller.engine.params.stop_token_ids == ()


async def returned_ids(caller: Caller) -> list[int]:
    tokens: list[int] = (await caller.http.post("/tokenize", json={"messages": HI})).json()["tokens"]
    tokens += (await caller.http.post("/tokenize", json={"prompt": "hi</s>"})).json()["tokens"]
    drawn = await caller.complete(return_token_ids=True, max_tokens=3)
    return tokens + list(drawn.json()["choices"][0]["token_ids"])


@pytest.mark.parametrize("limits", [NARROW, LIMITS, WIDE], ids=["narrow", "equal", "wide"])
async def test_detokenize_takes_back_every_id_that_the_server_returned(limits: Any) -> None:
    async with calling() as caller:
        caller.engine.limits = limits
        # Logits are often padded: such an id can be drawn and has no text.
        caller.engine.text = bytes([200]) * 3
        ids = [*(await returned_ids(caller)), limits.vocab_size - 1]
        answer = await caller.http.post("/detokenize", json={"tokens": ids})
        assert answer.status_code == 200, answer.text
        beyond = max(limits.vocab_size, VOCAB_SIZE)
        assert (await caller.http.post("/detokenize", json={"tokens": [beyond]})).status_code == 400
