"""How a body comes in: so many bytes, in so much time, and not too much of everybody's together."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from starlette.types import Message, Receive

from .problems import QueueFull, TooLarge
from .refusals import Refused
from .settings import Limits

LINGER_SECONDS = 3.0
LINGER_BYTES = 256 << 20
"""How long, and of how much, the rest of a body is still taken and dropped after its refusal was sent: programs read an
answer only when they have sent everything, and a connection that is closed on them loses it."""


class Incoming:
    """The bytes of bodies that are being read now, of all calls."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    def body(self, receive: Receive, most: int) -> Body:
        """The body of one call, of at most so many bytes."""
        return Body(self, receive, most)


class Body:
    """Stands for ASGI's `receive` and holds the body to the limits. Raises TooLarge, QueueFull, Refused (408)."""

    def __init__(self, incoming: Incoming, receive: Receive, most: int) -> None:
        self._incoming = incoming
        self._most = most
        self._receive = receive
        self._deadline = time.monotonic() + incoming.limits.body_seconds
        self._taken = 0
        self.complete = False

    async def __call__(self) -> Message:
        if self.complete:
            return await self._receive()
        message = await self._in_time()
        if message["type"] != "http.request":
            self.complete = True
            return message
        size = len(message.get("body", b""))
        self._taken += size
        self._incoming.held += size
        limits = self._incoming.limits
        if self._taken > self._most:
            raise TooLarge(too_large(self._most))
        if self._incoming.held > limits.queue_bytes:
            raise QueueFull(
                f"bodies of {limits.queue_bytes >> 20:,} MiB are being read already; send this one again later", 2.0
            )
        self.complete = not message.get("more_body", False)
        return message

    def close(self) -> None:
        """The call has been answered, or a job holds its body now: what it held is given back."""
        self._incoming.held -= self._taken
        self._taken = 0

    async def linger(self) -> None:
        """Take and drop what is left of the body, for a while, so that the answer is read."""
        dropped = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.complete and dropped < LINGER_BYTES:
                    message = await self._receive()
                    dropped += len(message.get("body", b""))
                    self.complete = message["type"] != "http.request" or not message.get("more_body", False)

    async def _in_time(self) -> Message:
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                return await self._receive()
        except TimeoutError:
            seconds = self._incoming.limits.body_seconds
            raise Refused(408, f"the body was not there after {seconds:g} s; send it faster") from None


def too_large(most: int) -> str:
    """What is said of a body above the limit."""
    if most < 1 << 20:
        return f"the body is larger than the {most:,} bytes that are read here; send a smaller one"
    return f"the body is larger than the {most >> 20:,} MiB that this server reads; send smaller pictures"
