"""Large bodies are read while others are served, and pictures are converted while jobs are taken."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from avila_diffusion.errors import RequestError
from avila_diffusion.server import bodies, waiting
from avila_diffusion.server.bodies import SMALL, parse_object, worked
from avila_diffusion.server.native.events import OWN_FAR, OWN_NEAR, _Streams
from avila_diffusion.server.problems import QueueFull

from .conftest import MakeSettings, asked, run, running


def test_small_ones_on_the_loop_and_large_ones_off_it() -> None:
    async def where(size: int) -> str:
        return await worked(size, lambda: threading.current_thread().name)

    main = threading.current_thread().name
    assert asyncio.run(where(SMALL)) == main
    assert asyncio.run(where(SMALL + 1)) != main


def test_what_is_wrong_with_a_large_one_is_said_all_the_same() -> None:
    with pytest.raises(RequestError, match="no JSON"):
        asyncio.run(worked(SMALL + 1, lambda: parse_object(b"{" + b" " * SMALL)))


def test_streams_of_one_address_and_of_all() -> None:
    streams = _Streams(100)
    for address, most in (("192.0.2.1", OWN_FAR), ("127.0.0.1", OWN_NEAR)):
        for _ in range(most):
            streams.take(address)
        with pytest.raises(QueueFull, match="of yours"):
            streams.take(address)
    for number in range(100 - OWN_FAR - OWN_NEAR):
        streams.take(f"198.51.100.{number}")
    with pytest.raises(QueueFull, match="as this server keeps"):
        streams.take("203.0.113.1")
    streams.give_back("192.0.2.1")
    streams.take("192.0.2.1")


def test_conversions_hold_up_no_job(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    def slow(path: Path, format: str, quality: int) -> bytes:
        let_go.wait(20)
        return b"converted"

    monkeypatch.setattr(waiting, "_converted", slow)

    async def work() -> None:
        async with running(make_settings()) as service:
            job = await service.ended(await service.submit(asked()))
            many = [asyncio.ensure_future(waiting.result_bytes(service, job, 0, "webp")) for _ in range(64)]
            other = await asyncio.wait_for(service.ended(await service.submit(asked(seed=2))), 20)
            assert other.state == "done"
            assert (await waiting.result_bytes(service, other, 0)).startswith(b"\x89PNG")
            assert not any(one.done() for one in many)
            let_go.set()
            assert set(await asyncio.gather(*many)) == {b"converted"}

    try:
        run(work)
    finally:
        let_go.set()


def test_many_values_are_refused_before_they_are_made() -> None:
    with pytest.raises(RequestError, match="values"):
        parse_object(b'{"a":[' + b"0," * bodies.VALUES + b"0]}")
