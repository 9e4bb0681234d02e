"""What happens to the worker does not happen to jobs or to the server: it is killed, hangs, dies at one job, finds no room."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

from avila_diffusion.server import floor, supervisor
from avila_diffusion.server.floor import KILLS
from avila_diffusion.server.service import Service
from avila_diffusion.server.settings import Limits

from .conftest import MakeSettings, asked, files, run, running, tiny, until

posix = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


def kill(service: Service, number: int = 9) -> None:
    """A signal to the worker, if there is one now."""
    assert service.floor is not None
    if (pid := service.floor.worker.pid) is not None:
        os.kill(pid, number)


@posix
def test_a_killed_worker_goes_on_to_the_same_bytes(make_settings: MakeSettings) -> None:
    async def work() -> None:
        async with running(make_settings()) as service:
            whole = await service.ended(await service.submit(tiny(steps=30, count=2)))
            job = await service.submit(tiny(steps=30, count=2))
            for _ in range(2):
                before = job.progress.step
                await until(lambda before=before: job.progress.step > before or job.ended)  # type: ignore[misc]
                kill(service)
                assert service.health().live
                await asyncio.sleep(0.05)
            await service.ended(job)
            assert job.state == "done" and files(service, job) == files(service, whole)

    run(work)


@posix
def test_a_job_at_which_the_worker_always_dies_is_given_up_and_others_go_on(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "PAUSES", (0.0, 0.0, 0.0))

    async def work() -> None:
        async with running(make_settings()) as service:
            assert service.floor is not None
            watched, killed = service.floor, 0
            poison = await service.submit(tiny(seed=666))
            takes_turn = watched._takes_turn

            def watch(message: dict[str, object]) -> None:
                nonlocal killed
                takes_turn(message)
                if str(message["unit"]).startswith(poison.id):
                    killed += 1
                    kill(service, signal.SIGSEGV)

            watched._handlers = {**watched._handlers, "turn": watch}
            other = await service.submit(asked("ben", count=3))
            await service.ended(poison)
            assert poison.state == "failed" and poison.problem is not None and poison.problem.kind == "Crashed"
            assert "3 times at this job" in poison.problem.message and killed == 3
            await service.ended(other)
            assert other.state == "done" and other.retries == 0
            assert (await service.ended(await service.submit(tiny(steps=2)))).state == "done"

    run(work)


@posix
def test_a_worker_that_says_nothing_is_not_ready_and_is_started_again(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOST_SECONDS", 4.0)

    async def work() -> None:
        async with running(make_settings()) as service:
            job = await service.submit(tiny(steps=400, count=30))
            await until(lambda: job.progress.step > 1)
            kill(service, signal.SIGSTOP)
            began = asyncio.get_running_loop().time()
            await until(lambda: not service.health().ready)
            assert asyncio.get_running_loop().time() - began < 3.0
            before = service.floor and service.floor.worker.restarts
            await until(lambda: service.floor is not None and service.floor.worker.restarts != before)
            await until(lambda: service.health().ready)
            await service.cancel(job)
            assert (await service.ended(await service.submit(asked()))).state == "done"

    run(work)


@posix
def test_a_call_that_never_ends_is_ended(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with running(make_settings(limits=Limits(call_seconds=30.0))) as service:
            job = await service.submit(tiny(width=64, height=64, steps=5, model="tiny", prompt="x"))
            await service.ended(job)
            assert service.floor is not None
            worker = service.floor.worker
            # The beat says that one call lasts: what a stuck kernel looks like from outside.
            worker.busy, worker.busy_since = "some call", 31.0
            before = worker.restarts
            service.floor.watch(0.0)
            await until(lambda: worker.restarts == before + 1)
            assert (await service.ended(await service.submit(asked()))).state == "done"

    run(work)


def test_a_long_call_that_nobody_wants_any_more_is_ended(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "LEFT_SECONDS", 0.5)

    async def work() -> None:
        async with running(make_settings()) as service:
            assert service.floor is not None
            worker = service.floor.worker
            endless = await service.submit(tiny(width=4096, height=2048, batch=8, steps=1))
            await until(lambda: (worker.busy or "").startswith(endless.id))
            await service.cancel(endless)
            other = await service.ended(await service.submit(asked("ben")))
            assert other.state == "done" and other.retries == 0
            assert worker.restarts == 1 and worker.trouble is None
            assert endless.state == "cancelled"

    run(work)


def test_kills_count_until_the_job_gets_further(make_settings: MakeSettings) -> None:
    """A hundred kills from outside end no job, unless it is fifty times the same place."""

    async def work() -> None:
        async with running(make_settings()) as service:
            job = await service.submit(tiny(steps=400))
            await until(lambda: job.progress.step > 1)
            assert service.floor is not None
            (held,) = service.floor.core.held.values()
            held.killed = KILLS
            await until(lambda: held.killed == 0)
            await service.cancel(job)

    run(work)


@posix
def test_a_model_that_is_cut_short_under_a_running_job(
    make_settings: MakeSettings, models_folder: Path, tmp_path: Path
) -> None:
    """Reading the mapping beyond the file's end is SIGBUS, which ends the worker and nothing else."""
    shutil.copytree(models_folder, tmp_path / "models")
    file = tmp_path / "models" / "Stable-diffusion" / "tiny.safetensors"

    async def work() -> None:
        async with running(make_settings(models_dir=str(tmp_path / "models"), memory="lean")) as service:
            job = await service.submit(tiny(steps=400, count=30))
            await until(lambda: job.progress.step > 1)
            assert service.floor is not None
            before = service.floor.worker.restarts
            os.truncate(file, 4096)
            assert (await service.ended(job)).state == "failed"
            assert service.floor.worker.restarts == before + 1
            assert job.problem is not None
            assert job.problem.message.startswith(
                "the model file tiny.safetensors has changed since the job was accepted"
            )
            assert service.health().live
            assert (await service.ended(await service.submit(asked()))).state == "done"

    run(work)


