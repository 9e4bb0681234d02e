"""A real server: `python -m avila_diffusion serve` as a process of its own, spoken to over a loopback socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

ENDED = (0,) if os.name != "nt" else (0, 1)
"""What a server that was asked to end exits with. On Windows SIGTERM cannot be caught: it is `TerminateProcess`."""
posix = pytest.mark.skipif(os.name == "nt", reason="SIGTERM cannot be caught on Windows")


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealServer:
    """data: its folder. options: of `avila serve` beside port, data folder and models."""

    def __init__(self, data: Path, models: Path | None, *options: str) -> None:
        self.data, self.port = data, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        if models is None:
            models = data.with_name(f"{data.name}-no-models")
            models.mkdir(parents=True, exist_ok=True)
        given = ["--models-dir", str(models)]
        self._command = [sys.executable, "-m", "avila_diffusion", "serve", "--port", str(self.port)]
        self._command += ["--data-dir", str(data), *given, "-t", "1", "--drain", "0", *options]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = data.with_name(f"{data.name}.log")

    def start(self, seconds: float = 90.0) -> float:
        """Start it; returns after how many seconds it answered."""
        began = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        while time.monotonic() - began < seconds:
            with contextlib.suppress(OSError):
                status, _ = self.call("GET", "/health/live", timeout=10.0)
                assert status in (200, 401), status  # the latter where it has a token
                return time.monotonic() - began
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"the server did not start: {self.log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """As a power cut does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=10)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process is None:
            return 0
        with contextlib.suppress(OSError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def call(
        self, method: str, path: str, body: Any = None, *, timeout: float = 60.0, **headers: str
    ) -> tuple[int, Any]:
        """(status, JSON of the answer, or its bytes). Errors of HTTP are answers too; OSError where nobody answers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            named.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=named)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as answer:
                status, kind, content = answer.status, answer.headers.get_content_type(), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, kind, content = error.code, error.headers.get_content_type(), error.read()
        return status, json.loads(content) if kind == "application/json" and content else content

    def get(self, path: str, **more: Any) -> Any:
        """The answer of a GET that must be 200."""
        status, answer = self.call("GET", path, **more)
        assert status == 200, (status, answer)
        return answer

    def post(self, path: str, body: Any, **headers: Any) -> tuple[int, Any]:
        """Status and answer."""
        return self.call("POST", path, body, timeout=60.0, **headers)


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits until it is true. Raises TimeoutError where it never is."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"not true after {seconds:g} seconds")
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Processes whose parent it is; Linux only."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(folder.name))
    return found
