"""From parts on disk to networks that run: built on the meta device, then given the mapped tensors, strictly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import nn

from ..config import ModelSpec, TextConfig, TinyVAEConfig, VAEConfig
from ..errors import NotADiffusionModel, WeightMismatch
from ..models.clip import ClipTextModel
from ..models.open_clip import OpenClipTextModel
from ..models.taesd import Autoencoder, TinyVAE
from ..models.unet import UNet
from ..models.vae import VAE as LargeVAE
from .detect import detect, read_vae
from .folders import find_model
from .header import FLOATS, is_unchanged
from .parts import MARKERS, UNET, VAE, Parts, gather, gather_vae
from .report import LoadReport, shorten
from .safetensors import Header, TensorFile

TextModel = ClipTextModel | OpenClipTextModel
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model. Its networks' parameters are mapped from the files; nothing is converted before it is used.

    path: of the checkpoint. vae_path: of the VAE given separately, None where the checkpoint's own is used.
    """

    path: Path
    spec: ModelSpec
    unet: UNet
    vae: Autoencoder
    text: tuple[TextModel, ...]
    report: LoadReport
    vae_path: Path | None = None
    stamps: Mapping[Path, tuple[int, int]] = field(default_factory=dict)

    def unchanged(self, path: Path) -> bool:
        """Whether `path` is still the file that was loaded, by its size and time."""
        stamp = self.stamps.get(path)
        return stamp is not None and is_unchanged(path, *stamp)


def load_model(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    text_encoders: Iterable[str | Path] = (),
    prediction: str | None = None,
    mapped: bool = True,
) -> Model:
    """Load a single-file checkpoint or a diffusers folder.

    vae, text_encoders: files that replace, or supply, those parts. prediction: "epsilon", "v" or "edm" overrules detection.
    mapped: map the file into memory; False reads it instead, for network drives and files that change.
    Raises FileProblem with one line saying what was found, what was expected and what to do.
    """
    parts = gather(Path(path), vae=Path(vae) if vae else None, text_encoders=[Path(p) for p in text_encoders])
    headers = {place.header.path: place.header for place in parts.places.values()}
    stamps = {file: (header.size, header.mtime_ns) for file, header in headers.items()}
    spec, prefixes = detect(parts, prediction)
    with _Files(mapped) as files:
        networks = _build_all(parts, spec, prefixes, files)
    _refuse_gaps(parts.report, parts.path)
    vae_path = Path(vae) if vae else None
    return Model(Path(path), spec, *networks, report=parts.report, vae_path=vae_path, stamps=stamps)


def load_preview_decoder(name: str, spec: ModelSpec, mapped: bool = True) -> TinyVAE:
    """A tiny autoencoder beside the VAE of a model of that spec. name: a path, or a name in the models folders.

    Raises ModelNotFound, or FileProblem where the file is another or its latents have other channels than the UNet's.
    """
    path = find_model(name, "taesd")
    parts = gather_vae(path)
    config = read_vae(parts)
    if not isinstance(config, TinyVAEConfig):
        raise NotADiffusionModel(
            f"{path.name} is a VAE, which takes too long for previews; expected a tiny one (TAESD); give this with --vae"
        )
    if config.latent_channels != spec.unet.out_channels:
        raise WeightMismatch(
            f"the latents of {path.name} have {config.latent_channels} channels, the UNet gives {spec.unet.out_channels}; "
            "give the tiny autoencoder of this family"
        )
    with _Files(mapped) as files:
        decoder = _fill(build(partial(TinyVAE, config)), parts, VAE, "vae", files)
    _refuse_gaps(parts.report, path)
    return decoder


def _build_all(
    parts: Parts, spec: ModelSpec, prefixes: Sequence[str], files: _Files
) -> tuple[UNet, Autoencoder, tuple[TextModel, ...]]:
    unet = _fill(build(lambda: UNet(spec.unet)), parts, UNET, "unet", files)
    autoencoder = _fill(build(partial(build_autoencoder, spec.vae)), parts, VAE, "vae", files)
    towers = []
    for index, (prefix, text) in enumerate(zip(prefixes, spec.text, strict=True), 1):
        tower = build(partial(build_text_model, text.config))
        towers.append(_fill(tower, parts, prefix, f"text encoder {index}", files))
    _name_the_rest(parts)
    return unet, autoencoder, tuple(towers)


def build(make: Callable[[], Network]) -> Network:
    """A network without memory, in evaluation mode: its parameters are shapes until tensors are assigned."""
    with torch.device("meta"):
        network = make()
    return network.eval().requires_grad_(False)


def build_autoencoder(config: VAEConfig | TinyVAEConfig) -> Autoencoder:
    return TinyVAE(config) if isinstance(config, TinyVAEConfig) else LargeVAE(config)


def build_text_model(config: TextConfig) -> TextModel:
    return ClipTextModel(config) if config.kind == "clip" else OpenClipTextModel(config)


class _Files:
    """Each file opened once, however many networks are in it."""

    def __init__(self, mapped: bool) -> None:
        self._mapped = mapped
        self._open: dict[Path, TensorFile] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self._open.values():
            file.close()  # mappings live on in the tensors

    def tensor(self, header: Header, name: str) -> torch.Tensor:
        if header.path not in self._open:
            self._open[header.path] = TensorFile(header, mapped=self._mapped)
        return self._open[header.path].tensor(name)


def _fill(network: Network, parts: Parts, prefix: str, title: str, files: _Files) -> Network:
    """Assign every parameter from the parts under `prefix`, taking it out of them; what does not fit is reported."""
    report = parts.report
    for name, parameter in list(network.named_parameters()):
        place = parts.places.pop(prefix + name, None)
        if place is None:
            report.missing.append(prefix + name)
            continue
        shape, wanted = place.entry.shape, tuple(parameter.shape)
        if not _same(shape, wanted):
            report.mis_shaped.append(f"{parts.label(place)} is {list(shape)}, expected {list(wanted)}")
            continue
        if place.entry.dtype not in FLOATS:
            report.mis_shaped.append(f"{parts.label(place)} is stored as {place.entry.dtype}, expected plain floats")
            continue
        tensor = files.tensor(place.header, place.entry.name).reshape(wanted)
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
        report.used[title] = report.used.get(title, 0) + 1
    return network


def _name_the_rest(parts: Parts) -> None:
    """Tensors that lie under a network's name and that no network took."""
    parts.report.unknown += [parts.label(place) for name, place in parts.places.items() if name not in MARKERS]


def _same(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Equal, or a 1x1 convolution stored as a matrix, as some VAEs store their attention, or the reverse."""
    if shape == wanted:
        return True
    short, long = sorted((shape, wanted), key=len)
    return len(short) == 2 and long == (*short, 1, 1)


def _refuse_gaps(report: LoadReport, path: Path) -> None:
    wrong = report.mis_shaped + [f"{name} is missing" for name in report.missing]
    if wrong:
        raise WeightMismatch(
            f"{path.name} does not fit its networks: {'; '.join(shorten(wrong, 3))}; download it again, or take another file"
        )
