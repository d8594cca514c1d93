"""The server as its users meet it: `headlight serve` on the real model, real HTTP, the openai package."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai import OpenAI

from tests.service.servers import PATIENCE, get, save_dummy_llama, serving, status, wait_until

MODEL = "smollm2-135m-instruct"
README = (Path(__file__).parents[2] / "README.md").read_text()
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def metric(url: str, name: str) -> float:
    """The sum of a metric's samples."""
    answered, text = get(f"{url}/metrics")
    assert answered == 200
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE, max_retries=0) as client:
        yield client


def test_the_requests_that_the_readme_shows_are_answered(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order in which a reader comes to them."""
    names: dict[str, Any] = {}
    for shown in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        if "client" in shown:
            exec(shown.replace("http://127.0.0.1:8000", url), names)
    said = capsys.readouterr().out
    assert "Paris" in said
    assert "'distribution'" in said
    requests = re.findall(r"curl [^\n]*:8000(/\S+) [^\n]*-d '(.*?)'", README, re.DOTALL)
    assert len(requests) == 2
    for path, body in requests:
        answer = httpx.post(f"{url}{path}", json=json.loads(body), timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        assert "Paris" in answer.text


def test_chat_knows_paris(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=30)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_question_alone_is_answered(url: str) -> None:
    """As the server's own curl line asks it, without a word on sampling or length."""
    answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": QUESTION}, timeout=PATIENCE).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_streamed_chat_equals_unstreamed(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=30)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            temperature=0,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage
    assert whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completion_streamed_and_not(client: OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 12}
    whole = client.completions.create(**asked)
    assert "Paris" in whole.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == (
        whole.choices[0].text
    )


def test_logprobs_of_greedy_tokens_are_the_highest(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=9, logprobs=True, top_logprobs=5
    )
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content
    for token in content:
        assert len(token.top_logprobs) == 5
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
    *written, end = content
    assert end.token == "<|im_end|>"
    text = b"".join(bytes(token.bytes or []) for token in written).decode()
    assert text == answer.choices[0].message.content

    old = client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=4, logprobs=2
    )
    logprobs = old.choices[0].logprobs
    assert logprobs
    assert logprobs.tokens
    assert "".join(logprobs.tokens) == old.choices[0].text
    assert logprobs.top_logprobs
    assert all(len(top) >= 2 for top in logprobs.top_logprobs)


def test_stop_strings_end_the_text_before_them(client: OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "1, 2, 3, 4, 5, 6,", "temperature": 0, "max_tokens": 40}
    free = client.completions.create(**asked).choices[0].text
    stop = free[10:14]
    answer = client.completions.create(**asked, stop=[stop]).choices[0]
    assert answer.text == free[: free.index(stop)]
    assert answer.finish_reason == "stop"
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stop=[stop], stream=True))
    assert streamed == answer.text


def test_korean_survives_the_stream(client: OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "대한민국의 수도는", "temperature": 0, "max_tokens": 24}
    whole = client.completions.create(**asked).choices[0].text
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}


WEATHER = tool("get_weather", city={"type": "string", "maxLength": 12}, days={"type": "integer", "maximum": 9})
TIME = tool("get_time", city={"enum": ["Seoul", "Paris"]})


@pytest.mark.parametrize(("temperature", "stream"), [(0, True), (1, False)])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_time"}}], ids=["required", "named"]
)
def test_a_call_that_has_to_be_made_is_made_and_valid(
    client: OpenAI, choice: Any, temperature: float, stream: bool
) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "tools": [WEATHER, TIME], "tool_choice": choice}
    asked |= {"temperature": temperature, "seed": 5, "max_tokens": 200, "parallel_tool_calls": False}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            completion = events.get_final_completion()
    else:
        completion = client.chat.completions.create(**asked)
    [answer] = completion.choices
    assert answer.finish_reason == "tool_calls"
    [call] = answer.message.tool_calls or []
    schemas = {one["function"]["name"]: one["function"]["parameters"] for one in (WEATHER, TIME)}
    jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
    assert choice == "required" or call.function.name == "get_time"
    history = [*QUESTION, answer.message.model_dump(exclude_none=True)]
    history.append({"role": "tool", "tool_call_id": call.id, "content": "noon"})
    asked |= {"messages": history, "tool_choice": "none", "max_tokens": 5}
    assert client.chat.completions.create(**asked).choices[0].message.content


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "gpt-4"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, openai.BadRequestError, "tools"),
        ({"messages": []}, openai.BadRequestError, "messages"),
    ],
)
def test_bad_requests_are_refused_by_name(client: OpenAI, change, error, word: str) -> None:
    with pytest.raises(error, match=word):
        client.chat.completions.create(**({"model": MODEL, "messages": QUESTION, "max_tokens": 4} | change))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_blocks_at_once(url: str, stream: bool) -> None:
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    loop = asyncio.get_running_loop()
    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        request = asyncio.create_task(client.post(f"{url}/v1/completions", json=body))
        while await loop.run_in_executor(None, metric, url, "headlight_num_requests_running") == 0:
            assert not request.done()
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await loop.run_in_executor(None, wait_until, lambda: metric(url, "headlight_num_requests_running") == 0)
    assert metric(url, "headlight_kv_cache_usage_perc") == 0


