"""Times to wait, limits of a key, and what a client is told that the engine turned away."""

from typing import Any

import pytest

from service.engine.messages import Delta, Refusal
from service.settings import Settings
from tests.service.api.fakes import HI, Caller, calling

ROUTES = ("/v1/completions", "/v1/chat/completions")


async def ask(caller: Caller, route: str, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    body = ({"messages": HI} if "chat" in route else {"prompt": "hi"}) | fields
    return await caller.http.post(route, json=body, headers=headers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("refusal", "status", "wait"),
    [
        (Refusal("deadline_exceeded", "too late", 1.0), 503, "1"),
        (Refusal("key_queue_full", "4 wait", 0.2), 429, "1"),
        (Refusal("key_tokens_exceeded", "60 tokens", 12.3), 429, "13"),
    ],
    ids=lambda value: value.code if isinstance(value, Refusal) else None,
)
async def test_a_refusal_of_the_engine_has_its_status_streamed_or_not(
    refusal: Refusal, status: int, wait: str, route: str, stream: bool
) -> None:
    async with calling() as caller:
        caller.engine.failure = Delta(0, [], None, finish_reason="refused", refusal=refusal)
        answer = await ask(caller, route, stream=stream, n=2)
        assert answer.status_code == status
        assert answer.headers["retry-after"] == wait
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == (
            refusal.code,
            "rate_limit_error" if status == 429 else "server_error",
        )
        assert refusal.reason in error["message"]
        metrics = (await caller.http.get("/metrics")).text
        reason = "deadline" if status == 503 else "key_limit"
        assert f'headlight_admission_rejections_total{{model_name="toy",reason="{reason}"}} 1.0' in metrics
        assert 'headlight_request_success_total{finished_reason="error",model_name="toy"} 0.0' in metrics


@pytest.mark.parametrize(
    ("default", "given", "seconds"),
    [(None, None, None), (None, "2.5", 2.5), (10.0, None, 10.0), (10.0, "3", 3.0), (10.0, "60", 10.0)],
)
async def test_a_request_says_how_long_it_may_wait(
    default: float | None, given: str | None, seconds: float | None
) -> None:
    async with calling(queue_timeout=default) as caller:
        for route in ROUTES:
            answer = await ask(caller, route, {"X-Request-Timeout": given} if given else None)
            assert answer.status_code == 200
            assert caller.engine.streams[-1].patience == seconds


@pytest.mark.parametrize("given", ["", "soon", "0", "-1", "nan", "inf", "1e999"])
async def test_a_time_that_is_none_is_refused(given: str) -> None:
    async with calling() as caller:
        answer = await ask(caller, ROUTES[0], {"X-Request-Timeout": given})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "X-Request-Timeout"


async def test_the_engine_knows_callers_apart() -> None:
    async with calling(api_keys="one,two") as caller:
        for key in ("one", "two", "one"):
            assert (await ask(caller, ROUTES[0], {"Authorization": f"Bearer {key}"})).status_code == 200
        one, two, again = (stream.caller for stream in caller.engine.streams)
        assert one == again != two
        assert all("one" not in name and "two" not in name for name in (one, two))


def test_limits_of_keys_need_keys() -> None:
    with pytest.raises(ValueError, match="need API keys"):
        Settings(max_running_per_key=1)
