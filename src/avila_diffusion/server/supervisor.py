"""The worker process, watched: started, talked to, killed where it hangs, started again with growing pauses where it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from .wire import Message, decode, encode

SILENT_SECONDS = 2.0
"""Without a word for so long, the worker counts as not well."""
LOST_SECONDS = 10.0
"""For so long, as lost: it is killed."""
STARTING_SECONDS = 60.0
"""The same while it is started or imports what models need, which may hold up all that Python does."""
WELL_SECONDS = 10.0
"""Alive for so long, it counts as well again."""
CHECK_SECONDS = 0.5
"""Between two calls of `check`."""
PAUSES = (0.0, 0.2, 1.0, 2.0, 5.0, 10.0)
"""Before the worker is started again, the n-th time in a row without having done anything."""

State = Literal["starting", "idle", "busy", "stopped", "lost"]


class Supervisor:
    """Keeps one worker going. settings: its first line. heard: called on the loop with every message but beats. died: called
    on the loop when the worker is gone, with why, and whether somebody killed it who is neither this server nor a system
    that is short of memory. All methods are for the loop's thread.
    """

    def __init__(self, settings: Message, heard: Callable[[Message], None], died: Callable[[str, bool], None]) -> None:
        self._settings, self._heard, self._died = settings, heard, died
        self._process: subprocess.Popen[bytes] | None = None
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._generation = 0
        self._failures = 0
        self._why = ""
        self._stopping = False
        self._oom_kills: int | None = None
        self.ready = False
        self.last_word = self._began = self._checked = time.monotonic()
        self.memory: int | None = None
        self.busy: str | None = None
        self.busy_since = 0.0
        self.restarts = 0
        self.trouble: str | None = None

    @property
    def pid(self) -> int | None:
        """Of the worker."""
        return None if self._process is None else self._process.pid

    @property
    def silent(self) -> float:
        """Seconds since its last word."""
        return time.monotonic() - self.last_word

    @property
    def state(self) -> State:
        """How it is."""
        if self._process is None:
            return "stopped" if self._stopping else "lost"
        if not self.ready:
            return "starting"
        if self.silent > SILENT_SECONDS:
            return "lost"
        return "idle" if self.busy is None else "busy"

    def start(self) -> None:
        """Start the worker. Nothing is waited for."""
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._generation += 1
        self._outbox = queue.SimpleQueue()
        self._oom_kills = _oom_kills()
        self.ready, self._why, self.busy, self.busy_since, self.memory = False, "", None, 0.0, None
        self.last_word = self._began = time.monotonic()
        options: dict[str, Any] = {}
        if os.name == "nt":
            options["creationflags"] = subprocess.BELOW_NORMAL_PRIORITY_CLASS | subprocess.CREATE_NEW_PROCESS_GROUP  # type: ignore[attr-defined,unused-ignore]
        else:
            options["start_new_session"] = True  # Ctrl-C is the server's to answer
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "avila_diffusion.server.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONIOENCODING": "utf-8"},
                **options,
            )
        except OSError as error:
            self._gone(self._generation, f"could not be started ({error})")
            return
        self.tell(self._settings)
        assert self._process.stdin is not None and self._process.stdout is not None
        for target, stream in ((self._write, self._process.stdin), (self._read, self._process.stdout)):
            arguments = (stream, self._outbox, self._generation)
            threading.Thread(target=target, args=arguments, name="avila-worker-pipe", daemon=True).start()

    def tell(self, message: Message) -> None:
        """Say something to the worker. What is said to one that dies is lost with it."""
        self._outbox.put(encode(message))

    def kill(self, why: str) -> None:
        """End the worker now; `died` is called when it is gone, and it is started again."""
        self._why = why
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()

    def check(self) -> None:
        """To be called twice a second: a worker that says nothing any more is killed."""
        now = time.monotonic()
        late, self._checked = now - self._checked > 4 * CHECK_SECONDS, now
        if late:
            self.last_word = now  # it was this process that slept: what the worker said is still to be read
        patience = LOST_SECONDS if self.ready and self.busy != "warm up" else STARTING_SECONDS
        if self._process is not None and self.silent > patience and not self._why:
            self.kill(f"hung: it said nothing for {patience:.0f} seconds")
        if self.ready and now - self._began > WELL_SECONDS:
            self.worked()

    def worked(self) -> None:
        """It has done something: if it dies now, it is started again at once."""
        self._failures = 0
        self.trouble = None

    async def stop(self, seconds: float = 2.0) -> None:
        """Ask it to leave; after some seconds, make it."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        self.tell({"do": "end"})
        self._outbox.put(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, seconds)
        if process.poll() is None:
            process.kill()
            await asyncio.to_thread(process.wait)
        self._process = None

    def _write(self, stream: IO[bytes], outbox: queue.SimpleQueue[bytes | None], generation: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (line := outbox.get()) is not None:
                stream.write(line)
                stream.flush()
        with contextlib.suppress(OSError, ValueError):
            stream.close()

    def _read(self, stream: IO[bytes], outbox: queue.SimpleQueue[bytes | None], generation: int) -> None:
        """Messages to the loop, until the worker is gone."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody listens
            with contextlib.suppress(ValueError, OSError):  # a torn line: it was killed
                for line in stream:
                    self._loop.call_soon_threadsafe(self._take, generation, decode(line))
            outbox.put(None)
            process = self._process
            code = None
            if process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=5)
            outside = code == -9 and not self._why and _oom_kills() == self._oom_kills
            self._loop.call_soon_threadsafe(self._gone, generation, _reason(code), outside)
        stream.close()

    def _take(self, generation: int, message: Message) -> None:
        if generation != self._generation:
            return
        self.last_word = time.monotonic()
        if message["is"] == "beat":
            self.memory = message["memory"]
            self.busy, self.busy_since = message["busy"], message["since"]
            return
        if message["is"] == "ready":
            self.ready = True
        self._heard(message)

    def _gone(self, generation: int, why: str, outside: bool = False) -> None:
        """It is dead. A word of its successor, if there is to be one, comes later. outside: somebody has killed it."""
        if generation != self._generation or self._stopping:
            return
        self._process, self.ready, self.busy = None, False, None
        why = self._why or why
        self._failures += not outside
        self.restarts += 1
        pause = PAUSES[min(max(self._failures - 1, 0), len(PAUSES) - 1)]
        if self._failures >= len(PAUSES) // 2:
            self.trouble = f"the worker {why}, {self._failures} times in a row; it is started again"
        assert self._loop is not None
        self._loop.call_later(pause, self._again, generation)
        self._died(why, outside)

    def _again(self, generation: int) -> None:
        if generation == self._generation and not self._stopping:
            self.start()


def _oom_kills() -> int | None:
    """How many processes this system has killed for want of memory, None where it does not say."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")))
    except (OSError, ValueError, StopIteration):
        return None


def _reason(code: int | None) -> str:
    if code is None:
        return "went away"
    return f"was ended by signal {-code}" if code < 0 else f"left with code {code}"
