"""What the guard does for those who have shown no token: as little as possible, and always as much."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest
from starlette.applications import Starlette

from avila_diffusion.server.app import create_app
from avila_diffusion.server.credentials import Credentials
from avila_diffusion.server.guard import SESSION, SESSION_BODY
from avila_diffusion.server.settings import Limits, Settings

from .asgi import Pairs, call

OWN = ("Host", "127.0.0.1:7860")
JSON = ("Content-Type", "application/json")
TOKEN = "correct horse battery staple of some length"


@pytest.fixture
def app(tmp_path: Path) -> Starlette:
    """The application, which does not run."""
    return create_app(Settings(data=tmp_path, model="procedural", token=TOKEN))


@pytest.mark.parametrize("path", ["/api/v1/jobs/x/events", "/api/v1/jobs", "/sdapi/v1/progress", "/", "/metrics"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil", "[::2]:7860", "192.0.2.1", ""])
def test_the_host_comes_before_everything(app: Starlette, path: str, host: str) -> None:
    given = [("Host", host), ("Accept", "text/event-stream"), ("Authorization", f"Bearer {TOKEN}")]
    assert call(app, "GET", path, given).status == (421 if host else 400)


@pytest.mark.parametrize("path", ["/api/v1/jobs/x/events", "/sdapi/v1/progress", "/v1/models", "/health/live"])
def test_no_token_no_answer(app: Starlette, path: str) -> None:
    assert call(app, "GET", path, [OWN]).status == 401


def test_a_body_where_one_signs_in_is_small(app: Starlette) -> None:
    small = b'{"token": "' + b"x" * 1000 + b'"}'
    assert call(app, "POST", SESSION, [OWN, JSON], chunks=[small]).status == 401
    for chunks in ([b"x" * (SESSION_BODY + 1)], [b"x" * 1000] * 5):
        answer = call(app, "POST", SESSION, [OWN, JSON], chunks=chunks)
        assert answer.status == 413
        assert "4,096 bytes" in answer.json()["error"]["message"]
    length = ("Content-Length", str(SESSION_BODY + 1))
    assert call(app, "POST", SESSION, [OWN, JSON, length], chunks=[b"x"]).status == 413


def test_those_who_sign_in_slowly_take_nothing_from_others(tmp_path: Path) -> None:
    limits = Limits(queue_bytes=16 * SESSION_BODY, body_seconds=0.2)
    app = create_app(Settings(data=tmp_path, model="procedural", token=TOKEN, limits=limits))
    answer = call(app, "POST", SESSION, [OWN, JSON], chunks=[b"x" * 500] * 8, pause=0.05)
    assert answer.status == 408


def basic(user: str) -> Pairs:
    return [("Authorization", "Basic " + base64.b64encode(f"{user}:{TOKEN}".encode()).decode())]


@pytest.mark.parametrize("user", ["10.0.0.5", "127.0.0.1", "local", "unknown", "255.255.255.255", "an na", ""])
def test_nobody_is_called_as_an_address_is(user: str) -> None:
    given = [value for _, value in basic(user)]
    assert Credentials(TOKEN).read(given, []).user is None
    assert Credentials(TOKEN).read(given, []).valid


@pytest.mark.parametrize("user", ["anna", "10.0.0", "10.0.0.5.example", "localhost", "a.b-c_d"])
def test_others_may_be_called_so(user: str) -> None:
    assert Credentials(TOKEN).read([basic(user)[0][1]], []).user == user


def test_a_wrong_token_costs_as_much_however_wrong_it_is() -> None:
    """Of one length: what is right at its beginning is not refused later."""
    credentials = Credentials(TOKEN)
    wrong = {
        "first": "X" + TOKEN[1:],
        "last": TOKEN[:-1] + "X",
        "all": "X" * len(TOKEN),
        "right": TOKEN,
    }
    best = dict.fromkeys(wrong, float("inf"))
    for _ in range(60):  # in turn, so that what else the machine does hits all of them
        for name, token in wrong.items():
            header = [f"Bearer {token}"]
            began = time.perf_counter()
            for _ in range(100):
                credentials.read(header, [])
            best[name] = min(best[name], time.perf_counter() - began)
    assert max(best.values()) / min(best.values()) < 1.25, best
