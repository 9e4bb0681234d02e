"""The server for long, behind --full: killed 200 times over 1,000 jobs, its worker 100 times, ended 50 times; 2,000 jobs in
one life."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from avila_diffusion.server.service import Service

from .conftest import MakeSettings, asked, files, run, running, tiny, until
from .disturbed import DRAIN, draw

pytestmark = [pytest.mark.full, pytest.mark.skipif(sys.platform == "win32", reason="looks into /proc")]


def test_two_hundred_kills_over_a_thousand_jobs(tmp_path: Path, models_folder: Path) -> None:
    calm = draw(tmp_path / "calm", models_folder, jobs=1000)
    wild = draw(tmp_path / "wild", models_folder, jobs=1000, kills=200, seed=8)
    print(f"{wild.kills} kills, {len(wild.states)} jobs, doubled {wild.doubled}, orphans {wild.orphans}")
    assert wild.kills == 200 and wild.doubled == 0 and wild.orphans == 0
    assert set(wild.states.values()) == {"done"} and wild.digests == calm.digests


def test_fifty_orderly_ends_over_three_hundred_jobs(tmp_path: Path, models_folder: Path) -> None:
    calm = draw(tmp_path / "calm", models_folder, jobs=300)
    wild = draw(tmp_path / "wild", models_folder, jobs=300, kills=50, seed=8, gently=True)
    print(f"{wild.kills} ends, exit codes {wild.codes}, {wild.slowest:.1f} s at most")
    assert wild.kills == 50 and wild.codes == {0} and wild.doubled == 0 and wild.orphans == 0
    assert wild.slowest < DRAIN + 2
    assert set(wild.states.values()) == {"done"} and wild.digests == calm.digests


def test_a_hundred_kills_of_the_worker(make_settings: MakeSettings) -> None:
    chance, slowest = random.Random(5), 0.0

    async def answers(service: Service) -> None:
        """Health is told at any moment, within a tick of the loop."""
        nonlocal slowest
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            assert service.health().live
            await asyncio.sleep(0.01)
            slowest = max(slowest, loop.time() - began - 0.01)

    async def work() -> None:
        async with running(make_settings()) as service:
            asking = asyncio.ensure_future(answers(service))
            jobs = [await service.submit(tiny(f"client{n % 5}", seed=n, steps=40)) for n in range(120)]
            assert service.floor is not None
            worker = service.floor.worker
            for _ in range(100):
                await until(lambda: worker.ready, seconds=120.0)
                await asyncio.sleep(chance.uniform(0.0, 2.0))
                assert worker.pid is not None
                os.kill(worker.pid, 9)
                await until(lambda: not worker.ready)
            for job in jobs:
                await service.ended(job)
            asking.cancel()
            assert [job.problem for job in jobs if job.state != "done"] == []
            again = [await service.ended(await service.submit(tiny(seed=n, steps=40))) for n in range(120)]
            assert [files(service, job) for job in jobs] == [files(service, job) for job in again]
            print(
                f"{service.floor and service.floor.worker.restarts} restarts; the loop was late by {slowest:.3f} s at most"
            )

    run(work, seconds=1800.0)
    assert slowest < 1.0


def test_two_thousand_jobs_and_two_hundred_changes_of_model(make_settings: MakeSettings) -> None:
    """Memory of server and worker, read every hundred jobs once both are warm, grows by less than 1 MB per 100."""

    async def work() -> list[tuple[float, float]]:
        held = []
        async with running(make_settings()) as service:
            for hundred in range(20):
                for n in range(100):
                    given = asked(seed=n) if n % 5 else tiny(seed=n, steps=2, model="tiny" if n % 10 else "small/tiny2")
                    job = await service.ended(await service.submit(given))
                    assert job.state == "done", job.problem
                await asyncio.sleep(1.2)
                assert service.floor is not None and service.floor.worker.memory is not None
                held.append((_held(os.getpid()), service.floor.worker.memory / 1e6))
                print(f"{(hundred + 1) * 100} jobs: server {held[-1][0]:.1f} MB, worker {held[-1][1]:.1f} MB")
        return held

    held = run(work, seconds=1800.0)
    for name, column in (("server", 0), ("worker", 1)):
        warm = [row[column] for row in held[4:]]
        slope = _slope(warm)
        print(f"{name}: {slope:+.3f} MB per 100 jobs")
        assert slope < 1.0, (name, warm)


def _held(pid: int) -> float:
    status = (Path("/proc") / str(pid) / "status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1000


def _slope(values: list[float]) -> float:
    """Least squares, per step."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    above = sum((place - middle) * (value - mean) for place, value in enumerate(values))
    return above / sum((place - middle) ** 2 for place in range(len(values)))
