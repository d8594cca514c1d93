"""GET / and /page/NAME: the page that shows people the model at work. Its files know the server by its API alone."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.errors import ApiError

FOLDER = "/page"
INDEX = "index.html"
_FILES = Path(str(files("service"))) / "page"
_ROOT = b'<base href="/">'
"""The line of the index that says where the page's own addresses begin."""
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept, but asked for again each time: a new version of the server has the same names.
    "cache-control": "no-cache",
}
"""Headers of each of the page's files: nothing from other hosts, nothing inline, in no frame of another page."""


@dataclass(frozen=True)
class PageFile:
    """The content of a file, and the tag that tells it from other contents."""

    content: bytes
    media_type: str
    etag: str


def is_of_page(path: str) -> bool:
    """Whether a plain path belongs to the page, which a browser fetches before it has a key."""
    return path == "/" or path.startswith(f"{FOLDER}/")


def router_of(root_path: str) -> APIRouter:
    """Routes for the page's files, which are read here, once. `root_path` is the prefix of a proxy, or empty."""
    found = _read(root_path)
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index(request: Request) -> Response:
        return _answer(request, found[INDEX])

    @router.get(FOLDER + "/{file:path}")
    async def part(file: str, request: Request) -> Response:
        if file not in found:
            raise ApiError(404, "There is no such route.")
        return _answer(request, found[file])

    return router


def _read(root_path: str) -> dict[str, PageFile]:
    """The files by their paths below the folder."""
    read = {}
    for path in sorted(_FILES.rglob("*.*")):
        name, content = path.relative_to(_FILES).as_posix(), path.read_bytes()
        if name == INDEX:
            content = content.replace(_ROOT, f'<base href="{root_path}/">'.encode())
        read[name] = PageFile(content, _MEDIA_TYPES[path.suffix], _etag(content))
    return read


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _answer(request: Request, file: PageFile) -> Response:
    """The file, or 304 without it for a browser that has the same one."""
    headers = HEADERS | {"etag": file.etag}
    # A proxy that compresses may have made the tag a weak one.
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {file.etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
