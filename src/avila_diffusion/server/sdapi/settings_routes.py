"""Options and models: read and set, scanned again, loaded and unloaded; and what AUTOMATIC1111 has that is not built here."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..bodies import read_json
from ..problems import NotOffered
from ..service import Service
from .answers import error_answer
from .options import Options

NOT_BUILT = {
    "interrogate": "a model that describes pictures",
    "create/embedding": "training by HTTP; `avila train` does it on the server",
    "create/hypernetwork": "hypernetworks",
    "train/embedding": "training by HTTP; `avila train` does it on the server",
    "train/hypernetwork": "hypernetworks",
}
REFRESHED = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")


def routes(service: Service, options: Options) -> list[Route]:
    """The routes of options and models."""
    kept = _Settings(service, options)
    return [
        Route("/sdapi/v1/options", kept.show, methods=["GET"]),
        Route("/sdapi/v1/options", kept.change, methods=["POST"]),
        Route("/sdapi/v1/unload-checkpoint", kept.unload, methods=["POST"]),
        Route("/sdapi/v1/reload-checkpoint", kept.reload, methods=["POST"]),
        *(Route(f"/sdapi/v1/{name}", kept.refresh, methods=["POST"], name=f"sdapi-{name}") for name in REFRESHED),
        *(Route(f"/sdapi/v1/{name}", _not_built, methods=["POST"], name=f"sdapi-{name}") for name in NOT_BUILT),
        # Clients ask with GET whether there is such a route, and take 405 for yes.
        *(Route(f"/sdapi/v1/{name}", _absent, methods=["GET"], include_in_schema=False) for name in NOT_BUILT),
    ]


class _Settings:
    def __init__(self, service: Service, options: Options) -> None:
        self._service = service
        self._options = options

    async def show(self, request: Request) -> Response:
        """All options, flat."""
        return JSONResponse(self._options.shown())

    async def change(self, request: Request) -> Response:
        """Set options. A model that is named is the one that jobs are drawn with from now on; the next one loads it."""
        values = await read_json(request)
        entry = self._options.model_asked(values)
        if entry is not None:
            await self._service.models.facts_of(entry)  # a damaged file is refused here and not at the next picture
        self._options.change(values)
        return JSONResponse(None)

    async def refresh(self, request: Request) -> Response:
        """Look for files again."""
        await self._service.models.scan()
        return JSONResponse(None)

    async def unload(self, request: Request) -> Response:
        """Let go of the model that is loaded."""
        await self._service.unload()
        return JSONResponse({})

    async def reload(self, request: Request) -> Response:
        """Load the model that jobs are drawn with."""
        await self._service.load()
        return JSONResponse({})


async def _not_built(request: Request) -> Response:
    """Known, and not built here."""
    name = request.url.path.removeprefix("/sdapi/v1/")
    raise NotOffered(f"{name} is not built here: it would take {NOT_BUILT.get(name, 'more')}")


async def _absent(request: Request) -> Response:
    """Nothing is here to be read."""
    return error_answer("HTTPException", "Not Found", 404)
