"""The worker: a process of its own that holds a model and draws. What happens to it does not happen to the server.

    python -m avila_diffusion.server.worker

It is started by `supervisor`, and leaves when its standard input ends, as it does when the server dies. What it says and is
told is in `wire`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .drawing import Studio, Unit, told
from .turns import Turns
from .wire import Message, decode, encode

BEAT_SECONDS = 0.5


class Worker:
    """What is said goes to `output`; what is told comes from `inbox`, None for the end."""

    def __init__(self, output: BinaryIO, settings: Message) -> None:
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.studio = Studio(settings, self.say)
        self._output, self._guard = output, threading.Lock()
        self._units: dict[str, Unit] = {}
        self._turns = Turns()
        self._doing: tuple[str, float] | None = None

    def say(self, what: str, **more: Any) -> None:
        """One message to the server. Where nobody is there any more, this process has no purpose."""
        line = encode({"is": what, **more})
        try:
            with self._guard:
                self._output.write(line)
                self._output.flush()
        except (OSError, ValueError):
            os._exit(0)

    def run(self) -> None:
        """Until the end is told."""
        self.say("ready", pid=os.getpid())
        threading.Thread(target=self._beat, name="avila-beat", daemon=True).start()
        while True:
            message = self._next_message()
            if message is not None:
                if message["do"] == "end":
                    self._leave()
                    return
                with self._busy(message["do"]):
                    self._obey(message)
            elif (name := self._turns.next()) is not None:
                self._advance(name)

    def _next_message(self) -> Message | None:
        """What was told; None where there is work to go on with. With nothing to do, it warms up, then waits."""
        try:
            message = self.inbox.get_nowait()
        except queue.Empty:
            if self._units:
                return None
            if self.studio.cold:
                with self._busy("warm up"):
                    self.studio.warm_up()
                return None
            message = self.inbox.get()
        return {"do": "end"} if message is None else message

    def _obey(self, message: Message) -> None:
        kind, name = message["do"], message.get("unit", "")
        if kind == "draw":
            self._begin(message)
        elif kind == "stop":
            self._close(name, forget=bool(message.get("forget")))
            self.say("stopped", unit=name)
        elif kind == "early" and name in self._units:
            self._units[name].end_early(message["how"])
        elif kind == "load":
            try:
                self.studio.load(message["model"], told=True)
            except Exception as error:
                self.say("refused", model=message["model"]["name"], **told(error))
        elif kind == "unload":
            self.studio.unload()

    def _begin(self, message: Message) -> None:
        name = message["unit"]
        self.say("turn", unit=name)
        unit, failure = None, None
        try:
            unit = Unit(message, self.studio)
        except Exception as error:
            failure = told(error)  # and not the error: its traceback would hold on to memory
        if failure is not None or unit is None:
            self._failed(name, failure or {})
            return
        self._units[name] = unit
        self._turns.add(name, message["client"], message.get("key"))
        self.say("begun", unit=name)

    def _advance(self, name: str) -> None:
        self.say("turn", unit=name)
        unit, done, failure = self._units[name], None, None
        try:
            with self._busy(name):
                done = unit.advance()
        except Exception as error:
            failure = told(error)
        if failure is not None:
            self._close(name)
            del unit
            self._failed(name, failure)
            return
        for said in unit.taken():
            self.say(said.pop("is"), unit=name, **said)
        if done is not None:
            self._close(name)
            self.say("done", unit=name, **done)

    def _failed(self, name: str, found: Message) -> None:
        if found["kind"] == "OutOfMemoryError":
            self.studio.unload()
        self.say("failed", unit=name, **found)

    def _close(self, name: str, *, forget: bool = False) -> None:
        self._turns.remove(name)
        if (unit := self._units.pop(name, None)) is not None:
            unit.close(forget=forget)

    def _leave(self) -> None:
        for name in list(self._units):
            self._close(name)

    @contextlib.contextmanager
    def _busy(self, what: str) -> Iterator[None]:
        self._doing = what, time.monotonic()
        try:
            yield
        finally:
            self._doing = None

    def _beat(self) -> None:
        while True:
            doing = self._doing
            busy, since = (None, 0.0) if doing is None else (doing[0], time.monotonic() - doing[1])
            self.say("beat", memory=held(), busy=busy, since=since)
            time.sleep(BEAT_SECONDS)


def held() -> int | None:
    """Bytes of memory that only this process holds, None where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 (twice a second)
            found = {line.partition(":")[0]: line.split()[1] for line in status if line.startswith("Rss")}
        return (int(found["RssAnon"]) + int(found["RssShmem"])) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _listen(stream: BinaryIO, worker: Worker) -> None:
    """Pass on what the server says. When it is gone so is this process, in the middle of a call: the journal has the rest."""
    while line := stream.readline():
        try:
            message = decode(line)
        except ValueError:
            break
        worker.inbox.put(message)
        if message["do"] == "end":
            return
    os._exit(0)


def _be_modest() -> None:
    """Below the server in priority, and the first to go where memory is short."""
    if os.name != "nt":
        with contextlib.suppress(OSError):
            os.nice(5)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def main() -> int:
    """The process."""
    # What anything prints must not get into the conversation.
    spoken, heard = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    _be_modest()
    try:
        settings = json.loads(heard.readline())
    except ValueError:
        return 2
    if settings.get("models_dir") is not None:
        os.environ["AVILA_MODELS"] = settings["models_dir"]
    worker = Worker(spoken, settings)
    threading.Thread(target=_listen, args=(heard, worker), name="avila-listen", daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the whole group; the server decides
        worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
