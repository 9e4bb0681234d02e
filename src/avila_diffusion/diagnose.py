"""What is wrong with this machine, in lines that say what to do: behind `avila doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from . import machine
from .errors import AvilaError
from .version import __version__

State = Literal["ok", "warn", "bad"]

PACKAGES = {
    "torch": (2, 6),
    "numpy": (1, 26),
    "scipy": (1, 12),
    "safetensors": (0, 4, 5),
    "pillow": (11, 3),
    "tqdm": (4, 66),
}
"""What must be installed, and since which version; as in pyproject.toml."""

MATRIX = 2048
SECONDS_OF_MEASURING = 0.5
LOW_MEMORY = 6e9
"""Bytes. The weights of an SD1 checkpoint are 4.3 GB in float32, and the VAE wants some more at the end."""
LOW_DISK = 1e9
WHEELS = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis. bad: pictures cannot be made until it is put right; warn: they are slower or fewer."""

    state: State
    topic: str
    text: str
    hint: str = ""

    def line(self) -> str:
        """For people."""
        return f"{self.state:<4}  {self.topic:<11}  {self.text}" + (f"; {self.hint}" if self.hint else "")


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in the order they were made."""

    findings: tuple[Finding, ...]

    @property
    def broken(self) -> bool:
        """Something has to be put right before pictures can be made."""
        return any(finding.state == "bad" for finding in self.findings)

    def lines(self) -> list[str]:
        """For people: one line a finding."""
        return [finding.line() for finding in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {"broken": self.broken, "findings": [asdict(finding) for finding in self.findings]}


def diagnose(models_dir: str | None = None) -> Diagnosis:
    """Look at everything; takes a few seconds, most of them to import torch and to measure.

    models_dir: where checkpoints are looked for, in place of the folders named in AVILA_MODELS.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", _check_versions),
        ("processor", _check_processor),
        ("kernels", _check_kernels),
        ("device", _check_device),
        ("memory", _check_memory),
        ("bundled", _check_bundled),
        ("models", lambda: _check_models(models_dir)),
        ("folders", _check_folders),
    ]
    findings: list[Finding] = []
    for topic, check in checks:
        try:
            findings.extend(check())
        except Exception as error:  # one check that fails is itself a finding, and the others still count
            findings.append(Finding("warn", topic, f"could not be checked: {type(error).__name__}: {error}"))
    return Diagnosis(tuple(findings))


def _check_versions() -> Iterator[Finding]:
    yield Finding("ok", "avila", f"{__version__} in {Path(__file__).parent}")
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}")
    for name, least in PACKAGES.items():
        yield check_package(name, least)


