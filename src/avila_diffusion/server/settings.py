"""What a server is started with, and every limit that it holds to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, one client and the whole server may ask for.

    body: bytes of a request. body_seconds: to send it in. pixels: of a picture that is drawn, after all passes. pictures: of
    one job. steps: of one pass. queue: jobs that wait or run; queue_bytes: of their requests. per_client: of one client's.
    input_pixels: of a picture that is given. connections: open at once. memory: bytes that a job may be estimated to take
    beyond the model, None for what the machine has. job_seconds: from acceptance to the end, None for ever. call_seconds: one
    model call, after which the worker counts as hung. streams: event streams at once.
    """

    body: int = 32 * MIB
    body_seconds: float = 30.0
    pixels: int = 4096 * 4096
    pictures: int = 256
    steps: int = 500
    queue: int = 256
    queue_bytes: int = 512 * MIB
    per_client: int = 256
    input_pixels: int = 16_777_216
    connections: int = 1024
    streams: int = 256
    memory: int | None = None
    job_seconds: float | None = None
    call_seconds: float = 1800.0


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long finished jobs and their pictures are kept: the newest `count`, `age` seconds, `size` bytes of pictures (also
    of those that were given). None: no such limit."""

    count: int | None = 2000
    age: float | None = None
    size: int | None = 8192 * MIB


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server is started.

    data: folder of its database, journals and pictures. models_dir: as AVILA_MODELS, None for that. model: name that is loaded
    at the start and used where none is asked for, None for the first checkpoint, else the bundled model.
    token: that every call must carry; needed to bind anything but loopback. hosts: names that may stand in the Host header
    beside loopback's and `host`. origins: web pages of other origins that may call (CORS). fetch_hosts: from which pictures
    may be fetched by URL, none by default. drain: seconds that running jobs have to end after SIGTERM.
    device, dtype, threads, memory, max_memory, mmap: as `AvilaDiffusion.with_model` takes them. preview_every: model calls
    between two previews, 0 for none. preview_decoder: see `with_model`. warm_up: import what models need before the first
    job comes.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 7860
    models_dir: str | None = None
    model: str | None = None
    token: str | None = None
    insecure: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    fetch_hosts: tuple[str, ...] = ()
    drain: float = 20.0
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    memory: str = "auto"
    max_memory: str | None = None
    mmap: bool = True
    preview_every: int = 1
    preview_decoder: str | None = None
    warm_up: bool = True
    limits: Limits = field(default_factory=Limits)
    retention: Retention = field(default_factory=Retention)
