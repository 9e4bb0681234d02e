"""What a run yields and what it ends in: progress events and the result. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .errors import OutputProblem
from .images import Image
from .request import GenerateRequest

if TYPE_CHECKING:
    import numpy
    import numpy.typing
    import PIL.Image


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One event of a run.

    stage: "text", "encode" of a picture to begin with, "sample", "decode", or "draw" without a model. image: index of the
    picture, from 0, of `images` in all.
    step of `of`: model calls done for this picture; `of` is 0 where only the run can tell (DPM adaptive).
    sigma: noise level of the call just made, None outside "sample".
    preview(): the current guess of the finished picture, made only when it is called: small and rough, or of its size where the
    model was loaded with a preview decoder or is the bundled one. None outside "sample".
    """

    stage: str
    image: int
    images: int
    step: int
    of: int
    sigma: float | None = None
    preview: Callable[[], Image] | None = field(default=None, compare=False, repr=False)


@dataclass
class Early:
    """How whoever advances a run asks it to end early, between two events.

    skip: the picture that is drawn now is finished with what there is; the run takes it back then. finish: that picture is
    the run's last one.
    """

    skip: bool = False
    finish: bool = False

    @property
    def asked(self) -> bool:
        """Whether sampling is to end now."""
        return self.skip or self.finish


@dataclass(frozen=True, eq=False)
class GenerateResult(Sequence[Image]):
    """The pictures of a run, in order of their seeds; fewer than asked for where it was ended early. With one picture it can
    be used like that picture itself.

    request: as it was run, nothing left open. seconds: wall time. report: the model's load report, if there is a model.
    drawn_at: width and height at which the model drew, where the pictures were resized from that.
    notes: what of the request was not used, or was used in another way than one might think, a line each.
    """

    images: tuple[Image, ...]
    request: GenerateRequest
    seconds: float = 0.0
    report: Any = None
    drawn_at: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Image, ...]: ...
    def __getitem__(self, index: int | slice) -> Image | tuple[Image, ...]:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Image]:
        return iter(self.images)

    @property
    def seed(self) -> int:
        """The seed of the first picture."""
        return self.request.seeds[0]

    def save_png(self, path: str | Path) -> list[Path]:
        """Write the pictures; several get -1, -2 … before the suffix. Returns the paths.

        Raises OutputProblem where the folder cannot be written; no half-written file is left.
        """
        path = Path(path)
        if len(self.images) == 1:
            return [self.images[0].save_png(path)]
        if not path.name or path.is_dir():  # else the pictures would lie beside the folder
            raise OutputProblem(f"{path} is a folder; give a file name such as {path / 'picture.png'}")
        return [
            image.save_png(path.with_name(f"{path.stem}-{number}{path.suffix or '.png'}"))
            for number, image in enumerate(self.images, 1)
        ]

    def to_pil(self) -> PIL.Image.Image:
        """The first picture as a Pillow image."""
        return self.images[0].to_pil()

    def to_numpy(self) -> numpy.typing.NDArray[numpy.uint8]:
        """The first picture, (height, width, 3), 0 to 255."""
        return self.images[0].to_numpy()
