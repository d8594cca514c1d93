"""Inspections, through the API: the form of answers, and the bounds on what may be asked."""

import base64
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.array import Array
from model.checkpoint.sampling_defaults import SamplingDefaults
from model.inspection import Distribution, Embedded, InspectionResult, PositionEncoding, RotaryAngles, Stage
from model.limits import ModelSize
from model.sampling.orders import ORDERS
from model.sampling.transforms import TRANSFORMS
from model.token_logprobs import TokenLogprobs
from service.api.inspection_requests import MOST_STAGES
from service.api.inspection_writer import InspectionWriter
from service.api.schemas.inspect import InspectBody
from service.engine.messages import Delta
from tests.service.api.fakes import HI, LIMITS, TIMES, Caller, FakeTokenizer, calling, events
from tests.speed import slowness, turns_of_the_loop


def array(*shape: int) -> Array:
    count = int(np.prod(shape))
    return Array(shape, struct.pack(f"<{count}f", *(index / 8 for index in range(count))))


def result(positions: list[int], keys: int, heads: int = 1) -> InspectionResult:
    """A result whose lens says the position's own number everywhere."""
    lens = [[TokenLogprobs(-1.0, [65], [-0.5], 7) for _ in positions] for _ in range(LIMITS.layers + 1)]
    stages = 2 * LIMITS.layers
    return InspectionResult(
        positions=positions,
        attention=array(heads, len(positions), keys),
        stream=array(stages + 1, len(positions)),
        added=array(stages, len(positions)),
        lens=lens,
    )


def scripted(caller: Caller, *deltas: Delta) -> None:
    caller.engine.scripted = deltas


