"""Who is let in: every route but four and the page wants a key, and no key is ever told to anybody."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.routing import iter_route_contexts
from openai import AsyncOpenAI

from service.api.auth import OPEN_PATHS
from service.api.keys import ApiKeys
from service.api.page import is_of_page
from service.processes.orders import ApiConfig, Setup
from service.settings import Settings, SettingsError, load_settings
from tests.service.api.fakes import HI, MODEL, build, calling, serving

KEYS = {"api_keys": "first-key, second#key"}
REFUSED = ["", "first-key,second#key", "first-ke", "first-key1", "FIRST-KEY", "ké", "first-key second#key"]


def bearer(key: str) -> dict[str, bytes]:
    return {"authorization": f"Bearer {key}".encode("latin-1")}


def every_route() -> list[tuple[str, str]]:
    """The method and a path of each route, and of one that does not exist."""
    app, *_ = build(None, {})
    found = [
        (method, re.sub(r"{[^}]*}", "toy", route.path))
        for route in iter_route_contexts(app.routes)
        for method in sorted(route.methods)
    ]
    return [*found, ("GET", "/no/such/route"), ("BREW", "/"), ("GET", "/health/x"), ("GET", "/metrics/../v1/models")]


@pytest.mark.parametrize(("method", "path"), every_route())
async def test_every_route_but_four_and_the_page_wants_a_key(method: str, path: str) -> None:
    async with calling(**KEYS) as caller:
        without = await caller.http.request(method, path)
        if path in OPEN_PATHS or is_of_page(path):
            assert without.status_code in (200, 404, 405)
            return
        assert without.status_code == 401
        assert without.headers["www-authenticate"] == "Bearer"
        assert "x-request-id" in without.headers
        if method != "HEAD":
            error = without.json()["error"]
            if path.startswith("/v1/messages"):
                assert error["type"] == "authentication_error"
            else:
                told = (error["type"], error["code"], error["param"])
                assert told == ("invalid_request_error", "invalid_api_key", None)
        assert (await caller.http.request(method, path, headers=bearer("first-key"))).status_code != 401
        assert caller.engine.streams == []


def test_the_open_paths_are_routes() -> None:
    assert {"/health", "/ready", "/ping", "/metrics"} == OPEN_PATHS
    assert {path for _, path in every_route()} > OPEN_PATHS


@pytest.mark.parametrize("key", REFUSED)
async def test_what_is_not_a_key(key: str) -> None:
    async with calling(**KEYS) as caller:
        assert (await caller.http.get("/v1/models", headers=bearer(key))).status_code == 401


@pytest.mark.parametrize("header", ["first-key", "Basic first-key", "Bearer", "Token first-key", "Bearerfirst-key"])
async def test_other_schemes_are_refused(header: str) -> None:
    async with calling(**KEYS) as caller:
        assert (await caller.http.get("/v1/models", headers={"authorization": header})).status_code == 401


@pytest.mark.parametrize("header", ["Bearer first-key", "bearer second#key", "BEARER  first-key "])
async def test_each_key_is_enough(header: str) -> None:
    async with calling(**KEYS) as caller:
        assert (await caller.http.get("/v1/models", headers={"authorization": header})).status_code == 200


async def test_a_server_without_keys_asks_for_none() -> None:
    async with calling() as caller:
        assert (await caller.http.get("/v1/models")).status_code == 200


async def test_a_large_body_does_not_come_before_the_key() -> None:
    async with calling(max_body=10, **KEYS) as caller:
        assert (await caller.http.post("/tokenize", content=b"x" * 100)).status_code == 401


async def test_the_openai_package() -> None:
    async with serving(**KEYS) as server:

        async def ask(key: str) -> str | None:
            async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=10) as client:
                answer = await client.chat.completions.create(model=MODEL, messages=HI)  # type: ignore[arg-type]
                return answer.choices[0].message.content

        assert await ask("second#key") == "Hello, world"
        with pytest.raises(openai.AuthenticationError, match="API keys"):
            await ask("third-key")


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(len(known))
        return given == known

    keys = ApiKeys(Settings(api_keys="a,b,c"))
    monkeypatch.setattr("service.api.keys.hmac.compare_digest", compare)
    assert [keys.accept(key) for key in (b"a", b"c", b"d" * 1000)] == [True, True, False]
    assert compared == [32] * 9


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"# of the team\r\nfrom-file\r\n\r\n  indented  \n#not-a-key")
    keys = ApiKeys(Settings(api_keys="from-environment", api_keys_file=path))
    accepted = [b"from-file", b"indented", b"from-environment"]
    assert [keys.accept(key) for key in [*accepted, b"#not-a-key", b""]] == [True] * 3 + [False] * 2


def test_a_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a mounted Secret changes: a link is moved to another folder."""
    for name, key in (("old", "old-key"), ("new", "new-key"), ("broken", "br oken")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(key)

    def mount(name: str) -> None:
        link = tmp_path / "draft"
        link.symlink_to(tmp_path / name)
        link.rename(tmp_path / "mount")

    mount("old")
    keys = ApiKeys(Settings(api_keys_file=tmp_path / "mount" / "keys"))
    assert [keys.accept(key) for key in (b"old-key", b"new-key")] == [True, False]
    mount("new")
    assert [keys.accept(key) for key in (b"old-key", b"new-key")] == [False, True]
    for broken in ("broken", "missing"):
        mount(broken)
        caplog.clear()
        assert [keys.accept(key) for key in (b"new-key", b"new-key", b"br oken", b"")] == [True, True, False, False]
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "stay valid" in caplog.text
        assert "oken" not in caplog.text.replace("broken", "")
    mount("old")
    assert keys.accept(b"old-key")


UNFIT: list[tuple[dict[str, Any], bytes | None, str]] = [
    ({"HEADLIGHT_API_KEYS": ""}, None, "HEADLIGHT_API_KEYS: it is empty"),
    ({"HEADLIGHT_API_KEYS": "sesame,,"}, None, "HEADLIGHT_API_KEYS: key 2: the key is empty"),
    ({"HEADLIGHT_API_KEYS": "open, sesame street"}, None, "HEADLIGHT_API_KEYS: key 2: a key must be ASCII"),
    ({"HEADLIGHT_API_KEYS": "sésame"}, None, "HEADLIGHT_API_KEYS: key 1: a key must be ASCII"),
    ({"HEADLIGHT_API_KEYS_FILE": " "}, None, "HEADLIGHT_API_KEYS_FILE: it is empty"),
    ({}, b"", "there is no key"),
    ({}, b"# only\n\n  # comments", "there is no key"),
    ({}, b"open\nsesame street", "line 2: a key must be ASCII"),
    ({}, b"open\n\xff\xfesesame", "line 2: a key must be ASCII"),
    ({}, None, "No such file"),
]


@pytest.mark.parametrize(("environment", "content", "words"), UNFIT)
def test_what_cannot_be_keys_is_told_in_one_line_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], content: bytes | None, words: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        ApiKeys(load_settings(**({} if environment else {"api_keys_file": str(path)})))
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert "sesame" not in message