def test_sigterm_lets_a_request_finish_and_refuses_the_next(tmp_path: Path) -> None:
    save_dummy_llama(tmp_path, 1024)
    with (
        serving(str(tmp_path), "--load-format", "dummy", "--drain-seconds", "120") as (url, process),
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        model = client.models.list().data[0].id
        stream = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        first = next(iter(stream))
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: status(f"{url}/ready") != 200)
        chunks = [first, *stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert process.wait(PATIENCE) == 0


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = headlight("serve", "--port", port)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert port in result.stderr


def test_what_cannot_be_served_is_one_plain_line() -> None:
    result = headlight("serve", "no/such/model/at-all")
    assert result.returncode == 1
    assert "no/such/model/at-all" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_chat_in_the_terminal(smollm2) -> None:
    result = headlight("chat", input="What is the capital of France?\n")
    assert result.returncode == 0
    assert "Paris" in result.stdout


def headlight(*arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command, input=input, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False
    )


def test_an_echos_log_probabilities_are_those_of_the_tokens_drawn(client: OpenAI) -> None:
    """As evaluation harnesses ask: the text again, with its log-probabilities."""
    asked = {"model": MODEL, "temperature": 0}
    drawn = client.completions.create(**asked, prompt="The capital of France is", max_tokens=8, logprobs=0)
    echo = client.completions.create(
        **asked, prompt="The capital of France is" + drawn.choices[0].text, max_tokens=1, logprobs=0, echo=True
    )
    assert drawn.choices[0].logprobs
    assert echo.choices[0].logprobs
    expected = drawn.choices[0].logprobs.token_logprobs
    found = echo.choices[0].logprobs.token_logprobs
    assert expected
    assert found
    assert found[0] is None
    assert found[-1 - len(expected) : -1] == pytest.approx(expected, abs=0.05)


def test_embeddings_tell_subjects_apart(client: OpenAI) -> None:
    texts = ["The cat sat on the mat.", "A kitten is lying on a rug.", "Interest rates rose by half a percent."]
    answer = client.embeddings.create(model=MODEL, input=texts)
    cat, kitten, rates = (entry.embedding for entry in answer.data)
    assert len(cat) == 576

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert cosine(cat, cat) == pytest.approx(1, abs=1e-3)
    assert cosine(cat, kitten) > cosine(cat, rates)


def test_the_inside_of_the_model_while_it_answers(url: str) -> None:
    """Attention adds up to 1, and the last layer's lens gives the token that was drawn."""
    asked = {"prompt": "The capital of France is", "attention": [[0, 0], [29, 8]], "residual": True, "lens": 2}
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(httpx.post, f"{url}/v1/completions", json={"prompt": "1, 2, 3,", "max_tokens": 30})
        answer = httpx.post(f"{url}/v1/inspect", json=asked | {"max_tokens": 3}, timeout=PATIENCE)
        assert beside.result().status_code == 200
    assert answer.status_code == 200, answer.text
    body = answer.json()
    prompt = sum(not token["generated"] for token in body["tokens"])
    assert " Paris" in [token["text"] for token in body["tokens"]]
    assert body["positions"] == [*range(prompt + 2)]
    assert body["attention"]["shape"] == [2, prompt + 2, prompt + 2]
    for of_head in body["attention"]["data"]:
        assert [sum(row) for row in of_head] == pytest.approx([1.0] * (prompt + 2), abs=1e-4)
    assert len(body["lens"]) == 31
    drawn = [token["id"] for token in body["tokens"][prompt:]]
    assert [entry["likeliest"][0]["id"] for entry in body["lens"][-1][prompt - 1 :]] == drawn
    assert [entry["next_rank"] for entry in body["lens"][-1][prompt - 1 :]] == [1, 1, 1]
    assert body["residual"]["stream"]["shape"] == [61, prompt + 2]


def test_the_openai_package_streams_the_inside_beside_each_token(client: OpenAI) -> None:
    """The waterfall ends in what is drawn; the lens's last layer is its first stage; attention adds up to 1."""
    look = {"distribution": 5, "lens": 1, "attention": [[3, 5]], "residual": True}
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0.7,
        top_p=0.9,
        seed=3,
        max_tokens=6,
        stream=True,
        extra_body={"inspect": look, "top_k": 20, "return_token_ids": True},
    )
    chunks = [chunk.choices[0] for chunk in stream]
    seen = [extra["inspection"] for chunk in chunks if "inspection" in (extra := chunk.model_extra or {})]
    ids = [id for chunk in chunks for id in (chunk.model_extra or {}).get("token_ids") or ()]
    assert len(seen) == 6
    assert [one["token"] for one in seen] == ids
    for one in seen:
        shown = one["distribution"]
        assert [stage["name"] for stage in shown["stages"]] == ["raw", "temperature", "top_k", "top_p"]
        assert shown["stages"][2]["kept"] >= shown["stages"][3]["kept"]
        assert shown["drawn"] == one["token"]
        drawable = [candidate for candidate in shown["candidates"] if candidate["probabilities"][-1] > 0]
        race = {candidate["id"]: candidate["noise"] / candidate["probabilities"][-1] for candidate in drawable}
        assert min(race, key=lambda id: race[id]) == one["token"]
        likeliest = max(shown["candidates"], key=lambda candidate: candidate["probabilities"][0])
        assert one["lens"][-1]["likeliest"][0]["id"] == likeliest["id"]
        assert sum(one["attention"]["data"][0]) == pytest.approx(1, abs=1e-4)