async def inspect(caller: Caller, **fields: Any) -> dict[str, Any]:
    answer = await caller.http.post("/v1/inspect", json={"tokens": [65, 66, 67]} | fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_looks_of_several_chunks_are_one_answer() -> None:
    async with calling() as caller:
        scripted(
            caller,
            Delta(0, [], None, inspection=result([0, 1], 2), times=TIMES),
            Delta(0, [72], None, inspection=result([2], 3), times=TIMES),
            Delta(0, [73], None, "length", inspection=result([3], 4), times=TIMES),
        )
        body = await inspect(caller, attention=[[1, 0]], residual=True, lens=1, max_tokens=2)
    assert [(token["text"], token["generated"]) for token in body["tokens"]] == [
        *((letter, False) for letter in "ABC"),
        *((letter, True) for letter in "HI"),
    ]
    assert body["positions"] == [0, 1, 2, 3]
    assert body["attention"]["heads"] == [[1, 0]]
    assert body["attention"]["shape"] == [1, 4, 4]
    assert body["attention"]["data"][0] == [
        [0, 0.125, 0, 0],
        [0.25, 0.375, 0, 0],
        [0, 0.125, 0.25, 0],
        [0, 0.125, 0.25, 0.375],
    ]
    assert body["residual"]["stream"]["shape"] == [2 * LIMITS.layers + 1, 4]
    assert body["residual"]["added"]["shape"] == [2 * LIMITS.layers, 4]
    assert len(body["lens"]) == LIMITS.layers + 1
    assert body["lens"][0][3] == {
        "likeliest": [{"id": 65, "text": "A", "logprob": -0.5}],
        "next_logprob": -1.0,
        "next_rank": 7,
    }
    asked = caller.engine.streams[-1].wanted.inspect
    assert asked is not None
    assert (asked.positions, asked.generated, asked.heads) == ([0, 1, 2], True, [(1, 0)])


async def test_numbers_may_come_as_half_precision() -> None:
    async with calling() as caller:
        scripted(caller, Delta(0, [], None, "length", inspection=result([2], 3, 6), times=TIMES))
        body = await inspect(caller, attention="all", positions=[2], encoding_format="base64")
    heads = [[layer, head] for layer in range(LIMITS.layers) for head in range(LIMITS.heads)]
    assert body["attention"]["heads"] == heads
    halves = np.frombuffer(base64.b64decode(body["attention"]["data"]), "<f2")
    assert halves.tolist() == [index / 8 for index in range(18)]
    assert "residual" not in body or body["residual"] is None
    assert body.get("lens") is None


def reduced(positions: list[int], keys: int, top: int | None = None) -> InspectionResult:
    """A result with one map for each layer, or at its heaviest keys, which are the position and those before it."""
    if top is None:
        return InspectionResult(positions=positions, attention=array(LIMITS.layers, len(positions), keys))
    shape = (LIMITS.layers, len(positions), top)
    rows = [float(max(-1, position - back)) for position in positions for back in range(top)]
    found = struct.pack(f"<{LIMITS.layers * len(rows)}f", *rows * LIMITS.layers)
    return InspectionResult(positions=positions, attention=array(*shape), attention_keys=Array(shape, found))


async def test_attention_is_shown_reduced_over_heads() -> None:
    async with calling() as caller:
        scripted(
            caller,
            Delta(0, [], None, inspection=reduced([0, 1], 2), times=TIMES),
            Delta(0, [], None, "length", inspection=reduced([2], 3), times=TIMES),
        )
        body = await inspect(caller, attention=[[2, 1], [0, 0], [2, 0], [1, 1]], reduction="max")
    assert body["attention"]["layers"] == [2, 0, 1]
    assert body["attention"]["shape"] == [3, 3, 3]
    assert body["attention"]["data"][0] == [[0, 0.125, 0], [0.25, 0.375, 0], [0, 0.125, 0.25]]
    assert "heads" not in body["attention"]
    asked = caller.engine.streams[-1].wanted.inspect
    assert asked is not None
    assert (asked.reduction, asked.top_keys) == ("max", None)


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_the_heaviest_keys_come_with_their_positions(encoding: str) -> None:
    async with calling() as caller:
        scripted(
            caller,
            Delta(0, [], None, inspection=reduced([0, 1], 2, 2), times=TIMES),
            Delta(0, [], None, "length", inspection=reduced([2], 3, 2), times=TIMES),
        )
        look = {"attention": "all", "reduction": "mean", "top_keys": 2, "encoding_format": encoding}
        body = await inspect(caller, **look)
    assert body["attention"]["shape"] == [LIMITS.layers, 3, 2]
    keys = body["attention"]["keys"]
    if encoding == "base64":
        keys = np.frombuffer(base64.b64decode(keys), "<i4").reshape(LIMITS.layers, 3, 2).tolist()
    assert keys == [[[0, -1], [1, 0], [2, 1]]] * LIMITS.layers


async def test_rollout_is_made_of_the_mean_of_all_heads_at_all_positions() -> None:
    async with calling() as caller:
        scripted(caller, Delta(0, [], None, "length", inspection=reduced([0, 1, 2], 3), times=TIMES))
        whole = (await inspect(caller, attention="all", reduction="rollout"))["attention"]
        scripted(caller, Delta(0, [], None, "length", inspection=reduced([0, 1, 2], 3), times=TIMES))
        part = (await inspect(caller, attention="all", reduction="rollout", top_keys=1))["attention"]
    mean = np.arange(27).reshape(3, 3, 3) / 8
    flow = np.eye(3)
    for layer in range(3):
        flow = (mean[layer] + np.eye(3)) / 2 @ flow
        np.testing.assert_allclose(whole["data"][layer], flow, atol=1e-5)
        np.testing.assert_allclose(part["data"][layer], flow.max(1, keepdims=True), atol=1e-5)
        assert part["keys"][layer] == flow.argmax(1)[:, None].tolist()
    for stream in caller.engine.streams:
        asked = stream.wanted.inspect
        assert asked is not None
        assert (asked.reduction, asked.top_keys, asked.positions) == ("mean", None, [0, 1, 2])


async def test_positions_encodings_have_a_limit_in_bytes() -> None:
    async with calling(max_inspection=4 * 3 * LIMITS.encoding_width) as caller:
        for tokens, status in (([65] * 3, 200), ([65] * 4, 400)):
            scripted(caller, Delta(0, [], None, "length", times=TIMES))
            answer = await caller.http.post("/v1/inspect", json={"tokens": tokens, "position_encoding": True})
            assert answer.status_code == status, answer.text
        assert answer.json()["error"]["param"] == "position_encoding"


async def test_embeddings_have_a_limit_in_bytes() -> None:
    async with calling(max_inspection=4 * 3 * 8) as caller:
        caller.engine.limits = replace(LIMITS, size=ModelSize(hidden_size=8))
        for tokens, status in (([65] * 3, 200), ([65] * 4, 400)):
            scripted(caller, Delta(0, [], None, "length", times=TIMES))
            fields = {"tokens": tokens, "embedding": 0, "embedding_vectors": True}
            answer = await caller.http.post("/v1/inspect", json=fields)
            assert answer.status_code == status, answer.text
        assert answer.json()["error"]["param"] == "embedding_vectors"


async def test_a_part_of_the_weights_may_be_had_where_all_are_too_many() -> None:
    async with calling(max_inspection=100_000, max_lens_rows=100) as caller:
        long = {"tokens": [65] * 200, "attention": "all"}
        for fields, status in [
            ({}, 400),
            ({"reduction": "mean"}, 400),
            ({"top_keys": 9}, 200),
            ({"top_keys": 11}, 400),
        ]:
            scripted(caller, Delta(0, [], None, "length", times=TIMES))
            answer = await caller.http.post("/v1/inspect", json=long | fields)
            assert answer.status_code == status, (fields, answer.text)
            if status == 400:
                assert "bytes" in answer.json()["error"]["message"]


async def test_messages_are_looked_at_as_the_template_writes_them() -> None:
    async with calling() as caller:
        scripted(caller, Delta(0, [], None, "length", times=TIMES))
        body = await inspect(caller, tokens=None, messages=HI, return_offsets=True)
        told = (await caller.http.post("/tokenize", json={"messages": HI})).json()["tokens"]
    assert [token["id"] for token in body["tokens"]] == told
    assert body["positions"] == [*range(len(told))]
    assert body["offsets"] == [[place, place + 1] for place in range(len(told))]


async def test_details_of_tokens_are_their_bytes_and_places() -> None:
    async with calling() as caller:
        scripted(caller, Delta(0, [0xC3], None, times=TIMES), Delta(0, [0xA9], None, "length", times=TIMES))
        body = await inspect(caller, tokens=None, prompt="aé", positions=[], max_tokens=2, details=True)
    assert body["text"] == "<s>aéé"
    assert [(token["bytes"], token["offsets"], token["generated"]) for token in body["tokens"]] == [
        ([*b"<s>"], [0, 3], False),
        ([0x61], [3, 4], False),
        ([0xC3], [4, 4], False),
        ([0xA9], [4, 5], False),
        ([0xC3], [5, 5], True),
        ([0xA9], [5, 6], True),
    ]


@pytest.mark.parametrize("details", [False, True])
async def test_other_spellings_have_other_tokens(details: bool) -> None:
    async with calling() as caller:
        scripted(caller, Delta(0, [], None, "length", times=TIMES))
        asked = {"positions": [], "add_special_tokens": False, "spellings": True, "details": details}
        body = await inspect(caller, tokens=None, prompt="aÉ", **asked)
    assert {spelt["name"]: spelt["text"] for spelt in body["spellings"]} == {
        "leading_space": " aÉ",
        "lower": "aé",
        "upper": "AÉ",
        "decomposed": "aE\u0301",
    }
    for spelt in body["spellings"]:
        assert [token["id"] for token in spelt["tokens"]] == [*spelt["text"].encode()]
        assert all(("offsets" in token) == details for token in spelt["tokens"])


def floats(*numbers: float) -> Array:
    return Array((len(numbers),), struct.pack(f"<{len(numbers)}f", *numbers))


async def test_embeddings_and_positions_of_several_chunks_are_one_answer() -> None:
    def inputs(positions: list[int]) -> InspectionResult:
        count = len(positions)
        rotary = [
            RotaryAngles(layers=layers, magnitude=1.5, frequencies=floats(1, 1e-6), angles=array(count, 2))
            for layers in ([0, 2], [1])
        ]
        return InspectionResult(
            positions=positions,
            embedding=Embedded(
                norms=floats(*map(float, positions)),
                nearest=[[(66, 0.5), (67, -0.25)]] * count,
                vectors=array(count, 4),
            ),
            encoding=PositionEncoding(rotary=rotary, learned=array(count, 3), slopes=floats(0.5, 0.25)),
        )

    async with calling() as caller:
        scripted(
            caller,
            Delta(0, [], None, inspection=inputs([0, 1]), times=TIMES),
            Delta(0, [], None, "length", inspection=inputs([2]), times=TIMES),
        )
        body = await inspect(caller, embedding=2, embedding_vectors=True, position_encoding=True)
        near = [{"id": 66, "text": "B", "cosine": 0.5}, {"id": 67, "text": "C", "cosine": -0.25}]
        assert body["embedding"].pop("vectors")["shape"] == [3, 4]
        assert body["embedding"] == {"norms": {"shape": [3], "data": [0, 1, 2]}, "nearest": [near] * 3}
        told = body["position_encoding"]
        assert [kind["layers"] for kind in told["rotary"]] == [[0, 2], [1]]
        assert told["rotary"][1]["angles"] == {"shape": [3, 2], "data": [[0, 0.125], [0.25, 0.375], [0, 0.125]]}
        assert (told["rotary"][0]["frequencies"], told["rotary"][0]["magnitude"]) == ([1, 1e-6], 1.5)
        assert told["learned"]["shape"] == [3, 3]
        assert told["alibi_slopes"] == [0.5, 0.25]
        asked = caller.engine.streams[-1].wanted.inspect
        assert asked is not None
        assert (asked.embedding, asked.vectors, asked.encoding, asked.needs_probe) == (2, True, True, False)

        bare = InspectionResult(positions=[0], encoding=PositionEncoding(rotary=[], learned=None, slopes=None))
        scripted(caller, Delta(0, [], None, "length", inspection=bare, times=TIMES))
        assert (await inspect(caller, position_encoding=True))["position_encoding"] == {}


def shown(position: int, drawn: int) -> Distribution:
    return Distribution(
        position=position,
        stages=[Stage("raw", 260, 1.0, 2.5), Stage("top_k", 1, 0.25, 0.0)],
        candidates=[drawn, 65],
        probabilities=[[0.25, 1.0], [0.1234567891, 0.0]],
        noise=[0.5, 2.0],
        drawn=drawn,
    )


async def test_distributions_of_settings_come_first_and_then_those_of_tokens() -> None:
    async with calling(sampling=SamplingDefaults(top_p=0.9)) as caller:
        scripted(
            caller,
            Delta(0, [], None, distributions=[shown(0, 72), shown(0, 73)], times=TIMES),
            Delta(0, [72], None, "length", distributions=[shown(2, 74), shown(2, 75), shown(2, 72)], times=TIMES),
        )
        own = {"seed": 5, "presence_penalty": 0.5, "temperature": 0.5}
        settings = [{"top_k": 3}, {"temperature": 0, "seed": 2}]
        body = await inspect(caller, distribution=1, positions=[0, 2], settings=settings, max_tokens=1, **own)
    places = [(one["position"], one["setting"], one["drawn"]) for one in body["distributions"]]
    assert places == [(0, 0, 72), (0, 1, 73), (2, 0, 74), (2, 1, 75), (2, None, 72)]
    assert body["positions"] == [0, 2]
    assert body["distributions"][0] == {
        "position": 0,
        "setting": 0,
        "stages": [
            {"name": "raw", "kept": 260, "mass": 1.0, "entropy": 2.5},
            {"name": "top_k", "kept": 1, "mass": 0.25, "entropy": 0.0},
        ],
        "candidates": [
            {"id": 72, "text": "H", "probabilities": [0.25, 1.0], "noise": 0.5},
            {"id": 65, "text": "A", "probabilities": [0.1234568, 0.0], "noise": 2.0},
        ],
        "drawn": 72,
    }
    stream = caller.engine.streams[-1]
    asked = stream.wanted.inspect
    assert asked is not None
    assert (asked.generated, asked.distribution, asked.needs_probe) == (True, 1, False)
    first, second = asked.settings
    assert (first.temperature, first.top_k, first.top_p, first.seed, first.presence_penalty) == (0.5, 3, 0.9, 5, 0.5)
    assert (second.temperature, second.top_k, second.seed, second.presence_penalty) == (0, 0, 2, 0.5)
    assert (stream.params.temperature, stream.params.top_p, stream.params.seed) == (0.5, 0.9, 5)


@pytest.mark.parametrize(("max_tokens", "tried"), [(0, [None]), (1, [])])
async def test_without_settings_the_requests_own_sampling_is_shown(max_tokens: int, tried: list[None]) -> None:
    async with calling() as caller:
        found = [shown(2, 72)] * max(1, max_tokens)
        scripted(caller, Delta(0, [72] * max_tokens, None, "length", distributions=found, times=TIMES))
        body = await inspect(caller, distribution=1, positions=[2], max_tokens=max_tokens, top_k=3, temperature=1)
    assert [one["setting"] for one in body["distributions"]] == [None]
    asked = caller.engine.streams[-1].wanted.inspect
    assert asked is not None
    assert [(params.top_k, params.seed) for params in asked.settings] == [(3, 0)] * len(tried)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tokens": None}, "prompt"),
        ({"messages": HI}, "tokens"),
        ({"tokens": [-1]}, "tokens"),
        ({"tokens": []}, "tokens"),
        ({"tokens": [65] * 300}, "tokens"),
        ({"positions": [1, 0]}, "positions"),
        ({"positions": [3]}, "positions"),
        ({"positions": [-1]}, "positions"),
        ({"positions": [1, 1]}, "positions"),
        ({"attention": [[LIMITS.layers, 0]]}, "attention"),
        ({"attention": [[0, LIMITS.heads]]}, "attention"),
        ({"attention": [[0]]}, "attention"),
        ({"attention": "some"}, "attention"),
        ({"reduction": "mean"}, "reduction"),
        ({"attention": [[0, 0]], "reduction": "sum"}, "reduction"),
        ({"attention": [[0, 0]], "reduction": "rollout"}, "attention"),
        ({"attention": "all", "reduction": "rollout", "positions": [0, 1, 2]}, "positions"),
        ({"tokens": [65] * 200, "attention": "all", "reduction": "rollout", "top_keys": 1}, "attention"),
        ({"top_keys": 1}, "top_keys"),
        ({"attention": [[0, 0]], "top_keys": 0}, "top_keys"),
        ({"tokens": [65] * 230, "attention": "all", "top_keys": 1}, "attention"),
        ({"embedding": 21}, "embedding"),
        ({"tokens": [65] * 101, "embedding": 0}, "embedding"),
        ({"embedding_vectors": True}, "embedding_vectors"),
        ({"spellings": True}, "spellings"),
        ({"tokens": None, "messages": HI, "spellings": True}, "spellings"),
        ({"tokens": None, "prompt": "Ab" * 100, "spellings": True, "max_tokens": 1}, "spellings"),
        ({"lens": 21}, "lens"),
        ({"lens": -1}, "lens"),
        ({"max_tokens": 300}, "max_tokens"),
        ({"tokens": [65] * 200, "attention": "all"}, "attention"),
        ({"tokens": [65] * 200, "lens": 1}, "lens"),
        ({"stream": True}, "stream"),
        ({"stop": "a"}, "stop"),
        ({"distribution": 21}, "distribution"),
        ({"settings": [{"top_p": 0.5}]}, "settings"),
        ({"distribution": 1, "settings": []}, "settings"),
        ({"distribution": 1, "settings": [{"top_p": 2}]}, "settings"),
        ({"distribution": 1, "settings": [{"top_q": 2}]}, "settings"),
        ({"distribution": 1, "settings": [{"max_tokens": 2}]}, "settings"),
        ({"distribution": 1, "settings": [{}] * 4}, "distribution"),
        ({"distribution": 1, "max_tokens": 11}, "distribution"),
        ({"add_special_tokens": True}, "add_special_tokens"),
        ({"add_generation_prompt": True}, "add_generation_prompt"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ],
)
async def test_what_cannot_be_looked_at_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    limits = {"max_inspection": 40_000, "max_weights": 300_000, "max_lens_rows": 100, "max_distributions": 10}
    async with calling(**limits) as caller:
        answer = await caller.http.post("/v1/inspect", json={"tokens": [65, 66, 67]} | fields)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"].split("[")[0] == param
        assert caller.engine.streams == []


EVERYTHING = {"distribution": 1, "lens": 1, "attention": [[1, 0]], "residual": True}


def drawing(caller: Caller) -> None:
    """Three tokens, the first of which shows no text of its own."""
    tokens = [0xC3, 0xA9, 74]
    scripted(
        caller,
        *(
            Delta(
                0,
                [token],
                None,
                "length" if place == 2 else None,
                inspection=result([4 + place], 5 + place),
                distributions=[shown(4 + place, token)],
                times=TIMES,
            )
            for place, token in enumerate(tokens)
        ),
    )


def check_inspections(seen: list[dict[str, Any]]) -> None:
    assert [(one["position"], one["token"]) for one in seen] == [(4, 0xC3), (5, 0xA9), (6, 74)]
    for one in seen:
        keys = one["position"] + 1
        assert one["distribution"]["drawn"] == one["token"]
        assert one["attention"] == {
            "heads": [[1, 0]],
            "shape": [1, keys],
            "data": [[index / 8 for index in range(keys)]],
        }
        assert one["residual"]["stream"]["shape"] == [2 * LIMITS.layers + 1]
        assert one["residual"]["added"]["shape"] == [2 * LIMITS.layers]
        assert [entry["next_rank"] for entry in one["lens"]] == [7] * (LIMITS.layers + 1)


@pytest.mark.parametrize("route", ["chat", "complete"])
async def test_generation_is_looked_at_token_by_token(route: str) -> None:
    async with calling() as caller:
        send = getattr(caller, route)
        drawing(caller)
        (whole,) = (await send(inspect=EVERYTHING, max_tokens=3)).json()["choices"]
        drawing(caller)
        *chunks, done = events(await send(inspect=EVERYTHING, max_tokens=3, stream=True))
        drawing(caller)
        (plain,) = (await send(max_tokens=3)).json()["choices"]
    assert done is None
    check_inspections(whole["inspection"])
    check_inspections([chunk["choices"][0]["inspection"] for chunk in chunks if "inspection" in chunk["choices"][0]])
    assert "inspection" not in plain
    asked = [stream.wanted.inspect for stream in caller.engine.streams]
    assert asked[0] == asked[1]
    assert asked[2] is None
    assert asked[0] is not None
    assert (asked[0].positions, asked[0].generated, asked[0].distribution) == ((), True, 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"inspect": {}}, "inspect"),
        ({"inspect": {"attention": []}}, "inspect"),
        ({"inspect": {"lens": 1}}, "inspect.lens"),
        ({"inspect": {"lens": 21}, "max_tokens": 1}, "inspect.lens"),
        ({"inspect": {"attention": "all"}}, "inspect.attention"),
        ({"inspect": {"attention": [[0, 99]]}, "max_tokens": 1}, "inspect.attention"),
        ({"inspect": {"lens": 1, "reduction": "mean"}, "max_tokens": 1}, "inspect.reduction"),
        ({"inspect": {"attention": "all", "reduction": "rollout"}, "max_tokens": 1}, "inspect.reduction"),
        ({"inspect": {"distribution": 20}, "max_tokens": 200}, "inspect.distribution"),
        ({"inspect": {"distribution": 20}, "max_tokens": 20, "n": 4}, "inspect.distribution"),
        ({"inspect": {"distribution": 21}, "max_tokens": 1}, "inspect.distribution"),
        ({"inspect": {"positions": [1]}}, "inspect"),
        ({"inspect": True}, "inspect"),
        ({"distribution": 1}, "distribution"),
    ],
)
async def test_looks_beside_tokens_have_limits(fields: dict[str, Any], param: str) -> None:
    async with calling(max_inspection=200_000, max_lens_rows=100) as caller:
        answer = await caller.chat(**fields)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"].startswith(param)
        assert caller.engine.streams == []


