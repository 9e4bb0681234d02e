"""Who may call: Host headers, origins, tokens, sizes of bodies, names of clients."""

from __future__ import annotations

import base64
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from avila_diffusion.errors import AvilaError, RequestError
from avila_diffusion.server.app import error_answer
from avila_diffusion.server.guard import Guard, check_binding, client_of, is_open
from avila_diffusion.server.hosts import Hosts, is_loopback, split_authority
from avila_diffusion.server.metrics import Metrics
from avila_diffusion.server.problems import QueueFull, TooLarge
from avila_diffusion.server.refusals import Refused, status_and_headers
from avila_diffusion.server.service import Service
from avila_diffusion.server.settings import Limits, Settings

from .asgi import Answer, Pairs, call

OWN = ("Host", "127.0.0.1:7860")
Build = Callable[..., Starlette]


async def show(request: Request) -> Response:
    data = await request.body()
    return JSONResponse({"client": client_of(request), "size": len(data)})


async def page(request: Request) -> Response:
    return PlainTextResponse("page")


async def told(request: Request, error: Exception) -> Response:
    assert isinstance(error, AvilaError)
    return error_answer(request.url.path, error, status_and_headers(error)[0])


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """An application of two routes behind a guard."""

    def make(full: QueueFull | None = None, **given: Any) -> Starlette:
        settings = Settings(data=tmp_path, **given)
        service = cast(Service, SimpleNamespace(settings=settings, full=lambda client: full))
        routes = [
            Route("/", page),
            *(Route(path, show, methods=["GET", "POST", "OPTIONS"]) for path in ("/api/v1/jobs", "/sdapi/v1/txt2img")),
            Route("/api/v1/session", show, methods=["POST"]),
        ]
        metrics = Metrics()
        return Starlette(
            routes=routes,
            middleware=[Middleware(Guard, service=service, metrics=metrics, answer=error_answer)],
            exception_handlers={AvilaError: told},
        )

    return make


