"""Several clients at once on a real server: nobody sees another's previews, and nobody waits behind a long job."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from .real import RealServer

CLIENTS = 8


def followed(server: RealServer, id: str, client: str) -> list[tuple[str, dict[str, Any]]]:
    """All events of a job, as (kind, data)."""
    request = urllib.request.Request(f"{server.url}/api/v1/jobs/{id}/events", headers={"X-Avila-Client": client})
    found, kind = [], ""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as stream:
        for raw in stream:
            name, _, value = raw.decode().strip().partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                found.append((kind, json.loads(value)))
    return found


def asked(seed: int, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "request": {"prompt": "a cat", "width": 64, "height": 64, "seed": seed, **more}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AVILA_KERNELS", "torch"), ("OMP_NUM_THREADS", "1")):
            patch.setenv(name, value)
        patch.setenv("AVILA_CACHE", str(tmp_path_factory.mktemp("cache")))
        with RealServer(tmp_path_factory.mktemp("sharing") / "data", models_folder) as server:
            yield server


class Client(threading.Thread):
    """Makes one job, follows it, and meanwhile asks for the progress that AUTOMATIC1111's clients ask for."""

    def __init__(self, server: RealServer, number: int) -> None:
        super().__init__(daemon=True)
        self.server, self.number, self.name_ = server, number, f"client{number}"
        self.own: set[str] = set()
        self.seen: set[str] = set()
        self.ended: dict[str, Any] = {}

    def run(self) -> None:
        status, job = self.server.post("/api/v1/jobs", asked(self.number, steps=24), X_Avila_Client=self.name_)
        assert status == 202, job
        polling = threading.Event()
        poller = threading.Thread(target=self._poll, args=(polling,), daemon=True)
        poller.start()
        events = followed(self.server, job["id"], self.name_)
        polling.set()
        poller.join(timeout=10)
        self.own = {data["data"] for kind, data in events if kind == "preview"}
        self.ended = events[-1][1]

    def _poll(self, ended: threading.Event) -> None:
        while not ended.is_set():
            found = self.server.get("/sdapi/v1/progress", X_Avila_Client=self.name_)
            if found["current_image"]:
                self.seen.add(found["current_image"])
            time.sleep(0.05)


def test_eight_clients_see_their_own_previews_only(server: RealServer) -> None:
    clients = [Client(server, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(timeout=90)
    assert [client.ended.get("state") for client in clients] == ["done"] * CLIENTS
    assert all(client.own for client in clients)
    everybody = [client.own for client in clients]
    assert len(set().union(*everybody)) == sum(map(len, everybody))  # else the comparison would say nothing
    foreign = [client.seen & other.own for client in clients for other in clients if client is not other]
    assert not any(foreign)
    assert sum(len(client.seen) for client in clients) >= CLIENTS  # and they do see them


def test_one_picture_behind_a_hundred_begins_with_the_next_call(server: RealServer) -> None:
    status, long = server.post("/api/v1/jobs", asked(1, steps=400, count=100), X_Avila_Client="long")
    assert status == 202
    while server.get(f"/api/v1/jobs/{long['id']}")["progress"]["step"] < 3:
        time.sleep(0.02)
    status, short = server.post("/api/v1/jobs", asked(2, steps=5), X_Avila_Client="short")
    events = followed(server, short["id"], "short")
    assert events[-1][1]["state"] == "done"
    after = server.get(f"/api/v1/jobs/{long['id']}")
    assert after["state"] == "running" and after["results"] == []
    begun = next(data for kind, data in events if kind == "progress" and data["step"] == 1)
    assert begun["image"] == 0
    status, _ = server.call("POST", f"/api/v1/jobs/{long['id']}/cancel", X_Avila_Client="long")
    assert status == 200


def test_a_client_cannot_end_anothers_job(server: RealServer) -> None:
    status, job = server.post("/api/v1/jobs", asked(1, steps=400, count=5), X_Avila_Client="anna")
    assert status == 202
    for verb in ("cancel", "interrupt", "skip", "pause"):
        status, answer = server.call("POST", f"/api/v1/jobs/{job['id']}/{verb}", X_Avila_Client="ben")
        assert status == 404, answer
    status, _ = server.call("POST", "/sdapi/v1/interrupt", X_Avila_Client="ben")
    assert status == 200
    time.sleep(0.5)
    assert server.get(f"/api/v1/jobs/{job['id']}")["state"] in ("queued", "running")
    status, ended = server.call("POST", f"/api/v1/jobs/{job['id']}/cancel", X_Avila_Client="anna")
    assert status == 200 and ended["state"] == "cancelled"


def test_previews_are_pictures(server: RealServer) -> None:
    status, job = server.post("/api/v1/jobs", asked(3, steps=40), X_Avila_Client="anna")
    assert status == 202
    previews = [data for kind, data in followed(server, job["id"], "anna") if kind == "preview"]
    assert previews and all(base64.b64decode(one["data"])[:3] == b"\xff\xd8\xff" for one in previews)
