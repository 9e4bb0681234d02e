"""A small server that plays the native API with jobs that move, so that the page can be looked at without an engine.

    python tests/server/page_mock.py 8123

It is slow on purpose (`Mock.pace`), says what it is told to say (`Mock.refuse`, `Mock.token`), and remembers what it was sent.
"""

from __future__ import annotations

import asyncio
import base64
import colorsys
import io
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from PIL import Image, ImageDraw, PngImagePlugin
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from avila_diffusion.limits import UPSCALERS
from avila_diffusion.request import GenerateRequest
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES
from avila_diffusion.server import page

POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'"
)
ENDED = ("done", "failed", "cancelled")


def picture(seed: int, width: int, height: int, infotext: str | None = None, form: str = "PNG") -> bytes:
    """A picture that differs by its seed: hills before a sky."""
    hue = (seed * 0.137) % 1

    def colour(light: float) -> tuple[int, ...]:
        return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.45))

    image = Image.new("RGB", (width, height), colour(0.86))
    draw = ImageDraw.Draw(image)
    draw.ellipse([width * 0.62, height * 0.14, width * 0.8, height * 0.14 + width * 0.18], fill=colour(0.95))
    for hill in range(4):
        top = height * (0.45 + 0.14 * hill)
        bend = height * (0.06 + 0.02 * ((seed + hill) % 3))
        draw.ellipse(
            [-width * 0.4 + hill * width * 0.17, top - bend, width * 1.1 + hill * 40, height * 2],
            fill=colour(0.66 - 0.13 * hill),
        )
    stream = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    if infotext:
        info.add_text("parameters", infotext)
    image.save(stream, form, **({"pnginfo": info} if form == "PNG" else {"quality": 70}))
    return stream.getvalue()


