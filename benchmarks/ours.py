"""Our model as a user has it, one model call at a time."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

import torch

from avila_diffusion import AvilaDiffusion, Progress

from .picture import GUIDANCE, NEGATIVE, PROMPT
from .weights import Family, checkpoint


def open_model(family: Family, memory: Literal["fast", "lean"], threads: int) -> AvilaDiffusion:
    """The seeded checkpoint, loaded; lean: nothing is kept that can be made again from the file."""
    return AvilaDiffusion.with_model(checkpoint(family), device="cpu", threads=threads, memory=memory)


class Steps:
    """Each call makes one more step of a long run: one UNet call for both halves of guidance, and all that belongs to it.

    The first call of a run encodes the prompts too. Raises RuntimeError where the run had not enough steps.
    """

    MOST = 150

    def __init__(
        self, diffusion: AvilaDiffusion, side: int | tuple[int, int], prompt: str = PROMPT, batch: int = 1
    ) -> None:
        height, width = (side, side) if isinstance(side, int) else side
        request = diffusion.request(
            prompt,
            NEGATIVE,
            width=width,
            height=height,
            steps=self.MOST,
            sampler="euler",
            guidance_scale=GUIDANCE,
            seed=1,
            batch=batch,
        )
        self._events: Generator[Any, None, None] = _calls(diffusion, request)

    @torch.no_grad()
    def __call__(self) -> None:
        if next(self._events, None) is None:
            raise RuntimeError(f"a benchmark made more than {self.MOST} steps; take fewer rounds")


def _calls(diffusion: AvilaDiffusion, request: Any) -> Generator[Progress, None, None]:
    """An event for each model call; the run is left before it decodes."""
    for event in diffusion.generate(request):
        if isinstance(event, Progress) and event.stage == "sample" and event.step:
            yield event
            if event.step == event.of:
                return
