"""The card of the served model: its size, while there is one."""

from dataclasses import replace

from model.limits import ModelSize
from tests.service.api.fakes import MODEL, calling

SIZE = ModelSize(
    hidden_size=8,
    kv_heads=1,
    head_dim=4,
    mlp_size=16,
    embedding=1000,
    attention=200,
    feed_forward=30,
    head=4,
    weight_bytes=77,
)


async def test_a_card_tells_the_size_that_the_engine_told() -> None:
    async with calling() as caller:
        caller.engine.limits = replace(caller.engine.limits, size=SIZE)
        (card,) = (await caller.http.get("/v1/models")).json()["data"]
        assert card["size"] == {
            "vocab_size": caller.engine.limits.vocab_size,
            "hidden_size": 8,
            "layers": caller.engine.limits.layers,
            "heads": caller.engine.limits.heads,
            "kv_heads": 1,
            "head_dim": 4,
            "mlp_size": 16,
            "parameters": {"embedding": 1000, "attention": 200, "feed_forward": 30, "head": 4, "total": 1234},
            "weight_bytes": 77,
        }
        assert (await caller.http.get(f"/v1/models/{MODEL}")).json() == card


async def test_a_model_that_is_loading_has_no_size_yet() -> None:
    async with calling() as caller:
        caller.engine.state = type(caller.engine.state)("starting", "")
        (card,) = (await caller.http.get("/v1/models")).json()["data"]
        assert (card["size"], card["max_model_len"]) == (None, None)
