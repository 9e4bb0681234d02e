"""The web page: plain HTML, CSS and JavaScript modules that lie in this folder, served as they are.

There is no build step, and the page asks for nothing outside its own origin. What may be served is a fixed table: a name
that is asked for is looked up in it, and never becomes part of a path.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

if TYPE_CHECKING:
    from ..service import Service

_HTML = "text/html; charset=utf-8"
_STYLE = "text/css; charset=utf-8"
_SCRIPT = "text/javascript; charset=utf-8"
_DRAWING = "image/svg+xml"

FILES: dict[str, str] = {
    "index.html": _HTML,
    **dict.fromkeys(("base.css", "form.css", "mask.css", "view.css", "dialog.css"), _STYLE),
    **dict.fromkeys(("icon.svg", "icons.svg"), _DRAWING),
    **dict.fromkeys(
        (
            "api.js",
            "dialogs.js",
            "dom.js",
            "early.js",
            "en.js",
            "fields.js",
            "form.js",
            "gallery.js",
            "i18n.js",
            "jobs.js",
            "main.js",
            "mask.js",
            "metadata.js",
            "models.js",
            "picture.js",
            "prompt.js",
            "pt.js",
            "queue.js",
            "reuse.js",
            "sizes.js",
            "stage.js",
            "viewer.js",
        ),
        _SCRIPT,
    ),
}
"""Every file of the page, and its media type."""


@dataclass(frozen=True)
class Asset:
    """A file of the page as it is sent. tag: its ETag, quotes included."""

    content: bytes
    media_type: str
    tag: str


@cache
def asset(name: str) -> Asset:
    """A file of the page by its name in `FILES`. Raises KeyError for any other name."""
    media_type = FILES[name]
    content = files(__name__).joinpath(name).read_bytes()
    return Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:24]}"')


def routes(service: Service) -> list[BaseRoute]:
    """The page at / and its files at /page/<name>. They need no service: it is asked by the page, over the API."""
    return [
        Route("/", _index, methods=["GET"], name="page"),
        Route("/page/{file}", _file, methods=["GET"], name="page file"),
    ]


async def _index(request: Request) -> Response:
    return _sent(request, asset("index.html"))


async def _file(request: Request) -> Response:
    name = request.path_params["file"]
    if name not in FILES:
        return PlainTextResponse("the page has no such file\n", status_code=404)
    return _sent(request, asset(name))


def _sent(request: Request, found: Asset) -> Response:
    # Asked for again each time and answered with 304: after an update no old module meets a new one.
    headers = {"ETag": found.tag, "Cache-Control": "no-cache"}
    if _known(request.headers.get("if-none-match", ""), found.tag):
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


def _known(header: str, tag: str) -> bool:
    """Whether If-None-Match names this version; compared weakly, as RFC 9110 (13.1.2) has it."""
    named = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in named or tag in named
