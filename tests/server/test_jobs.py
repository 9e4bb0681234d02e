"""The core: a job from its acceptance to its end, and what may be done to it meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from avila_diffusion.errors import ModelNotFound, RequestError
from avila_diffusion.images import read_image
from avila_diffusion.server import rows
from avila_diffusion.server.events import HELD
from avila_diffusion.server.job import Event, Job
from avila_diffusion.server.problems import Conflict, Draining, NoSuchJob, QueueFull
from avila_diffusion.server.service import Service
from avila_diffusion.server.settings import Limits, Retention

from .conftest import MakeSettings, Shared, asked, files, run, running, tiny, until


async def followed(service: Service, job: Job) -> list[Event]:
    return [event async for event in service.events(job)]


def test_a_job_is_drawn_and_told_of_in_order(shared: Shared) -> None:
    async def work(service: Service) -> None:
        job = await service.submit(tiny(seed=7, count=2, steps=3))
        assert str(job.state) == "queued" and len(job.id) == 32
        events = await followed(service, job)
        assert [event.number for event in events] == sorted(event.number for event in events)
        kinds = [event.kind for event in events]
        assert kinds[-1] == "end" and kinds.count("picture") == 2 and "progress" in kinds and "preview" in kinds
        assert job.state == "done" and job.progress.fraction == 1.0 and job.problem is None
        assert [result.seed for result in job.results] == [7, 8]
        image = read_image(files(service, job)[0])
        assert (image.width, image.height) == (64, 64) and "Seed: 7" in (image.infotext or "")
        assert job.report and service.loaded == "tiny.safetensors"
        assert not list((service.settings.data / "jobs" / job.id).glob("*.journal"))

    shared.run(work)


@pytest.mark.parametrize("seed", [2**63 - 1, 2**64 - 1])
def test_seeds_of_64_bits(shared: Shared, seed: int) -> None:
    """SQLite's whole numbers have a sign."""

    async def work(service: Service) -> None:
        job = await service.ended(await service.submit(asked(seed=seed, count=2)))
        assert job.state == "done"
        found = await service.find(job.id)
        assert [result.seed for result in found.results] == [seed, (seed + 1) % 2**64]

    shared.run(work)


