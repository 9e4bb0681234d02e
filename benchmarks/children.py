"""A program in a process of its own: how long it took, and how much memory it held at most.

Linux tells the memory of any process of ours in /proc; elsewhere it stays unknown. Anonymous and shared memory is what a run
holds; file-backed pages, such as a mapped checkpoint's, the system may drop at any time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
EVERY = 0.02
"""Seconds between two looks."""


@dataclass(frozen=True)
class Ran:
    """seconds: from before the process starts until it has ended. held, mapped: bytes at most, None where unknown."""

    seconds: float
    output: str
    held: int | None
    mapped: int | None


def parse_status(text: str) -> tuple[int, int] | None:
    """(anonymous and shared, file-backed) resident bytes in a /proc/PID/status; None of a process that has ended."""
    fields = {line.partition(":")[0]: line.partition(":")[2].split() for line in text.splitlines()}
    if "RssAnon" not in fields:
        return None
    anonymous, shared, mapped = (int(fields[name][0]) * 1024 for name in ("RssAnon", "RssShmem", "RssFile"))
    return anonymous + shared, mapped


def resident(pid: int) -> tuple[int, int] | None:
    """The same of a running process; None where the system does not tell."""
    try:
        return parse_status(Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None


class _Watch(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.ended = threading.Event()
        self.most: tuple[int, int] | None = None

    def run(self) -> None:
        while not self.ended.wait(EVERY):
            now = resident(self.pid)
            if now is not None:
                held, mapped = self.most or (0, 0)
                self.most = max(held, now[0]), max(mapped, now[1])


def run(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> Ran:
    """Run Python with these arguments in our environment and `env`. Raises RuntimeError, with what it said, where it fails."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    surroundings = {**os.environ, "PYTHONPATH": path, **(env or {})}
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as failed:
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, *arguments], stdout=said, stderr=failed, env=surroundings, cwd=ROOT)
        watch = _Watch(child.pid)
        watch.start()
        try:
            code = child.wait()
            seconds = time.perf_counter() - began
        except BaseException:
            child.kill()
            raise
        finally:
            watch.ended.set()
            watch.join()
        said.seek(0)
        failed.seek(0)
        output = said.read().decode("utf-8", "replace")
        if code:
            last = failed.read().decode("utf-8", "replace").strip().splitlines()[-3:]
            raise RuntimeError(f"{' '.join(arguments[:4])} … ended with {code}: {' | '.join(last)}")
    return Ran(seconds, output, *(watch.most or (None, None)))
