"""Jobs as rows of the database, and back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from ..errors import AvilaError
from ..metadata.found import valid_part
from ..request import PICTURES, GenerateRequest
from .job import Job, Problem, Result, State, Using

Stamps = Mapping[str, tuple[int, int]]
"""Size and time of change of the files that a job was accepted with, by path."""

_WHOLE = "number, id, client, state, priority, dialect, task, shown, pictures, files_used, extra, created, started, finished, "
_WHOLE += "interrupted, retries, problem, notes, report"
"""Of a job without the pictures that were given, which may be large."""


def insert(
    connection: sqlite3.Connection,
    job: Job,
    *,
    key: str | None,
    digest: str | None,
    stamps: Stamps,
    size: int,
    deadline: float | None,
) -> int:
    """A new job. Returns its number. Raises sqlite3.IntegrityError where the client's key is taken."""
    values = job.request.to_dict()
    done = connection.execute(
        "INSERT INTO jobs (id, client, state, priority, dialect, task, key, digest, request, shown, pictures, files_used,"
        " files, extra, size, created, deadline) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            job.id,
            job.client,
            job.state,
            job.priority,
            job.dialect,
            job.task,
            key,
            digest,
            json.dumps(values),
            json.dumps({name: value for name, value in values.items() if name not in PICTURES}),
            json.dumps(job.given),
            json.dumps(job.using.to_dict()),
            json.dumps(stamps),
            json.dumps(dict(job.extra)),
            size,
            job.created,
            deadline,
        ),
    )
    return int(done.lastrowid or 0)


def with_key(connection: sqlite3.Connection, client: str, key: str) -> tuple[str, str | None] | None:
    """(id, digest) of the job that a client gave this idempotency key."""
    row = connection.execute("SELECT id, digest FROM jobs WHERE client = ? AND key = ?", (client, key)).fetchone()
    return None if row is None else (row["id"], row["digest"])


def add_part(connection: sqlite3.Connection, job: Job, part: int, results: Iterable[Result]) -> None:
    """The pictures of one finished part. Done again after a crash it changes nothing."""
    rows = [
        (job.number, one.index, one.file, _signed(one.seed), one.width, one.height, one.size, one.infotext)
        for one in results
    ]
    connection.executemany("INSERT OR REPLACE INTO results VALUES (?,?,?,?,?,?,?,?)", rows)
    connection.execute(
        "UPDATE jobs SET parts = max(parts, ?), started = coalesce(started, ?), notes = ?, report = ?, retries = ?,"
        " bytes = (SELECT coalesce(sum(size), 0) FROM results WHERE job = number) WHERE number = ?",
        (part + 1, job.started, json.dumps(job.notes), json.dumps(job.report), job.retries, job.number),
    )


def end(
    connection: sqlite3.Connection, job: Job, state: State, problem: Problem | None, finished: float
) -> sqlite3.Row | None:
    """End a job, unless it has ended: then nothing is changed. Returns the state it has now."""
    connection.execute(
        "UPDATE jobs SET state = ?, finished = ?, started = coalesce(started, ?), problem = ?, notes = ?, retries = ?,"
        " interrupted = ? WHERE number = ? AND state NOT IN ('done', 'failed', 'cancelled')",
        (
            state,
            finished,
            job.started,
            None if problem is None else json.dumps(asdict(problem)),
            json.dumps(job.notes),
            job.retries,
            job.interrupted,
            job.number,
        ),
    )
    found: sqlite3.Row | None = connection.execute("SELECT state FROM jobs WHERE number = ?", (job.number,)).fetchone()
    return found


def change(connection: sqlite3.Connection, job: Job) -> None:
    """What a job's owner may change while it lives."""
    state = "paused" if job.state == "paused" else "queued"
    connection.execute(
        "UPDATE jobs SET state = ?, priority = ?, interrupted = ?, retries = ? WHERE number = ?"
        " AND state NOT IN ('done', 'failed', 'cancelled')",
        (state, job.priority, job.interrupted, job.retries, job.number),
    )


def find(connection: sqlite3.Connection, id: str) -> Job | None:
    """A job by its id, with its results."""
    row = connection.execute(f"SELECT {_WHOLE} FROM jobs WHERE id = ?", (id,)).fetchone()
    return None if row is None else _job(connection, row)


def listed(
    connection: sqlite3.Connection, client: str | None, states: Collection[State], limit: int, before: int | None
) -> list[Job]:
    """Ended jobs, the newest first."""
    marks = ",".join("?" * len(states))
    rows = connection.execute(
        f"SELECT {_WHOLE} FROM jobs WHERE (? IS NULL OR client = ?) AND state IN ({marks}) AND (? IS NULL OR number < ?)"
        " ORDER BY number DESC LIMIT ?",
        (client, client, *states, before, before, limit),
    ).fetchall()
    return [_job(connection, row) for row in rows]


