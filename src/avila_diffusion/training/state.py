"""The state of a run on disk: weights, averaged weights and optimizer, in one safetensors file that appears whole."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.safetensors import TensorFile, write_safetensors
from ..errors import FileProblem, HeaderError, OutputProblem

STATE, LOCK = "state.safetensors", ".lock"
KINDS = ("weight", "average", "moment", "square", "count")
PIECES, PIECE = 16, 65536


@dataclass(frozen=True, eq=False)
class Trained:
    """What changes during a run, by parameter name.

    average: of the weights over the steps (EMA), empty where none is kept. moment, square, count: of the optimizer; count
    is how often a weight was moved, which those that begin later need to know.
    """

    weight: dict[str, nn.Parameter]
    average: dict[str, Tensor]
    moment: dict[str, Tensor]
    square: dict[str, Tensor]
    count: dict[str, Tensor]

    @classmethod
    def begin(cls, parameters: Mapping[str, nn.Parameter], averaged: bool) -> Trained:
        """The state before the first step."""
        detached = {name: parameter.detach() for name, parameter in parameters.items()}
        return cls(
            weight=dict(parameters),
            average={name: tensor.clone() for name, tensor in detached.items()} if averaged else {},
            moment={name: torch.zeros_like(tensor) for name, tensor in detached.items()},
            square={name: torch.zeros_like(tensor) for name, tensor in detached.items()},
            count={name: torch.zeros(()) for name in detached},
        )

    def save(self, folder: Path, step: int, fingerprint: str) -> None:
        """Write everything to `folder`; `step` is the number of steps that were made."""
        tensors = {f"{kind}.{name}": t.detach() for kind in KINDS for name, t in getattr(self, kind).items()}
        write_safetensors(folder / STATE, tensors, {"step": str(step), "fingerprint": fingerprint})

    def load(self, folder: Path, fingerprint: str) -> int:
        """Take everything from `folder`; the number of steps that were made, 0 where there is no state.

        An average that the state has not begins as the weights. Raises FileProblem where the state is of another run or
        damaged; nothing is taken then.
        """
        path = folder / STATE
        if not path.is_file():
            return 0
        try:
            with TensorFile(path, mapped=False) as file:
                return self._take(file, path, fingerprint)
        except (HeaderError, KeyError, ValueError):
            raise FileProblem(f"{path} is damaged; delete {folder} to begin anew") from None

    @torch.no_grad()
    def _take(self, file: TensorFile, path: Path, fingerprint: str) -> int:
        metadata = file.header.metadata
        if metadata["fingerprint"] != fingerprint:
            raise FileProblem(
                f"{path} is the state of a run with another model, optimizer or data; give another state folder, or delete "
                "it to begin anew"
            )
        entries = file.header.entries
        wanted = {f"{kind}.{name}": t for kind in KINDS for name, t in getattr(self, kind).items()}
        found = {name: tensor for name, tensor in wanted.items() if name in entries}
        lacking = [name for name in wanted if name not in entries and not name.startswith("average.")]
        if lacking or any(entries[name].shape != tuple(tensor.shape) for name, tensor in found.items()):
            raise FileProblem(f"{path} does not hold what this run trains; delete it to begin anew")
        for name, tensor in found.items():
            tensor.copy_(file.tensor(name))
        for name, average in self.average.items():
            if f"average.{name}" not in entries:
                average.copy_(self.weight[name])
        return int(metadata["step"])


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it for one run; the lock goes with the process. Raises where another run has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    except (OSError, ValueError) as error:
        raise OutputProblem(f"the state folder {folder} cannot be used: {error}; choose another") from None
    try:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FileProblem(f"another run is using {folder}; wait for it, or give another state folder") from None
        yield
    finally:
        os.close(descriptor)


def fingerprint(*parts: object) -> str:
    """A short digest of what a state must agree with to be gone on from."""
    text = json.dumps([str(part) for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sample_file(path: Path) -> str:
    """A digest of a file's size and of pieces all over it, quick for any size; of a folder, of its safetensors files."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            for piece in range(PIECES):
                stream.seek(piece * max(size - PIECE, 0) // (PIECES - 1))
                digest.update(stream.read(PIECE))
    return digest.hexdigest()


def sample_weights(network: nn.Module) -> str:
    """A digest of all parameters."""
    digest = hashlib.sha256()
    for parameter in network.parameters():
        digest.update(parameter.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
