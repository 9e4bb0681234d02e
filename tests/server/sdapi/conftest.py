"""A real server on loopback for the clients of this dialect: one for all tests of a file, in a thread, its worker a process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests
import uvicorn

from avila_diffusion.server.app import create_app
from avila_diffusion.server.job import Job
from avila_diffusion.server.service import Service
from avila_diffusion.server.settings import Settings

from ..real import until

Made = TypeVar("Made")


@dataclass
class Served:
    """A server that runs. url: without a slash at its end."""

    url: str
    port: int
    service: Service
    loop: asyncio.AbstractEventLoop

    def do(self, work: Coroutine[Any, Any, Made]) -> Made:
        """Run a coroutine of the service where the service lives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        return self.do(self.service.list())

    def get(self, path: str, **more: Any) -> requests.Response:
        """GET a path of /sdapi/v1."""
        return requests.get(f"{self.url}/sdapi/v1/{path}", timeout=60, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> requests.Response:
        """POST to a path of /sdapi/v1."""
        return requests.post(f"{self.url}/sdapi/v1/{path}", json=body, timeout=60, **more)


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[Served]:
    """The whole application behind uvicorn, on a port that the system chose."""
    service = Service(settings)
    config = uvicorn.Config(create_app(settings, service), host="127.0.0.1", port=0, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server", daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", port, service, loops[0])
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, workers_cache: Path) -> Iterator[Served]:
    """A server with the tiny checkpoint as its model, styles, a LoRA file that fits nothing, and an embedding."""
    models = tmp_path_factory.mktemp("webui")
    for name in ("Stable-diffusion", "Lora", "embeddings"):
        (models / name).mkdir()
    for file in ("tiny.safetensors", "small/tiny2.safetensors"):
        target = models / "Stable-diffusion" / file
        target.parent.mkdir(exist_ok=True)
        target.hardlink_to(models_folder / "Stable-diffusion" / file)
    lora = '{"__metadata__":{"ss_output_name":"Fine Ink"},"lora_te_x.alpha":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'
    (models / "Lora" / "ink.safetensors").write_bytes(len(lora).to_bytes(8, "little") + lora.encode() + b"\0\0")
    word = '{"emb_params":{"dtype":"F16","shape":[2,64],"data_offsets":[0,256]}}'
    (models / "embeddings" / "blob.safetensors").write_bytes(
        len(word).to_bytes(8, "little") + word.encode() + bytes(256)
    )
    styles = 'name,prompt,negative_prompt\nink,"ink drawing of {prompt}",photo\n'
    (models / "styles.csv").write_text(styles, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AVILA_CACHE": str(workers_cache),
            "AVILA_KERNELS": "torch",
            "OMP_NUM_THREADS": "1",
        }.items():
            patch.setenv(name, value)
        settings = Settings(
            data=tmp_path_factory.mktemp("data"), models_dir=str(models), model="tiny", threads=1, drain=1.0
        )
        with serving(settings) as found:
            yield found


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test ends with nothing going on."""
    yield
    if "served" in request.fixturenames:
        served: Served = request.getfixturevalue("served")
        for job in served.service.live():
            served.do(served.service.cancel(job))
        until(lambda: not served.service.live())
