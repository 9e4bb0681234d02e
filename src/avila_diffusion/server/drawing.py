"""What the worker draws with: the model that it holds, and one part of a job, advanced call by call."""

from __future__ import annotations

import base64
import contextlib
import errno
import gc
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api import AvilaDiffusion
from ..errors import (
    AvilaError,
    FileProblem,
    JournalProblem,
    OutputProblem,
    RequestError,
    Unsupported,
    is_out_of_memory,
)
from ..images import Image
from ..result import Early, GenerateResult, Progress
from .rows import restored
from .wire import Message

if TYPE_CHECKING:
    from ..pipeline.journal import Journal
    from ..request import GenerateRequest

PREVIEW_SECONDS = 0.2
"""Between two previews, at least: those of small models would take longer than their calls."""
PREVIEW_SIDE = 768


class Studio:
    """The model that is loaded, one at a time, and the generator that needs none. settings: the server's, as plain values."""

    def __init__(self, settings: Message, say: Callable[..., None]) -> None:
        self.settings, self.say = settings, say
        self.cold = bool(settings.get("warm_up", True))
        self._procedural: AvilaDiffusion | None = None
        self._model: AvilaDiffusion | None = None
        self._key: tuple[Any, ...] | None = None
        self._using: Message | None = None
        self._seconds = 0.0

    def warm_up(self) -> None:
        """Import what a model needs, so that the first job does not wait for it."""
        self.cold = False
        with contextlib.suppress(AvilaError):
            from ..checkpoint import load  # noqa: F401
            from ..pipeline import engine, journal  # noqa: F401
        from ..device import choose_policy

        try:
            choose_policy(self.settings["device"], self.settings["dtype"])
        except AvilaError as error:
            self.say("unfit", message=str(error))

    def engine(self, model: Message | None) -> AvilaDiffusion:
        """What draws with these files, loaded if it is not there yet."""
        if model is None:
            if self._procedural is None:
                self._procedural = AvilaDiffusion()
            return self._procedural
        self.load(model)
        assert self._model is not None
        return self._model

    def load(self, model: Message, *, told: bool = False) -> None:
        """Hold this model; where it cannot be loaded, the one that is there stays. told: somebody waits to hear of it, also
        where it is there already."""
        key = _key(model)
        if key != self._key:
            began = time.monotonic()
            self.say("loading", model=model["name"])
            self.cold = False
            found = self._read(model)
            self._model = None
            _give_back()
            self._model, self._key, self._seconds = found, key, time.monotonic() - began
        elif model["using"] == self._using and not told:
            return
        assert self._model is not None
        self._using = model["using"]
        report = [] if self._model.report is None else self._model.report.lines()
        self.say("loaded", model=model["name"], seconds=self._seconds, report=report, using=self._using)

    def _read(self, model: Message) -> AvilaDiffusion:
        """The model. Where there is no room for it beside the one that is held, that one goes first."""
        options = {name: self.settings[name] for name in _OPTIONS if self.settings.get(name) is not None}
        try:
            return AvilaDiffusion.with_model(model["path"], vae=model["vae"], refiner=model["refiner"], **options)
        except Exception as error:
            if self._model is None or not is_out_of_memory(error):
                raise
        # Outside of the handler: the traceback holds on to what was loaded of it.
        self.unload()
        return AvilaDiffusion.with_model(model["path"], vae=model["vae"], refiner=model["refiner"], **options)

    def unload(self) -> None:
        """Hold none."""
        self._model = self._key = self._using = None
        _give_back()
        self.say("unloaded")


_OPTIONS = ("device", "dtype", "threads", "memory", "max_memory", "mmap", "preview_decoder")


def _key(model: Message) -> tuple[Any, ...]:
    """What a loaded model is: its files, and that they are the same still. Raises FileProblem where one is gone."""
    paths = [model["path"], model["vae"], model["refiner"]]
    stamps = []
    for path in paths:
        if path is not None:
            try:
                status = Path(path).stat()
            except OSError as error:
                raise FileProblem(
                    f"{Path(path).name} cannot be read any more ({error.strerror}); rescan the models"
                ) from None
            stamps.append((status.st_size, status.st_mtime_ns))
    return (*paths, *stamps)


def _give_back() -> None:
    """What the last model took goes back to the system."""
    gc.collect()
    with contextlib.suppress(ImportError):
        from ..kernels import native

        native.give_back()