def test_what_cannot_be_written_down_ends_the_job(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise OverflowError("too large")

    async def drawn(service: Service) -> Job:
        return await service.ended(await service.submit(asked()))

    with monkeypatch.context() as patch:
        patch.setattr(rows, "add_part", broken)
        job = shared.run(drawn)
    assert job.state == "failed" and job.problem is not None and job.problem.kind == "Incident"
    assert "could not be written down (OverflowError)" in job.problem.message
    assert shared.run(drawn).state == "done"


def test_all_pictures_are_told_to_who_comes_late(shared: Shared) -> None:
    async def work(service: Service) -> None:
        job = await service.submit(asked(count=HELD + 6))
        await until(lambda: len(job.results) >= HELD + 3)
        assert [event.kind for event in await followed(service, job)].count("picture") == HELD + 6

    shared.run(work)


def test_ended_jobs_are_there_after_a_restart_and_those_that_waited_are_drawn(make_settings: MakeSettings) -> None:
    async def first() -> tuple[str, str, bytes]:
        async with running(make_settings()) as service:
            done = await service.ended(await service.submit(asked()))
            assert service.floor is not None
            service.floor.open = False
            waiting = await service.submit(asked(seed=2))
            return done.id, waiting.id, files(service, done)[0]

    async def second() -> None:
        async with running(make_settings()) as service:
            done = await service.find(ids[0])
            assert done.state == "done" and files(service, done) == [ids[2]]
            waiting = await service.find(ids[1])
            await service.ended(waiting)
            assert waiting.state == "done" and waiting.request.seed == 2
            assert [event.kind for event in await followed(service, done)] == ["picture", "end"]

    ids = run(first)
    run(second)


def test_what_cannot_be_asked_is_refused_before_there_is_a_job(make_settings: MakeSettings) -> None:
    async def work() -> None:
        async with running(make_settings()) as service:
            with pytest.raises(RequestError, match="steps is 0"):
                await service.submit(tiny(steps=0))
            with pytest.raises(ModelNotFound):
                await service.submit(asked(model="../../etc/passwd"))
            with pytest.raises(RequestError, match="unknown field wdith"):
                await service.submit(asked(wdith=3))
            with pytest.raises(RequestError, match="priority is 101"):
                await service.submit(asked(priority=101))
            assert service.live() == [] and await service.list() == []

    run(work)


def test_an_idempotency_key_makes_one_job(make_settings: MakeSettings) -> None:
    async def work() -> None:
        async with running(make_settings()) as service:
            same = asked(key="k", digest="d")
            jobs = await asyncio.gather(*(service.submit(same) for _ in range(10)))
            assert len({job.id for job in jobs}) == 1
            await service.ended(jobs[0])
            assert (await service.submit(same)).id == jobs[0].id  # after its end, too
            with pytest.raises(Conflict, match="used for another request"):
                await service.submit(asked(key="k", digest="other"))
            assert (await service.submit(asked("ben", key="k", digest="other"))).id != jobs[0].id

    run(work)


def test_a_queue_takes_as_many_as_it_has_room_for(make_settings: MakeSettings) -> None:
    async def work() -> None:
        settings = make_settings(limits=Limits(queue=10, per_client=6))
        async with running(settings) as service:
            assert service.floor is not None
            service.floor.open = False
            answers = await asyncio.gather(*(service.submit(asked()) for _ in range(50)), return_exceptions=True)
            taken = [answer for answer in answers if isinstance(answer, Job)]
            assert len(taken) == 6
            assert all(isinstance(answer, Job | QueueFull) for answer in answers)
            more = await asyncio.gather(*(service.submit(asked("ben")) for _ in range(50)), return_exceptions=True)
            assert sum(isinstance(answer, Job) for answer in more) == 4
            full = service.full("cleo")
            assert full is not None and 1 <= full.retry_after <= 120

    run(work)


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_within_a_call(shared: Shared) -> None:
    async def work(service: Service) -> None:
        long = await service.submit(tiny(steps=500, count=50))
        waiting = await service.submit(tiny(seed=3, count=60))
        await until(lambda: long.progress.step > 2)
        await service.cancel(waiting)
        assert waiting.state == "cancelled" and waiting.results == ()
        await service.cancel(long)
        assert long.state == "cancelled"
        after = await service.submit(tiny(seed=4, steps=2))
        await service.ended(after)
        assert after.state == "done"
        assert service.live() == [] and (await service.find(long.id)).state == "cancelled"

    shared.run(work)


def test_interrupting_gives_what_there_is(shared: Shared) -> None:
    async def work(service: Service) -> None:
        job = await service.submit(tiny(steps=500, count=5))
        await until(lambda: job.progress.step > 2)
        service.interrupt(job)
        await service.ended(job)
        assert job.state == "done" and len(job.results) == 1 and len(files(service, job)) == 1

    shared.run(work)


def test_skipping_goes_on_with_the_next_picture(shared: Shared) -> None:
    async def work(service: Service) -> None:
        job = await service.submit(tiny(steps=60, batch=2, seed=1))
        await until(lambda: job.progress.step > 2)
        service.skip(job)
        await service.ended(job)
        assert job.state == "done" and len(job.results) == 2
        whole = await service.ended(await service.submit(tiny(steps=60, batch=2, seed=1)))
        assert files(service, whole)[0] != files(service, job)[0]
        assert files(service, whole)[1] == files(service, job)[1]

    shared.run(work)


def test_a_paused_job_goes_on_to_the_same_bytes(shared: Shared) -> None:
    async def work(service: Service) -> None:
        whole = await service.ended(await service.submit(tiny(steps=40)))
        job = await service.submit(tiny(steps=40))
        await until(lambda: job.progress.step > 3)
        await service.pause(job)
        assert job.state == "paused"
        other = await service.ended(await service.submit(tiny(seed=9)))
        assert other.state == "done" and job.state == "paused"
        await service.resume(job)
        await service.ended(job)
        assert files(service, job) == files(service, whole)
        with pytest.raises(Conflict, match="has ended"):
            await service.pause(job)

    shared.run(work)


def test_a_short_job_of_another_client_does_not_wait_for_a_long_one(shared: Shared) -> None:
    async def work(service: Service) -> None:
        long = await service.submit(tiny(steps=500, count=100))
        await until(lambda: long.progress.step > 2)
        short = await service.ended(await service.submit(tiny("ben", steps=5)))
        assert short.state == "done" and long.state == "running" and long.results == ()
        own = await service.submit(tiny(steps=2, seed=5, priority=1))
        assert service.position(own) == 1
        await service.cancel(long)
        await service.ended(own)

    shared.run(work)


def test_interleaved_jobs_draw_what_they_draw_alone(shared: Shared) -> None:
    async def work(service: Service) -> None:
        alone = [await service.ended(await service.submit(tiny(seed=seed, steps=12))) for seed in (1, 2, 3)]
        jobs = [await service.submit(tiny(f"client{seed}", seed=seed, steps=12)) for seed in (1, 2, 3)]
        for job in jobs:
            await service.ended(job)
        assert [files(service, job) for job in jobs] == [files(service, job) for job in alone]

    shared.run(work)


def test_another_model_is_loaded_when_its_turn_comes(shared: Shared) -> None:
    async def work(service: Service) -> None:
        first = await service.submit(tiny(steps=500, count=20))
        await until(lambda: first.progress.step > 2)
        second = await service.ended(await service.submit(tiny("ben", model="small/tiny2", steps=3)))
        assert second.state == "done" and second.using.model == "small/tiny2.safetensors"
        assert first.state in ("queued", "running")
        moved = first.progress.step
        await until(lambda: first.state == "running" and first.progress.step > moved)
        await service.cancel(first)

    shared.run(work)


def test_a_job_that_is_not_done_in_time_fails(shared: Shared) -> None:
    async def work(service: Service) -> None:
        job = await service.ended(await service.submit(tiny(steps=500, count=50, seconds=1.0)))
        assert job.state == "failed" and job.problem is not None and job.problem.kind == "TimedOut"

    shared.run(work)


def test_a_model_file_that_was_replaced_fails_the_job_with_that_line(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    async def work() -> None:
        folder = tmp_path / "mine"
        folder.mkdir()
        model = folder / "mine.safetensors"
        settings = make_settings()
        model.write_bytes((Path(settings.models_dir or "") / "Stable-diffusion" / "tiny.safetensors").read_bytes())
        async with running(make_settings(models_dir=str(folder))) as service:
            assert service.floor is not None
            service.floor.open = False
            job = await service.submit(tiny(model="mine"))
            model.write_bytes(model.read_bytes() + b" ")
            service.floor.open = True
            await service.ended(job)
            assert job.state == "failed" and job.problem is not None
            assert "has changed since the job was accepted" in job.problem.message

    run(work)


def test_what_only_the_worker_can_tell_fails_the_job_with_one_line(shared: Shared) -> None:
    async def work(service: Service) -> None:
        job = await service.ended(await service.submit(tiny(rng="gpu")))
        assert job.state == "failed" and job.problem is not None and job.problem.message.count("\n") == 0
        assert (await service.find(job.id)).problem == job.problem

    shared.run(work)


def test_jobs_are_listed_found_and_deleted(make_settings: MakeSettings) -> None:
    async def work() -> None:
        async with running(make_settings()) as service:
            jobs = [await service.ended(await service.submit(asked(seed=seed))) for seed in range(5)]
            other = await service.ended(await service.submit(asked("ben", task="task(x)")))
            assert [job.number for job in await service.list("anna", limit=3)] == [5, 4, 3]
            assert [job.number for job in await service.list("anna", limit=3, before=3)] == [2, 1]
            assert len(await service.list()) == 6 and await service.list(states=["failed"]) == []
            assert service.of_task("task(x)") is other and service.of_task("task(x)", "anna") is None
            with pytest.raises(NoSuchJob):
                await service.find(other.id, "anna")
            await service.delete(jobs[0])
            with pytest.raises(NoSuchJob):
                await service.find(jobs[0].id)
            assert not (service.settings.data / "jobs" / jobs[0].id).exists()

    run(work)


def test_old_jobs_are_swept_away(make_settings: MakeSettings) -> None:
    async def work() -> None:
        async with running(make_settings(retention=Retention(count=2, size=None))) as service:
            for seed in range(5):
                await service.ended(await service.submit(asked(seed=seed)))
            assert await service.sweep() == 3
            assert [job.number for job in await service.list()] == [5, 4]
            assert len(list((service.settings.data / "jobs").iterdir())) == 2

    run(work)


def test_a_draining_server_finishes_what_it_has_in_hand(make_settings: MakeSettings) -> None:
    async def first() -> tuple[str, str]:
        service = Service(make_settings(drain=30.0))
        await service.start()
        job = await service.submit(tiny(steps=20))
        later = await service.submit(tiny(seed=2))
        await until(lambda: job.progress.step > 1)
        service.drain()
        assert not service.health().ready
        with pytest.raises(Draining):
            await service.submit(tiny())
        await service.stop()
        assert job.state == "done" and later.state == "queued"
        return job.id, later.id

    async def second() -> None:
        async with running(make_settings()) as service:
            assert (await service.find(ids[0])).state == "done"
            assert (await service.ended(await service.find(ids[1]))).state == "done"

    ids = run(first)
    run(second)


def test_priority_is_bounded_and_kept(make_settings: MakeSettings) -> None:
    async def work() -> None:
        async with running(make_settings()) as service:
            assert service.floor is not None
            service.floor.open = False
            job = await service.submit(asked())
            await service.prioritise(job, 7)
            assert job.priority == 7
            with pytest.raises(RequestError):
                await service.prioritise(job, 1000)

    run(work)
