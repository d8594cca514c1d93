"""What clients, proxies and browsers meet before any route: paths, HEAD, hosts, origins, names, and the docs."""

import re
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from service.api.auth import OPEN_PATHS
from service.api.observe import PROBES
from service.settings import SettingsError, load_settings
from service.versions import version_of
from tests.service.api.fakes import HI, MODEL, build, calling, serving

KEYS = {"api_keys": "sesame"}
BEARER = {"authorization": "Bearer sesame"}
PAGE = {"origin": "https://app.example.com"}
ASKS = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
PREFLIGHT = PAGE | ASKS


def gets() -> list[str]:
    """A path of each route that takes GET."""
    app, *_ = build(None, {})
    # Responses are never stored, so theirs is a 404.
    every = [route for route in iter_route_contexts(app.routes) if "GET" in route.methods]
    routes = [route for route in every if not route.path.startswith("/v1/responses/")]
    names = {"{name:path}": MODEL, "{name}": "swagger-ui.css", "{file:path}": "main.js"}
    filled = [re.sub("{.*}", lambda place: names[place[0]], route.path) for route in routes]
    return sorted(set(filled))


def assert_error(response: httpx.Response, status: int, code: str | None = None) -> None:
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


@pytest.mark.parametrize("path", gets())
async def test_head_is_get_without_a_body(path: str) -> None:
    async with serving() as server:
        whole, head = await server.http.get(path), await server.http.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b"") == (200, b"")
        own = {"date", "x-request-id", "content-length"}
        assert {name: head.headers[name] for name in head.headers if name not in own} == {
            name: whole.headers[name] for name in whole.headers if name not in own
        }
        # Over the same connection, which a body would have put out of step.
        assert (await server.http.get(path)).status_code == 200
        metrics = (await server.http.get("/metrics")).text
        series = r'headlight_http_(?:responses|probes)_total{{method="{}",.*(route="[^"]+")'
        counted = {method: re.findall(series.format(method), metrics) for method in ("GET", "HEAD")}
        assert counted["HEAD"] == counted["GET"] != []


async def test_head_is_no_way_around() -> None:
    async with calling(**KEYS) as caller:
        assert (await caller.http.head("/v1/models")).status_code == 401
        assert (await caller.http.head("/v1/completions", headers=BEARER)).status_code == 405
        assert (await caller.http.head("/nowhere", headers=BEARER)).status_code == 404


@pytest.mark.parametrize("path", gets())
async def test_a_slash_at_the_end_changes_nothing(path: str) -> None:
    async with calling() as caller:
        assert (await caller.http.get(path.rstrip("/") + "/")).status_code == 200


@pytest.mark.parametrize("prefix", ["", "/llm", "/a/b-c"])
async def test_a_body_arrives_whatever_the_form_of_the_path(prefix: str) -> None:
    async with calling(**({"root_path": prefix} if prefix else {})) as caller:
        for path in ("/v1/completions", "/v1/completions/", f"{prefix}/v1/completions", f"{prefix}/v1/completions/"):
            response = await caller.http.post(path, json={"prompt": "hi"})
            assert (response.status_code, response.history) == (200, []), path
        assert_error(await caller.http.get(f"{prefix}x/v1/models"), 404)


async def test_the_prefix_of_a_proxy_opens_nothing_and_closes_nothing() -> None:
    async with calling(root_path="/llm", **KEYS) as caller:
        for path in sorted(OPEN_PATHS):
            assert (await caller.http.get(f"/llm{path}")).status_code == 200
        for path in ("/llm", "/llm/", "/llm/page/main.js"):
            assert (await caller.http.get(path)).status_code == 200
        for path in (
            "/llm/v1/models",
            "/v1/models",
            "/llm/health/v1/models",
            "/llm/llm/health",
            "/llm/pages",
            "/llm/page",
        ):
            assert (await caller.http.get(path)).status_code == 401
    async with calling(root_path="/llm", page=False, **KEYS) as caller:
        assert (await caller.http.get("/llm")).status_code == 401
        landing = (await caller.http.get("/llm", headers=BEARER)).json()
        for place in ("docs", "metrics"):
            assert (await caller.http.get(landing[place], headers=BEARER)).status_code == 200
        schema = (await caller.http.get("/llm/openapi.json", headers=BEARER)).json()
        assert schema["servers"] == [{"url": "/llm"}]


