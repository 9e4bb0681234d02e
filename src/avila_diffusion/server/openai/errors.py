"""Errors in OpenAI's shape, and whether its clients are to try again.

Its clients repeat 408, 409, 429 and everything from 500 on, twice, unless `x-should-retry` says otherwise.
"""

from __future__ import annotations

import math
import re
from typing import Any

from starlette.responses import JSONResponse, Response

from ...errors import AvilaError, Cancelled, ModelNotFound, OutputProblem, RequestError
from ...request import GenerateRequest
from ..job import Problem
from ..problems import Conflict, Draining, NoSuchJob, NotAllowed, NotOffered, QueueFull, TooLarge

DRAINING_SECONDS = 10.0
"""After which somebody who was turned away by a server that stops may come again."""
_CODES: tuple[tuple[type[AvilaError], str], ...] = (
    (ModelNotFound, "model_not_found"),
    (NoSuchJob, "not_found"),
    (QueueFull, "rate_limit_exceeded"),
    (Draining, "server_stopping"),
    (TooLarge, "request_too_large"),
    (Conflict, "idempotency_conflict"),
    (NotOffered, "not_supported"),
    (NotAllowed, "not_allowed"),
    (OutputProblem, "storage_full"),
    (Cancelled, "cancelled"),
    (RequestError, "invalid_value"),
)
_BY_STATUS = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}
_FIRST_WORD = re.compile(r"(?:unknown )?(\w+)(?=[ :])")
_SIZE = re.compile(r"[\d,]+x[\d,]+ ")
_PARAMS = {name: name for name in GenerateRequest.__dataclass_fields__} | {
    "width": "size",
    "height": "size",
    "count": "n",
}
"""Field of a request → the parameter that sets it."""


class BadField(RequestError):
    """A field of a call that cannot be used. param: its name as the caller knows it; code: as OpenAI has them."""

    def __init__(self, param: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def error_response(error: AvilaError, status: int) -> Response:
    """An error as its clients read it. What cannot be asked is 400 here, not 422."""
    status = 400 if status == 422 else status
    wait = _wait(error)
    content = _content(str(error), status, _param(error), _code(error, status))
    return JSONResponse({"error": content}, status, _headers(wait, retry=wait is not None or status == 408))


def failed_response(problem: Problem) -> Response:
    """Why a job failed, as an answer."""
    status = failed_status(problem)
    retry = not problem.asked and not problem.lasting
    return JSONResponse({"error": failed_content(problem)}, status, _headers(1.0 if retry else None, retry=retry))


def failed_status(problem: Problem) -> int:
    """400 where the request was wrong, 504 where the time was over, else 500."""
    if problem.asked:
        return 400
    return 504 if problem.kind == "TimedOut" else 500


def failed_content(problem: Problem) -> dict[str, Any]:
    """Why a job failed, as what stands under "error"."""
    code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", problem.kind).lower()
    return _content(problem.message, failed_status(problem), None, code)


def error_content(error: AvilaError, status: int) -> dict[str, Any]:
    """An error in the middle of a stream, as what stands under "error"."""
    return _content(str(error), status, _param(error), _code(error, status))


def _content(message: str, status: int, param: str | None, code: str) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"message": message, "type": kind, "param": param, "code": code}


def _headers(wait: float | None, *, retry: bool) -> dict[str, str]:
    headers = {"x-should-retry": "true" if retry else "false"}
    if wait is not None:
        headers |= {"Retry-After": str(max(1, math.ceil(wait))), "retry-after-ms": str(max(1, math.ceil(1000 * wait)))}
    return headers


def _wait(error: AvilaError) -> float | None:
    """Seconds after which it may be otherwise; None where it will not."""
    if isinstance(error, QueueFull):
        return error.retry_after
    return DRAINING_SECONDS if isinstance(error, Draining) else None


def _code(error: AvilaError, status: int) -> str:
    if isinstance(error, BadField):
        return error.code
    known = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    return known or _BY_STATUS.get(status, "server_error" if status >= 500 else "invalid_request")


def _param(error: AvilaError) -> str | None:
    """The field that is meant, as this dialect calls it: errors of requests begin with it, or say that it is unknown."""
    if isinstance(error, BadField):
        return error.param
    if isinstance(error, ModelNotFound):
        return "model"
    if not isinstance(error, RequestError):
        return None
    if _SIZE.match(str(error)):
        return "size"
    found = _FIRST_WORD.match(str(error))
    return _PARAMS.get(found[1]) if found is not None else None
