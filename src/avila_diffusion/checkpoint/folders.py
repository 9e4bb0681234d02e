"""Where people keep their models: the folders of AUTOMATIC1111, Forge, ComfyUI and Fooocus, or any folder of files.

`AVILA_MODELS` (several, separated like PATH) may name a program's root, its `models` folder, the checkpoints' folder
itself, or a plain folder; each is recognised by the names of its subfolders. Names shown to users are relative to the
folder they were found in, with forward slashes. A name is looked up in the list of what was found and never joined to
a path.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileProblem, ModelNotFound
from .bundled import NAME as BUNDLED
from .bundled import bundled_model

VARIABLE = "AVILA_MODELS"
STYLES = "styles.csv"

# Role -> names of its folders: A1111 and Forge first, then ComfyUI (Fooocus has ComfyUI's). Compared without case.
_ROLE_FOLDERS: dict[str, tuple[str, ...]] = {
    "checkpoint": ("Stable-diffusion", "checkpoints"),
    "vae": ("VAE",),
    "text_encoder": ("text_encoder", "text_encoders", "clip"),
    "unet": ("diffusion_models", "unet"),
    "lora": ("Lora", "LyCORIS", "loras"),
    "embedding": ("embeddings",),
    "controlnet": ("ControlNet",),
    "upscaler": ("ESRGAN", "RealESRGAN", "SwinIR", "upscale_models"),
    "taesd": ("VAE-approx", "vae_approx"),
}
ROLES = tuple(_ROLE_FOLDERS)
_ROLE_OF_FOLDER = {name.lower(): role for role, names in _ROLE_FOLDERS.items() for name in names}
_KIN = {"vae": "taesd", "taesd": "vae"}
"""Roles whose models may stand in for each other's: a name that the own folders lack is looked up in the other's."""

_SAFETENSORS = (".safetensors", ".sft")
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_SUFFIXES = {role: _SAFETENSORS + (_PICKLED[:1] if role == "checkpoint" else _PICKLED) for role in ROLES}
_MAX_DEPTH = 12
_HASH = re.compile(r"\s*\[[0-9a-fA-F]{6,64}\]$")
_WINDOWS_PATH = re.compile(r"^[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class ModelFile:
    """A model that was found: `name` relative to its folder, with "/"; `size` in bytes (of all files of a
    diffusers folder).
    """

    name: str
    path: Path
    role: str
    size: int

    @property
    def needs_conversion(self) -> bool:
        """Pickled: `avila convert` makes a safetensors file of it first."""
        return self.path.suffix.lower() in _PICKLED


def model_folders(models: str | os.PathLike[str] | None = None, role: str = "checkpoint") -> list[Path]:
    """The existing folders that hold models of a role, in the order they are searched.

    models: folders separated like PATH; by default those of AVILA_MODELS, or else `models` in the current folder.
    Raises ModelNotFound for a Windows path on another system.
    """
    found: list[Path] = []
    for entry in _entries(models):
        for folder in _role_folders(entry, role):
            if not any(_same(folder, other) for other in found):
                found.append(folder)
    return found


def list_models(
    role: str = "checkpoint", models: str | os.PathLike[str] | None = None, *, notes: list[str] | None = None
) -> list[ModelFile]:
    """All models of a role, folder by folder, by name: .safetensors, pickled files, and diffusers folders as one entry.

    Hidden files and unfinished downloads are left out. `notes` receives a line for each that was skipped.
    """
    notes = [] if notes is None else notes
    found: dict[str, ModelFile] = {}
    for folder in model_folders(models, role):
        for model in sorted(_scan(folder, role, notes), key=lambda model: model.name.lower()):
            # As with PATH, the earlier folder wins where two hold the same name.
            found.setdefault(model.name, model)
    return list(found.values())


def find_model(
    text: str, role: str = "checkpoint", models: str | os.PathLike[str] | None = None, *, paths: bool = True
) -> Path:
    """The file or diffusers folder that `text` means: a path, or the name of a model in the folders.

    A name may lack its suffix or its subfolder, differ in case, use backslashes, or end in the hash that A1111 shows
    ("model [6ce0161689]", the hash is not checked). paths=False for names from the network: only listed ones.
    "bundled" is the model that comes with the package; a folder of that name is ./bundled.
    Raises ModelNotFound naming the candidates (several), or the nearest names and where was looked (none).
    """
    wanted = text.strip().strip("\"'").strip()
    if not wanted:
        raise ModelNotFound("no model was named")
    if wanted == BUNDLED and role == "checkpoint":
        return bundled_model()
    for asked in dict.fromkeys((text, wanted)):  # a file's name may well end in a blank or a quote
        if paths and (path := _existing(asked, role)):
            return path
    found: list[ModelFile] = []
    for listed in (list_models(one, models) for one in _roles(role)):
        for candidate in dict.fromkeys((wanted, _HASH.sub("", wanted))):
            for matches in _matches(candidate.replace("\\", "/"), listed):
                if matches:
                    return _only(wanted, matches)
        known = {model.path for model in found}
        found += [model for model in listed if model.path not in known]
    if paths and _is_folder(Path(wanted)):
        raise ModelNotFound(f"{wanted!a} is a folder but not a diffusers model; name a file in it")
    if paths and not found and Path(wanted).is_absolute():
        raise ModelNotFound(f"there is no file {_shown(wanted)}; check the path")
    raise ModelNotFound(_explain(wanted, role, models, found))


def _roles(role: str) -> list[str]:
    """The role, and that of its kin."""
    return [role, *([_KIN[role]] if role in _KIN else [])]


def _entries(models: str | os.PathLike[str] | None) -> list[Path]:
    text = os.fspath(models) if models is not None else os.environ.get(VARIABLE, "")
    if not text.strip():
        return [Path("models")]
    if os.name != "nt" and _WINDOWS_PATH.match(text.strip()):
        raise ModelNotFound(f"{text} is a Windows path and this is not Windows; {_elsewhere(text.strip())}")
    parts = [part.strip() for part in text.split(os.pathsep)]
    return [Path(os.path.expanduser(part)) for part in parts if part]  # noqa: PTH111 (~nobody is no error)


def _elsewhere(text: str) -> str:
    return (
        f"give the folder as this system names it (under WSL: /mnt/{text[0].lower()}/{text[3:].replace(chr(92), '/')})"
    )


def _role_folders(entry: Path, role: str) -> Iterator[Path]:
    """The folders of a role under one entry of AVILA_MODELS, whatever level it names."""
    if not _is_folder(entry):
        return
    own = _ROLE_OF_FOLDER.get(entry.resolve().name.lower())
    if own is not None and not _children(entry, "models"):
        # The folder of one role: others are its neighbours, as in `models/Stable-diffusion` and `models/VAE`.
        if own == role:
            yield entry
        else:
            yield from _named(entry.parent, role)
        if own == "checkpoint" and role == "vae":
            yield entry  # A1111 takes `name.vae.safetensors` from among the checkpoints.
        return
    inner = [entry, *_children(entry, "models")]
    known = [folder for base in inner for folder in _named(base, role)]
    yield from known
    checkpoints = [folder for base in inner for folder in _named(base, "checkpoint")]
    if checkpoints and role == "vae":
        yield from checkpoints
    # A plain folder of files: its checkpoints lie in it, and so does the rest as far as it has no subfolder.
    if not checkpoints and (role == "checkpoint" or not known):
        yield entry


def _named(base: Path, role: str) -> list[Path]:
    return [folder for name in _ROLE_FOLDERS[role] for folder in _children(base, name)]


def _children(base: Path, name: str) -> list[Path]:
    """The subfolder of that name in any case: `VAE` in A1111, `vae` in ComfyUI."""
    try:
        with os.scandir(base) as entries:
            return [base / entry.name for entry in entries if entry.name.lower() == name.lower() and entry.is_dir()]
    except OSError:
        return []


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _scan(root: Path, role: str, notes: list[str]) -> Iterator[ModelFile]:
    """Walk a folder; each real folder is entered once, so that loops of links end."""
    visited: set[tuple[int, int]] = set()
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as problem:
            notes.append(f"{folder} was skipped: {problem.strerror or problem}")
            continue
        names = {entry.name for entry in children}
        if role in ("checkpoint", "unet") and _is_diffusers(folder):
            name = folder.name if folder == root else folder.relative_to(root).as_posix()
            yield ModelFile(name, folder, role, _size_of(folder))
            continue
        for entry in children:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if _is_folder(path):
                if depth < _MAX_DEPTH and _ROLE_OF_FOLDER.get(entry.name.lower(), role) == role:
                    waiting.append((path, depth + 1))
            elif model := _model_file(root, path, role, names, notes):
                yield model


def _model_file(root: Path, path: Path, role: str, names: set[str], notes: list[str]) -> ModelFile | None:
    if path.suffix.lower() not in _SUFFIXES[role] or not _fits(root, path, role):
        return None
    if {path.name + ".aria2", path.name + ".part", path.name + ".crdownload"} & names:
        notes.append(f"{path} was skipped: its download is not finished")
        return None
    try:
        size = path.stat().st_size
    except OSError as problem:
        notes.append(f"{path} was skipped: {problem.strerror or problem}")
        return None
    if not size:
        notes.append(f"{path} was skipped: it is empty")
        return None
    return ModelFile(path.relative_to(root).as_posix(), path, role, size)


def _fits(root: Path, path: Path, role: str) -> bool:
    """Files named `….vae.safetensors` are VAEs, in a checkpoints' folder too; there, nothing else is one."""
    if path.stem.lower().endswith(".vae"):
        return role == "vae"
    return role != "vae" or _ROLE_OF_FOLDER.get(root.resolve().name.lower()) != "checkpoint"