@pytest.mark.parametrize("root_path", ["/v1", "/health", "/docs", "/v1/chat"])
def test_a_prefix_that_routes_have_is_refused(root_path: str) -> None:
    with pytest.raises(SettingsError, match=f"root_path.*{root_path},"):
        build(None, {"root_path": root_path})


@pytest.mark.parametrize("root_path", [None, "/llm"])
async def test_the_docs_ask_no_other_host(root_path: str | None) -> None:
    async with calling(root_path=root_path) as caller:
        page = (await caller.http.get("/docs")).text
        assert "http" not in page.replace("http-equiv", "")
        assert '"validatorUrl": null' in page
        named = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page)
        places = ["".join(pair) for pair in named]
        assert len(places) == 4
        for place in places:
            assert place.startswith(root_path or "/")
            response = await caller.http.get(place)
            assert (response.status_code, len(response.content) > 1000) == (200, True), place
        assert_error(await caller.http.get("/docs/redoc.standalone.js"), 404)
        assert_error(await caller.http.get("/docs/..%2f..%2f__init__.py"), 404)


async def test_ping_and_version() -> None:
    async with calling(**KEYS) as caller:
        assert (await caller.http.get("/ping")).json()["status"] == "ready"
        caller.admission.drain()
        assert (await caller.http.get("/ping")).status_code == 503
        assert (await caller.http.get("/version", headers=BEARER)).json() == {"version": version_of("headlight")}
    assert OPEN_PATHS == PROBES


async def test_no_page_of_another_origin_is_let_in_by_default() -> None:
    async with calling() as caller:
        answers = [await caller.http.options("/v1/completions", headers=PREFLIGHT), await caller.http.get("/health")]
        assert not any(name.startswith("access-control") for answer in answers for name in answer.headers)


@pytest.mark.parametrize(
    ("origins", "shown"), [("*", "*"), ("https://other.example, https://app.example.com", PAGE["origin"])]
)
async def test_a_preflight_is_answered_before_the_key(origins: str, shown: str) -> None:
    async with calling(allowed_origins=origins, **KEYS) as caller:
        preflight = await caller.http.options("/v1/chat/completions", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == shown
        assert preflight.headers["access-control-allow-headers"] == ASKS["access-control-request-headers"]
        assert "x-request-id" in preflight.headers
        # What is no preflight wants its key, and a page may read even why it was refused.
        assert (await caller.http.options("/v1/models", headers=PAGE)).status_code == 401
        for headers, status in ((PAGE, 401), (PAGE | BEARER, 200)):
            response = await caller.http.post("/v1/chat/completions", json={"messages": HI}, headers=headers)
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == shown
            assert "x-request-id" in response.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in response.headers


async def test_pages_may_use_every_route_by_its_method() -> None:
    async with calling(allowed_origins="*") as caller:
        paths = (await caller.http.get("/openapi.json")).json()["paths"]
        ways = [(path, method) for path, methods in paths.items() for method in methods]
        assert {method for _, method in ways} == {"get", "post", "delete"}
        for path, method in ways:
            asks = PREFLIGHT | {"access-control-request-method": method.upper()}
            assert (await caller.http.options(path, headers=asks)).status_code == 200, (path, method)


async def test_pages_of_other_origins_are_refused() -> None:
    async with calling(allowed_origins="https://app.example.com") as caller:
        for origin in (
            "https://evil.example",
            "http://app.example.com",
            "https://app.example.com.evil.example",
            "null",
        ):
            preflight = await caller.http.options("/v1/completions", headers=PREFLIGHT | {"origin": origin})
            assert_error(preflight, 400, "origin_not_allowed")
            response = await caller.http.get("/v1/models", headers={"origin": origin})
            for answer in (preflight, response):
                assert "access-control-allow-origin" not in answer.headers
        assert_error(
            await caller.http.options("/", headers=PREFLIGHT | {"access-control-request-method": "PATCH"}),
            400,
            "origin_not_allowed",
        )


ALLOWED = "llm.example.com, *.svc.cluster.local, [::1], 10.0.0.7"


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("llm.example.com", True),
        ("LLM.Example.com:8000", True),
        ("llm.example.com.", True),
        ("headlight.default.svc.cluster.local:80", True),
        ("[::1]:8000", True),
        ("10.0.0.7", True),
        ("10.0.0.8", False),
        ("svc.cluster.local", False),
        ("evil.example", False),
        ("llm.example.com.evil.example", False),
        ("evilsvc.cluster.local", False),
        ("", False),
    ],
)
async def test_only_allowed_hosts_are_served(host: str, served: bool) -> None:
    async with calling(allowed_hosts=ALLOWED) as caller:
        response = await caller.http.get("/v1/models", headers={"host": host})
        if served:
            assert response.status_code == 200
        else:
            assert_error(response, 400, "host_not_allowed")
        both = [("host", "llm.example.com"), ("host", "evil.example")]
        assert_error(await caller.http.get("/v1/models", headers=both), 400, "host_not_allowed")


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
async def test_probes_come_by_ip_whatever_the_hosts(path: str) -> None:
    async with calling(allowed_hosts="llm.example.com") as caller:
        for host in ("10.1.2.3:8000", "[fd00::7]:8000", "10.1.2.3", "", "llm.example.com"):
            assert (await caller.http.get(path, headers={"host": host})).status_code == 200
        assert_error(await caller.http.get(path, headers={"host": "evil.example"}), 400, "host_not_allowed")