def test_a_worker_that_cannot_start_is_told(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PAUSES", (0.0, 0.0, 0.0, 0.0, 0.2))
    monkeypatch.setattr(sys, "executable", str(Path(sys.executable).with_name("no-such-python")))

    async def work() -> None:
        async with running(make_settings()) as service:
            await until(lambda: service.problem() is not None)
            assert "could not be started" in (service.problem() or "")
            assert not service.health().ready and service.health().live

    run(work)


def test_a_full_disk_stops_the_line_and_it_goes_on_when_there_is_room(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avila_diffusion.server.core.PROBE_SECONDS", 0.5)

    async def work() -> None:
        async with running(make_settings()) as service:
            first = await service.ended(await service.submit(asked()))
            folder = service.settings.data / "jobs"
            away = folder.rename(folder.with_name("away"))
            folder.write_text("no folder")  # what a disk without room and a read-only one have in common
            job = await service.submit(asked(seed=2))
            await until(lambda: service.problem() is not None)
            assert str(job.state) == "queued" and not service.health().ready
            assert (await service.find(first.id)).state == "done"
            folder.unlink()
            away.rename(folder)
            await service.ended(job)
            assert job.state == "done" and service.health().ready

    run(work)


@posix
def test_a_worker_killed_again_and_again_loses_nothing(make_settings: MakeSettings) -> None:
    chance = random.Random(5)

    async def work() -> None:
        async with running(make_settings()) as service:
            jobs = [await service.submit(tiny(f"client{n % 3}", seed=n, steps=6)) for n in range(8)]

            async def disturb() -> None:
                for _ in range(4):
                    await asyncio.sleep(chance.uniform(0.2, 1.5))
                    kill(service)
                    assert service.health().live

            disturbing = asyncio.ensure_future(disturb())
            for job in jobs:
                await service.ended(job)
            disturbing.cancel()
            assert {job.state for job in jobs} == {"done"}
            again = [await service.ended(await service.submit(tiny(seed=n, steps=6))) for n in range(8)]
            assert [files(service, job) for job in jobs] == [files(service, job) for job in again]

    run(work)
