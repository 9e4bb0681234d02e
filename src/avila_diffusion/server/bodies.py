"""Bodies of calls as values: JSON objects and forms, bounded in depth, in number and in what a number may be."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from ..errors import RequestError
from .refusals import Refused

DEPTH = 32
VALUES = 500_000
"""Of a JSON body: so deep, so many brackets, commas and colons. The longest prompt of nothing but commas has 100,000."""
SMALL = 65536
"""Bytes that are read sooner than a thread for them begins."""
FORM_FIELDS = 100
FORM_FILES = 32
FORM_TEXT = 1 << 20
Made = TypeVar("Made")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object of a call. An empty body is an error.

    Raises RequestError for what is no JSON object, Refused (415) for another content type, and what `receiving.Body` does.
    """
    kind, _, rest = request.headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise Refused(415, f"the content type is {kind[:80] or 'not given'!r}; send application/json")
    if "charset" in rest.lower() and re.search("utf-?8", rest.lower()) is None:
        raise Refused(415, "the body must be UTF-8")
    _check_plain(request)
    data = await read_bytes(request)
    return await worked(len(data), lambda: parse_object(data))


async def read_json_or_nothing(request: Request) -> dict[str, Any]:
    """As `read_json`; an empty body of whatever type is an empty object."""
    return await read_json(request) if await read_bytes(request) else {}


async def read_bytes(request: Request) -> bytes:
    """The body as it is. Raises Refused where the caller went away in the middle of it."""
    try:
        return await request.body()
    except ClientDisconnect:
        raise Refused(400, "the call ended before its body did") from None


def let_go(request: Request) -> None:
    """The body has become a job, of which its size is the queue's to count: it is neither held nor counted here any more."""
    request._body = b""
    body = request.scope.get("avila.body")
    if body is not None:
        body.close()


async def worked(size: int, work: Callable[[], Made]) -> Made:
    """What `work` makes of so many bytes; off the loop where they are many enough for other calls to wait for them."""
    return work() if size <= SMALL else await asyncio.to_thread(work)


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object that is written there. Raises RequestError."""
    if sum(map(data.count, (b",", b"[", b"{", b":"))) > VALUES:
        raise RequestError(f"the body has more than {VALUES:,} values; send fewer")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        told = " ".join(str(error).split())[:160]
        raise RequestError(f"the body is no JSON: {told or 'it is nested too deeply'}") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body is a JSON {_kind(value)}; send an object, such as {{}}")
    _check_depth(value)
    if _SURROGATE.search(data):
        _check_text(value)
    return value


async def read_form(request: Request) -> FormData:
    """The fields of a multipart form: texts, and files that lie in memory and need not be closed.

    Raises RequestError for what is no such form, Refused (415) for another content type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise Refused(415, f"the content type is {kind[:80] or 'not given'!r}; send multipart/form-data")
    _check_plain(request)
    items: list[tuple[str, str | UploadFile]] = []
    try:
        async with request.form(max_files=FORM_FILES, max_fields=FORM_FIELDS, max_part_size=FORM_TEXT) as form:
            for name, value in form.multi_items():
                items.append((name, value if isinstance(value, str) else await _in_memory(value)))
    except HTTPException as error:
        raise RequestError(f"the form cannot be read: {error.detail}") from None
    except ClientDisconnect:
        raise Refused(400, "the call ended before its body did") from None
    return FormData(items)


async def _in_memory(file: UploadFile) -> UploadFile:
    data = await file.read()
    return UploadFile(io.BytesIO(data), size=len(data), filename=file.filename, headers=file.headers)


def _check_plain(request: Request) -> None:
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        raise Refused(415, f"the body is encoded with {coding[:40]!r}; send it as it is")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    """JSON may hold 1e999, which is no number that could be written again."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _kind(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _check_depth(value: object) -> None:
    level, depth = [value], 0
    while level:
        if depth > DEPTH:
            raise RequestError(f"the body is nested more than {DEPTH} deep; send a flatter one")
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _children(outer)]
        depth += 1


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _check_text(value: object) -> None:
    """Half a character can be written in JSON and nowhere else."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError("the body has half a character in it (a lone surrogate); send valid text") from None
