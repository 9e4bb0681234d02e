"""An engine that draws flat pictures, in the place of the real one, so that the command line is tested by itself."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult, Progress


@dataclass
class FlatImage:
    """A picture that is only its file."""

    text: str
    infotext: str = ""

    def save_png(self, path: str | Path) -> Path:
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(self.text, encoding="utf-8")
        return temporary.replace(path)


class FlatReport:
    """A load report of two lines."""

    def lines(self) -> list[str]:
        return ["a flat model", "with nothing in it"]

    def to_dict(self) -> dict[str, Any]:
        return {"family": "flat"}


@dataclass
class FlatEngine:
    """Records what it was asked; `fail` is raised at step `fail_at` of the run `fail_run`."""

    model: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    requests: list[GenerateRequest] = field(default_factory=list)
    report: FlatReport | None = None
    size: int = 512
    fail: BaseException | None = None
    fail_run: int = 0
    fail_at: int = 2
    models: str | Path | None = None

    def look_in(self, models: str | Path | None) -> None:
        self.models = models

    def request(self, prompt: str, negative_prompt: str = "", **options: Any) -> GenerateRequest:
        return GenerateRequest(prompt=prompt, negative_prompt=negative_prompt, **{**self.defaults, **options})

    def generate(self, request: GenerateRequest, *, cancel: Any = None) -> Iterator[Progress | GenerateResult]:
        run = len(self.requests)
        self.requests.append(request)
        request = request.resolved(512)
        for index in range(request.batch):
            yield Progress(stage="text", image=index, images=request.batch, step=0, of=request.steps)
            for step in range(1, request.steps + 1):
                if self.fail is not None and run == self.fail_run and step == self.fail_at:
                    raise self.fail
                yield Progress(stage="sample", image=index, images=request.batch, step=step, of=request.steps)
        images: Any = tuple(FlatImage(f"{request.prompt} {seed}", f"Seed: {seed}") for seed in request.seeds)
        yield GenerateResult(images, request, 0.5, self.report)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FlatEngine:
    """The engine that the commands will find, in an empty current folder."""
    flat = FlatEngine()

    class Factory:
        """Stands for `AvilaDiffusion`."""

        def __new__(cls) -> Any:
            return flat

        @staticmethod
        def with_model(path: Path, **options: Any) -> FlatEngine:
            flat.model, flat.options, flat.report = Path(path), options, FlatReport()
            return flat

    def find_model(text: str, role: str = "checkpoint", models: str | None = None) -> Path:
        return Path(models or "found") / role / text

    install(monkeypatch, "avila_diffusion.api", AvilaDiffusion=Factory)

    def find_lora(name: str, models: str | None = None) -> Path:
        return find_model(name, "lora", models)

    install(monkeypatch, "avila_diffusion.checkpoint.folders", find_model=find_model)
    install(monkeypatch, "avila_diffusion.checkpoint.lora.find", find_lora=find_lora)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AVILA_DEBUG", raising=False)
    return flat


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Put a module of these members where `from name import member` finds it."""
    module = types.ModuleType(name)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)