@pytest.mark.parametrize("flags", [[], ["--api-keys-file", "/dev/null"]])
def test_a_server_without_the_keys_it_should_have_does_not_start(flags: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", "--port", "0", *flags],
        capture_output=True,
        text=True,
        env=os.environ | ({} if flags else {"HEADLIGHT_API_KEYS": "sesame,"}),
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert "key" in result.stderr
    assert "sesame" not in result.stderr + result.stdout


def test_keys_are_no_flag() -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--api-keys", "sesame"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="directory"):
        ApiKeys(Settings(api_keys_file=tmp_path))


async def test_no_key_is_told_to_anybody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with calling(api_keys="sesame") as caller:
        answers: list[httpx.Response] = []
        for key in ("sesame", "sesamoid"):
            answers.append(await caller.http.get("/v1/models", headers=bearer(key)))
            answers.append(await caller.http.get("/openapi.json", headers=bearer(key)))
        answers.append(await caller.http.get("/metrics"))
        assert not any("sesam" in f"{answer.text}{answer.headers}" for answer in answers)
    settings = Settings(api_keys="sesame")
    keys = ApiKeys(settings)
    assert "sesam" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "sesam" not in f"{keys!r} {vars(keys)}"
    setup = Setup(ApiConfig(settings.revealed(), "toy", "/toy", None, listener=0), folder="/", slot=0, started=0)
    assert setup.config.settings["api_keys"] == "sesame"
    assert "sesam" not in f"{setup!r} {setup} {setup.config!r}"
    assert "sesam" not in caplog.text


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
async def test_keys_do_not_share_cached_prefixes(route: str) -> None:
    async def salts(**settings: Any) -> list[str]:
        """Of a request with each key, and with the first again."""
        async with calling(**settings) as caller:
            for key in ("first-key", "second#key", "first-key"):
                fields = {"prompt": "hi"} if "chat" not in route else {"messages": HI}
                answer = await caller.http.post(route, json=fields | salt, headers=bearer(key))
                assert answer.status_code in (200, 401)
            return [stream.cache_salt for stream in caller.engine.streams]

    for salt in ({}, {"cache_salt": "mine"}):
        own = salt.get("cache_salt", "")
        first, second, again = await salts(**KEYS)
        assert first == again != second
        assert len({first, second, own}) == 3
        assert "first-key" not in first
        assert [first, second, again] == await salts(**KEYS)
        assert await salts(**KEYS, share_prefix_cache=True) == [own] * 3
        assert await salts(api_keys="first-key") == [own] * 2
        assert await salts() == [own] * 3
    # Nobody reaches another's prefixes by writing the other's salt.
    salt = {"cache_salt": first}
    assert first not in (await salts(**KEYS))[1:2]
