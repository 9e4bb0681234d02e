"""Whether the server lives and can draw, and what it counts."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..metrics import MEDIA_TYPE
from .shapes import service_of


async def live(request: Request) -> Response:
    """200 as long as the server answers at all."""
    return JSONResponse({"live": service_of(request).health().live})


async def ready(request: Request) -> Response:
    """200 where jobs are taken and drawn, else 503 with the reasons."""
    health = service_of(request).health()
    told = {
        "ready": health.ready,
        "reasons": list(health.reasons),
        "worker": health.worker,
        "loaded": health.loaded,
        "queued": health.queued,
        "running": health.running,
        "paused": health.paused,
    }
    return JSONResponse(told, 200 if health.ready else 503)


async def metrics(request: Request) -> Response:
    """Counters in Prometheus' text format."""
    told = request.app.state.metrics.exposition(service_of(request).health())
    return Response(told, headers={"Content-Type": MEDIA_TYPE})


ROUTES = [
    Route("/health/live", live, methods=["GET"]),
    Route("/health/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]
