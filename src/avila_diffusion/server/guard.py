"""Who may call: everything that is looked at before a call is routed, whichever dialect it is of.

In this order: the Host header, where the call comes from (Origin, Sec-Fetch-Site), the token, whether the queue has room,
the size of the body. Each refusal has its dialect's own shape, and every answer the headers that keep other pages out.
Fetch metadata: https://www.w3.org/TR/fetch-metadata/.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import AvilaError, RequestError
from .credentials import NAME, Credentials, Shown
from .hosts import Hosts, is_loopback, split_authority
from .problems import TooLarge
from .receiving import Body, Incoming, too_large
from .refusals import Refused, status_and_headers
from .settings import Settings

if TYPE_CHECKING:
    from .metrics import Metrics
    from .service import Service

log = logging.getLogger("avila.server.guard")

CLIENT_HEADER = "x-avila-client"
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PATCH", "PUT", "DELETE")
MAKES_JOBS = frozenset(
    (
        "/api/v1/jobs",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/img2img",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
    )
)
SESSION = "/api/v1/session"
SESSION_BODY = 4096
"""Bytes of a body there, which is read before anybody has shown a token."""
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'"
)
SECURITY = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-store",
}
"""Headers of every answer that has not set them itself."""
CORS_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Avila-Client"
CORS_EXPOSED = "Location, Retry-After, Retry-After-Ms, X-Process-Time, X-Request-Id, X-Should-Retry"

ErrorAnswer = Callable[[str, AvilaError, int], Response]
"""From the path that was called, the error and its status: the answer in that dialect's shape."""


def client_of(request: Request) -> str:
    """Whose call this is: "ADDRESS" or, with HTTP Basic on a server that has a token, its user; then, where the call says
    who it is (X-Avila-Client, `?client=` of a GET, else the user of Basic), "/" and that name."""
    return str(request.scope["avila.client"])


def is_open(settings: Settings) -> bool:
    """Whether this is one person's server: on loopback, without a token. There everybody may see every job."""
    return settings.token is None and is_loopback(settings.host)


def check_binding(settings: Settings) -> None:
    """Raises RequestError where others could use the server without showing who they are."""
    if settings.token == "":
        raise RequestError("the token is empty; give one of some length, or none at all")
    if not (is_loopback(settings.host) or settings.token is not None or settings.insecure):
        raise RequestError(
            f"on {settings.host} everybody in the network could use this server; give --token (or AVILA_TOKEN), "
            "or --insecure if that is meant"
        )


