"""Under which conditions a run computes: what must be the same for the same bits, and what can be taken over."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from .. import kernels
from ..checkpoint.embeddings import Embedding
from ..checkpoint.load import Model
from ..checkpoint.lora.apply import LoraReport
from ..device import MAX_THREADS, Policy
from ..errors import AvilaError, JournalProblem
from ..hashes import hash_in_background
from ..kernels import native
from ..machine import processor_name
from ..version import __version__

MEANINGS = {
    "avila_diffusion": "version of avila_diffusion",
    "torch": "version of torch",
    "numpy": "version of numpy",
    "device": "device",
    "dtypes": "dtypes",
    "threads": "number of threads",
    "kernels": "choice of kernels",
    "capability": "instruction set",
    "processor": "processor",
    "byte_order": "byte order",
    "matmul": "precision of matrix products",
}


def conditions(policy: Policy) -> dict[str, Any]:
    """What the bits of a run depend on beside request and files, as it is in this process."""
    device = policy.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "avila_diffusion": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "device": str(device),
        "dtypes": [str(kind).removeprefix("torch.") for kind in (policy.unet, policy.vae, policy.text)],
        "threads": torch.get_num_threads(),
        "kernels": _choice_of_kernels(device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": name,
        "byte_order": sys.byteorder,
        "matmul": torch.get_float32_matmul_precision(),
    }


def _choice_of_kernels(device: torch.device) -> str:
    """ "torch"; or "avila", which alone means what torch's operations were rearranged to; or that with what was built."""
    if not kernels.ENABLED:
        return "torch"
    return (native.identity() if device.type == "cpu" else None) or "avila"


TOLD = ("avila_diffusion", "torch", "device", "dtypes", "threads", "kernels", "capability")
"""Conditions that stand in a picture's record. Not the machine's name, which is nobody's business."""


def told_conditions(policy: Policy) -> dict[str, Any]:
    """The conditions that a picture tells."""
    found = conditions(policy)
    return {name: found[name] for name in TOLD}


def take_over(recorded: object) -> None:
    """Compute with as many threads and with the kernels that were recorded, in this whole process.

    Of kernels in C there are those of this machine and no others: `differences` tells where they are not the same.
    """
    found = recorded if isinstance(recorded, dict) else {}
    threads = found.get("threads")
    if isinstance(threads, int) and 1 <= threads <= MAX_THREADS:
        torch.set_num_threads(threads)
    kernels.ENABLED = found.get("kernels") != "torch"


def differences(recorded: object, now: Mapping[str, Any]) -> list[str]:
    """Which conditions are otherwise than recorded, in words."""
    found = recorded if isinstance(recorded, dict) else {}
    return [
        f"the {meaning} is {_shown(now[name])}, recorded was {_shown(found.get(name))}"
        for name, meaning in MEANINGS.items()
        if found.get(name) != now[name]
    ]


def _shown(value: object) -> str:
    text = ", ".join(map(str, dict.fromkeys(value))) if isinstance(value, list) else str(value)
    return " ".join(text.split())[:80]


def files_of(
    models: Iterable[Model], loras: Iterable[LoraReport], embeddings: Iterable[Embedding] = ()
) -> list[dict[str, Any]]:
    """The files that a run was made of: path, size, time, and the sha256 where that is known already.

    Raises FileProblem where an embedding's file went away.
    """
    found = [_file(path, size, time) for model in models for path, (size, time) in model.stamps.items()]
    found += [_file(lora.path, lora.size, lora.mtime_ns, lora=True) for lora in loras]
    known = {file["path"] for file in found}  # a LoRA may bring embeddings along
    words = {one.path: one for one in embeddings if str(one.path.absolute()) not in known}
    return found + [_embedding(word) for word in words.values()]


def _embedding(word: Embedding) -> dict[str, Any]:
    """These are small: their hash is always known."""
    digest = word.hash
    status = word.path.stat()
    stamp = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}
    return {"path": str(word.path.absolute()), **stamp, "lora": False, "embedding": True}


def _file(path: Path, size: int, mtime_ns: int, *, lora: bool = False) -> dict[str, Any]:
    known = hash_in_background(path, tensors_only=lora)
    if not known.done():
        known.cancel()  # a journal does not wait for gigabytes to be read
    try:
        digest = known.result(timeout=0)
    except (AvilaError, TimeoutError):
        digest = None
    return {"path": str(path.absolute()), "size": size, "mtime_ns": mtime_ns, "sha256": digest, "lora": lora}


def check_files(recorded: object, moved: Mapping[str, Path]) -> None:
    """Raise JournalProblem unless every recorded file is still there and the same.

    moved: where files lie now, by the path that they had. By size and time, else by their hash, where that was recorded.
    """
    try:
        for file in recorded if isinstance(recorded, list) else []:
            _check_file(Path(moved.get(file["path"], Path(file["path"]))), file, moved=file["path"] in moved)
    except (KeyError, TypeError, AttributeError):
        raise JournalProblem("the journal does not say of which files its model was made; it cannot be used") from None


def _check_file(path: Path, recorded: Mapping[str, Any], *, moved: bool) -> None:
    beside = recorded["lora"] or recorded.get("embedding")  # which -m does not name
    way_out = "put the recorded file back" if beside else "put the recorded file back, or say where it is with -m"
    try:
        status = path.stat()
    except (OSError, ValueError):
        raise JournalProblem(f"{path}, of which the run was made, is not there; {way_out}") from None
    if status.st_size == recorded["size"]:
        if not moved and status.st_mtime_ns == recorded["mtime_ns"]:
            return
        if recorded["sha256"] is not None:
            if hash_in_background(path, tensors_only=recorded["lora"]).result() == recorded["sha256"]:
                return
        elif moved and status.st_mtime_ns == recorded["mtime_ns"]:
            return
    raise JournalProblem(f"{path} is not the file that the run was made of: it has changed since; {way_out}")