class Unit:
    """One part of a job. message: a "draw"."""

    def __init__(self, message: Message, studio: Studio) -> None:
        self.early = Early()
        self._interrupted = bool(message.get("interrupted"))
        self._folder, self._first = Path(message["folder"]), int(message["first"])
        self._every = int(message.get("preview_every", 1))
        self._said: list[Message] = []
        self._journal: Journal | None = None
        self._previewed, self._made = 0.0, 0
        request, model = restored(message["request"]), message["model"]
        self._engine = studio.engine(model)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputProblem(f"the server's data folder cannot be written ({error.strerror or error})") from error
        self._events = self._begin(
            request, journal=None if model is None else self._folder / f"{message['part']}.journal"
        )

    def _begin(self, request: GenerateRequest, journal: Path | None) -> Iterator[Progress | GenerateResult]:
        if journal is None:
            return self._engine.generate(request, early=self.early)
        from ..pipeline.ledger import Ledger

        self._journal = self._found(journal, request) or self._engine.new_journal(journal, request)
        return self._engine.generate(self._journal.request, journal=Ledger(self._journal), early=self.early)

    def _found(self, path: Path, request: GenerateRequest) -> Journal | None:
        """The journal of an attempt that was broken off, if the picture can be gone on with to the same bits."""
        from ..pipeline.journal import Journal
        from ..pipeline.provenance import check_files, differences

        if not path.exists():
            return None
        try:
            found = Journal.reopen(path)
        except JournalProblem:
            path.unlink(missing_ok=True)
            return None
        try:
            check_files(found.header.get("files"), {})
            same = found.request == request and not differences(
                found.header.get("conditions"), self._engine.conditions()
            )
        except AvilaError:
            same = False
        if same:
            return found
        found.close()
        path.unlink(missing_ok=True)
        return None

    def advance(self) -> Message | None:
        """One step on: to the next call of the model, or to the end, whose message it then returns."""
        began = time.monotonic()
        if self._interrupted and (self._journal is None or self._journal.calls <= self._made):
            self.early.finish = True  # it was asked for before: what the journal has is taken first
        event = next(self._events)
        self._made = getattr(event, "step", 0)
        if isinstance(event, Progress):
            self._tell(event, time.monotonic() - began)
            return None
        results = [self._save(image, self._first + index) for index, image in enumerate(event.images)]
        _sync_folder(self._folder)
        return {"results": results, "notes": list(event.notes)}

    def taken(self) -> list[Message]:
        """What is to be said since the last time."""
        said, self._said = self._said, []
        return said

    def end_early(self, how: str) -> None:
        """See `Early`."""
        if how == "finish":
            self.early.finish = True
        else:
            self.early.skip = True

    def close(self, *, forget: bool = False) -> None:
        """Put it away: the journal is closed and stays, unless it is to be forgotten."""
        close = getattr(self._events, "close", None)
        if close is not None:
            with contextlib.suppress(AvilaError):
                close()
        if self._journal is not None:
            self._journal.close()
            if forget:
                self._journal.path.unlink(missing_ok=True)

    def _tell(self, event: Progress, seconds: float) -> None:
        self._said.append(
            {
                "is": "progress",
                "stage": event.stage,
                "image": event.image,
                "step": event.step,
                "of": event.of,
                "sigma": event.sigma,
                "seconds": seconds,
            }
        )
        due = self._every and event.step % self._every == 0 and time.monotonic() - self._previewed >= PREVIEW_SECONDS
        if event.preview is not None and due:
            data = base64.b64encode(_jpeg(event.preview())).decode("ascii")
            self._said.append({"is": "preview", "image": event.image, "media_type": "image/jpeg", "data": data})
            self._previewed = time.monotonic()

    def _save(self, image: Image, index: int) -> Message:
        path = image.save_png(self._folder / f"{index:04}.png")
        return {
            "index": index,
            "file": path.name,
            "seed": image.seed or 0,
            "width": image.width,
            "height": image.height,
            "size": path.stat().st_size,
            "infotext": image.infotext,
        }


def _jpeg(image: Image) -> bytes:
    picture = image.to_pil()
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _sync_folder(folder: Path) -> None:
    """The names of new files, too, are on the disk; Windows has no such thing."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def told(error: Exception) -> Message:
    """An error as a message: its kind, one line, whether the request was wrong, whether it would come again."""
    said = " ".join(str(error).split()) or type(error).__name__
    if is_out_of_memory(error):
        line = "not enough memory for this picture; ask for a smaller one, or start the server with --memory lean"
        return {"kind": "OutOfMemoryError", "message": line, "asked": False, "lasting": True, "full": False}
    if isinstance(error, AvilaError):
        asked = isinstance(error, RequestError | Unsupported | FileProblem) and not isinstance(error, JournalProblem)
        full = isinstance(error, OutputProblem)
        return {"kind": type(error).__name__, "message": said, "asked": asked, "lasting": not full, "full": full}
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    line = f"{type(error).__name__}: {said} (this is a bug)"
    return {"kind": type(error).__name__, "message": line, "asked": False, "lasting": True, "full": full}
