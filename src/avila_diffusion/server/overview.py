"""`/docs`: what `/openapi.json` says of the routes, as a page to read. AUTOMATIC1111 has one there, which programs look for."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from .openapi import of_app

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="/page/icon.svg"><link rel="stylesheet" href="/page/base.css"></head>
<body><main class="overview">
<h1>{title} {version}</h1>
<p>{description} <a href="/openapi.json">openapi.json</a> is the same for programs, <a href="/">/</a> the page for people.</p>
{parts}
</main></body>
</html>
"""


async def overview(request: Request) -> Response:
    """The routes as a page to read."""
    return HTMLResponse(page_of(of_app(request.app)))


def page_of(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as HTML: a table of routes under each of its tags."""
    tags: dict[str, list[str]] = {}
    for path, methods in sorted(document["paths"].items()):
        for method, told in methods.items():
            cells = (f"<code>{method.upper()}</code>", f"<code>{escape(path)}</code>", escape(told["summary"]))
            row = "".join(f"<td>{cell}</td>" for cell in cells)
            tags.setdefault(told["tags"][0], []).append(f"<tr>{row}</tr>")
    parts = (f"<h2>{escape(tag)}</h2>\n<table>\n" + "\n".join(rows) + "\n</table>" for tag, rows in tags.items())
    info = {name: escape(info) for name, info in document["info"].items()}
    return _PAGE.format(**info, parts="\n".join(parts))


ROUTES = [Route("/docs", overview, methods=["GET"])]
