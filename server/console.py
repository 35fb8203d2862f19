"""The console: a page at /console on each listener, made of the files in `server/page`; they are code, nothing else.

The clients' listener has the chat, the administrators' the generations. A page speaks only to the listener that it came
from, so a browser keeps the two keys apart by origin: the page that shows what a model wrote never holds an admin key.
The files need no key (a browser sends none when it loads a page); whatever they show is asked for with one.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

Page = Literal["chat.html", "admin.html"]
PATH = "/console"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
    "LICENSE": "text/plain; charset=utf-8",
}
# Nothing from elsewhere, nothing inline, no text that becomes markup or script, no frame around the page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",  # kept, and asked about each time: after an upgrade nobody runs half of the old page
}


@dataclass(frozen=True)
class File:
    """One file, read once when the server starts."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    def answer(self, request: Request) -> Response:
        headers = HEADERS | {"etag": self.etag}
        known = request.headers.get("if-none-match", "")
        if self.etag in (one.strip().removeprefix("W/") for one in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def _read(folder: Traversable, prefix: str = "") -> dict[str, File]:
    """Every file below a folder, by its path. Raises: KeyError for a file whose type we do not know."""
    found: dict[str, File] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _read(entry, f"{prefix}{entry.name}/")
        else:
            found[prefix + entry.name] = File(entry.read_bytes(), _TYPES[entry.name.rpartition(".")[2]])
    return found


_FILES = _read(files("server") / "page")
OPEN_PATHS = frozenset({PATH} | {f"{PATH}/{name}" for name in _FILES if not name.endswith(".html")})
"""What needs no key: these paths and no others, so there is no path to walk out of."""


def router(page: Page) -> APIRouter:
    """One route for each file; `page` is what a browser gets at /console."""
    found = APIRouter()
    for path in sorted(OPEN_PATHS):
        file = _FILES[page if path == PATH else path.removeprefix(f"{PATH}/")]
        found.add_api_route(path, file.answer, methods=["GET"], include_in_schema=False, response_model=None)
    return found