async def test_every_host_is_served_by_default() -> None:
    for settings in ({}, {"allowed_hosts": "*"}):
        async with calling(**settings) as caller:
            for host in ("anything.example", "10.0.0.1", ""):
                assert (await caller.http.get("/v1/models", headers={"host": host})).status_code == 200


async def test_several_served_names() -> None:
    async with calling(served_model_name="org/small, small:latest,other") as caller:
        names = ["org/small", "small:latest", "other"]
        assert [card["id"] for card in (await caller.http.get("/v1/models")).json()["data"]] == names
        for name in [*names, None]:
            assert (await caller.complete(model=name)).json()["model"] == "org/small"
            assert (await caller.chat(model=name)).json()["model"] == "org/small"
            assert (await caller.http.post("/tokenize", json={"prompt": "a", "model": name})).status_code == 200
        for name in names:
            for path in (name, name.replace("/", "%2F")):
                assert (await caller.http.get(f"/v1/models/{path}")).json()["id"] == name
        for name in ("org", "small", MODEL, "org/small,other"):
            assert_error(await caller.http.get(f"/v1/models/{name}"), 404, "model_not_found")
            assert_error(await caller.complete(model=name), 404, "model_not_found")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"served_model_name": "a,,b"}, "a name"),
        ({"served_model_name": "a,"}, "a name"),
        ({"allowed_hosts": ""}, "host name"),
        ({"allowed_hosts": "a.example:8000"}, "without a port"),
        ({"allowed_hosts": "https://a.example"}, "without a port"),
        ({"allowed_hosts": "a.*"}, "without a port"),
        ({"allowed_origins": "app.example.com"}, "an origin"),
        ({"allowed_origins": "https://app.example.com/"}, "an origin"),
        ({"allowed_origins": "https://*.example.com"}, "an origin"),
        ({"allowed_origins": "https://App.example.com"}, "an origin"),
        ({"allowed_origins": "null"}, "an origin"),
        ({"root_path": "llm"}, "such as /llm"),
        ({"root_path": "/"}, "such as /llm"),
        ({"root_path": "/a b"}, "such as /llm"),
        ({"root_path": "//a"}, "such as /llm"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_start(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(**given)
    assert str(caught.value).startswith(next(iter(given)))
    assert "\n" not in str(caught.value)


def test_what_is_meant_is_taken() -> None:
    settings = load_settings(root_path="/llm/", host="[::1]", allowed_origins="http://localhost:3000,app://obsidian.md")
    assert (settings.root_path, settings.host) == ("/llm", "::1")
