"""The OpenAPI 3.1 document, made from the routes themselves: their paths, methods and docstrings, and the fields of a request.

What a route takes beyond its path is said here in one table; whatever is not in it takes nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ..version import __version__
from .credentials import NAME
from .fields import request_fields
from .native.asking import LONGEST_NAME, MOST_SECONDS, PRIORITIES
from .native.jobs import MOST_LISTED, STATES
from .native.shapes import PREFIX
from .openai.fields import DRAWS, OURS
from .submission import LONGEST_TASK

JSON = "application/json"
FORM = "multipart/form-data"
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAADklEQVR4nGNgGAWDEwAAAZgAAQ6jY8cAAAAASUVORK5CYII="
_RAISES = re.compile(r"\s*Raises [^.]*\.")
"""Sentences of docstrings that are for Python."""
_NAMED = re.compile(r"\{(\w+)(?::\w+)?\}")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What a route takes and gives. body: a schema's name or a schema; media: of the body; needed: whether it must be there.

    query: schemas of parameters by name. headers: those that mean something here. answer: name of a schema, or a media type.
    statuses: what it may answer beside an error of everybody's.
    """

    body: str | Mapping[str, Any] | None = None
    media: str = JSON
    needed: bool = True
    example: Any = None
    query: Mapping[str, Mapping[str, Any]] | None = None
    headers: Mapping[str, Mapping[str, Any]] | None = None
    answer: str = JSON
    statuses: tuple[int, ...] = (200,)


def _whole(low: int, high: int, default: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": high}
    return found if default is None else {**found, "default": default}


_TEXT = {"type": "string"}
_BOOLEAN = {"type": "boolean", "default": False}
_ROLE = {"role": {"type": "string", "examples": ["checkpoint"]}}
_JOB = {"request": {"prompt": "a lighthouse at dusk", "steps": 12, "seed": 7}}
_TOKEN = {"type": "object", "required": ["token"], "properties": {"token": _TEXT}}
_KEY = {"Idempotency-Key": {"type": "string", "pattern": "^[!-~]{1,255}$"}}

_FILE = {"type": "string", "format": "binary"}


def _form(*required: str, mask: bool = False) -> dict[str, Any]:
    """What a form of OpenAI's holds: files, and texts, which the API's own names alone are listed of."""
    texts = {name: _TEXT for name in (*DRAWS, *OURS) if name != "prompt" or name in required}
    files = {"image": _FILE, **({"mask": _FILE} if mask else {})}
    return {"type": "object", "required": list(required), "properties": {**files, **texts}}


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", f"{PREFIX}/jobs"): Operation(body="Asked", example=_JOB, headers=_KEY, answer="Job", statuses=(200, 202)),
    ("GET", f"{PREFIX}/jobs"): Operation(
        query={
            "state": {"type": "array", "items": {"type": "string", "enum": list(STATES)}},
            "limit": _whole(1, MOST_LISTED, 50),
            "before": _whole(0, 2**63 - 1),
            "all": _BOOLEAN,
        },
        answer="Jobs",
    ),
    ("GET", f"{PREFIX}/jobs/{{id}}"): Operation(answer="Job"),
    ("DELETE", f"{PREFIX}/jobs/{{id}}"): Operation(statuses=(204,)),
    ("PATCH", f"{PREFIX}/jobs/{{id}}"): Operation(
        body={
            "type": "object",
            "required": ["priority"],
            "properties": {"priority": _whole(*PRIORITIES)},
            "additionalProperties": False,
        },
        example={"priority": 10},
        answer="Job",
    ),
    **{
        ("POST", f"{PREFIX}/jobs/{{id}}/{what}"): Operation(answer="Job")
        for what in ("cancel", "interrupt", "skip", "pause", "resume")
    },
    ("GET", f"{PREFIX}/jobs/{{id}}/events"): Operation(
        query={"after": _whole(0, 10**18 - 1)}, headers={"Last-Event-ID": _TEXT}, answer="text/event-stream"
    ),
    ("GET", f"{PREFIX}/jobs/{{id}}/images/{{index}}.{{format}}"): Operation(
        query={"quality": _whole(1, 100, 90), "download": _BOOLEAN}, answer="image/*"
    ),
    ("GET", f"{PREFIX}/jobs/{{id}}/preview"): Operation(answer="image/*"),
    ("POST", f"{PREFIX}/metadata"): Operation(body={"type": "string", "format": "binary"}, media="image/png"),
    ("GET", f"{PREFIX}/models"): Operation(query=_ROLE),
    ("GET", f"{PREFIX}/models/{{name}}"): Operation(query=_ROLE),
    ("PATCH", f"{PREFIX}/models"): Operation(
        body={
            "type": "object",
            "properties": {"default": _TEXT, "default_vae": {"anyOf": [_TEXT, {"type": "null"}]}},
            "minProperties": 1,
            "additionalProperties": False,
        },
        example={"default": "procedural"},
    ),
    ("POST", f"{PREFIX}/models/load"): Operation(
        body={"type": "object", "properties": {"model": _TEXT}, "additionalProperties": False},
        needed=False,
        example={"model": "procedural"},
    ),
    ("POST", f"{PREFIX}/validate"): Operation(body="Asked", example=_JOB),
    ("POST", f"{PREFIX}/session"): Operation(body=_TOKEN, example={"token": "correct horse"}),
    ("DELETE", f"{PREFIX}/session"): Operation(statuses=(204,)),
    ("POST", "/v1/images/edits"): Operation(body=_form("image", "prompt", mask=True), media=FORM),
    ("POST", "/v1/images/variations"): Operation(body=_form("image"), media=FORM),
    ("GET", "/"): Operation(answer="text/html"),
    ("GET", "/docs"): Operation(answer="text/html"),
    ("GET", "/page/{file}"): Operation(answer="*/*"),
    ("GET", "/health/ready"): Operation(statuses=(200, 503)),
    ("GET", "/metrics"): Operation(answer="text/plain"),
}
_PLAIN = Operation()
_FREE = Operation(body={"type": "object"}, needed=False)
"""Of the other dialects' POST routes, which are lenient with what they do not know."""


