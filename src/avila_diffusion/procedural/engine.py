"""The procedural generator as an engine: the same requests, events and results as with a model, and no torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace

from ..errors import Cancelled, RequestError
from ..images import Image
from ..infotext import VERSION, write_fields
from ..request import GenerateRequest
from ..result import Early, GenerateResult, Progress

NAME = "avila procedural"
SIZE = 512
READ = frozenset({"prompt", "negative_prompt", "width", "height", "seed", "batch", "count"})
"""The fields of a request that this generator looks at."""


class ProceduralEngine:
    """Draws requests. Of a request it reads the prompts, the size and the seed; sampling options mean nothing to it,
    and the result says so."""

    @property
    def size(self) -> int:
        """Default width and height in pixels."""
        return SIZE

    def generate(
        self, request: GenerateRequest, cancel: threading.Event | None = None, *, early: Early | None = None
    ) -> Iterator[Progress | GenerateResult]:
        """One event before each picture, the GenerateResult last. Raises Cancelled between two pictures, and RequestError for
        a picture to begin with. early: may ask for no more pictures."""
        if request.image is not None:
            raise RequestError("image needs a model to draw with; load one, or leave image out")
        return self._run(request.resolved(self.size), cancel, _unused(request), Early() if early is None else early)

    def _run(
        self, request: GenerateRequest, cancel: threading.Event | None, notes: tuple[str, ...], early: Early
    ) -> Iterator[Progress | GenerateResult]:
        from .render import draw  # here: scipy takes half a second to load, and a model's engine begins as one of these

        began = time.perf_counter()
        width, height, seeds = request.width or SIZE, request.height or SIZE, request.seeds
        made = []
        for index, seed in enumerate(seeds):
            yield Progress(stage="draw", image=index, images=len(seeds), step=0, of=1)
            _check(cancel)
            pixels = draw(request.prompt, request.negative_prompt, width, height, seed)
            fields = {"Seed": seed, "Size": f"{width}x{height}", "Model": NAME, "Version": VERSION}
            made.append(
                Image(pixels, infotext=write_fields(request.prompt, request.negative_prompt, fields), seed=seed)
            )
            early.skip = False
            if early.finish:
                break
        _check(cancel)
        yield GenerateResult(tuple(made), request, seconds=time.perf_counter() - began, notes=notes)


def _unused(request: GenerateRequest) -> tuple[str, ...]:
    """A line with the fields that are set and have no meaning without a model."""
    plain = replace(request, rng=None if request.rng == "nv" else request.rng)  # metadata name the default too
    values = ((field.name, getattr(plain, field.name), field.default) for field in fields(plain))
    idle = [name for name, value, default in values if name not in READ and value != default]
    if not idle:
        return ()
    return (f"{', '.join(idle)} {'was' if len(idle) == 1 else 'were'} not used; nothing of a model is in this picture",)


def _check(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("cancelled; nothing was written")