@dataclass
class Mock:
    """pace: seconds a step. token: asked for where it is set. refuse: status and error of the next job. sent: its bodies."""

    pace: float = 0.03
    token: str | None = None
    refuse: tuple[int, dict[str, Any]] | None = None
    checkpoints: tuple[str, ...] = ("dreamshaper_8.safetensors", "xl/juggernaut.safetensors")
    sent: list[dict[str, Any]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    streams: list[tuple[str, str]] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def tell(self, job: dict[str, Any], kind: str, data: dict[str, Any]) -> None:
        self.events[job["id"]].append((kind, data))

    def live(self) -> list[dict[str, Any]]:
        return [job for job in self.jobs.values() if job["state"] not in ENDED]

    def make(self, body: dict[str, Any], client: str) -> dict[str, Any]:
        number = len(self.jobs) + 1
        values = {name: value for name, value in body["request"].items() if name not in ("image", "mask")}
        request = GenerateRequest.from_dict(values).resolved(512).to_dict()
        for name in ("image", "mask"):
            if name in body["request"]:
                request[name] = {"name": body["request"][name].get("name"), "digest": "0" * 64}
        job = {
            "id": f"job{number}",
            "number": number,
            "state": "queued",
            "client": f"127.0.0.1/{client}",
            "model": body.get("model") or "dreamshaper_8.safetensors",
            "vae": body.get("vae"),
            "refiner": body.get("refiner"),
            "request": request,
            "created": time.time(),
            "started": None,
            "finished": None,
            "position": 1,
            "images": request["batch"] * request["count"],
            "progress": {"stage": "", "image": 0, "step": 0, "of": 0, "fraction": 0.0, "eta": None, "sigma": None},
            "results": [],
            "problem": None,
            "notes": [],
            "report": [],
        }
        self.jobs[job["id"]] = job
        self.events[job["id"]] = []
        return job

    async def run(self, job: dict[str, Any]) -> None:
        """Live the life of a job, after those before it."""
        while any(
            other["state"] == "running" or (other["state"] == "queued" and other["number"] < job["number"])
            for other in self.live()
            if other is not job
        ):
            await asyncio.sleep(self.pace)
        if job["state"] in ENDED:
            return
        job.update(state="running", started=time.time(), position=0)
        self.tell(job, "state", {"state": "running", "position": 0})
        request, steps = job["request"], job["request"]["steps"]
        for index in range(job["images"]):
            for step in range(1, steps + 1):
                await self._step(job, index, step, steps)
                if job["state"] in ENDED:
                    return
                if job.pop("early", None):
                    break
            self._finish(job, index, request)
        self.end(job, "done")

    async def _step(self, job: dict[str, Any], index: int, step: int, steps: int) -> None:
        while job["state"] == "paused":
            await asyncio.sleep(self.pace)
        done = (index * steps + step) / (job["images"] * steps)
        left = round((job["images"] * steps - index * steps - step) * self.pace, 1)
        job["progress"] = {
            "stage": "sample",
            "image": index,
            "step": step,
            "of": steps,
            "fraction": done,
            "eta": left,
            "sigma": 1.0,
        }
        self.tell(job, "progress", job["progress"])
        small = picture(job["request"]["seed"] + index, 64, 64, form="JPEG")
        preview = {"number": step, "image": index, "media_type": "image/jpeg", "data": base64.b64encode(small).decode()}
        self.tell(job, "preview", preview)
        await asyncio.sleep(self.pace)

    def _finish(self, job: dict[str, Any], index: int, request: dict[str, Any]) -> None:
        seed = request["seed"] + index
        scale = request["hires_scale"] or 1
        result = {
            "index": index,
            "seed": seed,
            "width": round(request["width"] * scale),
            "height": round(request["height"] * scale),
            "size": 412_345,
            "infotext": f"{request['prompt']}\nSteps: {request['steps']}, Sampler: {request['sampler']}, Seed: {seed}",
            "url": f"/api/v1/jobs/{job['id']}/images/{index}.png",
        }
        job["results"].append(result)
        self.tell(job, "picture", result)

    def end(self, job: dict[str, Any], state: str, problem: dict[str, Any] | None = None) -> None:
        job.update(state=state, finished=time.time(), problem=problem, position=None)
        self.tell(job, "end", {"state": state, "problem": problem})


def of(request: Request) -> Mock:
    mock: Mock = request.app.state.mock
    return mock


def problem(status: int, kind: str, message: str, **more: Any) -> Response:
    return JSONResponse({"error": {"kind": kind, "message": message, "status": status, **more}}, status)


async def create(request: Request) -> Response:
    mock, body = of(request), await request.json()
    if mock.refuse is not None:
        status, error = mock.refuse
        mock.refuse = None
        return JSONResponse({"error": {"status": status, **error}}, status)
    mock.sent.append(body)
    try:
        job = mock.make(body, request.headers.get("x-avila-client", ""))
    except ValueError as error:
        return problem(422, "RequestError", str(error))
    task = asyncio.create_task(mock.run(job))
    mock.tasks.add(task)
    task.add_done_callback(mock.tasks.discard)
    return JSONResponse(job, 202)


async def list_jobs(request: Request) -> Response:
    before = int(request.query_params.get("before", 10**9))
    found = [job for job in reversed(of(request).jobs.values()) if job["number"] < before]
    return JSONResponse({"jobs": found[: int(request.query_params.get("limit", 50))]})


async def job(request: Request) -> Response:
    mock, id = of(request), request.path_params["id"]
    if id not in mock.jobs:
        return problem(404, "NoSuchJob", f"there is no job {id}")
    if request.method == "DELETE":
        del mock.jobs[id]
        return Response(status_code=204)
    return JSONResponse(mock.jobs[id])


async def control(request: Request) -> Response:
    mock = of(request)
    found, what = mock.jobs[request.path_params["id"]], request.path_params["what"]
    if what == "cancel" and found["state"] not in ENDED:
        mock.end(found, "cancelled")
    elif what in ("interrupt", "skip"):
        found["early"] = True
    elif what in ("pause", "resume"):
        found["state"] = "paused" if what == "pause" else "running"
        mock.tell(found, "state", {"state": found["state"], "position": 0})
    return JSONResponse(found)


async def events(request: Request) -> Response:
    mock, id = of(request), request.path_params["id"]
    after = int(request.headers.get("last-event-id", 0))
    mock.streams.append((request.query_params.get("client", ""), id))

    async def sent() -> AsyncIterator[bytes]:
        at = after
        while not await request.is_disconnected():
            for kind, data in mock.events[id][at:]:
                at += 1
                yield f"id: {at}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()
                if kind == "end":
                    return
            await asyncio.sleep(0.02)

    return StreamingResponse(sent(), media_type="text/event-stream")


async def image(request: Request) -> Response:
    found = of(request).jobs[request.path_params["id"]]
    result = found["results"][int(request.path_params["index"])]
    data = picture(result["seed"], result["width"], result["height"], result["infotext"])
    return Response(data, media_type="image/png")


async def models(request: Request) -> Response:
    mock = of(request)
    files = [
        {"name": name, "title": f"{name} [0123456789]", "role": "checkpoint", "size": 2_132_625_894}
        for name in mock.checkpoints
    ]
    inside = [{"name": name, "title": name, "role": "checkpoint", "size": 0} for name in ("bundled", "procedural")]
    vae = [{"name": "vae-ft-mse.safetensors", "title": "vae-ft-mse.safetensors", "role": "vae", "size": 334_000_000}]
    return JSONResponse({"models": files + inside + vae, "default": (*mock.checkpoints, "bundled")[0], "loaded": None})


async def facts(request: Request) -> Response:
    large = request.path_params["name"].startswith("xl/")
    return JSONResponse(
        {
            "family": "SDXL" if large else "SD 1.x",
            "variant": "base",
            "size": 1024 if large else 512,
            "file_size": 2_132_625_894,
            "fixed_size": False,
            "problem": None,
            "prediction": "epsilon",
            "defaults": {"steps": 28, "guidance_scale": 5.5} if large else {},
            "lines": [
                "family: Stable Diffusion 1.x",
                "UNet: 686 tensors, all used",
                "text encoder: CLIP ViT-L/14",
                "VAE: included",
            ],
        }
    )


async def rescan(request: Request) -> Response:
    mock = of(request)
    mock.checkpoints = (*mock.checkpoints, f"found{len(mock.checkpoints)}.safetensors")
    return JSONResponse({"checkpoint": len(mock.checkpoints)})


async def metadata(request: Request) -> Response:
    from avila_diffusion.images import read_image
    from avila_diffusion.metadata import read_request

    found = read_request(read_image(await request.body()))
    told = {
        "values": dict(found.request_values),
        "program": found.source,
        "model": found.model,
        "model_hash": found.model_hash,
    }
    return JSONResponse({**told, "notes": list(found.notes), "lost": list(found.lost)})


async def session(request: Request) -> Response:
    mock = of(request)
    if (await request.json())["token"] != mock.token:
        return problem(401, "Refused", "the token is wrong; it is the one that the server was started with")
    response = JSONResponse({"needed": True})
    response.set_cookie("avila_token", "shown", httponly=True, samesite="strict")
    return response


def listing(key: str, rows: list[dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return JSONResponse({key: rows})

    return answer


class Guard(BaseHTTPMiddleware):
    """What the real guard adds: the policy, and the token."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        mock = of(request)
        mock.asked.append(f"{request.method} {request.url.path}")
        open_to_all = not request.url.path.startswith("/api/") or request.url.path.endswith("/session")
        if mock.token and not open_to_all and "avila_token" not in request.cookies:
            return problem(401, "Refused", "this server asks for its token")
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def create_mock(mock: Mock) -> Starlette:
    """The application; its state is `mock`."""
    base = "/api/v1"
    styles = [
        {"name": "Ink", "prompt": "ink drawing of {prompt}", "negative_prompt": "photo"},
        {"name": "Cinematic", "prompt": "cinematic light, film grain", "negative_prompt": ""},
    ]
    names = {
        "samplers": [info.name for info in SAMPLERS.values()],
        "schedules": [info.name for info in SCHEDULES.values()],
        "upscalers": list(UPSCALERS),
    }
    app = Starlette(
        routes=[
            *page.routes(None),  # type: ignore[arg-type]
            Route(f"{base}/jobs", create, methods=["POST"]),
            Route(f"{base}/jobs", list_jobs, methods=["GET"]),
            Route(f"{base}/jobs/{{id}}", job, methods=["GET", "DELETE"]),
            Route(f"{base}/jobs/{{id}}/events", events),
            Route(f"{base}/jobs/{{id}}/images/{{index}}.png", image),
            Route(f"{base}/jobs/{{id}}/{{what}}", control, methods=["POST"]),
            Route(f"{base}/queue", lambda request: JSONResponse({"jobs": of(request).live()})),
            Route(f"{base}/models", models),
            Route(f"{base}/models/rescan", rescan, methods=["POST"]),
            Route(f"{base}/models/{{name:path}}", facts),
            *(Route(f"{base}/{key}", listing(key, [{"name": name} for name in rows])) for key, rows in names.items()),
            Route(f"{base}/styles", listing("styles", styles)),
            Route(
                f"{base}/limits",
                lambda request: JSONResponse(
                    {"fields": {"steps": {"min": 1, "max": 1000, "default": 20}}, "server": {"steps": 500}}
                ),
            ),
            Route(f"{base}/metadata", metadata, methods=["POST"]),
            Route(f"{base}/session", session, methods=["POST"]),
            Route(f"{base}/server", lambda request: JSONResponse({"version": "0.0"})),
        ],
        middleware=[Middleware(Guard)],
    )
    app.state.mock = mock
    return app


class Running:
    """A server in a thread, on loopback, at a port that was free. app: any ASGI application."""

    def __init__(self, app: Any, port: int = 0) -> None:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=port, ws="none", log_level="warning", timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        for _ in range(500):
            if self.server.started:
                break
            time.sleep(0.02)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *problem: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)


if __name__ == "__main__":
    uvicorn.run(create_mock(Mock(pace=0.25)), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