def _is_diffusers(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in ("model_index.json", "unet/config.json"))  # noqa: PTH113


def _is_folder(path: Path) -> bool:
    # os.path and not pathlib: it answers False for what this user may not look at, and the rest is still found.
    return os.path.isdir(path)  # noqa: PTH112


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return size


def _existing(text: str, role: str) -> Path | None:
    # os.path and not pathlib: it answers False for names that no system can hold (NUL, too long).
    full = os.path.expanduser(text)  # noqa: PTH111
    if os.path.isfile(full):  # noqa: PTH113
        return Path(full)
    if os.path.isdir(full):  # noqa: PTH112
        if _is_diffusers(Path(full)) or (role in _KIN and (Path(full) / "config.json").is_file()):
            return Path(full)
        if os.sep in text or "/" in text:
            raise ModelNotFound(
                f"{text} is a folder but not a diffusers model (no model_index.json); name a file in it"
            )
    elif os.name != "nt" and _WINDOWS_PATH.match(text):
        raise ModelNotFound(f"{text} is a Windows path and this is not Windows; {_elsewhere(text)}")
    return None


def _matches(wanted: str, found: Sequence[ModelFile]) -> Iterator[list[ModelFile]]:
    """What the name fits, from the strictest reading to the loosest."""
    for fold in (str, str.lower):
        asked = fold(wanted)
        yield [model for model in found if fold(model.name) == asked]
        yield [model for model in found if fold(_without_suffix(model)) == asked]
        yield [model for model in found if asked in (fold(model.path.name), fold(Path(_without_suffix(model)).name))]