def give_up_unreadable(connection: sqlite3.Connection, finished: float) -> int:
    """Fail live jobs that this version cannot ask for any more, as an update may leave them. Returns how many."""
    live = connection.execute("SELECT number, request FROM jobs WHERE state NOT IN ('done', 'failed', 'cancelled')")
    bad = []
    for row in live.fetchall():
        try:
            restored(json.loads(row["request"]))
        except (AvilaError, ValueError, TypeError) as error:
            line = f"this version cannot draw what an earlier one accepted ({error}); submit it again"
            bad.append(
                (json.dumps(asdict(Problem(kind="RequestError", message=line, asked=True))), finished, row["number"])
            )
    connection.executemany("UPDATE jobs SET state = 'failed', problem = ?, finished = ? WHERE number = ?", bad)
    return len(bad)


def unended(connection: sqlite3.Connection) -> list[tuple[Job, Stamps, int, int, float | None]]:
    """(job, stamps, parts done, size, deadline) of all that a server that went away has left."""
    rows = connection.execute(
        f"SELECT {_WHOLE}, request, files, parts, size, deadline FROM jobs WHERE state NOT IN ('done', 'failed', 'cancelled')"
        " ORDER BY number"
    ).fetchall()
    return [
        (
            replace(_job(connection, row), request=restored(json.loads(row["request"]))),
            {path: (size, time) for path, (size, time) in json.loads(row["files"]).items()},
            row["parts"],
            row["size"],
            row["deadline"],
        )
        for row in rows
    ]


def delete(connection: sqlite3.Connection, numbers: Collection[int]) -> None:
    """Jobs with their results."""
    connection.executemany("DELETE FROM jobs WHERE number = ?", [(number,) for number in numbers])


def ids(connection: sqlite3.Connection) -> set[str]:
    """Of all jobs."""
    return {row["id"] for row in connection.execute("SELECT id FROM jobs")}


def surplus(
    connection: sqlite3.Connection, count: int | None, oldest: float | None, size: int | None
) -> list[tuple[int, str]]:
    """(number, id) of ended jobs beyond the newest `count`, of before `oldest`, or beyond `size` bytes of pictures."""
    rows = connection.execute(
        "SELECT number, id, finished, bytes + size AS held FROM jobs WHERE state IN ('done', 'failed', 'cancelled')"
        " ORDER BY number DESC"
    ).fetchall()
    found, total = [], 0
    for position, row in enumerate(rows):
        total += row["held"]
        over = (count is not None and position >= count) or (size is not None and total > size)
        if over or (oldest is not None and (row["finished"] or 0) < oldest):
            found.append((row["number"], row["id"]))
    return found


def _job(connection: sqlite3.Connection, row: sqlite3.Row) -> Job:
    results = connection.execute("SELECT * FROM results WHERE job = ? ORDER BY position", (row["number"],)).fetchall()
    problem = None if row["problem"] is None else Problem(**json.loads(row["problem"]))
    job = Job(
        id=row["id"],
        number=row["number"],
        client=row["client"],
        request=_readable(json.loads(row["shown"])),
        given=json.loads(row["pictures"]),
        using=Using(**json.loads(row["files_used"])),
        state=row["state"],
        priority=row["priority"],
        dialect=row["dialect"],
        task=row["task"],
        extra=json.loads(row["extra"]),
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        interrupted=bool(row["interrupted"]),
        retries=row["retries"],
        problem=problem,
        notes=tuple(json.loads(row["notes"])),
        report=tuple(json.loads(row["report"])),
        results=tuple(_result(one) for one in results),
    )
    if job.state == "done":
        job.progress.fraction = 1.0
    return job


def _result(row: sqlite3.Row) -> Result:
    return Result(
        index=row["position"],
        file=row["file"],
        seed=row["seed"] % 2**64,
        width=row["width"],
        height=row["height"],
        size=row["size"],
        infotext=row["infotext"],
    )


def _signed(seed: int) -> int:
    """The same 64 bits as SQLite has them, whose whole numbers are signed."""
    return seed - 2**64 if seed >= 2**63 else seed


def _readable(values: Mapping[str, Any]) -> GenerateRequest:
    """A request as far as this version can read it: of an ended job, the rest is no loss."""
    try:
        return restored(values)
    except (AvilaError, TypeError):
        known, _ = valid_part(values)
        return GenerateRequest.from_dict({"seed": 0, **known})


def restored(values: Mapping[str, Any]) -> GenerateRequest:
    """A request as JSON gives it back."""
    return GenerateRequest.from_dict(
        {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )
