"""What strangers send to a real server: slow and endless calls, pictures that unfold, text that is to forge its log."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from avila_diffusion.server.native.events import OWN_NEAR

from .real import RealServer

SMALL = {"prompt": "a sunset", "width": 64, "height": 64, "seed": 1, "steps": 3}
SLOW = 200
HEAD = "POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """One whose log has every call."""
    folder = tmp_path_factory.mktemp("hostile")
    models = folder / "models"
    models.mkdir()
    if sys.platform != "win32":
        (models / "x\n2026-01-01 00:00:00 info forged: FORGED\x1b[31m.safetensors").write_bytes(b"nothing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVILA_CACHE", str(folder / "cache"))
        with RealServer(folder / "data", models, "-m", "procedural", "-v") as found:
            yield found


def silent(connection: socket.socket) -> None:
    """It sends nothing at all."""


def half_a_head(connection: socket.socket) -> None:
    connection.sendall(b"POST /api")


def half_a_body(connection: socket.socket) -> None:
    connection.sendall(f"{HEAD}Content-Length: 1000\r\n\r\n{{".encode())


def after_an_answer(connection: socket.socket) -> None:
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    connection.sendall(b"G")


def after_a_refusal(connection: socket.socket) -> None:
    connection.sendall(b"POST /api/v1/jobs HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 421")
    connection.sendall(b"x")


CALLERS = (silent, half_a_head, half_a_body, after_an_answer, after_a_refusal)


def health(server: RealServer, calls: int = 150) -> list[float]:
    """Seconds that each took, the quickest first."""
    took = []
    for _ in range(calls):
        began = time.perf_counter()
        server.get("/health/live")
        took.append(time.perf_counter() - began)
    return sorted(took)


def test_slow_callers_of_every_kind(server: RealServer) -> None:
    with contextlib.ExitStack() as held:
        for number in range(SLOW):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            CALLERS[number % len(CALLERS)](connection)
        assert health(server)[148] < 0.1  # of 150: the 99th percentile


def test_heads_without_an_end(server: RealServer) -> None:
    ending = threading.Event()
    taken: list[int] = []

    def pour() -> None:
        sent = 0
        while not ending.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=5) as one:
                one.sendall(b"GET / HTTP/1.1\r\nX: ")
                while sent < 1 << 30 and not ending.is_set():
                    one.sendall(b"a" * 16384)
                    sent += 16384
            taken.append(sent)
            sent = 0
            ending.wait(0.05)

    pouring = [threading.Thread(target=pour) for _ in range(8)]
    before = memory(server)
    for thread in pouring:
        thread.start()
    try:
        assert health(server)[148] < 0.1
    finally:
        ending.set()
        for thread in pouring:
            thread.join(timeout=10)
    assert max(taken) < 16 << 20  # what fits into the system's own buffers, and no more
    assert memory(server) - before < 20e6


def memory(server: RealServer, field: str = "VmRSS") -> int:
    """Bytes of the server process; of Linux, elsewhere 0."""
    assert server.process is not None
    path = Path(f"/proc/{server.process.pid}/status")
    if not path.exists():
        return 0
    line = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def test_the_host_of_a_stream(server: RealServer) -> None:
    status, job = server.post("/api/v1/jobs", {"request": SMALL})
    assert status == 202
    path = f"/api/v1/jobs/{job['id']}/events"
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "192.0.2.1", "[::2]"):
        assert server.call("GET", path, Host=host)[0] == 421
    status, stream = server.call("GET", path)
    assert status == 200 and b"event: end" in stream


def test_streams_of_one_address(server: RealServer) -> None:
    status, job = server.post("/api/v1/jobs", {"request": {**SMALL, "width": 512, "height": 512, "count": 200}})
    assert status == 202
    assert server.post(f"/api/v1/jobs/{job['id']}/pause", None)[0] == 200
    call = f"GET /api/v1/jobs/{job['id']}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    def opened() -> socket.socket:
        connection = held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        connection.sendall(call)
        return connection

    with contextlib.ExitStack() as held:
        streams = [opened() for _ in range(OWN_NEAR)]
        assert {stream.recv(12) for stream in streams} == {b"HTTP/1.1 200"}
        assert opened().recv(12) == b"HTTP/1.1 429"
        streams[0].close()
        time.sleep(0.3)
        assert opened().recv(12) == b"HTTP/1.1 200"
    assert server.post(f"/api/v1/jobs/{job['id']}/cancel", None)[0] == 200


def bomb(width: int = 13000, height: int = 13000) -> bytes:
    """A PNG of one bit a pixel: 20 kB of file, 169 million pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def picture(width: int = 64, height: int = 64) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def form(data: bytes) -> tuple[str, bytes]:
    """Content type and body of an edit."""
    text = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
    file = b'--x\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n' + data + b"\r\n--x--\r\n"
    return "multipart/form-data; boundary=x", text + file