def _without_suffix(model: ModelFile) -> str:
    return (
        model.name.removesuffix(model.path.suffix) if model.path.suffix.lower() in _SUFFIXES[model.role] else model.name
    )


def _only(wanted: str, matches: list[ModelFile]) -> Path:
    if len(matches) > 1:
        # The same name twice, once converted: the converted one is meant.
        ready = [model for model in matches if not model.needs_conversion]
        same = len({_without_suffix(model) for model in matches}) == 1
        if not (same and len(ready) == 1):
            raise ModelNotFound(f"{wanted!r} could be {_listed(matches)}; give more of the name")
        matches = ready
    return matches[0].path


def _listed(models: Sequence[ModelFile]) -> str:
    names = [model.name for model in models[:8]]
    return ", ".join(names) + (f" and {len(models) - 8} more" if len(models) > 8 else "")


def _shown(name: str) -> str:
    return ascii(name) if len(name) <= 120 else ascii(name[:117]) + "…"


def _explain(wanted: str, role: str, models: str | os.PathLike[str] | None, found: Sequence[ModelFile]) -> str:
    shown = _shown(wanted)
    what = role.replace("_", " ")
    if not found:
        entries = _entries(models)
        lacking = [str(entry) for entry in entries if not _is_folder(entry)]
        where = ", ".join(map(str, entries)) + (f" ({', '.join(lacking)}: no such folder)" if lacking else "")
        return f"no {what} named {shown}: no models in {where}; set {VARIABLE} to your models folder, or give a path"
    folders = ", ".join(dict.fromkeys(str(folder) for one in _roles(role) for folder in model_folders(models, one)))
    stems = {Path(_without_suffix(model)).name.lower(): model.name for model in found}
    key = Path(wanted.replace("\\", "/")).stem.lower()
    near = [stems[stem] for stem in difflib.get_close_matches(key[:200], stems, n=3, cutoff=0.4)]
    hint = f"the nearest are {', '.join(near)}" if near else f"there are {_listed(found)}"
    return f"no {what} named {shown} in {folders}; {hint}. {VARIABLE} names the folders"


def embedding_folders(models: str | os.PathLike[str] | None = None) -> list[Path]:
    """The existing folders named `embeddings` that belong to the models folders: in them, or beside them as in A1111."""
    # A plain folder of files serves every role; LoRAs and checkpoints in it would be taken for words.
    found = [folder for folder in model_folders(models, "embedding") if folder.name.lower() == "embeddings"]
    for folder in model_folders(models):
        places = [folder, folder.parent, folder.parent.parent]
        roots = [place.parent for place in places if place.name.lower() == "models"]
        found += [root / name for root in roots for name in _subfolders(root) if name.lower() == "embeddings"]
    return list({folder.resolve(): folder for folder in found}.values())


def find_styles_file(models: str | os.PathLike[str] | None = None) -> Path:
    """The first `styles.csv` in the models folders or beside them, where AUTOMATIC1111 has it.

    Raises FileProblem, which says where was looked.
    """
    places: dict[Path, None] = {}
    for entry in _entries(models):
        folder = entry.absolute()
        places |= dict.fromkeys((folder, folder.parent))
        if folder.name.lower() in _ROLE_OF_FOLDER:  # models/Stable-diffusion: beside `models`
            places[folder.parent.parent] = None
    for place in places:
        if os.path.isfile(place / STYLES):  # noqa: PTH113 (False for names that no system can hold)
            return place / STYLES
    raise FileProblem(
        f"there is no {STYLES} in {', '.join(map(str, places))}; name the file (--styles-file, styles_file)"
    )


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