class Guard:
    """ASGI middleware; outermost, so that nothing is answered without it."""

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics, answer: ErrorAnswer) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics
        self._answer = answer
        settings = service.settings
        self._settings = settings
        self._hosts = Hosts(settings)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.origins)
        self._incoming = Incoming(settings.limits)
        self._credentials = Credentials(settings.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._guarded(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, from its first look to its last byte."""
        begun = time.perf_counter()
        most = self._most(scope)
        body = self._incoming.body(receive, most)
        headers = Headers(scope=scope)
        answered = _Answered(send, begun, self._cors(headers))
        scope["avila.credentials"], scope["avila.body"] = self._credentials, body
        try:
            preflight = self._admit(scope, headers, most)
            await (preflight or self._app)(scope, body, answered)
        except AvilaError as error:
            await self._refuse(error, scope, body, answered)
        finally:
            body.close()
            self._count(scope, answered.status, time.perf_counter() - begun)
        if answered.held:
            await body.linger()
            await answered.finish()

    def _most(self, scope: Scope) -> int:
        """Bytes that the body may have."""
        most = self._settings.limits.body
        return min(most, SESSION_BODY) if scope["path"] == SESSION else most

    def _admit(self, scope: Scope, headers: Headers, most: int) -> Response | None:
        """Look at everything but the body. A response where the call is a preflight. Raises AvilaError."""
        path, method = scope["path"], scope["method"]
        authority = self._check_host(headers)
        preflight = self._check_source(scope, headers, authority)
        if preflight is not None:
            return preflight
        shown = self._credentials.read(headers.getlist("authorization"), headers.getlist("cookie"))
        if not shown.valid and not _is_public(method, path):
            raise _unknown(path, bool(headers.get("authorization")))
        scope["avila.client"] = self._client(scope, headers, shown)
        if method == "POST" and path in MAKES_JOBS and "idempotency-key" not in headers:
            full = self._service.full(scope["avila.client"])
            if full is not None:
                raise full
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > most):
            raise TooLarge(too_large(most))
        return None

    def _check_host(self, headers: Headers) -> str:
        """The authority that was called. Raises Refused."""
        given = headers.getlist("host")
        if len(given) != 1 or not given[0]:
            raise Refused(400, f"the call has {len(given)} Host headers, or an empty one; send one")
        parts = split_authority(given[0])
        if parts is None or not self._hosts.allow(parts[0]):
            raise Refused(
                421, "this server does not go by that name; call it by its address, or start it with --allow-host NAME"
            )
        return given[0].lower()

    def _check_source(self, scope: Scope, headers: Headers, authority: str) -> Response | None:
        """Refuse what another page sends. A response where an allowed page asks beforehand. Raises Refused."""
        method = scope["method"]
        origins = headers.getlist("origin")
        origin = origins[0].lower() if len(origins) == 1 else None
        allowed = origin is not None and origin in self._origins
        if allowed and method == "OPTIONS" and "access-control-request-method" in headers:
            return Response(status_code=204)
        own = origin in (f"{scope['scheme']}://{authority}", None)
        if len(origins) > 1 or not (own or allowed):
            raise Refused(403, "this call comes from a page of another origin, which may not make it (--cors-origin)")
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and not allowed and not _is_visit(scope, headers):
            raise Refused(403, "this call comes from a page of another site, which may not make it (--cors-origin)")
        return None

    def _client(self, scope: Scope, headers: Headers, shown: Shown) -> str:
        address = scope["client"][0] if scope.get("client") else "local"  # as credentials.NAMELESS has it
        if not _ADDRESS.fullmatch(address):  # a proxy passed on what it was told
            address = "unknown"
        name = headers.get(CLIENT_HEADER)
        if name is None and scope["method"] == "GET" and b"client=" in scope["query_string"]:
            name = parse_qs(scope["query_string"].decode("latin-1")).get("client", [None])[0]
        if name is not None and not NAME.fullmatch(name):
            raise Refused(400, "X-Avila-Client is no name; send 1 to 64 of the characters A-Z a-z 0-9 _ . -")
        if self._credentials.needed and shown.user is not None:
            return shown.user if name is None else f"{shown.user}/{name}"
        name = name or shown.user
        return address if name is None else f"{address}/{name}"

    def _cors(self, headers: Headers) -> dict[str, str]:
        """What lets an allowed page read the answer. Cookies are never sent along: they are SameSite=Strict."""
        if not self._origins:
            return {}
        found = {"vary": "Origin"}
        origin = headers.get("origin", "")
        if origin.lower() in self._origins:
            found["access-control-allow-origin"] = origin
            found["access-control-expose-headers"] = CORS_EXPOSED
            found["cross-origin-resource-policy"] = "cross-origin"
            if "access-control-request-method" in headers:
                found["access-control-allow-methods"] = "GET, POST, PATCH, DELETE"
                asked = headers.get("access-control-request-headers", "")  # clients have headers of their own
                found["access-control-allow-headers"] = asked if _NAMES.fullmatch(asked) else CORS_HEADERS
                found["access-control-max-age"] = "600"
        return found

    async def _refuse(self, error: AvilaError, scope: Scope, body: Body, answered: _Answered) -> None:
        """Answer an error of the guard itself."""
        status, extra = status_and_headers(error)
        log.info("refused %s with %d: %s", scope["method"], status, error)
        self._metrics.rejected(_reason(status))
        if answered.status is not None:
            return  # half an answer is out; the server closes the connection on it
        response = self._answer(scope["path"], error, status)
        response.headers.update(extra)
        await response(scope, body, answered)

    def _count(self, scope: Scope, status: int | None, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")  # never the path itself: there are as many as callers like
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.answered(method, route, status or 0, seconds)
        log.debug("%s %s %s %.1f ms", method, route, status, seconds * 1000)


class _Answered:
    """Stands for ASGI's `send`: adds the headers of every answer and remembers its status.

    held: the end of the answer is kept back until `finish`, so that the connection stays open meanwhile: of one to a body
    that is too large, which the caller may be sending still.
    """

    def __init__(self, send: Send, begun: float, extra: Mapping[str, str]) -> None:
        self._send = send
        self._begun = begun
        self._extra = extra
        self.status: int | None = None
        self.held = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.held = self.status == 413
            message = {**message, "headers": self._headers(list(message.get("headers", [])))}
        elif message["type"] == "http.response.body" and self.held:
            message = {**message, "more_body": True}
        await self._send(message)

    async def finish(self) -> None:
        """Send the end of an answer that was held."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _headers(self, raw: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        there = {name.lower() for name, _ in raw}
        seconds = time.perf_counter() - self._begun
        added: dict[str, Any] = {**SECURITY, **self._extra, "x-process-time": f"{seconds:.4f}"}
        if self.status in (408, 413):
            added["connection"] = "close"
        return raw + [
            (name.encode(), value.encode("latin-1")) for name, value in added.items() if name.encode() not in there
        ]


_NAMES = re.compile(r"[A-Za-z0-9-]+(?: *, *[A-Za-z0-9-]+){0,63}")
_ADDRESS = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_STATIC = re.compile(r"/(?:page/[^/]+)?")


def _is_public(method: str, path: str) -> bool:
    """What is served without a token: the page, which shows nothing of anybody, and where one signs in."""
    return (method in ("GET", "HEAD") and _STATIC.fullmatch(path) is not None) or (method == "POST" and path == SESSION)


def _is_visit(scope: Scope, headers: Headers) -> bool:
    """Somebody follows a link to the page, in a tab of its own."""
    return (
        scope["method"] == "GET"
        and scope["path"] == "/"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _unknown(path: str, tried: bool) -> Refused:
    scheme = 'Basic realm="avila", charset="UTF-8"' if path.startswith(("/sdapi/", "/internal/")) else "Bearer"
    message = "the token is wrong" if tried else "this server asks for its token"
    how = "send it as `Authorization: Bearer TOKEN`, or as the password of HTTP Basic"
    return Refused(401, f"{message}; {how}", {"WWW-Authenticate": scheme})


def _reason(status: int) -> str:
    names = {
        400: "bad_call",
        401: "token",
        403: "origin",
        408: "slow_body",
        413: "body_size",
        421: "host",
        429: "queue",
    }
    return names.get(status, "other")
