"""The state of a run on disk: weights, averaged weights and optimizer, in one safetensors file that appears whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.safetensors import TensorFile, write_safetensors
from ..errors import FileProblem

STATE = "state.safetensors"
KINDS = ("weight", "average", "moment", "square")


@dataclass(frozen=True, eq=False)
class Trained:
    """What changes during a run, by parameter name.

    average: of the weights over the steps (EMA), empty where none is kept. moment, square: of the optimizer (AdamW).
    """

    weight: dict[str, nn.Parameter]
    average: dict[str, Tensor]
    moment: dict[str, Tensor]
    square: dict[str, Tensor]

    @classmethod
    def begin(cls, parameters: Mapping[str, nn.Parameter], averaged: bool) -> Trained:
        """The state before the first step."""
        detached = {name: parameter.detach() for name, parameter in parameters.items()}
        return cls(
            weight=dict(parameters),
            average={name: tensor.clone() for name, tensor in detached.items()} if averaged else {},
            moment={name: torch.zeros_like(tensor) for name, tensor in detached.items()},
            square={name: torch.zeros_like(tensor) for name, tensor in detached.items()},
        )

    def save(self, folder: Path, step: int, fingerprint: str) -> None:
        """Write everything to `folder`; `step` is the number of steps that were made."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{kind}.{name}": t.detach() for kind in KINDS for name, t in getattr(self, kind).items()}
        write_safetensors(folder / STATE, tensors, {"step": str(step), "fingerprint": fingerprint})

    def load(self, folder: Path, fingerprint: str) -> int:
        """Take everything from `folder`; the number of steps that were made, 0 where there is no state.

        Raises FileProblem where the state is of another run or damaged.
        """
        path = folder / STATE
        if not path.is_file():
            return 0
        with TensorFile(path, mapped=False) as file, torch.no_grad():
            metadata = file.header.metadata
            if metadata.get("fingerprint") != fingerprint:
                raise FileProblem(
                    f"{path} is the state of a run with another model or other data; give another state folder, or "
                    "delete it to begin anew"
                )
            wanted = {f"{kind}.{name}": t for kind in KINDS for name, t in getattr(self, kind).items()}
            if set(wanted) != set(file.names):
                raise FileProblem(f"{path} does not hold what this run trains; delete it to begin anew")
            for name, tensor in wanted.items():
                tensor.copy_(file.tensor(name))
            return int(metadata["step"])


def fingerprint(*parts: object) -> str:
    """A short digest of what a state must agree with to be gone on from."""
    text = json.dumps([str(part) for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
