"""What a picture of a model says about how it was made, and the hashes, which keep no run waiting."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from avila_diffusion.checkpoint.load import load_model
from avila_diffusion.checkpoint.safetensors import write_safetensors
from avila_diffusion.device import choose_policy
from avila_diffusion.errors import Cancelled, FileProblem
from avila_diffusion.hashes import FileHash, hash_in_background
from avila_diffusion.infotext import Parsed, read
from avila_diffusion.pipeline import engine as engine_module
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult
from avila_diffusion.version import __version__

State = dict[str, Tensor]
PROMPT = "a cat, two hats\nand: a (quiet) dog"


def ask(**options: Any) -> GenerateRequest:
    values: dict[str, Any] = {"prompt": PROMPT, "width": 72, "height": 64, "steps": 1, "sampler": "Euler", "seed": 7}
    return GenerateRequest(**{**values, **options})


def told(result: GenerateResult) -> list[Parsed]:
    return [read(image.infotext or "") for image in result]


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def test_every_picture_says_how_it_was_made(make_engine: Any, finish: Any) -> None:
    engine: ModelEngine = make_engine()
    request = ask(batch=2, count=2, negative_prompt="rain, snow", sampler="DPM++ 2M Karras", guidance_scale=4.5)
    for index, parsed in enumerate(told(finish(engine.generate(request)))):
        assert (parsed.prompt, parsed.negative_prompt) == (PROMPT, "rain, snow")
        assert parsed.fields == {
            "Steps": "1",
            "Sampler": "DPM++ 2M",
            "Schedule type": "Karras",
            "CFG scale": "4.5",
            "Seed": str(7 + index),
            "Size-1": "72",
            "Size-2": "64",
            "Model hash": sha(engine.model.path),
            "Model": "tiny_sd1",
            "Version": f"avila_diffusion {__version__}",
        }


def test_what_is_told_only_where_it_differs(make_engine: Any, finish: Any) -> None:
    engine = make_engine()
    request = ask(clip_skip=2, rng="cpu", sampler="Euler a", eta=0.5, steps=2)
    (parsed,) = told(finish(engine.generate(request)))
    assert {name: parsed.fields[name] for name in ("Clip skip", "RNG", "Eta")} == {
        "Clip skip": "2", "RNG": "CPU", "Eta": "0.5",
    }  # fmt: skip
    (parsed,) = told(finish(engine.generate(ask(clip_skip=1))))
    assert not {"Clip skip", "RNG", "Eta", "VAE", "VAE hash"} & set(parsed.fields)


def test_the_drawn_seed_is_told(make_engine: Any, finish: Any) -> None:
    result = finish(make_engine().generate(ask(seed=None)))
    assert told(result)[0].fields["Seed"] == str(result.seed)


def test_a_vae_of_its_own(make_engine: Any, finish: Any, tiny_state: Callable[[str], State], tmp_path: Path) -> None:
    prefix = "first_stage_model."
    weights = {k.removeprefix(prefix): -v for k, v in tiny_state("sd1").items() if k.startswith(prefix)}
    path = tmp_path / "other.vae.safetensors"
    write_safetensors(path, weights, {})
    plain = make_engine()
    engine = ModelEngine.of(load_model(plain.model.path, vae=path), plain.policy)
    result = finish(engine.generate(ask()))
    fields = told(result)[0].fields
    assert (fields["VAE"], fields["VAE hash"]) == ("other.vae.safetensors", sha(path))
    assert (fields["Model"], fields["Model hash"]) == ("tiny_sd1", sha(plain.model.path))
    assert (result.to_numpy() != finish(plain.generate(ask())).to_numpy()).any()


@pytest.fixture
def copy(make_engine: Any, tmp_path: Path) -> ModelEngine:
    """An engine of a file that may be deleted."""
    path = Path(shutil.copy(make_engine().model.path, tmp_path / "my.model v1.safetensors"))
    return ModelEngine.of(load_model(path, mapped=False), choose_policy("cpu"))


def test_the_file_goes_away_before_the_run(copy: ModelEngine, finish: Any) -> None:
    copy.model.path.unlink()
    (parsed,) = told(finish(copy.generate(ask())))
    assert parsed.fields["Model"] == "my.model v1"
    assert "Model hash" not in parsed.fields


def test_the_file_goes_away_during_the_run(copy: ModelEngine, finish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(error=FileProblem("gone"))
    monkeypatch.setattr(engine_module, "hash_in_background", lambda path: slow)
    run = copy.generate(ask())
    next(run)
    copy.model.path.unlink()
    slow.ready.set()
    (parsed,) = told(finish(run))
    assert parsed.fields["Model"] == "my.model v1"
    assert "Model hash" not in parsed.fields


def test_a_folder_has_no_hash(make_engine: Any, finish: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stable-diffusion-v1.5"
    folder.mkdir()
    monkeypatch.chdir(folder)
    plain = make_engine()
    for path in (folder, Path()):
        engine = ModelEngine.of(replace(plain.model, path=path), plain.policy)
        fields = told(finish(engine.generate(ask())))[0].fields
        assert fields["Model"] == "stable-diffusion-v1.5"
        assert "Model hash" not in fields


class Slow:
    """A hash that is ready when it is told to be."""

    def __init__(self, value: str = "0123456789abcdef", error: FileProblem | None = None) -> None:
        self.ready, self.waited = threading.Event(), threading.Event()
        self.value, self.error = value, error

    def done(self) -> bool:
        return self.ready.is_set()

    def result(self, timeout: float | None = None) -> str:
        self.waited.set()
        if not self.ready.wait(timeout):
            raise TimeoutError
        if self.error is not None:
            raise self.error
        return self.value

    def short(self, timeout: float | None = None) -> str:
        return self.result(timeout)[:10]


def test_the_hash_is_begun_first_and_waited_for_last(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, slow, begun = make_engine(), Slow(), list[Path]()

    def begin(path: Path) -> Slow:
        begun.append(path)
        return slow

    monkeypatch.setattr(engine_module, "hash_in_background", begin)
    run = engine.generate(ask(steps=3))
    assert begun == []
    stages = []
    for event in run:
        assert begun == [engine.model.path]
        if isinstance(event, GenerateResult):
            break
        assert not slow.waited.is_set()
        stages.append(event.stage)
        if event.stage == "decode":
            threading.Timer(0.05, slow.ready.set).start()
    assert stages == ["text", *["sample"] * 4, "decode"]
    assert isinstance(event, GenerateResult)
    assert told(event)[0].fields["Model hash"] == "0123456789"


def test_waiting_for_a_hash_can_be_cancelled(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, slow, cancel = make_engine(), Slow(), threading.Event()
    monkeypatch.setattr(engine_module, "hash_in_background", lambda path: slow)

    def set_when_waited_for() -> None:
        assert slow.waited.wait(60)
        cancel.set()
        time.sleep(10)  # a run that did not notice ends all the same
        slow.ready.set()

    threading.Thread(target=set_when_waited_for, daemon=True).start()
    with pytest.raises(Cancelled):
        list(engine.generate(ask(), cancel))
    assert slow.waited.is_set() and not slow.ready.is_set()


def test_a_file_is_hashed_once(make_engine: Any, finish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, begun = make_engine(), list[Path]()

    def begin(path: Path) -> FileHash:
        begun.append(path)
        return hash_in_background(path)

    monkeypatch.setattr(engine_module, "hash_in_background", begin)
    hashes = {told(finish(engine.generate(ask(seed=seed))))[0].fields["Model hash"] for seed in range(3)}
    assert hashes == {sha(engine.model.path)}
    assert len(begun) == 1
