"""How far a run is, on stderr: a bar on a terminal, a line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..result import Progress

SECONDS_BETWEEN_LINES = 30.0
STAGES = {
    "load": "loading the model",
    "text": "reading the prompt",
    "encode": "encoding the picture",
    "sample": "sampling",
    "decode": "decoding",
}


class ProgressDisplay:
    """Shows the events of a job of `pictures` pictures."""

    def __init__(self, pictures: int, *, quiet: bool) -> None:
        self._pictures = pictures
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._steps: dict[int, int] = {}
        self._stage = ""
        self._spoke = time.monotonic()

    def show(self, event: Progress, first: int = 0) -> None:
        """Take in one event; `first` is the number in the job of the run's first picture."""
        if self._quiet:
            return
        picture = first + event.image
        if event.stage == "sample":
            self._steps[picture] = event.step
        with self._while_read():
            if self._terminal:
                self._draw(event)
            else:
                self._speak(event, picture)

    def say(self, line: str) -> None:
        """One line for people, above the bar."""
        if self._quiet:
            return
        with self._while_read():
            self._clear()
            print(f"avila: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar off the terminal."""
        with self._while_read():
            self._clear()

    @contextmanager
    def _while_read(self) -> Iterator[None]:
        """Be quiet from now on where stderr's reader has gone: a picture is worth more than its progress."""
        try:
            yield
        except (OSError, ValueError):
            self._quiet, self._bar = True, None

    def _draw(self, event: Progress) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=0, unit="step", file=sys.stderr, leave=False, dynamic_ncols=True)
        self._bar.set_description(STAGES.get(event.stage, event.stage), refresh=False)
        if event.stage == "sample":
            self._bar.total = event.of * self._pictures or None
            self._bar.n = sum(self._steps.values())
        self._bar.refresh()

    def _speak(self, event: Progress, picture: int) -> None:
        now = time.monotonic()
        if event.stage == self._stage and now - self._spoke < SECONDS_BETWEEN_LINES:
            return
        if event.stage == self._stage or (event.stage == "sample" and self._stage != "sample"):
            which = f"picture {picture + 1} of {self._pictures}, " if self._pictures > 1 else ""
            self.say(
                f"{STAGES.get(event.stage, event.stage)}: {which}step {event.step}{f' of {event.of}' if event.of else ''}"
            )
        self._stage, self._spoke = event.stage, now

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