def test_a_slider_is_redrawn_by_the_servers_own_arithmetic(url: str) -> None:
    asked = {"prompt": "The capital of France is", "distribution": 5, "temperature": 1}
    settings = [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.5}, {"temperature": 0}]
    answers = [
        httpx.post(f"{url}/v1/inspect", json=asked | {"positions": [4], "settings": settings}, timeout=PATIENCE)
        for _ in range(2)
    ]
    shown = answers[0].json()["distributions"]
    assert answers[1].json()["distributions"] == shown
    assert [one["setting"] for one in shown] == [*range(5)]
    assert [one["stages"][-1]["name"] for one in shown] == ["temperature", "top_k", "top_p", "min_p", "temperature"]
    assert shown[1]["stages"][-1]["kept"] == 2
    assert shown[4]["candidates"][0]["text"] == " Paris"
    assert shown[4]["candidates"][0]["probabilities"][-1] == 1


def test_the_tokenizer_is_described_as_evaluation_harnesses_need_it(url: str) -> None:
    told = httpx.get(f"{url}/tokenizer_info", timeout=PATIENCE).json()
    for name in ("bos_token", "eos_token"):
        assert told[name] in told["additional_special_tokens"]
        asked = {"prompt": told[name], "add_special_tokens": False}
        assert httpx.post(f"{url}/tokenize", json=asked, timeout=PATIENCE).json()["count"] == 1
    assert "add_generation_prompt" in told["chat_template"]
    assert told["model_max_length"] > 1024


def test_a_beam_search_finds_the_likeliest_completions(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 6, "logprobs": 0}
    search = {"use_beam_search": True, "best_of": 4, "length_penalty": 0, "ignore_eos": True}
    found = client.completions.create(**fields, n=3, temperature=0, extra_body=search).choices
    greedy = client.completions.create(**fields, temperature=0, extra_body={"ignore_eos": True}).choices
    sums = [sum(choice.logprobs.token_logprobs) for choice in [*found, *greedy] if choice.logprobs]
    assert len({choice.text for choice in found}) == 3
    assert sums[:3] == sorted(sums[:3], reverse=True)
    assert sums[0] >= sums[3] - 1e-3
