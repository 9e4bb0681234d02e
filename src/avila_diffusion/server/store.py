"""Jobs on disk: SQLite with one connection in one thread. What was written is safe, fsync and all, when the caller goes on.

Many callers at once share one commit: the thread takes all that waits, runs each in a savepoint of its own, commits once,
and answers all.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import FileProblem, OutputProblem
from .problems import Draining

Made = TypeVar("Made")
Work = Callable[[sqlite3.Connection], Any]

VERSION = 1
SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    state TEXT NOT NULL,
    priority INTEGER NOT NULL,
    dialect TEXT NOT NULL,
    task TEXT,
    key TEXT,
    digest TEXT,
    request TEXT NOT NULL,
    shown TEXT NOT NULL,
    pictures TEXT NOT NULL,
    files_used TEXT NOT NULL,
    files TEXT NOT NULL,
    extra TEXT NOT NULL,
    size INTEGER NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    deadline REAL,
    parts INTEGER NOT NULL DEFAULT 0,
    retries INTEGER NOT NULL DEFAULT 0,
    interrupted INTEGER NOT NULL DEFAULT 0,
    problem TEXT,
    notes TEXT NOT NULL DEFAULT '[]',
    report TEXT NOT NULL DEFAULT '[]',
    bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_state ON jobs (state);
CREATE INDEX jobs_client ON jobs (client, number);
CREATE UNIQUE INDEX jobs_key ON jobs (client, key) WHERE key IS NOT NULL;
CREATE TABLE results (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    file TEXT NOT NULL,
    seed INTEGER NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    size INTEGER NOT NULL,
    infotext TEXT,
    PRIMARY KEY (job, position)
);
"""


class Store:
    """The database of a server's data folder. Only one process has it open.

    Raises FileProblem where another server has it, or where it is a newer one's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._closed = False
        self._waiting: queue.SimpleQueue[tuple[Work, Callable[[Any], None], Callable[[BaseException], None]] | None]
        self._waiting = queue.SimpleQueue()
        opened: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, args=(opened,), name="avila-store", daemon=True)
        self._thread.start()
        if (problem := opened.get()) is not None:
            self._thread.join()
            raise problem

    async def do(self, work: Callable[[sqlite3.Connection], Made]) -> Made:
        """What `work` returns of the connection, once what it wrote is safe. Raises OutputProblem where it cannot be,
        Draining where the server stops."""
        if self._closed:
            raise Draining("the server stops; ask it again when it is back")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Made] = loop.create_future()

        def settle(result: Any) -> None:
            if not answer.done():
                answer.set_result(result)

        def fail(error: BaseException) -> None:
            if not answer.done():
                answer.set_exception(error)

        def told(how: Callable[[Any], None]) -> Callable[[Any], None]:
            def tell(value: Any) -> None:
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(how, value)

            return tell

        self._waiting.put((work, told(settle), told(fail)))
        return await asyncio.shield(answer)

    def close(self) -> None:
        """After all that waits was done. A second time does nothing."""
        self._closed = True
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _serve(self, opened: queue.SimpleQueue[BaseException | None]) -> None:
        try:
            connection = _open(self.path)
        except BaseException as error:
            opened.put(error)
            return
        opened.put(None)
        with contextlib.closing(connection):
            while (first := self._waiting.get()) is not None:
                batch = [first]
                last = False
                with contextlib.suppress(queue.Empty):
                    while len(batch) < 256:
                        more = self._waiting.get_nowait()
                        if more is None:
                            last = True
                            break
                        batch.append(more)
                self._commit(connection, batch)
                if last:
                    return

    def _commit(self, connection: sqlite3.Connection, batch: list[Any]) -> None:
        """One transaction for all; who fails is undone alone. Nobody is answered before the commit."""
        answers: list[Callable[[], None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work, settle, fail in batch:
                connection.execute("SAVEPOINT one")
                try:
                    result = work(connection)
                except Exception as error:
                    connection.execute("ROLLBACK TO one")
                    problem = _told(self.path, error)
                    answers.append(lambda fail=fail, problem=problem: fail(problem))  # type: ignore[misc]
                else:
                    answers.append(lambda settle=settle, result=result: settle(result))  # type: ignore[misc]
                connection.execute("RELEASE one")
            connection.execute("COMMIT")
        except Exception as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            problem = _told(self.path, error)
            for _, _, fail in batch:
                fail(problem)
            return
        for answer in answers:
            answer()


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, timeout=1.0, check_same_thread=True)
    except (OSError, sqlite3.Error) as error:
        raise OutputProblem(
            f"{path.parent} cannot hold the server's jobs ({error}); choose another --data-dir"
        ) from None
    try:
        connection.row_factory = sqlite3.Row
        # The one who writes first holds it for good: two servers on one folder would draw the same jobs.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise FileProblem(
                f"{path} was written by a newer avila (format {version}, this one knows {VERSION}); update it"
            )
        if version == 0:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException as error:
        connection.close()
        raise _told(path, error) if isinstance(error, sqlite3.Error) else error from None
    return connection


def _told(path: Path, error: BaseException) -> BaseException:
    """SQLite's errors in words; others as they are."""
    if not isinstance(error, sqlite3.Error) or isinstance(error, sqlite3.IntegrityError):
        return error
    said = str(error)
    if "locked" in said or "busy" in said:
        return FileProblem(f"{path.parent} is in use by another server; stop that one, or choose another --data-dir")
    if "malformed" in said or "not a database" in said:
        return FileProblem(f"{path} is damaged ({said}); move it away to begin anew, its pictures stay")
    return OutputProblem(f"{path} cannot be written ({said}); free some space or choose another --data-dir")
