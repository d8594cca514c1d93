"""The page as files: how they are served, and what is in them."""

import re
from pathlib import Path

import pytest

from service.api import page
from service.settings import load_settings
from tests.service.api.fakes import MODEL, calling

FOLDER = Path(page.__file__).parents[1] / "page"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*"))


async def test_a_file_is_let_out_without_a_key_but_only_to_the_right_host() -> None:
    async with calling(api_keys="sesame", allowed_hosts="app") as caller:
        for path in ("/", *(f"/page/{name}" for name in FILES)):
            answer = await caller.http.get(path)
            assert answer.status_code == 200, path
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'self'; "), path
            assert "unsafe" not in policy, path
            assert answer.headers["x-content-type-options"] == "nosniff", path
            for host in ("evil.example", "10.0.0.1"):
                assert (await caller.http.get(path, headers={"host": host})).status_code == 400, path

            tag = answer.headers["etag"]
            for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
                again = await caller.http.get(path, headers={"if-none-match": known})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag), path
            assert (await caller.http.get(path, headers={"if-none-match": '"other"'})).content == answer.content, path


async def test_nothing_else_is_let_out() -> None:
    async with calling() as caller:
        for name in ("none.js", "", "../api/page.py", "..%2fapi%2fpage.py", "%2e%2e/app.py", "steps"):
            assert (await caller.http.get(f"/page/{name}")).status_code == 404, name


async def test_behind_a_proxy_the_page_begins_at_the_prefix() -> None:
    async with calling(root_path="/llm") as caller:
        index = (await caller.http.get("/llm")).text
        assert '<base href="/llm/">' in index
        for place in re.findall(r'(?:src|href)="(page/[^"]+)"', index):
            assert (await caller.http.get(f"/llm/{place}")).status_code == 200


@pytest.mark.parametrize("off", ["off", "false", "0"])
async def test_a_server_without_its_page_says_where_everything_is(off: str) -> None:
    async with calling(page=off) as caller:
        assert (await caller.http.get("/")).json()["model"] == MODEL
        assert (await caller.http.get("/page/main.js")).status_code == 404
    async with calling(page=off, api_keys="sesame") as caller:
        for path in ("/", "/page/main.js"):
            assert (await caller.http.get(path)).status_code == 401
    assert load_settings(page="on").page


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_no_other_host_and_has_nothing_inline(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text.replace("http://www.w3.org/2000/svg", "")) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|@import", text) == []
    if name.endswith(".html"):
        assert re.findall(r"<style|<script(?![^>]* src=)|\son\w+=|\sstyle=", text) == []


def words(language: str) -> dict[str, str]:
    text = (FOLDER / "strings" / f"{language}.js").read_text()
    return dict(re.findall(r'^  "?([^":]+)"?: "(.*)",$', text, re.MULTILINE))


def test_each_language_has_every_word_with_its_values() -> None:
    english, korean = words("en"), words("ko")
    assert list(english) == list(korean)
    for name, text in english.items():
        assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", korean[name])), name


def test_every_word_that_is_asked_for_is_there_and_every_other_is_gone() -> None:
    code = "\n".join((FOLDER / name).read_text() for name in FILES if name.endswith(".js") and "strings/" not in name)
    asked = set(re.findall(r'"([a-z][\w. ]*)"', code))
    templates = re.findall(r"\bt\(`([^`]+)`", code)
    patterns = [r"[\w. ]+".join(map(re.escape, re.split(r"\$\{.*?\}", template))) for template in templates]
    known = words("en")
    unused = [
        name for name in known if name not in asked and not any(re.fullmatch(pattern, name) for pattern in patterns)
    ]
    assert unused == []
    said = set(re.findall(r'\bt\("([^"]+)"', code))
    assert said <= known.keys()


def test_every_file_is_in_the_wheel() -> None:
    project = (FOLDER.parents[1] / "pyproject.toml").read_text()
    packed = re.search(r'^"?service"? = \[(.*)\]$', project, re.MULTILINE)
    assert packed is not None
    patterns = re.findall(r'"([^"]+)"', packed[1])
    found = {path.relative_to(FOLDER.parent) for pattern in patterns for path in FOLDER.parent.glob(pattern)}
    assert found >= {Path("page") / name for name in FILES}
