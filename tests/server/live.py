"""The real application on a real loopback socket, in a thread of the test's own process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn

from avila_diffusion.server.app import create_app
from avila_diffusion.server.listening import bind
from avila_diffusion.server.settings import Settings


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """Its URL, without a slash at the end."""
    listening = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(settings), lifespan="on", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise AssertionError("the server does not start")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listening.close()
        assert not thread.is_alive()
