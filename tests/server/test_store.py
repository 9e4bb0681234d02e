"""The database: committed before anybody is told, shared commits, one owner, faults in one clear line."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from avila_diffusion.errors import FileProblem, OutputProblem
from avila_diffusion.server.store import Store


def count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM jobs").fetchone()[0])


def add(connection: sqlite3.Connection) -> None:
    names = "id, client, state, priority, dialect, request, shown, pictures, files_used, files, extra, size, created"
    values = "lower(hex(randomblob(8))), 'anna', 'queued', 0, 'avila', '{}', '{}', '{}', '{}', '{}', '{}', 0, 0"
    connection.execute(f"INSERT INTO jobs ({names}) VALUES ({values})")


def add_and_fail(connection: sqlite3.Connection) -> None:
    add(connection)
    raise ValueError("halfway")


def test_what_was_done_is_there_for_another_process(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    asyncio.run(store.do(add))
    store.close()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as connection:
        assert count(connection) == 1
    connection.close()


def test_many_at_once_share_commits_and_one_that_fails_is_undone_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")

    async def work() -> list[object]:
        many = [store.do(add_and_fail if number % 10 == 0 else add) for number in range(200)]
        return list(await asyncio.gather(*many, return_exceptions=True))

    answers = asyncio.run(work())
    assert sum(isinstance(answer, ValueError) for answer in answers) == 20
    assert asyncio.run(store.do(count)) == 180
    store.close()


def test_a_second_server_on_the_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    with pytest.raises(FileProblem, match=r"in use by another server; stop that one, or choose another --data-dir"):
        Store(tmp_path / "jobs.sqlite")
    store.close()
    Store(tmp_path / "jobs.sqlite").close()


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"this is no database, and never was one " * 100)
    with pytest.raises(FileProblem, match="is damaged"):
        Store(tmp_path / "jobs.sqlite")


def test_a_newer_format_is_told(tmp_path: Path) -> None:
    Store(tmp_path / "jobs.sqlite").close()
    connection = sqlite3.connect(tmp_path / "jobs.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FileProblem, match="newer avila"):
        Store(tmp_path / "jobs.sqlite")


def test_a_folder_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(OutputProblem, match="choose another --data-dir"):
        Store(tmp_path / "data" / "jobs.sqlite")


def test_a_full_disk_is_told_and_what_came_before_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    asyncio.run(store.do(add))

    def limit(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite's own way to a full disk

    def fill(connection: sqlite3.Connection) -> None:
        for _ in range(2000):
            add(connection)

    asyncio.run(store.do(limit))
    with pytest.raises(OutputProblem, match="free some space"):
        asyncio.run(store.do(fill))
    assert asyncio.run(store.do(count)) == 1
    store.close()
