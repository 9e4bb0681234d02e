"""`inspect`: what a file is, from its header and at most 64 kB of small tensors. No torch, no network is built."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import AvilaError, FileProblem, NotADiffusionModel, PickleRefused, Unsupported
from .detect import build_spec, read_towers, read_unet, read_vae
from .keys import tiny_vae_names
from .kinds import CHECKPOINT, Kind, recognise
from .lora.files import parse_lora
from .lora.report import describe_file
from .lora.source import read_lora_header
from .parts import VAE, Parts, gather
from .report import LoadReport
from .safetensors import Header, read_header


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """kind: what the file is. report: the decisions of a load, for checkpoints.

    problem: why a checkpoint cannot be loaded as it is, as far as names and shapes of each network's frame tell; a weight
    missing deep inside is found by a load. details, told: more of it, for programs and for people; of a LoRA what it changes.
    """

    path: Path
    kind: Kind
    bytes: int
    tensors: int
    dtypes: dict[str, int]
    metadata: dict[str, str]
    report: LoadReport | None = None
    problem: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path),
            "kind": self.kind.key,
            "title": self.kind.title,
            "family": self.report.family if self.report else "",
            "variant": self.report.variant if self.report else "",
            "prediction": self.report.prediction if self.report else "",
            "bytes": self.bytes,
            "tensors": self.tensors,
            "dtypes": self.dtypes,
            "metadata": self.metadata,
            "problem": self.problem,
            "report": self.report.to_dict() if self.report else None,
            **({self.kind.key: self.details} if self.details else {}),
        }

    def lines(self) -> list[str]:
        """For people."""
        dtypes = ", ".join(f"{name} {count:,}" for name, count in self.dtypes.items())
        lines = [
            f"{self.path.name}: {self.kind.title}",
            f"{self.bytes / 1e9:.2f} GB, {self.tensors:,} tensors ({dtypes})",
        ]
        if self.report is not None:
            lines += [line for line in self.report.lines() if not line.startswith(("dtypes ", "used "))]
        lines += self.told
        lines += [f"metadata {key}: {_shorten(value)}" for key, value in sorted(self.metadata.items())]
        if self.kind.advice:
            lines.append(self.kind.advice)
        if self.problem:
            lines.append(f"cannot be used as it is: {self.problem}")
        return lines


def inspect(path: str | Path) -> Inspection:
    """Look at a file or a diffusers folder without loading it.

    Raises HeaderError, PickleRefused or ModelNotFound for what is not safetensors at all, NotADiffusionModel for a folder
    that holds no model.
    """
    path = Path(path)
    if os.path.isdir(path):  # noqa: PTH112 (False for a name that no file can have; reading it says why)
        return _inspect_model(path, CHECKPOINT, None, gather(path))
    header = _read(path)
    kind = recognise(header)
    if kind.key == "lora":
        return _inspect_lora(path, kind, header)
    if kind.key == "taesd":
        return _inspect_tiny_vae(path, kind, header)
    if kind.key != CHECKPOINT.key:
        return _describe(path, kind, [header], header.metadata)
    try:
        return _inspect_model(path, kind, header, gather(path, header=header))
    except NotADiffusionModel as error:
        return _describe(path, kind, [header], header.metadata, problem=str(error))


def _read(path: Path) -> Header:
    """The header of a safetensors file; of a pickled one only where it holds a LoRA, which can be used as it is."""
    try:
        return read_header(path)
    except PickleRefused as refused:
        try:
            header = read_lora_header(path)
        except AvilaError:
            header = None
        if header is None or recognise(header).key != "lora":
            raise refused from None
        return header


def _inspect_lora(path: Path, kind: Kind, header: Header) -> Inspection:
    found = _describe(path, kind, [header], header.metadata)
    try:
        details, told = describe_file(parse_lora(header))
    except (FileProblem, Unsupported) as error:
        return replace(found, problem=str(error))
    return replace(found, details=details, told=tuple(told))


def _inspect_tiny_vae(path: Path, kind: Kind, header: Header) -> Inspection:
    """Which halves there are, and of how many channels the latents."""
    found, names = _describe(path, kind, [header], header.metadata), tiny_vae_names(header.entries)
    halves = [half for half in ("encoder", "decoder") if f"{half}.layers.0.weight" in names]
    if not halves:
        return found
    what = "encoder and decoder" if len(halves) == 2 else f"{halves[0]} alone"
    first = header.entries[names["decoder.layers.0.weight"]].shape if "decoder" in halves else ()
    channels = f", latents of {first[1]} channels" if len(first) == 4 else ""
    return replace(found, details={"halves": halves}, told=(what + channels,))


def _inspect_model(path: Path, kind: Kind, header: Header | None, parts: Parts) -> Inspection:
    report, problem = parts.report, ""
    headers = (
        [header] if header else list({place.header.path: place.header for place in parts.places.values()}.values())
    )
    try:
        unet, family = read_unet(parts)
        towers = read_towers(parts, family)
        vae = read_vae(parts)
        for what, there in (("text encoder", bool(towers)), ("VAE", vae is not None)):
            if not there:
                report.decide(what, "none", f"give it with --{what.lower().replace(' ', '-')} FILE")
        if not towers and vae is None and not parts.shapes(VAE):
            kind = Kind(key="unet", title=f"a {family.title} UNet alone")
        build_spec(parts, unet, family, towers, vae, None)
    except (FileProblem, Unsupported) as error:
        problem = str(error)
    return _describe(path, kind, headers, parts.metadata, report, problem)


def _describe(
    path: Path,
    kind: Kind,
    headers: list[Header],
    metadata: dict[str, str],
    report: LoadReport | None = None,
    problem: str = "",
) -> Inspection:
    entries = [entry for header in headers for entry in header.entries.values()]
    return Inspection(
        path=path,
        kind=kind,
        bytes=sum(header.size for header in headers),
        tensors=len(entries),
        dtypes=dict(Counter(entry.dtype for entry in entries)),
        metadata=metadata,
        report=report,
        problem=problem,
    )


def _shorten(value: str, most: int = 100) -> str:
    value = " ".join(value.split())
    return value if len(value) <= most else value[: most - 1] + "…"
