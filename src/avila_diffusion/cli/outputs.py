"""Where pictures go: `outputs/00001-SEED.png` and onward, a folder of the caller's, or the very file that was named."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputProblem, RequestError

if TYPE_CHECKING:
    from ..images import Image

NUMBERED = re.compile(r"(\d{5,})-.*\.png$", re.IGNORECASE)
DEFAULT_FOLDER = "outputs"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
Note = Callable[[Path, bool], None]
"""note(path, written): where a picture will be, or is."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A place for `pictures` pictures. stem None: numbered files that never replace one another. grid: several of them are
    wanted side by side in one more file."""

    folder: Path
    stem: str | None
    pictures: int
    suffix: str = ".png"
    grid: bool = False

    @classmethod
    def planned(cls, output: str | None, pictures: int, *, grid: bool = False) -> Destination:
        """What `-o OUTPUT` means. Raises RequestError where the name is one of a picture that is not written."""
        grid = grid and pictures > 1
        if output is None:
            return cls(folder=Path(DEFAULT_FOLDER), stem=None, pictures=pictures, grid=grid)
        if not output:
            raise RequestError("the output is an empty name; give -o a file or a folder")
        path = Path(output)
        if _is_device(path):
            raise RequestError(
                f"{output} is a device, not a file or a folder; name the output a picture such as out.png"
            )
        if output.endswith(("/", os.sep)) or os.path.isdir(output):  # noqa: PTH112 (False for impossible names)
            return cls(folder=path, stem=None, pictures=pictures, grid=grid)
        suffix = path.suffix.lower()
        if suffix in (".bmp", ".tif", ".tiff", ".gif"):
            raise RequestError(
                f"pictures are written as PNG, JPEG, WebP or AVIF, not {suffix}; name the output {path.with_suffix('.png')}"
            )
        if suffix in PICTURES:
            return cls(folder=path.parent, stem=path.stem, pictures=pictures, suffix=path.suffix, grid=grid)
        return cls(folder=path.parent, stem=path.name, pictures=pictures, grid=grid)

    def check(self, *, trails: bool = False, journals: Sequence[str | Path] = ()) -> None:
        """Raise OutputProblem, before anything long begins, where nothing can be written here. Leaves no trace.

        trails: one is left beside each picture. journals: files that the job reads or writes meanwhile; RequestError where
        a picture or trail would take the place of one.
        """
        for journal in journals:
            self._check_journal(Path(journal), trails)
        try:
            ancestor = self.folder
            while not os.path.lexists(ancestor) and ancestor != ancestor.parent:
                ancestor = ancestor.parent
            with tempfile.TemporaryFile(dir=ancestor, prefix=".avila-"):
                pass
            for target in self._targets(trails):
                with contextlib.suppress(FileNotFoundError):
                    (ancestor / target.name).lstat()  # refuses a name that the file system cannot hold
                if target.exists() and (target.is_dir() or not os.access(target, os.W_OK)):
                    raise OutputProblem(f"{target} cannot be replaced; it is a folder or read-only")
        except OSError as error:
            said = error.strerror or error
            raise OutputProblem(f"{self._named(0)} cannot be written ({said}); choose another -o") from None

    def check_sizes(self, width: int, height: int) -> None:
        """Raise OutputProblem or RequestError, before anything long begins, where pictures of this size, or their grid, are
        larger than files of their format can be."""
        from ..grid import grid_size
        from ..images import FORMATS, check_format

        kind = FORMATS[self.suffix.lower()]
        check_format(kind, width, height)
        if self.grid:
            columns, rows = grid_size(self.pictures, width, height)
            check_format(kind, columns * width, rows * height)

    def _targets(self, trails: bool) -> Iterator[Path]:
        """Every file that will be written, as far as its name is known already."""
        for index in range(self.pictures if self.stem is not None else 0):
            yield self._named(index)
            if trails:
                yield self._named(index).with_suffix(_trail_suffix())
        if self.grid and self.stem is not None:
            yield self._grid

    def _check_journal(self, journal: Path, trails: bool) -> None:
        """A picture is written last: it would end the record of its own run."""
        taken = next((target for target in self._targets(trails) if _is_same(journal, target)), None)
        if (
            self.stem is None and trails and _is_same(journal.parent, self.folder)
        ):  # these are named when they are there
            named = NUMBERED.match(f"{journal.stem}.png") and journal.suffix.lower() == _trail_suffix()
            taken = journal if named else None
        if taken is not None:
            what = "trail" if taken.suffix == _trail_suffix() else "picture"
            raise RequestError(
                f"{journal} is the journal, and a {what} would replace it; give one of them another name"
            )

    @classmethod
    def recorded(cls, values: object) -> Destination | None:
        """The place that `to_dict` told, None where it is none."""
        if not isinstance(values, dict) or not isinstance(values.get("folder"), str):
            return None
        named = {name: values.get(name) for name in ("stem", "pictures", "suffix")}
        grid = values.get("grid") is True
        return cls(folder=Path(values["folder"]), grid=grid, **named)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, object]:
        """Plain values, which mean the same from every current folder."""
        return {
            "folder": str(self.folder.absolute()),
            "stem": self.stem,
            "pictures": self.pictures,
            "suffix": self.suffix,
            "grid": self.grid,
        }

    def save(self, image: Image, index: int, seed: int, note: Note | None = None) -> Path:
        """Write picture `index` and return its path. note is told that before and after."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._named(index) if self.stem is not None else self._reserve(seed)
        except OSError as error:
            raise OutputProblem(f"{self._named(index)} cannot be written ({error.strerror or error})") from None
        try:
            if note is not None:
                note(path, False)
            path = Path(image.save_png(path) if path.suffix.lower() == ".png" else image.save(path))
        except BaseException:
            if self.stem is None:
                path.unlink(missing_ok=True)
            raise
        if note is not None:
            note(path, True)
        return path

    def save_grid(self, grid: Image) -> Path:
        """Write the grid of all pictures: grid.png, grid-1.png … in a folder, else the name with -grid."""
        if self.stem is None:
            return Path(grid.save(self.folder / "grid.png", overwrite=False))
        return Path(grid.save(self._grid))

    @property
    def _grid(self) -> Path:
        return self.folder / f"{self.stem}-grid{self.suffix}"

    def _named(self, index: int) -> Path:
        if self.stem is None:
            return self.folder
        number = "" if self.pictures == 1 else f"-{index + 1}"
        return self.folder / f"{self.stem}{number}{self.suffix}"

    def _reserve(self, seed: int) -> Path:
        """The next free number as an empty file, made so that two runs at once cannot take the same."""
        taken = [int(match[1]) for match in (NUMBERED.match(path.name) for path in self.folder.iterdir()) if match]
        number = max(taken, default=0) + 1
        while True:
            path = self.folder / f"{number:05d}-{seed}.png"
            try:
                path.open("xb").close()
                return path
            except FileExistsError:
                number += 1


def _is_device(path: Path) -> bool:
    """Whether nothing that is written there can be kept as a picture: /dev/null, a pipe, NUL on Windows."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _trail_suffix() -> str:
    from ..pipeline.trail import SUFFIX

    return SUFFIX


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths mean one file, there already or not: by any link, and in any case where case does not count."""
    try:
        if one.exists() and other.exists():
            return one.samefile(other)
        return os.path.normcase(one.resolve()) == os.path.normcase(other.resolve())
    except (OSError, ValueError, RuntimeError):  # no file can have such a name; writing it says so
        return False
