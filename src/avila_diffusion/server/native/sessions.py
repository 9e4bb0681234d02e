"""Signing in with a browser: the token is shown once, and a cookie that only this server reads stands for it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...limits import check_text
from ..bodies import read_json
from ..credentials import COOKIE, Credentials
from ..refusals import Refused
from .shapes import PREFIX

WEEKS = 4
SECONDS = WEEKS * 7 * 24 * 3600


async def sign_in(request: Request) -> Response:
    """Show the token; the answer sets the cookie."""
    body = await read_json(request)
    token = body.get("token")
    check_text("token", token)
    credentials: Credentials = request.scope["avila.credentials"]
    if not credentials.needed:
        return JSONResponse({"needed": False})
    if not credentials.accept(str(token)):
        raise Refused(
            401, "the token is wrong; it is the one that the server was started with", {"WWW-Authenticate": "Bearer"}
        )
    response = JSONResponse({"needed": True})
    response.set_cookie(COOKIE, credentials.cookie, SECONDS, httponly=True, samesite="strict", secure=_secure(request))
    return response


async def sign_out(request: Request) -> Response:
    """Take the cookie back."""
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=_secure(request))
    return response


def _secure(request: Request) -> bool:
    return bool(request.scope["scheme"] == "https")


ROUTES = [
    Route(f"{PREFIX}/session", sign_in, methods=["POST"]),
    Route(f"{PREFIX}/session", sign_out, methods=["DELETE"]),
]
