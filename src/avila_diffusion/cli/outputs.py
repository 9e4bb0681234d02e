"""Where pictures go: `outputs/00001-SEED.png` and onward, a folder of the caller's, or the very file that was named."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable
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
    """A place for `pictures` pictures. stem None: numbered files that never replace one another."""

    folder: Path
    stem: str | None
    pictures: int
    suffix: str = ".png"

    @classmethod
    def planned(cls, output: str | None, pictures: int) -> Destination:
        """What `-o OUTPUT` means. Raises RequestError where the name is one of a picture that is not written."""
        if output is None:
            return cls(folder=Path(DEFAULT_FOLDER), stem=None, pictures=pictures)
        if not output:
            raise RequestError("the output is an empty name; give -o a file or a folder")
        path = Path(output)
        if output.endswith(("/", os.sep)) or os.path.isdir(output):  # noqa: PTH112 (False for impossible names)
            return cls(folder=path, stem=None, pictures=pictures)
        suffix = path.suffix.lower()
        if suffix in (".bmp", ".tif", ".tiff", ".gif"):
            raise RequestError(
                f"pictures are written as PNG, JPEG, WebP or AVIF, not {suffix}; name the output {path.with_suffix('.png')}"
            )
        if suffix in PICTURES:
            return cls(folder=path.parent, stem=path.stem, pictures=pictures, suffix=path.suffix)
        return cls(folder=path.parent, stem=path.name, pictures=pictures)

    def check(self) -> None:
        """Raise OutputProblem, before anything long begins, where nothing can be written here. Leaves no trace."""
        try:
            ancestor = self.folder
            while not os.path.lexists(ancestor) and ancestor != ancestor.parent:
                ancestor = ancestor.parent
            with tempfile.TemporaryFile(dir=ancestor, prefix=".avila-"):
                pass
            for index in range(self.pictures if self.stem is not None else 0):
                with contextlib.suppress(FileNotFoundError):
                    (ancestor / self._named(index).name).lstat()  # refuses a name that the file system cannot hold
                target = self._named(index)
                if target.exists() and (target.is_dir() or not os.access(target, os.W_OK)):
                    raise OutputProblem(f"{target} cannot be replaced; it is a folder or read-only")
        except OSError as error:
            said = error.strerror or error
            raise OutputProblem(f"{self._named(0)} cannot be written ({said}); choose another -o") from None

    @classmethod
    def recorded(cls, values: object) -> Destination | None:
        """The place that `to_dict` told, None where it is none."""
        if not isinstance(values, dict) or not isinstance(values.get("folder"), str):
            return None
        named = {name: values.get(name) for name in ("stem", "pictures", "suffix")}
        return cls(folder=Path(values["folder"]), **named)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, object]:
        """Plain values, which mean the same from every current folder."""
        return {
            "folder": str(self.folder.absolute()),
            "stem": self.stem,
            "pictures": self.pictures,
            "suffix": self.suffix,
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
