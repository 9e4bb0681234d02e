"""A job of the command line: batch after batch, each on disk before the next begins, with a journal and trails if asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AvilaError

if TYPE_CHECKING:
    from ..api import AvilaDiffusion
    from ..images import Image
    from ..pipeline.branch import Branch
    from ..pipeline.journal import Journal
    from ..pipeline.trail import Trail
    from ..request import GenerateRequest
    from ..result import GenerateResult
    from .outputs import Destination
    from .previews import Previews
    from .progress import ProgressDisplay


@dataclass
class Job:
    """quiet: pictures are not named on stdout. trail: one is left beside each picture. journal: held by this job.

    planned: pictures go where the journal says, and those that are there already are not made again.
    previews: where they are wanted. results, paths: what `run` made. unmade: why there is no grid that was asked for; the
    pictures are not worse for it.
    """

    engine: AvilaDiffusion
    request: GenerateRequest
    destination: Destination
    display: ProgressDisplay
    quiet: bool = False
    trail: bool = False
    journal: Journal | None = None
    branch: Branch | None = None
    planned: bool = True
    previews: Previews | None = None
    results: list[GenerateResult] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    unmade: AvilaError | None = None
    _images: dict[int, Image] = field(default_factory=dict)

    def begin_journal(self, path: str, *, copied: Journal | None = None) -> None:
        """Record the job in a new file, which closes when it has run. Raises OutputProblem where it cannot be made."""
        branch = None if self.branch is None else {"at": self.branch.at, "before": self.branch.before.to_dict()}
        output = {**self.destination.to_dict(), "trail": self.trail}
        self.journal = self.engine.new_journal(path, self.request, copied=copied, output=output, branch=branch)
        self.request = self.journal.request

    def run(self) -> None:
        """Make all pictures. A job with a journal says how to go on where it is stopped."""
        try:
            for index in range(self.request.count):
                self._run_batch(index)
            if self.destination.grid:
                self._add_grid()
        except BaseException:
            self._tell_journal("go on with: avila resume {}")
            raise
        finally:
            if self.journal is not None:
                self.journal.close()
        self._tell_journal(
            "it may be deleted, or branched from" if self.unmade is None else "make the grid with: avila resume {}"
        )

    def _add_grid(self) -> None:
        pictures = [self._images.get(number, path) for number, path in enumerate(self.paths)]
        try:
            self._add_paths([save_grid(self.destination, pictures, self.journal if self.planned else None)])
        except AvilaError as error:
            self.unmade = error

    def _run_batch(self, index: int) -> None:
        """Batch `index` as a run of its own."""
        batch = self.request.batch
        first = index * batch
        there = [is_there(self.journal, first + image) for image in range(batch)] if self.planned else []
        if there and all(there):
            self._add_paths([path for path in there if path is not None])
            return
        trail = self._new_trail()
        result = self._draw(first, trail)
        known = {note for earlier in self.results for note in earlier.notes}
        self.results.append(result)
        self.display.close()
        for note in result.notes:
            if note not in known:
                self.display.say(note)
        for image, seed in zip(result.images, result.request.seeds, strict=True):
            number = len(self.paths)
            if self.destination.grid:
                self._images[number] = image
            path = self._save(image, number, seed)
            if trail is not None:
                self._save_trail(trail, number - first, path, replace(result.request, seed=seed, batch=1, count=1))
            self._add_paths([path])

    def _draw(self, first: int, trail: Trail | None) -> GenerateResult:
        from ..result import GenerateResult

        index = first // self.request.batch
        if self.journal is not None:
            request = self.request.part(index)
        elif self.results:  # the first batch has drawn what was left open
            request = replace(self.results[0].request, count=self.request.count).part(index)
        else:
            request = replace(self.request, count=1)
        named: dict[str, Any] = {}
        if self.journal is not None or trail is not None:
            from ..pipeline.ledger import Ledger

            named["journal"] = Ledger(self.journal, first, self.branch, trail)
        for event in self.engine.generate(request, **named):
            if isinstance(event, GenerateResult):
                return event
            self.display.show(event, first)
            if self.previews is not None:
                self.previews.take(event, first)
        raise RuntimeError("the engine ended without a result")

    def _save(self, image: Image, number: int, seed: int) -> Path:
        if self.journal is None or not self.planned:
            return self.destination.save(image, number, seed)
        if (path := is_there(self.journal, number)) is not None:
            return path
        note = partial(_note, self.journal, number)
        if (known := self.journal.file(number)) is None:
            return self.destination.save(image, number, seed, note)
        path = Path(image.save_png(known[0]))
        note(path, True)
        return path

    def _new_trail(self) -> Trail | None:
        if not self.trail:
            return None
        from ..pipeline.trail import Trail

        return Trail()

    def _save_trail(self, trail: Trail, index: int, path: Path, request: GenerateRequest) -> None:
        from ..pipeline.trail import SUFFIX
        from ..request import PICTURES

        asked = {name: value for name, value in request.to_dict().items() if name not in PICTURES}
        header = {"request": asked, "conditions": self.engine.conditions()}
        trail.save(index, path.with_suffix(SUFFIX), header)

    def _add_paths(self, paths: list[Path]) -> None:
        self.paths += paths
        for path in [] if self.quiet else paths:
            tell(path)

    def _tell_journal(self, what: str) -> None:
        if self.journal is not None and self.journal.writable:
            path, calls = self.journal.path, self.journal.calls
            self.display.say(f"{path} holds {calls} model call{'' if calls == 1 else 's'}; {what.format(path)}")


def made_size(request: GenerateRequest) -> tuple[int, int]:
    """Width and height of the finished pictures of a resolved request; of a second pass at most."""
    from ..second_pass import enlarged
    from ..sizes import finished_size

    if not request.hires:
        return finished_size(request)
    width, height = enlarged(request)
    return min(width, request.hires_width or width), min(height, request.hires_height or height)


def is_there(journal: Journal | None, image: int) -> Path | None:
    """Where a picture was written, if it is there still."""
    known = None if journal is None else journal.file(image)
    return known[0] if known is not None and known[1] and known[0].is_file() else None


def save_grid(destination: Destination, pictures: Sequence[Image | Path], journal: Journal | None) -> Path:
    """Pictures, those that are on disk alone by their paths, side by side in a file beside them; the one that is there already,
    as the journal says, is left alone. In the journal it is the picture after the last one."""
    from ..grid import make_grid
    from ..images import read_image

    if (known := is_there(journal, len(pictures))) is not None:
        return known
    path = destination.save_grid(make_grid([read_image(one) if isinstance(one, Path) else one for one in pictures]))
    if journal is not None:
        journal.add_file(len(pictures), path, written=True)
    return path


def tell(path: Path) -> None:
    """Name a finished picture. A reader that leaves does not stop those that are still to come."""
    from . import drop_stdout

    here = Path.cwd()
    try:
        print(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path, flush=True)
    except BrokenPipeError:
        drop_stdout()


def _note(journal: Journal, number: int, path: Path, written: bool) -> None:
    journal.add_file(number, path, written=written)
