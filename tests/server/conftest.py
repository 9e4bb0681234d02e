"""What the server's tests share: a models folder with a tiny checkpoint, services that are started and stopped, requests."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from avila_diffusion.server.job import Job
from avila_diffusion.server.service import Service
from avila_diffusion.server.settings import Settings
from avila_diffusion.server.submission import Submission

Made = TypeVar("Made")
MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[[str], Path]) -> Path:
    """A models folder as AUTOMATIC1111 has it: `tiny.safetensors` (of SD 1's kind) and `small/tiny2.safetensors` (SD 2's)."""
    folder = tmp_path_factory.mktemp("models")
    checkpoints = folder / "Stable-diffusion"
    (checkpoints / "small").mkdir(parents=True)
    shutil.copy(tiny_checkpoint("sd1"), checkpoints / "tiny.safetensors")
    shutil.copy(tiny_checkpoint("sd2"), checkpoints / "small" / "tiny2.safetensors")
    return folder


@pytest.fixture
def make_settings(tmp_path: Path, models_folder: Path) -> MakeSettings:
    """Settings on a data folder of the test's own, with the models folder; one thread, as tiny networks want."""

    def make(**given: Any) -> Settings:
        return _settings(tmp_path / "data", models_folder, **given)

    return make


class Shared:
    """One service that lives as long as a file's tests, with its worker and the model that it holds: starting those takes
    seconds. Tests on it leave nothing in its queue."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.service, self.loop = service, loop

    def run(self, work: Callable[[Service], Coroutine[Any, Any, Made]], seconds: float = 60.0) -> Made:
        """Run a coroutine function on it, where it lives."""
        return asyncio.run_coroutine_threadsafe(work(self.service), self.loop).result(seconds)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, workers_cache: Path) -> Iterator[Shared]:
    """See `Shared`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        _surround(patch, workers_cache)
        settings = _settings(tmp_path_factory.mktemp("shared") / "data", models_folder)
        service = Service(settings)
        asyncio.run_coroutine_threadsafe(service.start(), loop).result(30)
    yield Shared(service, loop)
    asyncio.run_coroutine_threadsafe(service.stop(0.0), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=10)
    loop.close()


def _settings(data: Path, models: Path, **given: Any) -> Settings:
    values: dict[str, Any] = {"data": data, "models_dir": str(models), "warm_up": False, "threads": 1, "drain": 5.0}
    return Settings(**(values | given))


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Service]:
    """A service that is stopped in the end."""
    service = Service(settings)
    await service.start()
    try:
        yield service
    finally:
        await service.stop(0.0)


def asked(client: str = "anna", **values: Any) -> Submission:
    """A small picture by the procedural generator, or what is said instead. Fields of Submission go there."""
    own = {name: values.pop(name) for name in list(values) if name in Submission.__dataclass_fields__}
    request = {"prompt": "sunset", "width": 64, "height": 64, "seed": 1, **values}
    return Submission(**{"model": "procedural", **own}, client=client, values=request)


def tiny(client: str = "anna", **values: Any) -> Submission:
    """The same with the tiny checkpoint, five steps."""
    return asked(client, **{"model": "tiny", "steps": 5, **values})


async def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits until it is true. Raises TimeoutError where it never is."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def run(work: Callable[[], Awaitable[Made]], seconds: float = 60.0) -> Made:
    """Run a coroutine function to its end; nothing in these tests may take longer."""

    async def bounded() -> Made:
        async with asyncio.timeout(seconds):
            return await work()

    return asyncio.run(bounded())


def files(service: Service, job: Job) -> list[bytes]:
    """The bytes of a job's pictures."""
    return [service.file(job, result.index).read_bytes() for result in job.results]


@pytest.fixture(scope="session")
def workers_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers of these tests keep what they remember."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def surroundings(workers_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the person who runs the tests is read or written; tiny networks need no kernels in C."""
    _surround(monkeypatch, workers_cache)


def _surround(patch: pytest.MonkeyPatch, cache: Path) -> None:
    patch.setenv("AVILA_CACHE", str(cache))
    patch.setenv("AVILA_KERNELS", "torch")
    patch.setenv("AVILA_MODELS", str(cache / "nothing"))
    patch.setenv("OMP_NUM_THREADS", "1")
