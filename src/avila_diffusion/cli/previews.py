"""`--preview-dir`: what is there of the pictures while they are made, as a file after every step or every few."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AvilaError, OutputProblem, RequestError

if TYPE_CHECKING:
    from ..result import Progress

STEM = "preview"
"""What files are named by where the output has no name of its own."""


def add_decoder_option(group: argparse._ArgumentGroup) -> None:
    """Add what draws previews."""
    group.add_argument(
        "--preview-decoder",
        metavar="FILE",
        help="draw previews by this tiny autoencoder (TAESD), at the picture's size",
    )


def add_preview_options(group: argparse._ArgumentGroup) -> None:
    """Add where previews go, and how many of them."""
    group.add_argument(
        "--preview-dir",
        metavar="DIR",
        help="leave a preview here after every step, STEM-PICTURE-STEP.png; "
        "small, but for --preview-decoder and the bundled model",
    )
    group.add_argument("--preview-every", type=int, metavar="N", help="after every N-th step; default 1")


@dataclass
class Previews:
    """Writes the previews of a job: `STEM-PICTURE-STEP.png`, the picture's number from 1, the step's in three digits or more.

    say: told once, where one cannot be made; there are no more of them then, and the pictures go on.
    """

    folder: Path
    stem: str
    every: int
    say: Callable[[str], None]
    stopped: bool = False

    @classmethod
    def asked(cls, options: argparse.Namespace, stem: str | None, say: Callable[[str], None]) -> Previews | None:
        """What the options ask for, None where that is nothing. stem: of the output, None where that has no name.

        Raises RequestError for options that mean nothing, OutputProblem where the folder cannot be written.
        """
        every = 1 if options.preview_every is None else options.preview_every
        if options.preview_dir is None:
            given = [name for name in ("preview_decoder", "preview_every") if getattr(options, name) is not None]
            if given:
                named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
                raise RequestError(f"{named} only means something with --preview-dir DIR; add that")
            return None
        if not options.preview_dir:
            raise RequestError("the folder for previews has an empty name; give --preview-dir a folder")
        if every < 1:
            raise RequestError(f"--preview-every is {every}; it must be 1 or more")
        folder = Path(options.preview_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder, prefix=".avila-"):
                pass
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise OutputProblem(f"{folder} cannot be written ({said}); choose another --preview-dir") from None
        return cls(folder, stem or STEM, every, say)

    def take(self, event: Progress, first: int) -> None:
        """Write the preview of an event that has one. first: the number in the job of the run's first picture."""
        if self.stopped or event.preview is None or event.step % self.every:
            return
        path = self.folder / f"{self.stem}-{first + event.image + 1}-{event.step:03d}.png"
        try:
            event.preview().save_png(path)
        except AvilaError as error:
            self.stopped = True
            self.say(f"no more previews: {error}")
