"""Calls of an ASGI application without a socket, byte for byte as a test wants them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

Pairs = Sequence[tuple[str, str]]


@dataclass
class Answer:
    """status, headers by name in lower case (the last of several), and the body."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


async def send_call(
    app: ASGIApp,
    method: str,
    path: str,
    headers: Pairs = (("Host", "127.0.0.1:7860"),),
    chunks: Iterable[bytes] = (),
    *,
    query: str = "",
    client: str = "127.0.0.1",
    pause: float = 0.0,
) -> Answer:
    """One call. chunks: of its body; pause: seconds before each."""
    answer = Answer()
    waiting = list(chunks)

    async def receive() -> Message:
        await asyncio.sleep(pause)
        if waiting:
            body = waiting.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(waiting)}
        if not done["body"]:
            done["body"] = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    done = {"body": bool(waiting)}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": (client, 50000),
        "server": ("127.0.0.1", 7860),
        "state": {},
    }
    await app(scope, receive, send)
    return answer


def call(app: ASGIApp, method: str, path: str, headers: Pairs = (("Host", "127.0.0.1:7860"),), **given: Any) -> Answer:
    """The same from code that is not asynchronous."""
    return asyncio.run(send_call(app, method, path, headers, **given))
