"""The files that a picture's metadata name, found on this machine: by name, by hash, or refused in words."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileProblem, ModelNotFound, RequestError

if TYPE_CHECKING:
    from ..metadata import Found
    from ..pictures import Picture
    from .progress import ProgressDisplay

PROCEDURAL = "avila procedural"
"""What pictures that were drawn without a model name in a model's place."""
ROLES = {"VAE": "vae", "refiner": "checkpoint"}
"""Of parts that metadata name: how they are looked up."""


def read_found(path: str) -> Found:
    """How the picture in a file was made. Raises FileProblem where it does not say."""
    from ..images import read_image
    from ..metadata import read_request

    try:
        return read_request(read_image(path))
    except FileProblem as error:
        said = str(error)
        raise FileProblem(said if path in said else f"{path}: {said}") from None


def find_checkpoint(options: argparse.Namespace, found: Found, source: str, display: ProgressDisplay) -> Path:
    """By -m, else by the name in the metadata, if its hash is right, else by a hash that is known of a listed file."""
    from ..checkpoint.folders import find_model, list_models

    name, wanted = found.model, found.model_hash
    if options.model is not None:
        path = find_model(options.model, "checkpoint", options.models_dir)
        if wanted is not None and not has_hash(path, wanted):
            display.say(f"{path} is not the model that the metadata name ({name or wanted})")
        return path
    if name == PROCEDURAL and wanted is None:
        raise ModelNotFound(
            f"{source} was drawn without a model; `avila generate --from {source} --procedural` draws it again"
        )
    problem = f"the metadata of {source} name no model"
    if name is not None:
        try:
            path = find_model(name, "checkpoint", options.models_dir)
            if wanted is None or has_hash(path, wanted):
                return path
            problem = f"{path} has another hash than {wanted}, which the picture was made with"
        except ModelNotFound as error:
            problem = str(error)
    for listed in list_models("checkpoint", options.models_dir) if wanted is not None else []:
        if wanted is not None and not listed.needs_conversion and has_hash(listed.path, wanted, at_once=True):
            return listed.path
    raise ModelNotFound(f"{problem}; say with -m which model to take")


def find_vae(options: argparse.Namespace, found: Found, display: ProgressDisplay) -> Path | None:
    """By --vae, else the VAE that the metadata name, None where they name none."""
    return _find_part("VAE", options.vae, (found.vae, found.vae_hash), options.models_dir, display)


def find_refiner(options: argparse.Namespace, found: Found, display: ProgressDisplay) -> Path | None:
    """By --refiner, else the refiner that the metadata name, None where they name none."""
    return _find_part("refiner", options.refiner, (found.refiner, found.refiner_hash), options.models_dir, display)


def _find_part(
    what: str, asked: str | None, named: tuple[str | None, str | None], folders: str | None, display: ProgressDisplay
) -> Path | None:
    """named: what the metadata name, and its hash."""
    from ..checkpoint.folders import find_model

    if asked is None:
        return named_part(what, named, folders)
    name, wanted = named
    path = find_model(asked, ROLES[what], folders)
    if name is None:
        display.say(f"the metadata name no {what}; {path} is used all the same")
    elif wanted is not None and not has_hash(path, wanted):
        display.say(f"{path} is not the {what} that the metadata name ({name})")
    return path


def named_part(what: str, named: tuple[str | None, str | None], folders: str | None) -> Path | None:
    """The "VAE" or "refiner" of this name and hash, None for no name. Raises ModelNotFound, or FileProblem for another hash."""
    from ..checkpoint.folders import find_model

    name, wanted = named
    if name is None:
        return None
    try:
        return _checked(find_model(name, ROLES[what], folders), wanted)
    except (ModelNotFound, FileProblem) as error:
        raise type(error)(f"{error}; say with --{what.lower()} which to take") from None


def given_pictures(
    options: argparse.Namespace, hashes: Mapping[str, str], source: str, display: ProgressDisplay
) -> dict[str, Picture]:
    """The pictures that the run of `source` began with, by the names of their options: metadata do not hold them.

    hashes: what the metadata tell of them. Raises RequestError where one is not given.
    """
    from ..pictures import Picture

    pictures = {}
    for name, digest in hashes.items():
        given = getattr(options, name)
        if given is None:
            raise RequestError(
                f"{source} was made from another picture, which it does not hold; give that with --{name}"
            )
        pictures[name] = Picture.of(given, name)
        if digest and pictures[name].digest != digest:
            display.say(f"{given} is not the {name} that {source} was made from")
    return pictures


def find_loras(options: argparse.Namespace, found: Found) -> list[tuple[Path, float, float]]:
    """The LoRAs that the metadata name, each with its weights for the text towers and for the UNet."""
    from ..checkpoint.lora.find import find_lora

    loras = []
    for lora in found.loras:
        path = find_lora(lora.name, options.models_dir)
        loras.append((_checked(path, lora.hash, lora=True), lora.text_weight, lora.unet_weight))
    return loras


def has_hash(path: Path, wanted: str, *, lora: bool = False, at_once: bool = False) -> bool:
    """Whether a file's sha256 begins like that. at_once: only where it is known without reading the file."""
    from ..errors import AvilaError
    from ..hashes import hash_in_background, own_hash

    if lora and own_hash(_metadata(path)) == wanted.lower():
        return True
    found = hash_in_background(path, tensors_only=lora)
    if at_once and not found.done():
        found.cancel()
        return False
    try:
        return found.result().startswith(wanted.lower())
    except AvilaError:  # a folder has none
        return path.is_dir()


def _metadata(path: Path) -> dict[str, Any]:
    from ..checkpoint.header import read_header
    from ..errors import AvilaError

    try:
        return dict(read_header(path).metadata)
    except AvilaError:
        return {}


def _checked(path: Path, wanted: str | None, *, lora: bool = False) -> Path:
    if wanted is not None and not has_hash(path, wanted, lora=lora):
        raise FileProblem(
            f"{path} has another hash than {wanted}, which the picture was made with; take the right file"
        )
    return path