def test_a_listed_token_has_bytes_where_its_text_does_not_tell_them() -> None:
    """Half a character; what is written as the sign for such a half is itself a text."""
    body = InspectBody(prompt="a", embedding=2)
    tokens = [0xC3, 65]
    near = [[(token, 0.5) for token in tokens]]
    told = InspectionWriter(body, FakeTokenizer(), LIMITS).embedding([Embedded(norms=array(1), nearest=near)])
    assert told.nearest[0] == [
        {"id": 0xC3, "text": "\ufffd", "bytes": [0xC3], "cosine": 0.5},
        {"id": 65, "text": "A", "cosine": 0.5},
    ]


@pytest.mark.parametrize(
    ("max_weights", "words"),
    [
        (2**25, "270000000 attention weights to compute are more than the 33554432"),
        (2**40, "would be 1080000000 bytes, more than the 4194304"),
    ],
)
async def test_a_thousand_tokens_by_thirty_layers_of_nine_heads_are_refused_at_once(
    max_weights: int, words: str
) -> None:
    """With the size and the limit that it is beyond, before the engine hears of it."""
    async with calling(max_weights=max_weights) as caller:
        caller.engine.limits = replace(LIMITS, layers=30, heads=9, max_context=2048, num_blocks=256)
        every = [[layer, head] for layer in range(30) for head in range(9)]
        turns: list[float] = []
        async with turns_of_the_loop(turns):
            for asked in ("all", every):
                body = {"tokens": [65] * 1000, "attention": asked}
                answer = await caller.http.post("/v1/inspect", json=body)
                assert answer.status_code == 400
                assert words in answer.json()["error"]["message"]
                assert answer.json()["error"]["param"] == "attention"
        assert max(turns) < 0.5 * slowness()
        assert caller.engine.streams == []


def test_a_distributions_size_is_bounded_by_all_the_stages_that_there_are() -> None:
    changing = {transform.name for transform in TRANSFORMS} | {stage for order in ORDERS.values() for stage in order}
    assert len(changing) + 1 == MOST_STAGES