LOOPBACK = [
    "127.0.0.1",
    "127.0.0.1:7860",
    "127.0.0.1:9999",
    "127.1.2.3:80",
    "localhost",
    "localhost:7860",
    "LOCALHOST:7860",
    "LocalHost",
    "localhost.",
    "localhost.:7860",
    "[::1]",
    "[::1]:7860",
    "[0:0:0:0:0:0:0:1]:7860",
    "[::ffff:127.0.0.1]:7860",
    "[::FFFF:127.0.0.1]",
]
FOREIGN = [
    "evil.example",
    "evil.example:7860",
    "127.0.0.1.evil.example",
    "127.0.0.1.evil",
    "localhost.evil.example",
    "localhost.evil:7860",
    "evil-localhost",
    "notlocalhost",
    "localhost..",
    "127.0.0.1.",
    "127.0.0.1.nip.io",
    "7f000001.rbndr.us",
    "a.localhost",
    "rebind.example.invalid",
    "192.168.1.5",
    "192.168.1.5:7860",
    "0.0.0.0",
    "0.0.0.0:7860",
    "[::]",
    "[fe80::1]",
    "[fe80::1%eth0]:7860",
    "[::2]:7860",
    "[2001:db8::1]",
    "::1",
    "::1:7860",
    "[::1",
    "::1]",
    "[[::1]]",
    "[localhost]",
    "user@127.0.0.1",
    "user:pass@localhost:7860",
    "127.0.0.1@evil.example",
    "127.0.0.1:7860@evil.example",
    "127.0.0.1:99999",
    "127.0.0.1:0",
    "127.0.0.1:",
    "127.0.0.1:7860:7860",
    "127.0.0.1:78a",
    "127.0.0.1 evil.example",
    " 127.0.0.1",
    "127.0.0.1\t",
    "127.0.0.1,evil.example",
    "127.0.0.1/",
    "127.0.0.1#evil.example",
    "127.0.0.1?",
    "http://127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.0.0.01",
    "127.0.0.256",
    "%6cocalhost",
    "loc\xe4lhost",
    "localhost\x00",
    ".localhost",
    "*",
    "-",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_in_every_writing(build: Build, host: str) -> None:
    assert call(build(), "GET", "/", [("Host", host)]).status == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_names_and_writings(build: Build, host: str) -> None:
    answer = call(build(), "POST", "/api/v1/jobs", [("Host", host)])
    assert answer.status == 421
    assert answer.json()["error"]["kind"] == "Refused"
    assert "\n" not in answer.json()["error"]["message"]


@pytest.mark.parametrize("headers", [[], [("Host", "")], [OWN, OWN], [OWN, ("Host", "evil.example")]])
def test_one_host_header(build: Build, headers: Pairs) -> None:
    assert call(build(), "GET", "/", headers).status == 400


def test_names_that_were_bound_or_told(tmp_path: Path) -> None:
    def allowed(text: str, /, **given: Any) -> bool:
        parts = split_authority(text)
        return parts is not None and Hosts(Settings(data=tmp_path, **given)).allow(parts[0])

    assert allowed("192.168.1.5:7860", host="192.168.1.5")
    assert not allowed("192.168.1.6:7860", host="192.168.1.5")
    assert allowed("mybox:7860", host="mybox")
    assert allowed("192.168.1.6", host="0.0.0.0")
    assert allowed("[2001:db8::1]:80", host="::")
    assert not allowed("evil.example", host="0.0.0.0")
    assert allowed("Pictures.Example.ORG.", hosts=("pictures.example.org",))
    assert allowed("pictures.example.org:443", hosts=("pictures.example.org:7860",))
    assert not allowed("x.pictures.example.org", hosts=("pictures.example.org",))
    assert allowed("10.0.0.7", hosts=("10.0.0.7",))


CROSS: list[tuple[str, str, Pairs, int]] = [
    ("POST", "/api/v1/jobs", [("Origin", "http://evil.example")], 403),
    ("POST", "/api/v1/jobs", [("Origin", "null")], 403),
    ("GET", "/api/v1/jobs", [("Origin", "null")], 403),
    ("POST", "/api/v1/jobs", [("Origin", "http://127.0.0.1:7861")], 403),
    ("POST", "/api/v1/jobs", [("Origin", "http://localhost:7860")], 403),
    ("POST", "/api/v1/jobs", [("Origin", "https://127.0.0.1:7860")], 403),
    ("POST", "/api/v1/jobs", [("Origin", "http://127.0.0.1:7860.evil.example")], 403),
    ("POST", "/api/v1/jobs", [("Origin", "http://127.0.0.1:7860"), ("Origin", "http://evil.example")], 403),
    ("OPTIONS", "/api/v1/jobs", [("Origin", "http://evil.example"), ("Access-Control-Request-Method", "POST")], 403),
    ("POST", "/api/v1/jobs", [("Origin", "http://127.0.0.1:7860")], 200),
    ("POST", "/api/v1/jobs", [("Origin", "HTTP://127.0.0.1:7860"), ("Sec-Fetch-Site", "same-origin")], 200),
    ("POST", "/api/v1/jobs", [], 200),
    ("POST", "/api/v1/jobs", [("Sec-Fetch-Site", "cross-site")], 403),
    ("POST", "/api/v1/jobs", [("Sec-Fetch-Site", "same-site")], 403),
    ("POST", "/api/v1/jobs", [("Sec-Fetch-Site", "whatever")], 403),
    ("GET", "/api/v1/jobs", [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")], 403),
    ("GET", "/api/v1/jobs", [("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate")], 200),
    (
        "GET",
        "/",
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")],
        200,
    ),
    (
        "GET",
        "/",
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe")],
        403,
    ),
    (
        "GET",
        "/api/v1/jobs",
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")],
        403,
    ),
]


@pytest.mark.parametrize(("method", "path", "headers", "status"), CROSS)
def test_calls_of_other_pages(build: Build, method: str, path: str, headers: Pairs, status: int) -> None:
    answer = call(build(), method, path, [OWN, *headers])
    assert answer.status == status
    assert "access-control-allow-origin" not in answer.headers


def test_an_allowed_page_and_no_other(build: Build) -> None:
    app = build(origins=("https://studio.example",), token="t")
    ask = [("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "content-type")]
    preflight = call(app, "OPTIONS", "/api/v1/jobs", [OWN, ("Origin", "https://studio.example"), *ask])
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "https://studio.example"
    assert "access-control-allow-credentials" not in preflight.headers
    assert "content-type" in preflight.headers["access-control-allow-headers"].lower()
    assert call(app, "OPTIONS", "/api/v1/jobs", [OWN, ("Origin", "https://evil.example"), *ask]).status == 403
    there = [OWN, ("Origin", "https://studio.example"), ("Sec-Fetch-Site", "cross-site")]
    assert call(app, "POST", "/api/v1/jobs", there).status == 401
    answer = call(app, "POST", "/api/v1/jobs", [*there, ("Authorization", "Bearer t")])
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://studio.example"
    assert answer.headers["vary"] == "Origin"


def basic(user: str, password: str) -> tuple[str, str]:
    return "Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_tokens(build: Build) -> None:
    app = build(token="correct horse")

    def status(*headers: tuple[str, str], path: str = "/api/v1/jobs", method: str = "GET") -> int:
        return call(app, method, path, [OWN, *headers]).status

    assert status() == 401
    assert status(("Authorization", "Bearer correct horse")) == 200
    assert status(("Authorization", "bearer correct horse")) == 200
    assert status(basic("anna", "correct horse")) == 200
    assert status(basic("", "correct horse")) == 200
    for wrong in (
        "Bearer",
        "Bearer ",
        "Bearer correct",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Digest correct horse",
        "correct horse",
    ):
        assert status(("Authorization", wrong)) == 401, wrong
    assert status(("Authorization", "Bearer correct horse"), ("Authorization", "Bearer x")) == 401
    assert status(("Cookie", "avila_token=correct horse")) == 401
    assert status(path="/") == 200
    assert status(path="/", method="POST") == 401
    assert status(path="/page/../api/v1/jobs") == 401
    assert status(path="/api/v1/session", method="POST") == 200
    bearer = call(app, "GET", "/api/v1/jobs", [OWN])
    assert bearer.headers["www-authenticate"] == "Bearer"
    assert call(app, "POST", "/sdapi/v1/txt2img", [OWN]).headers["www-authenticate"].startswith("Basic ")


def test_a_thousand_wrong_tokens(build: Build) -> None:
    app = build(token="correct horse")
    call(app, "GET", "/api/v1/jobs", [OWN, ("Authorization", "Bearer x")])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(1000):
        kind = basic("user", f"correct horse{number}") if number % 2 else ("Authorization", f"Bearer {'c' * number}")
        assert call(app, "GET", "/api/v1/jobs", [OWN, kind]).status == 401
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 300_000


def test_an_empty_basic_header_where_no_token_is_needed(build: Build) -> None:
    answer = call(build(), "POST", "/sdapi/v1/txt2img", [OWN, ("Authorization", "Basic ")])
    assert answer.status == 200
    assert answer.json()["client"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("token", "headers", "query", "client"),
    [
        (None, [], "", "127.0.0.1"),
        (None, [("X-Avila-Client", "page-1")], "", "127.0.0.1/page-1"),
        (None, [], "client=page-1", "127.0.0.1/page-1"),
        (None, [basic("anna", "")], "", "127.0.0.1/anna"),
        ("t", [basic("anna", "t")], "", "anna"),
        ("t", [basic("anna", "t"), ("X-Avila-Client", "tab")], "", "anna/tab"),
        ("t", [basic("an na", "t")], "", "127.0.0.1"),
        ("t", [("Authorization", "Bearer t")], "", "127.0.0.1"),
    ],
)
def test_names_of_clients(build: Build, token: str | None, headers: Pairs, query: str, client: str) -> None:
    answer = call(build(token=token), "GET", "/api/v1/jobs", [OWN, *headers], query=query)
    assert answer.json()["client"] == client


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "<script>", "ä"])
def test_what_is_no_name_of_a_client(build: Build, name: str) -> None:
    assert call(build(), "GET", "/api/v1/jobs", [OWN, ("X-Avila-Client", name)]).status == 400


def test_a_proxy_may_say_anything(build: Build) -> None:
    assert call(build(), "GET", "/api/v1/jobs", client="<b>x</b>").json()["client"] == "unknown"


def test_a_full_queue_is_told_at_once(build: Build) -> None:
    app = build(full=QueueFull("3 jobs are waiting", 12.4))
    begun = time.process_time()
    answers = [call(app, "POST", "/sdapi/v1/txt2img", chunks=[b"x" * 1000]) for _ in range(20)]
    assert (time.process_time() - begun) / 20 < 0.02
    assert {answer.status for answer in answers} == {429}
    assert answers[0].headers["retry-after"] == "12"
    assert call(app, "GET", "/api/v1/jobs").status == 200
    assert call(app, "POST", "/api/v1/jobs", [OWN, ("Idempotency-Key", "a")]).status == 200


def test_bodies_are_bounded(build: Build) -> None:
    app = build(limits=Limits(body=1 << 20))

    def post(*headers: tuple[str, str], chunks: list[bytes]) -> Answer:
        return call(app, "POST", "/api/v1/jobs", [OWN, *headers], chunks=chunks)

    assert post(chunks=[b"x" * (1 << 20)]).json()["size"] == 1 << 20
    told = post(("Content-Length", str((1 << 20) + 1)), chunks=[b"x"])
    assert (told.status, told.headers["connection"]) == (413, "close")
    assert "1 MiB" in told.json()["error"]["message"]
    assert post(("Content-Length", "9" * 40), chunks=[b"x"]).status == 413
    chunked = post(("Transfer-Encoding", "chunked"), chunks=[b"x" * 300_000] * 5)
    assert (chunked.status, chunked.headers["connection"]) == (413, "close")


def test_all_bodies_together_are_bounded(build: Build) -> None:
    app = build(limits=Limits(queue_bytes=100_000))
    answer = call(app, "POST", "/api/v1/jobs", chunks=[b"x" * 60_000] * 2)
    assert answer.status == 429
    assert call(app, "POST", "/api/v1/jobs", chunks=[b"x" * 60_000]).status == 200  # what was held is given back


def test_a_slow_body(build: Build) -> None:
    app = build(limits=Limits(body_seconds=0.1))
    answer = call(app, "POST", "/api/v1/jobs", chunks=[b"x"] * 50, pause=0.02)
    assert (answer.status, answer.headers["connection"]) == (408, "close")


def test_every_answer_has_its_headers(build: Build) -> None:
    app = build(token="t")
    for answer in (call(app, "GET", "/"), call(app, "GET", "/api/v1/jobs"), call(app, "GET", "/", [("Host", "evil")])):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert float(answer.headers["x-process-time"]) >= 0


@pytest.mark.parametrize(
    ("host", "token", "insecure", "good"),
    [
        ("127.0.0.1", None, False, True),
        ("localhost", None, False, True),
        ("::1", None, False, True),
        ("[::1]", None, False, True),
        ("0.0.0.0", None, False, False),
        ("::", None, False, False),
        ("192.168.1.5", None, False, False),
        ("mybox", None, False, False),
        ("0.0.0.0", "t", False, True),
        ("0.0.0.0", None, True, True),
        ("0.0.0.0", "", True, False),
    ],
)
def test_what_may_be_bound(tmp_path: Path, host: str, token: str | None, insecure: bool, good: bool) -> None:
    settings = Settings(data=tmp_path, host=host, token=token, insecure=insecure)
    if good:
        check_binding(settings)
    else:
        with pytest.raises(RequestError):
            check_binding(settings)
    assert is_open(settings) == (is_loopback(host) and token is None)


def test_statuses_of_errors() -> None:
    assert status_and_headers(Refused(418, "no", {"X": "y"})) == (418, {"X": "y"})
    assert status_and_headers(TooLarge("too large"))[0] == 413
    assert status_and_headers(QueueFull("full", 0.2)) == (429, {"Retry-After": "1"})


def test_websockets_are_not_spoken(build: Build) -> None:
    sent: list[Any] = []

    async def run() -> None:
        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await build()({"type": "websocket", "path": "/", "headers": []}, receive, send)

    import asyncio

    asyncio.run(run())
    assert sent == [{"type": "websocket.close", "code": 1008}]
