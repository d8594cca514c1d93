"""The client against a server that is nothing but OpenAI-compatible."""

import gevent
import pytest

from loadtests.client import API_KEY, Abandoned, Client, ServerError
from tests.loadtests.fake_server import fake_server

ROUTE = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "one two three"}]


def test_extensions_are_used_only_where_they_are_taken() -> None:
    with fake_server() as server, Client(server.url) as client:
        assert client.discover().chat(HELLO, 7)["ignore_eos"] is True
    with fake_server(strict=True) as server, Client(server.url) as client:
        target = client.discover()
        assert (target.model, target.max_context) == ("fake-model", None)
        assert "ignore_eos" not in target.chat(HELLO, 7)
        answer, text = client.stream(ROUTE, target.chat(HELLO, 7))
        assert answer.error is None
        assert (answer.prompt_tokens, answer.completion_tokens, len(answer.gaps)) == (3, 7, 6)
        assert text == "word " * 7
        assert server.connections == 1


def test_a_completion_continues_the_texts() -> None:
    with fake_server() as server, Client(server.url) as client:
        target = client.discover(api="completions")
        assert server.bodies[0]["prompt"] == "Hello"
        body = target.request([*HELLO, {"role": "assistant", "content": "four"}], 2)
        assert (body["prompt"], target.route) == ("one two three\nfour", "/v1/completions")
        assert client.stream(target.route, body)[0].prompt_tokens == 4


def test_a_url_may_have_a_path_and_end_in_v1() -> None:
    with fake_server(prefix="/models/a") as server, Client(f"{server.url}/models/a/v1") as client:
        assert client.get("/v1/models")


def test_a_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server(key="secret") as server:
        monkeypatch.setenv(API_KEY, "wrong")
        with Client(server.url) as client, pytest.raises(ServerError, match=r"401.*no such key"):
            client.discover()
        monkeypatch.setenv(API_KEY, "secret")
        with Client(server.url) as client:
            assert client.discover().model == "fake-model"


def test_what_fails_is_told_in_the_answer() -> None:
    with fake_server(dies_after=2) as server, Client(server.url) as client:
        answer, text = client.stream(ROUTE, {"messages": HELLO, "max_tokens": 5})
        assert answer.error
        assert answer.ttft
        assert (text, len(answer.gaps)) == ("word word ", 1)
    with fake_server(fails_every=1) as server, Client(server.url) as client:
        answer, _ = client.stream(ROUTE, {"messages": HELLO, "max_tokens": 5})
        assert answer.error == "status 503: too busy"
        with pytest.raises(ServerError, match="too busy"):
            client.discover()
    answer, _ = Client(server.url).stream(ROUTE, {})
    assert "refused" in (answer.error or "")


def test_a_killed_greenlet_leaves_an_abandoned_answer() -> None:
    with fake_server(pace=0.05) as server, Client(server.url) as client:
        request = gevent.spawn(client.stream, ROUTE, {"messages": HELLO, "max_tokens": 100})
        gevent.sleep(0.3)
        request.kill()
        assert isinstance(request.value, Abandoned)
        assert request.value.args[0].abandoned
        assert request.value.args[0].ttft


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", ""])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ServerError, match="not the URL"):
        Client(url)


def test_an_unknown_model_is_named() -> None:
    with fake_server() as server, Client(server.url) as client, pytest.raises(ServerError, match=r"other.*fake-model"):
        client.discover("other")
