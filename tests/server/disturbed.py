"""Many small jobs by a server that is killed again and again: what must come out, and how often it was killed."""

from __future__ import annotations

import hashlib
import http.client
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .real import RealServer, children_of


def job_of(number: int) -> dict[str, Any]:
    """Job `number`: every fourth by the tiny checkpoint, the others by the procedural generator; some have two pictures."""
    request = {"prompt": f"sunset {number}", "width": 64, "height": 64, "seed": number, "count": 1 + number % 2}
    model = {"model": "tiny", "request": request | {"steps": 4}} if number % 4 == 0 else {"model": "procedural"}
    return {"request": request, **model}


@dataclass
class Outcome:
    """digests: of every job's pictures, by its number. doubled: jobs beyond those asked for. codes: what a server that
    was asked to end exited with. slowest: seconds that it took at most."""

    digests: dict[int, tuple[str, ...]] = field(default_factory=dict)
    states: dict[int, str] = field(default_factory=dict)
    doubled: int = 0
    kills: int = 0
    orphans: int = 0
    codes: set[int] = field(default_factory=set)
    slowest: float = 0.0


DRAIN = 2
"""Seconds that a server has which is asked to end."""


def draw(data: Path, models: Path, jobs: int, kills: int = 0, seed: int = 0, gently: bool = False) -> Outcome:
    """Submit jobs 0 to `jobs` - 1, each until it is acknowledged, while the server is killed at random moments and started
    again; then wait for all. gently: it is asked to end, by SIGTERM."""
    outcome, chance = Outcome(), random.Random(seed)
    server = RealServer(data, models, "--queue", str(jobs + 10), "--per-client", str(jobs + 10), "--drain", str(DRAIN))
    server.start()
    ids: dict[int, str] = {}
    submitting = threading.Thread(target=_submit_all, args=(server, jobs, ids), daemon=True)
    submitting.start()
    try:
        for _ in range(kills):
            time.sleep(chance.expovariate(1 / 0.7))
            assert server.process is not None
            workers = children_of(server.process.pid)
            if gently:
                began = time.monotonic()
                outcome.codes.add(server.stop())
                outcome.slowest = max(outcome.slowest, time.monotonic() - began)
            else:
                server.kill()
            outcome.kills += 1
            time.sleep(chance.uniform(0.0, 0.3))
            outcome.orphans += sum(_computes(pid) for pid in workers)
            server.start()
        submitting.join(timeout=60.0 + jobs)
        assert not submitting.is_alive(), f"{len(ids)} of {jobs} were accepted"
        _wait(server, ids, seconds=60.0 + 2.0 * jobs)
        _collect(server, ids, outcome)
    finally:
        server.stop()
    return outcome


def _submit_all(server: RealServer, jobs: int, ids: dict[int, str]) -> None:
    for number in range(jobs):
        while number not in ids:
            try:
                status, answer = server.post("/api/v1/jobs", job_of(number), Idempotency_Key=f"job-{number}")
            except (OSError, http.client.HTTPException):  # killed before, or in the middle of, its answer
                time.sleep(0.05)
                continue
            if status in (200, 202):
                ids[number] = answer["id"]
            else:
                assert status in (429, 503), (status, answer)
                time.sleep(0.2)


def _computes(pid: int) -> bool:
    """Whether a worker lives on a second after its server died."""
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        try:
            if "\nState:\tZ" in (Path("/proc") / str(pid) / "status").read_text():
                return False
        except OSError:
            return False
        time.sleep(0.02)
    return True


def _wait(server: RealServer, ids: dict[int, str], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not server.get("/api/v1/queue")["jobs"]:
            return
        time.sleep(0.2)
    raise AssertionError(f"jobs wait still: {server.get('/api/v1/queue')['jobs'][:3]}")


def _collect(server: RealServer, ids: dict[int, str], outcome: Outcome) -> None:
    total, before = 0, None
    while True:
        path = "/api/v1/jobs?all=true&limit=100" + ("" if before is None else f"&before={before}")
        page = server.get(path)["jobs"]
        total += len(page)
        if len(page) < 100:
            break
        before = page[-1]["number"]
    outcome.doubled = total - len(set(ids.values()))
    for number, id in ids.items():
        job = server.get(f"/api/v1/jobs/{id}")
        outcome.states[number] = job["state"]
        pictures = [server.get(f"/api/v1/jobs/{id}/images/{result['index']}.png") for result in job["results"]]
        outcome.digests[number] = tuple(hashlib.sha256(picture).hexdigest() for picture in pictures)
