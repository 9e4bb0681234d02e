"""Progress and stopping, of jobs in every state that a client's jobs can be in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from avila_diffusion.request import GenerateRequest
from avila_diffusion.server.job import Job, Progress, State, Using
from avila_diffusion.server.sdapi import progress
from avila_diffusion.server.service import Service


class Line:
    """As much of the service as these routes look at. jobs: in the order in which they are served."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.interrupted: list[int] = []
        self.skipped: list[int] = []

    def live(self) -> list[Job]:
        return [job for job in self.jobs if not job.ended]

    def position(self, job: Job) -> int:
        return 1 + [one for one in self.jobs if one.state == "queued"].index(job)

    def of_task(self, task: str, client: str) -> Job | None:
        return next((job for job in self.jobs if job.task == task and job.client == client), None)

    def interrupt(self, job: Job) -> None:
        self.interrupted.append(job.number)

    def skip(self, job: Job) -> None:
        self.skipped.append(job.number)

    def add(self, state: State, client: str = "anna", *, begun: bool = False, **more: Any) -> Job:
        number = len(self.jobs) + 1
        job = Job(
            id=str(number), number=number, client=client, request=GenerateRequest(count=4), using=Using(model="x")
        )
        job.state, job.task = state, f"task({number})"
        job.started = 1000.0 if begun else None
        for name, value in more.items():
            setattr(job, name, value)
        self.jobs.append(job)
        return job


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def client(line: Line) -> Iterator[TestClient]:
    app = Starlette(routes=progress.routes(cast(Service, line)))

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        scope["avila.client"] = "anna"
        await app(scope, receive, send)

    with TestClient(named) as made:
        yield made


def shown(client: TestClient) -> dict[str, Any]:
    told: dict[str, Any] = client.get("/sdapi/v1/progress").json()
    return told


def test_a_job_that_waits_for_its_turn_is_interrupted(line: Line, client: TestClient) -> None:
    line.add("running", "ben", begun=True)
    line.add("queued")
    line.add("queued")
    assert client.post("/sdapi/v1/interrupt").json() == {}
    assert line.interrupted == [2, 3]


def test_of_several_jobs_those_that_were_begun_are_meant(line: Line, client: TestClient) -> None:
    line.add("running", "ben", begun=True)
    line.add("queued")
    line.add("queued", begun=True)
    line.add("paused", begun=True)
    client.post("/sdapi/v1/interrupt")
    client.post("/sdapi/v1/skip")
    assert (line.interrupted, line.skipped) == ([3], [3])


def test_progress_stays_while_others_have_their_turn(line: Line, client: TestClient) -> None:
    line.add("running", "ben", begun=True)
    line.add("queued", begun=True, progress=Progress("sample", 2, 7, 20, 0.6, 3.0), skipped=True)
    told = shown(client)
    assert (told["progress"], told["eta_relative"], told["textinfo"]) == (pytest.approx(0.61), 3.0, "In queue: 1/1")
    state = told["state"]
    assert (state["job_no"], state["job_count"], state["sampling_step"], state["skipped"]) == (2, 4, 7, True)
    task = client.post("/internal/progress", json={"id_task": "task(2)"}).json()
    assert (task["active"], task["queued"], task["progress"]) == (True, False, pytest.approx(0.61))
    assert client.get("/internal/pending-tasks").json() == {"size": 0, "tasks": []}


def test_the_oldest_of_those_that_were_begun_is_told(line: Line, client: TestClient) -> None:
    line.add("queued", begun=True)
    line.add("running", begun=True)
    line.jobs.reverse()  # those that run are served first
    assert shown(client)["state"]["job"] == "task(1)"


def test_a_job_that_was_put_aside_is_not_waited_for(line: Line, client: TestClient) -> None:
    line.add("paused")
    line.add("paused", begun=True)
    told = shown(client)
    assert (told["progress"], told["state"]["job_count"], told["textinfo"]) == (0.0, 0, None)
    task = client.post("/internal/progress", json={"id_task": "task(1)"}).json()
    assert (task["active"], task["queued"], task["textinfo"]) == (False, True, "Paused")
    assert client.get("/internal/pending-tasks").json()["size"] == 0


def test_all_wait(line: Line, client: TestClient) -> None:
    line.add("queued", "ben")
    line.add("queued")
    told = shown(client)
    assert (told["progress"], told["textinfo"]) == (progress.BEGUN, "In queue: 2/2")
    assert (told["state"]["job"], told["state"]["job_count"]) == ("task(2)", 4)
    assert client.get("/internal/pending-tasks").json() == {"size": 1, "tasks": ["task(2)"]}