async def document(request: Request) -> Response:
    """This document."""
    return JSONResponse(of_app(request.app))


def of_app(app: Starlette) -> dict[str, Any]:
    """The document of an application, made once."""
    if not hasattr(app.state, "openapi"):
        app.state.openapi = describe(app.routes)
    document: dict[str, Any] = app.state.openapi
    return document


def describe(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The document of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if not isinstance(route, Route) or not route.include_in_schema:
            continue
        path = _NAMED.sub(r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, method, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "avila_diffusion",
            "version": __version__,
            "description": "Pictures from Stable Diffusion checkpoints: jobs with events (/api/v1), AUTOMATIC1111's "
            "interface (/sdapi/v1) and OpenAI's image interface (/v1).",
        },
        "paths": paths,
        "components": {"schemas": _schemas(), "parameters": _CLIENT, "securitySchemes": _SECURITY},
        "security": [{}, {"bearer": []}, {"basic": []}, {"cookie": []}],
    }


_CLIENT = {
    "Client": {
        "name": "X-Avila-Client",
        "in": "header",
        "required": False,
        "description": "What the caller is called; its jobs are those of this name.",
        "schema": {"type": "string", "pattern": f"^{NAME.pattern}$"},
    },
    "ClientOfGet": {
        "name": "client",
        "in": "query",
        "required": False,
        "description": "The same, for callers that can set no header.",
        "schema": {"type": "string", "pattern": f"^{NAME.pattern}$"},
    },
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "avila_token"},
}


def _operation(route: Route, method: str, path: str) -> dict[str, Any]:
    ours = path.startswith((f"{PREFIX}/", "/health/", "/metrics", "/openapi.json", "/docs"))
    known = OPERATIONS.get((method, path), _PLAIN if ours or method != "POST" else _FREE)
    told = _RAISES.sub("", inspect.getdoc(route.endpoint) or "").strip() or route.name
    summary, _, rest = told.partition("\n\n")
    found: dict[str, Any] = {
        "summary": " ".join(summary.split()),
        "operationId": f"{method.lower()}{re.sub('[^a-zA-Z0-9]+', '_', path)}".rstrip("_"),
        "tags": [_tag(path)],
        "parameters": [*_parameters(path, known), *_clients(method, path)],
        "responses": {str(status): _answer(status, known) for status in known.statuses},
    }
    found["responses"]["default"] = {
        "description": "An error: one line that says what was found, what was expected, what to do.",
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"} if ours else {}}},
    }
    if rest:
        found["description"] = " ".join(rest.split())
    if known.body is not None:
        schema = {"$ref": f"#/components/schemas/{known.body}"} if isinstance(known.body, str) else dict(known.body)
        content: dict[str, Any] = {"schema": schema}
        if known.example is not None:
            content["example"] = known.example
        found["requestBody"] = {"required": known.needed, "content": {known.media: content}}
    return found


