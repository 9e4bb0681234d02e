"""The application: every dialect's routes behind one guard, and every error in the shape of the dialect it happened in."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import AvilaError
from . import native, openai, openapi, overview, page, sdapi
from .guard import Guard
from .metrics import Metrics
from .refusals import Incident, Refused, status_and_headers
from .service import Service
from .settings import Settings

log = logging.getLogger("avila.server")

_DIALECTS: tuple[tuple[tuple[str, ...], Callable[[AvilaError, int], Response]], ...] = (
    (("/sdapi/", "/internal/"), sdapi.error_response),
    (("/v1/",), openai.error_response),
)


def create_app(settings: Settings, service: Service | None = None, *, running: bool = False) -> Starlette:
    """The whole server as an ASGI application. Its service is `app.state.service`.

    service: by default a new one. It is started and stopped with the application, but for `running`: then whoever made it
    has started it, and stops it.
    """
    service = Service(settings, Metrics()) if service is None else service
    if not isinstance(service.tally, Metrics):  # nobody counts yet
        service.tally = Metrics()
    metrics = service.tally
    app = Starlette(
        routes=_routes(service),
        middleware=[Middleware(Guard, service=service, metrics=metrics, answer=error_answer), Middleware(_Incidents)],
        exception_handlers={AvilaError: _told, HTTPException: _http_told, ClientDisconnect: _gone},
        lifespan=None if running else _lifespan(service),
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.settings = settings
    app.state.metrics = metrics
    return app


def error_answer(path: str, error: AvilaError, status: int) -> Response:
    """An error in the shape of the dialect that `path` belongs to."""
    for prefixes, shaped in _DIALECTS:
        if path.startswith(prefixes):
            return shaped(error, status)
    return native.error_response(error, status)


def _routes(service: Service) -> list[BaseRoute]:
    parts = (native, sdapi, openai, page)
    return [*openapi.ROUTES, *overview.ROUTES, *(route for part in parts for route in part.routes(service))]


def _lifespan(service: Service) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def living(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    return living


async def _told(request: Request, error: Exception) -> Response:
    """An error that was foreseen."""
    assert isinstance(error, AvilaError)
    status, headers = status_and_headers(error)
    if status >= 500:
        log.warning("%s: %s", type(error).__name__, error)
    response = error_answer(request.url.path, error, status)
    for name, value in headers.items():
        response.headers.setdefault(name, value)
    return response


async def _http_told(request: Request, error: Exception) -> Response:
    """What the router refuses."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # the router names the methods of the first route that has this path
        headers["Allow"] = ", ".join(_methods(request))
    said = {
        404: "there is nothing here; /openapi.json lists what there is",
        405: f"{request.method} is not for this path; it takes {headers.get('Allow', 'another method')}",
    }
    refused = Refused(error.status_code, said.get(error.status_code, str(error.detail)), headers)
    return await _told(request, refused)


def _methods(request: Request) -> list[str]:
    """Those that some route takes at this path."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    here = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in here for method in route.methods or ()})


async def _gone(request: Request, error: Exception) -> Response:
    """The caller went away; nobody reads this."""
    return Response(status_code=400)


class _Incidents:
    """ASGI middleware: what nobody foresaw is logged with its traceback, and answered by a number to look for there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except (AvilaError, ClientDisconnect):
            raise
        except Exception:
            if scope["type"] != "http":
                raise
            number = secrets.token_hex(4)
            log.exception("incident %s at %s %s", number, scope["method"], getattr(scope.get("route"), "path", "?"))
            if begun:
                return  # the server closes the connection on half an answer
            told = Incident(f"something went wrong that should not have; it is incident {number} in the server's log")
            await error_answer(scope["path"], told, 500)(scope, receive, send)