def as_json(values: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(values).encode()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


WAYS: dict[str, Callable[[bytes], tuple[str, bytes]]] = {
    "/api/v1/jobs": lambda data: as_json({"request": {**SMALL, "image": text(data)}}),
    "/api/v1/validate": lambda data: as_json({"request": {**SMALL, "image": text(data)}}),
    "/api/v1/metadata": lambda data: ("image/png", data),
    "/sdapi/v1/img2img": lambda data: as_json({"init_images": [text(data)], **SMALL}),
    "/sdapi/v1/png-info": lambda data: as_json({"image": text(data)}),
    "/sdapi/v1/extra-single-image": lambda data: as_json({"image": text(data)}),
    "/v1/images/edits": form,
    "/v1/images/variations": form,
}


@pytest.mark.parametrize("path", WAYS)
def test_a_picture_that_unfolds(server: RealServer, path: str) -> None:
    kind, body = WAYS[path](bomb())
    assert len(body) < 40_000
    _, good = WAYS[path](picture(8, 8))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def post(data: bytes) -> tuple[int, float, bytes]:
        began = time.perf_counter()
        connection.request("POST", path, data, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, time.perf_counter() - began, answer.read()

    post(good)  # what is imported with the first picture is no part of it
    before = memory(server)
    told = [post(body) for _ in range(9)]
    connection.close()
    assert {status for status, _, _ in told} <= {400, 413, 422}, told
    assert all(b"13000x13000" in answer.replace(b",", b"") for _, _, answer in told), told
    assert sorted(seconds for _, seconds, _ in told)[2] < 0.05  # of nine: somebody else may have had the processor
    assert memory(server) - before < 10e6
    assert server.get("/api/v1/server")["problem"] is None


def test_metadata_of_a_large_picture_is_read_without_its_pixels(server: RealServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = bomb(4096, 4000)
    before = memory(server)
    for _ in range(3):
        connection.request("POST", "/api/v1/metadata", data, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        assert answer.status == 422
        assert b"no metadata" in answer.read()
    connection.close()
    assert memory(server) - before < 10e6


FORGED = "x\r\n2026-01-01 00:00:00 info forged: FORGED\x1b[31m\u2028\x85\x07\x00"
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (debug|info|warning|error|critical) [\w.]+: .*")


def test_a_log_that_is_to_be_forged(server: RealServer) -> None:
    """Prompts, names, paths, keys, tokens: each in a line of its own, or in none."""
    prompt = {**SMALL, "prompt": FORGED.replace("\x00", "")}
    calls: list[tuple[str, Any]] = [
        ("/api/v1/jobs", {"request": prompt}),
        ("/api/v1/jobs", {"request": SMALL, "model": FORGED}),
        ("/api/v1/jobs", {"request": {**SMALL, "sampler": FORGED}}),
        ("/api/v1/jobs", {"request": {**SMALL, FORGED: 1}}),
        ("/api/v1/jobs", {"request": SMALL, "task": FORGED}),
        ("/api/v1/jobs", {"request": {**SMALL, "image": {"base64": text(picture()), "name": FORGED}}}),
        ("/sdapi/v1/txt2img", {**SMALL, "sampler_name": FORGED}),
        ("/sdapi/v1/txt2img", {**SMALL, "prompt": FORGED, "override_settings": {"sd_model_checkpoint": FORGED}}),
        ("/sdapi/v1/options", {"sd_model_checkpoint": FORGED}),
        ("/v1/images/generations", {"prompt": FORGED, "size": "64x64", "model": FORGED}),
        ("/api/v1/session", {"token": FORGED}),
    ]
    for path, body in calls:
        server.post(path, body)
    server.call("GET", "/api/v1/models/x%0d%0aFORGED%1b%5b31m")
    server.call("GET", "/x%0d%0aFORGED%1b[31m?a=%0aFORGED")
    server.call("GET", "/api/v1/server", Host="evil.example\tFORGED")
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(b"GET /\x1b[31mFORGED HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Avila-Client: \x1b[31mFORGED\r\n\r\n")
        raw.recv(65536)
    server.call("POST", "/api/v1/models/rescan")
    while any(job["state"] in ("queued", "running") for job in server.get("/api/v1/jobs?all=true")["jobs"]):
        time.sleep(0.05)
    log = server.log.read_bytes().decode("utf-8")
    assert "\x1b" not in log and "\r" not in log and "\x07" not in log
    lines = log.split("\n")[:-1]
    wrong = [line for line in lines if not LINE.fullmatch(line) and not line.startswith("avila: the page is at ")]
    assert wrong == []
    assert [line for line in lines if "forged: FORGED" in line.partition(": ")[0]] == []
    assert len(log.splitlines()) == len(lines)  # U+2028 and the like end lines too, for some