def check_package(name: str, least: tuple[int, ...]) -> Finding:
    """Whether a package is there, new enough, and can be imported."""
    wanted = ".".join(map(str, least))
    install = f'"{sys.executable}" -m pip install "{name}>={wanted}"'
    try:
        version = importlib.metadata.version(name)
        importlib.import_module("PIL" if name == "pillow" else name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("bad", name, "not installed", install)
    except (ImportError, OSError) as error:  # a library that does not load is an OSError on Windows
        said = " ".join(str(error).split())
        return Finding("bad", name, f"{version} cannot be imported: {said}", f"{install} --force-reinstall")
    if numbers_of(version) < least:
        return Finding("bad", name, f"{version} is older than {wanted}", install)
    return Finding("ok", name, version)


def numbers_of(version: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13, 0)."""
    parts = version.partition("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def _check_processor() -> Iterator[Finding]:
    import torch

    features = torch.backends.cpu.get_cpu_capability()
    yield Finding("ok", "processor", f"{machine.processor_name()} ({platform.machine()}, torch uses {features})")
    usable, physical, threads = machine.usable_cores(), machine.physical_cores(), torch.get_num_threads()
    text = f"{threads} of torch on {usable} logical cores" + (f", {physical} physical" if physical else "")
    wanted = min(usable, physical or usable)
    if threads < wanted:
        yield Finding("warn", "threads", text, f"set OMP_NUM_THREADS={wanted}, or pass --threads {wanted}")
    elif threads > usable:
        yield Finding("warn", "threads", text, f"more threads than cores are slower; pass --threads {wanted}")
    else:
        yield Finding("ok", "threads", text)
    yield Finding("ok", "speed", f"{measure_matrix_rate():.0f} GFLOP/s in float32 matrix products, {threads} threads")


def _check_kernels() -> Iterator[Finding]:
    from . import kernels
    from .kernels import build, native

    if not kernels.ENABLED:
        yield Finding(
            "warn", "kernels", "turned off by AVILA_KERNELS=torch", "unset it: pictures take about twice as long"
        )
    elif (found := native.identity()) is not None:
        yield Finding("ok", "kernels", f"{found}; {native.threads_used()}")
    else:
        hint = f"pictures take about twice as long; {build.ADVICE} brings a compiler"
        yield Finding("warn", "kernels", f"not built: {build.problem}", hint)


def measure_matrix_rate(size: int = MATRIX, seconds: float = SECONDS_OF_MEASURING) -> float:
    """Rate of float32 matrix products of `size` x `size` in 1e9 operations a second, the best of those made."""
    import torch

    left, right = torch.ones(size, size), torch.ones(size, size)
    out = torch.empty(size, size)
    torch.matmul(left, right, out=out)  # the first one also starts the threads
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        started = time.perf_counter()
        torch.matmul(left, right, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def _check_device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        yield Finding("ok", "device", f"cuda: {properties.name}, {properties.total_memory / 1e9:.1f} GB")
        return
    if torch.backends.mps.is_available():
        yield Finding("ok", "device", "mps: Apple silicon")
        return
    yield Finding("ok", "device", "cpu")
    for card in machine.graphics_cards():
        text = f"{card.name} is here, but torch {torch.__version__} cannot use it"
        yield Finding("warn", "graphics", text, remedy(card))


def remedy(card: machine.GraphicsCard, version: str | None = None) -> str:
    """What to do so that torch can use the card: mostly the line that installs the build for it.

    version: the installed torch's. CUDA 13 builds exist since torch 2.9 and leave out cards before Turing (7.5).
    """
    version = version or importlib.metadata.version("torch")
    if card.maker == "apple":
        what = "this is an Intel Python" if machine.runs_translated() else "this torch has no Metal"
        return f"{what}; install Python and torch for arm64"
    if card.maker == "amd":
        tag = {"2.13": "rocm7.2", "2.9": "rocm6.4"}.get(".".join(version.split(".")[:2]))
        return (
            _install_line(version, tag) if tag else "install torch for ROCm: https://pytorch.org/get-started/locally/"
        )
    if card.cuda is not None and card.cuda < (12, 0):
        return (
            f"its driver runs CUDA {card.cuda[0]}.{card.cuda[1]}, and torch needs 12 or newer: update the NVIDIA driver"
        )
    turing = card.capability is None or card.capability >= (7, 5)
    newest = card.cuda is not None and card.cuda >= (13, 0) and turing and numbers_of(version) >= (2, 9)
    return _install_line(version, "cu130" if newest else "cu126")


def _install_line(version: str, tag: str) -> str:
    wanted = f"torch=={version.partition('+')[0]}+{tag}"  # the tag too, or pip is content with the build that is there
    return f'"{sys.executable}" -m pip install "{wanted}" --index-url {WHEELS}/{tag}'


def _check_memory() -> Iterator[Finding]:
    memory = machine.memory()
    if memory is None:
        yield Finding("warn", "memory", "its size could not be read")
        return
    text = f"{memory.available / 1e9:.1f} GB available of {memory.total / 1e9:.1f} GB"
    if memory.available < LOW_MEMORY:
        yield Finding("warn", "memory", text, "close other programs, or use --dtype bfloat16, which halves the weights")
    else:
        yield Finding("ok", "memory", text)


def _check_bundled() -> Iterator[Finding]:
    from .checkpoint.bundled import bundled_model

    try:
        path = bundled_model()
    except AvilaError as error:
        yield Finding("warn", "bundled", str(error))
    else:
        yield Finding("ok", "bundled", f"{path}, {path.stat().st_size / 1e6:.0f} MB")


def _check_models(models_dir: str | None) -> Iterator[Finding]:
    from .checkpoint.folders import list_models

    try:
        found = list_models("checkpoint", models_dir)
    except AvilaError as error:
        yield Finding("warn", "models", str(error))
        return
    source = "AVILA_MODELS" if models_dir is None else "--models-dir"
    named = os.environ.get("AVILA_MODELS", "") if models_dir is None else models_dir
    for folder in filter(None, map(str.strip, named.split(os.pathsep))):
        if not Path(folder).expanduser().is_dir():
            yield Finding("warn", "models", f"{folder} of {source} is not a folder", "correct it or make the folder")
    if found:
        folders = sorted({str(file.path.parent) for file in found})
        yield Finding("ok", "models", f"{len(found)} checkpoints in {', '.join(folders)}")
    else:
        yield Finding("warn", "models", "no checkpoints found", "name their folder in AVILA_MODELS, or give -m a file")


def _check_folders() -> Iterator[Finding]:
    outputs = Path.cwd() / "outputs"
    yield check_folder("outputs", outputs if outputs.is_dir() else Path.cwd())
    yield check_folder("temporary", Path(tempfile.gettempdir()))


def check_folder(topic: str, folder: Path) -> Finding:
    """Whether files can be written there, and how many gigabytes are free."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".avila-"):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        hint = "run from another folder, or use -o" if topic == "outputs" else "set TMPDIR (on Windows TEMP) to another"
        return Finding("bad", topic, f"{folder} cannot be written to: {error.strerror or error}", hint)
    if free < LOW_DISK:
        return Finding("warn", topic, f"{folder}, {free / 1e9:.1f} GB free", "make room on that disk")
    return Finding("ok", topic, f"{folder}, {free / 1e9:.0f} GB free")
