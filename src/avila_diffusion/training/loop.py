"""The loop that trains anything: steps, learning rate, averaged weights, history, sample sheets, state, stopping."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checkpoint.safetensors import replacing
from ..device import DTYPES
from ..errors import Cancelled, NotFinite
from .curves import write_curve
from .optimizers import optimize
from .settings import LoopSettings
from .state import Trained, held

HISTORY, CURVE = "history.jsonl", "loss.png"
LOG_EVERY = 20


class Task(Protocol):
    """What is trained, and on what."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, float32, by names that are the same in every run."""

    @property
    def fingerprint(self) -> str:
        """Of the model and the data: a state of another one is refused."""

    def loss(self, step: int) -> dict[str, Tensor]:
        """The losses of one batch, scalars; "loss" is the one that is minimised. A function of step and weights only."""

    def sheet(self, path: Path) -> None:
        """Write a picture that shows what the weights can do by now."""

    def export(self, path: Path) -> None:
        """Write what people will use."""


@dataclass(frozen=True)
class Report:
    """One line of the history: the step that was made, from 1, mean losses since the last one, and the rate."""

    step: int
    of: int
    losses: Mapping[str, float]
    learning_rate: float
    items_per_second: float
    seconds_per_step: float


@dataclass(eq=False)
class Trainer:
    """Trains a task, keeping its state in `folder` and writing the result to `out`.

        for report in Trainer(task, settings, folder, out).run():
            print(report.step, report.losses)

    A run that was stopped or killed goes on from the last kept state to the very bits of an undisturbed one, on the
    same machine with the same number of threads: batches and noise are functions of seed and step.
    """

    task: Task
    settings: LoopSettings
    folder: Path
    out: Path
    step: int = field(default=0, init=False)
    _history: list[dict[str, float]] = field(default_factory=list, init=False)

    def run(self, cancel: threading.Event | None = None) -> Iterator[Report]:
        """Train to the end, a Report every few steps; set `cancel` to keep the state and stop with Cancelled.

        `step` is how many steps were made, also in runs before. Raises NotFinite where the loss is no number any more; the
        last state that was kept stays.
        """
        with held(self.folder):
            yield from self._run(cancel)

    def _run(self, cancel: threading.Event | None) -> Iterator[Report]:
        settings, task = self.settings, self.task
        trained = Trained.begin(task.parameters, averaged=settings.ema > 0)
        step = self.step = kept = trained.load(self.folder, task.fingerprint)
        self._load_history(step)
        ends = math.inf if settings.minutes is None else time.monotonic() + 60 * settings.minutes
        window = _Window(settings.batch)
        with training_kernels():
            while step < settings.steps and time.monotonic() < ends:
                if cancel is not None and cancel.is_set():
                    self._keep(trained, step)
                    raise Cancelled(f"stopped after step {step:,}; the same command goes on from there")
                window.add(self._step(trained, step))
                step = self.step = step + 1
                last = step == settings.steps
                if last or step % LOG_EVERY == 0:
                    report = window.close(step, settings)
                    self._history.append({"step": step, "learning_rate": report.learning_rate, **report.losses})
                    yield report
                if last or step % settings.keep_every == 0:
                    self._keep(trained, step)
                    kept = step
                if last or step % settings.sample_every == 0:
                    self._show(trained, step)
        if kept != step:
            self._keep(trained, step)
        with averaged(trained):
            task.export(self.out)

    def _step(self, trained: Trained, step: int) -> dict[str, float]:
        settings = self.settings
        losses = self.task.loss(step)
        parameters = list(trained.weight.values())
        gradients = torch.autograd.grad(losses["loss"], parameters, allow_unused=True)
        pairs = zip(trained.weight.items(), gradients, strict=True)
        moved = {name: _laid_out_as(p, g) for (name, p), g in pairs if g is not None}
        kept = list(moved.values())
        norm = torch.nn.utils.get_total_norm(kept)
        values = {name: float(loss.detach()) for name, loss in losses.items()} | {"gradient": float(norm)}
        if not all(map(math.isfinite, values.values())):
            raise NotFinite(f"the loss is not finite at step {step + 1:,}; lower train.learning_rate, or use float32")
        if settings.clip:
            torch._foreach_mul_(kept, min(settings.clip / (float(norm) + 1e-6), 1.0))
        optimize(trained, moved, step, settings)
        if settings.ema:
            update_average(trained, step, settings.ema)
        return values

    def _keep(self, trained: Trained, step: int) -> None:
        trained.save(self.folder, step, self.task.fingerprint)
        lines = "".join(json.dumps(row) + "\n" for row in self._history)
        with replacing(self.folder / HISTORY) as partial:
            partial.write_text(lines, encoding="utf-8", newline="\n")

    def _load_history(self, step: int) -> None:
        path = self.folder / HISTORY
        if path.is_file():
            rows = []
            with suppress(ValueError):  # what a damaged file still tells
                for line in path.read_text(encoding="utf-8").split("\n"):
                    rows.append(json.loads(line))
            self._history = [row for row in rows if isinstance(row, dict) and row.get("step", step + 1) <= step]

    def _show(self, trained: Trained, step: int) -> None:
        write_curve(self.folder / CURVE, self._history)
        with averaged(trained), torch.no_grad():
            self.task.sheet(self.folder / f"sheet-{step:07d}.png")


@dataclass
class _Window:
    """Losses since the last report."""

    batch: int
    rows: list[dict[str, float]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add(self, losses: dict[str, float]) -> None:
        self.rows.append(losses)

    def close(self, step: int, settings: LoopSettings) -> Report:
        means = {name: sum(row[name] for row in self.rows) / len(self.rows) for name in self.rows[0]}
        each = (time.monotonic() - self.began) / len(self.rows)
        self.rows, self.began = [], time.monotonic()
        return Report(step, settings.steps, means, settings.rate(step - 1), self.batch / max(each, 1e-9), each)


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the memory layout of its parameter: the fused optimizer walks both by address, not by index."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


@torch.no_grad()
def update_average(trained: Trained, step: int, decay: float) -> None:
    """average += (1 - d) (weight - average), d rising from 0.1 to `decay` so that first weights are soon forgotten."""
    d = min(decay, (1 + step) / (10 + step))
    names = list(trained.average)
    torch._foreach_lerp_([trained.average[n] for n in names], [trained.weight[n].detach() for n in names], 1.0 - d)


@contextmanager
def averaged(trained: Trained) -> Iterator[None]:
    """The averaged weights in place of the trained ones, where they are kept."""
    kept = {name: trained.weight[name].detach().clone() for name in trained.average}
    with torch.no_grad():
        for name, average in trained.average.items():
            trained.weight[name].copy_(average)
        try:
            yield
        finally:
            for name, weight in kept.items():
                trained.weight[name].copy_(weight)


@contextmanager
def training_kernels() -> Iterator[None]:
    """Attention by plain matrix products: the processor's fused kernel is three times as slow backwards."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def compute_dtype(settings: LoopSettings) -> torch.dtype:
    """The dtype that networks compute in."""
    return DTYPES[settings.precision]