def _tag(path: str) -> str:
    for prefix, tag in (("/sdapi/", "AUTOMATIC1111"), ("/internal/", "AUTOMATIC1111"), ("/v1/", "OpenAI")):
        if path.startswith(prefix):
            return tag
    return "avila" if path.startswith(PREFIX) else "server"


def _parameters(path: str, known: Operation) -> Iterable[dict[str, Any]]:
    for name in _NAMED.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    for place, told in (("query", known.query), ("header", known.headers)):
        for name, schema in (told or {}).items():
            found = {"name": name, "in": place, "required": False, "schema": dict(schema)}
            if schema.get("type") == "array":
                found |= {"style": "form", "explode": False}  # a,b,c
            yield found


def _clients(method: str, path: str) -> Iterable[dict[str, Any]]:
    """How a caller says who it is, where jobs are somebody's."""
    if path.startswith((f"{PREFIX}/", "/sdapi/", "/internal/", "/v1/")) and not path.endswith("/openapi.json"):
        yield {"$ref": "#/components/parameters/Client"}
        if method == "GET":
            yield {"$ref": "#/components/parameters/ClientOfGet"}


def _answer(status: int, known: Operation) -> dict[str, Any]:
    words = {200: "Done.", 202: "Taken; it is on disk.", 204: "Done; there is nothing to say.", 503: "Not now."}
    if status == 204:
        return {"description": words[status]}
    if "/" in known.answer:
        return {"description": words[status], "content": {known.answer: {"schema": {}}}}
    schema = {"$ref": f"#/components/schemas/{known.answer}"}
    return {"description": words[status], "content": {JSON: {"schema": schema}}}


def _schemas() -> dict[str, Any]:
    properties = {field.name: field.schema() for field in request_fields()}
    optional_name = {"anyOf": [{"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}, {"type": "null"}]}
    task = {"anyOf": [{"type": "string", "minLength": 1, "maxLength": LONGEST_TASK}, {"type": "null"}]}
    seconds = {"anyOf": [{"type": "number", "minimum": 1, "maximum": MOST_SECONDS}, {"type": "null"}]}
    asked = {
        "request": {"$ref": "#/components/schemas/Request"},
        **dict.fromkeys(("model", "vae", "refiner"), optional_name),
        "priority": _whole(*PRIORITIES, 0),
        "seconds": {**seconds, "description": "Until it must have ended."},
        "task": {**task, "description": "The caller's own name for the job."},
    }
    return {
        "Request": {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            "examples": [_JOB["request"]],
        },
        "Picture": {
            "description": "An image file (PNG, JPEG, WebP, AVIF, GIF) as base64 or a data: URI.",
            "anyOf": [
                {"type": "string", "examples": [_PIXEL]},
                {
                    "type": "object",
                    "required": ["base64"],
                    "properties": {"base64": _TEXT, "name": {"anyOf": [_TEXT, {"type": "null"}]}},
                    "additionalProperties": False,
                },
            ],
        },
        "Asked": {"type": "object", "required": ["request"], "properties": asked, "additionalProperties": False},
        **_ANSWERS,
    }


_NUMBER_OR_NULL = {"type": ["number", "null"]}
_ANSWERS: Mapping[str, Any] = {
    "Job": {
        "type": "object",
        "required": ["id", "number", "state", "client", "model", "request", "progress", "results", "notes"],
        "properties": {
            "id": _TEXT,
            "number": {"type": "integer"},
            "state": {"type": "string", "enum": list(STATES)},
            "client": _TEXT,
            "model": _TEXT,
            "request": {"type": "object"},
            "created": {"type": "number", "description": "Seconds since 1970, as the other times."},
            "started": _NUMBER_OR_NULL,
            "finished": _NUMBER_OR_NULL,
            "position": {"type": ["integer", "null"], "description": "0: it runs; 1: it is next."},
            "progress": {"type": "object"},
            "results": {"type": "array", "items": {"type": "object"}},
            "problem": {"type": ["object", "null"]},
            "notes": {"type": "array", "items": _TEXT},
        },
    },
    "Jobs": {
        "type": "object",
        "required": ["jobs", "next"],
        "properties": {
            "jobs": {"type": "array", "items": {"$ref": "#/components/schemas/Job"}},
            "next": {"type": ["integer", "null"], "description": "What `before` is for the next ones."},
        },
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["kind", "message", "status"],
                "properties": {
                    "kind": _TEXT,
                    "message": _TEXT,
                    "status": {"type": "integer"},
                    "field": _TEXT,
                },
            }
        },
    },
}

ROUTES = [
    Route(f"{PREFIX}/openapi.json", document, methods=["GET"]),
    Route("/openapi.json", document, methods=["GET"]),
]
