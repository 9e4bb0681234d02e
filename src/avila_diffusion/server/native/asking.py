"""A job as it is asked for in this dialect: its JSON body as a submission."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from ...errors import RequestError
from ...limits import check_number, check_text, check_whole, shown
from ...pictures import Picture
from ...request import PICTURES
from ..bodies import read_bytes, read_json, worked
from ..guard import client_of
from ..settings import Limits
from ..submission import KEY, LONGEST_TASK, Submission
from ..waiting import picture_of
from .shapes import FIELDS, service_of

MEMBERS = ("request", "model", "vae", "refiner", "priority", "seconds", "task")
"""What the body of a job may hold."""
PRIORITIES = (-100, 100)
LONGEST_NAME = 1024
MOST_SECONDS = 30 * 24 * 3600.0


async def read_submission(request: Request) -> Submission:
    """What the call asks for. Raises RequestError and what `read_json` does."""
    body = await read_json(request)
    data = await read_bytes(request)
    key = request.headers.get("idempotency-key")
    if key is not None and not KEY.fullmatch(key):
        raise RequestError("Idempotency-Key is no key; send 1 to 255 letters, digits and signs without blanks")
    limits, client = service_of(request).settings.limits, client_of(request)
    return await worked(len(data), lambda: submission_of(body, limits, client, key=key, data=data))


def submission_of(
    body: Mapping[str, Any], limits: Limits, client: str, *, key: str | None = None, data: bytes = b""
) -> Submission:
    """The same from values. data: the body as it came. Raises RequestError for members and types that are wrong."""
    unknown = sorted(set(body) - set(MEMBERS))
    if unknown:
        hint = "; fields of a picture go into request" if set(unknown) & FIELDS else ""
        raise RequestError(f"unknown member {shown(unknown[0])}; a job has {', '.join(MEMBERS)}{hint}")
    values = body.get("request")
    if not isinstance(values, dict):
        raise RequestError('request must be an object of fields, such as {"prompt": "a cat"}')
    for name in ("model", "vae", "refiner", "task"):
        _check_name(name, body.get(name))
    priority = body.get("priority")
    if priority is not None:
        check_priority(priority)
    seconds = body.get("seconds")
    if seconds is not None:
        check_number("seconds", seconds, 1.0, MOST_SECONDS)
    return Submission(
        values={name: _value(name, value, limits) for name, value in values.items()},
        client=client,
        model=body.get("model"),
        vae=body.get("vae"),
        refiner=body.get("refiner"),
        priority=priority or 0,
        key=key,
        digest=None if key is None else hashlib.sha256(data).hexdigest(),
        task=body.get("task"),
        seconds=seconds,
        size=len(data),
    )


def check_priority(value: object) -> None:
    """Raises RequestError for what is no priority."""
    check_whole("priority", value, *PRIORITIES)


def _check_name(name: str, value: object) -> None:
    if value is None:
        return
    check_text(name, value)
    assert isinstance(value, str)
    most = LONGEST_TASK if name == "task" else LONGEST_NAME
    if not 0 < len(value) <= most:
        raise RequestError(f"{name} has {len(value):,} characters; it must have from 1 to {most:,}")


def _value(name: str, value: Any, limits: Limits) -> Any:
    """A field's value, a picture from its text. Never a path: files of the server are nobody's business."""
    if name not in PICTURES or value is None:
        return value
    if isinstance(value, str):
        return picture_of(value, name, limits)
    if not isinstance(value, dict) or not set(value) <= {"base64", "name"} or not isinstance(value.get("base64"), str):
        raise RequestError(
            f"{name} must be the base64 of an image file, a data: URI, or "
            '{"base64": …, "name": …}; paths and addresses are not read'
        )
    _check_name(f"{name}: name", value.get("name"))
    found = picture_of(value["base64"], name, limits)
    return Picture(found.data, value["name"]) if value.get("name") else found
