"""The public interface, called as users call it, with a model and without."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from avila_diffusion import AvilaDiffusion, AvilaError, GenerateRequest, GenerateResult, Image, Progress
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.errors import Cancelled, DeviceProblem, ModelNotFound, RequestError
from avila_diffusion.infotext import read
from avila_diffusion.limits import MAX_SEED
from avila_diffusion.options import GenerateOptions, PictureOptions, RunOptions, SizedOptions
from avila_diffusion.pictures import Picture

SOURCE = Path(__file__).resolve().parent.parent / "src"
TinyCheckpoint = Callable[[str], Path]


@pytest.fixture(autouse=True)
def quiet_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, which tiny networks like best, and a cache of our own."""
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RequestError) as caught:
        call()
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, AvilaError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model(tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    diffusion = AvilaDiffusion.with_model(tiny_checkpoint("sd1"), steps=2)
    image = diffusion.text_to_image("a beautiful sunset over mountains", "ugly, blurry", 96, 64)
    assert image.save_png("output.png") == [Path("output.png")]
    assert isinstance(image, GenerateResult) and len(image) == 1 and isinstance(image[0], Image)
    pixels = image.to_numpy()
    assert pixels.shape == (64, 96, 3) and pixels.dtype == np.uint8
    with PIL.Image.open("output.png") as saved:
        saved.load()
        assert (np.asarray(saved) == pixels).all()
        assert saved.size == image.to_pil().size == (96, 64)
        parsed = read(saved.info["parameters"])
    assert (parsed.prompt, parsed.negative_prompt) == ("a beautiful sunset over mountains", "ugly, blurry")
    assert (parsed.fields["Steps"], parsed.fields["Seed"]) == ("2", str(image.seed))
    assert diffusion.report is not None and diffusion.report.family == "sd1"
    assert image.report is diffusion.report


def test_a_model_by_its_name(tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.safetensors").write_bytes(tiny_checkpoint("sd1").read_bytes())
    monkeypatch.setenv("AVILA_MODELS", str(tmp_path / "models"))
    result = AvilaDiffusion.with_model("mine", mmap=False).text_to_image("a cat", steps=1)
    assert read(result[0].infotext or "").fields["Model"] == "mine"
    assert result.to_pil().size == (64, 64)  # the model's own size


def test_two_engines_of_one_file_agree(tiny_checkpoint: TinyCheckpoint) -> None:
    options: dict[str, Any] = {"steps": 2, "seed": 0, "sampler": "Euler a"}
    first, second = (AvilaDiffusion.with_model(tiny_checkpoint("sd1"), **options) for _ in range(2))
    made = [diffusion.text_to_image("a cat").to_numpy().tobytes() for diffusion in (first, second, first)]
    assert len(set(made)) == 1


def test_parts_given_separately(tiny_checkpoint: TinyCheckpoint) -> None:
    path = tiny_checkpoint("sd1")
    diffusion = AvilaDiffusion.with_model(path, vae=path, text_encoder=path, prediction="v", dtype="bfloat16", steps=1)
    assert diffusion.report is not None and diffusion.report.prediction == "v"
    result = AvilaDiffusion.with_model(path, text_encoder=[path], steps=1).text_to_image("a cat")
    assert len(result) == 1


def test_how_the_file_is_read(tiny_checkpoint: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(path: Path, **options: Any) -> Model:
        asked.append(options["mapped"])
        return load_model(path, **options)

    monkeypatch.setattr("avila_diffusion.checkpoint.load.load_model", load)
    AvilaDiffusion.with_model(tiny_checkpoint("sd1"))
    AvilaDiffusion.with_model(tiny_checkpoint("sd1"), mmap=False)
    assert asked == [True, False]


def test_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    diffusion = AvilaDiffusion()
    assert diffusion.report is None
    assert diffusion.text_to_image("sunset", None, 512, 512).save_png("a.png") == [Path("a.png")]
    with PIL.Image.open("a.png") as saved:
        assert saved.size == (512, 512)
        assert read(saved.info["parameters"]).prompt == "sunset"


PHOTO = Picture.of(np.random.default_rng(1).integers(0, 256, (48, 80, 3), np.uint8), "image")
MASK = Picture.of(np.pad(np.full((16, 16), 20, np.uint8), ((16, 16), (32, 32)), constant_values=255), "mask")
OPTIONS: list[dict[str, Any]] = [
    {"seed": 5, "steps": 2, "sampler": "DPM2 a", "schedule": "Exponential", "guidance_scale": 2.5, "batch": 2, "count": 2,
     "clip_skip": 2, "rng": "cpu", "eta": 0.5, "ensd": 1, "sigma_min": 0.05, "sigma_max": 9.0, "s_noise": 1.01,
     "seed_width": 64, "seed_height": 64, "ngms": 1.0, "ngms_all": True},
    {"seed": 5, "steps": 3, "sampler": "Euler", "schedule": "Karras", "batch": 2, "rho": 5.0, "s_churn": 1.0, "s_tmin": 0.1,
     "s_tmax": 5.0, "variation_seed": 8, "variation_strength": 0.5, "guidance_list": (7.0, 20.0), "guidance_rescale": 0.7,
     "guidance_stop": 0.5, "skip_early": 0.2, "emphasis": "No norm"},
    {"seed": 5, "batch": 2, "compat": "comfyui", "sigmas": (9.0, 2.0, 0.0), "noise_batch": 4, "noise_index": 1,
     "guidance_start": 0.4},
    {"seed": 5, "steps": 3, "sampler": "Euler", "image": PHOTO, "mask": MASK, "strength": 0.6, "exact_steps": True,
     "extra_noise": 0.2, "noise_multiplier": 0.8, "mask_blur": 2.0, "mask_invert": True, "mask_soft": True,
     "masked_content": "noise", "inpaint_area": "masked", "mask_padding": 3, "tiling": "x"},
    {"seed": 5, "steps": 2, "image": PHOTO, "outpaint": (16, 0, 0, 8)},
    {"seed": 5, "steps": 2, "image": PHOTO, "resize_mode": "crop"},
    {"seed": 5, "steps": 2, "hires_scale": 1.5, "hires_upscaler": "Nearest", "hires_steps": 3, "hires_sampler": "Heun",
     "hires_schedule": "Karras", "hires_prompt": "dog", "hires_negative_prompt": "blue", "hires_guidance_scale": 3.0},
    {"seed": 5, "steps": 2, "hires_width": 96, "hires_height": 88},
]  # fmt: skip
SEEDS = ([5, 6, 7, 8], [5, 5], [5, 5], [5], [5], [5], [5], [5])
OF_OTHER_MODELS = {"depth", "image_guidance_scale", "mask_weight", "refiner_switch", "refiner_by"}
"""Tested where there are such models, in tests/pipeline."""


def test_every_option_is_a_keyword() -> None:
    names = {field.name for field in fields(GenerateRequest)} - {"prompt", "negative_prompt"}
    assert set(GenerateOptions.__annotations__) == names
    assert set(PictureOptions.__annotations__) == names - {"width", "height"}
    assert set(RunOptions.__annotations__) == names - {"width", "height", "image", "mask"}
    assert set(SizedOptions.__annotations__) == names - {"image", "mask"}
    assert set().union(*OPTIONS) == set(PictureOptions.__annotations__) - OF_OTHER_MODELS


@pytest.mark.parametrize(("options", "seeds"), list(zip(OPTIONS, SEEDS, strict=True)))
def test_every_option_arrives(options: dict[str, Any], seeds: list[int], tiny_checkpoint: TinyCheckpoint) -> None:
    diffusion = AvilaDiffusion.with_model(tiny_checkpoint("sd1"))
    result = diffusion.text_to_image("a cat", "rain", 72, 64, **options)
    wanted = {"prompt": "a cat", "negative_prompt": "rain", "width": 72, "height": 64, **options}
    assert {name: getattr(result.request, name) for name in wanted} == wanted
    assert [image.seed for image in result] == seeds
    # and are not passed over: without it the picture is another
    plain = {"image", "mask", "hires_scale", "hires_width", "hires_height", "outpaint", "inpaint_area"}
    plain |= {"seed", "batch", "count", "sampler", "schedule", "compat", "steps", "s_tmin", "seed_width", "seed_height"}
    for name in sorted(set(options) - plain - {"noise_batch", "ngms_all", "variation_seed", "clip_skip", "emphasis"}):
        rest = {
            key: value
            for key, value in options.items()
            if key != name and (key, name) != ("noise_batch", "noise_index")
        }
        other = diffusion.text_to_image("a cat", "rain", 72, 64, **rest)
        assert any((one.pixels != two.pixels).any() for one, two in zip(result, other, strict=True)), name


def test_defaults_are_overruled_by_the_call() -> None:
    diffusion = AvilaDiffusion(width=80, height=72, seed=3, steps=7, batch=2)
    assert diffusion.text_to_image("a cat").request == GenerateRequest(
        prompt="a cat", width=80, height=72, seed=3, steps=7, batch=2, rng="nv"
    )
    request = diffusion.text_to_image("a cat", None, 64, seed=4, batch=1).request
    assert (request.width, request.height, request.seed, request.steps, request.batch) == (64, 72, 4, 7, 1)
    assert diffusion.text_to_image("a cat", width=None, height=None, batch=1).to_pil().size == (80, 72)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"nonsense": 1}, "^unknown field nonsense; the fields are batch, "),
    ({"guidance": 7, "cfg": 7}, "^unknown field cfg, guidance; the fields are "),
    ({"steps": 0}, "^steps is 0; it must be from 1 to 1,000$"),
    ({"steps": "20"}, "^steps must be a whole number, not '20'$"),
    ({"seed": MAX_SEED + 1}, "^seed is 18,446,744,073,709,551,616; "),
    ({"sampler": "Eular"}, "^unknown sampler 'Eular'; the nearest: Euler"),
    ({"rng": "tpu"}, "^rng 'tpu' is unknown"),
    ({"eta": -1}, "^eta is -1; it must be from 0 to 10$"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_bad_options(options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "missing.safetensors"  # not looked for: the options come first
    for call in (
        lambda: AvilaDiffusion().text_to_image("a cat", None, 64, 64, **options),
        lambda: AvilaDiffusion(**options),
        lambda: AvilaDiffusion.with_model(missing, **options),
    ):
        with pytest.raises(RequestError, match=words):
            call()


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_prompts_are_no_defaults(name: str) -> None:
    options: dict[str, Any] = {name: "a cat"}
    assert refusal(lambda: AvilaDiffusion(**options)) == f"unknown option {name}; text_to_image takes the prompts"


@pytest.mark.parametrize("prompts", [(None,), (5,), ("a", 0), ("a", b"b"), ("a", False)])
def test_prompts_are_text(prompts: Any) -> None:
    assert "prompt must be text, not " in refusal(lambda: AvilaDiffusion().text_to_image(*prompts))


@pytest.mark.parametrize("size", [(0, 64), (64, 0), ("64", 64), (64.0, 64), (9000, 64), (8192, 8192), (True, 64)])
def test_bad_sizes(size: Any) -> None:
    assert refusal(lambda: AvilaDiffusion().text_to_image("a", None, *size))


def test_a_models_sizes(tiny_checkpoint: TinyCheckpoint) -> None:
    diffusion = AvilaDiffusion.with_model(tiny_checkpoint("sd1"), steps=1)
    assert "496 or 504" in refusal(lambda: diffusion.text_to_image("a cat", None, 500, 64))


def test_what_cannot_be_loaded(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    path = tiny_checkpoint("sd1")
    (tmp_path / "text.safetensors").write_text("not a checkpoint", encoding="utf-8")
    threads = torch.get_num_threads()
    cases: list[tuple[dict[str, Any], type[AvilaError]]] = [
        ({"path": tmp_path / "missing.safetensors"}, ModelNotFound),
        ({"path": tmp_path / "text.safetensors", "threads": threads + 1}, AvilaError),
        ({"path": path, "vae": "missing.safetensors"}, ModelNotFound),
        ({"path": path, "prediction": "x0"}, RequestError),
        ({"path": path, "device": "tpu"}, RequestError),
        ({"path": path, "dtype": "int8"}, RequestError),
        ({"path": path, "threads": 0}, RequestError),
        ({"path": path, "threads": 1025}, RequestError),
        ({"path": path, "threads": 1.5}, RequestError),
    ]
    if not torch.cuda.is_available():
        cases.append(({"path": path, "device": "cuda", "threads": threads + 1}, DeviceProblem))
    for options, kind in cases:
        with pytest.raises(kind) as caught:
            AvilaDiffusion.with_model(**options)
        assert "\n" not in str(caught.value)
        assert torch.get_num_threads() == threads


def test_threads(tiny_checkpoint: TinyCheckpoint) -> None:
    AvilaDiffusion.with_model(tiny_checkpoint("sd1"), threads=2)
    assert torch.get_num_threads() == 2
    AvilaDiffusion.with_model(tiny_checkpoint("sd1"))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("with_model", [True, False])
def test_events_and_cancelling(with_model: bool, tiny_checkpoint: TinyCheckpoint) -> None:
    diffusion = AvilaDiffusion.with_model(tiny_checkpoint("sd1")) if with_model else AvilaDiffusion()
    request = GenerateRequest(prompt="a cat", width=64, height=64, steps=2, count=2, seed=1)
    *events, result = diffusion.generate(request)
    assert all(isinstance(event, Progress) for event in events)
    assert isinstance(result, GenerateResult) and len(result) == 2
    cancel = threading.Event()
    run = diffusion.generate(request, cancel=cancel)
    next(run)
    cancel.set()
    with pytest.raises(Cancelled):
        next(run)
    with pytest.raises(StopIteration):
        next(run)


def test_a_request_is_refused_when_it_is_given() -> None:
    assert "takes a GenerateRequest, not str" in refusal(lambda: AvilaDiffusion().generate("a cat"))  # type: ignore[arg-type]


def test_an_engine_without_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    diffusion = AvilaDiffusion()
    monkeypatch.setattr(diffusion, "generate", lambda request: iter(()))
    with pytest.raises(AvilaError, match="without a result"):
        diffusion.text_to_image("a cat")


def test_a_request_is_run_as_it_is() -> None:
    request = GenerateRequest(prompt="a cat", width=64, height=64, seed=1)
    diffusion = AvilaDiffusion(steps=7, width=72, seed=9)
    *_, result = diffusion.generate(request)
    assert isinstance(result, GenerateResult)
    assert result.request == replace(request, rng="nv")


def run_python(program: str, folder: Path) -> None:
    env = dict(os.environ, PYTHONPATH=str(SOURCE))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_loads_next_to_nothing(tmp_path: Path) -> None:
    program = """
import sys
before = set(sys.modules)
import avila_diffusion
loaded = {name for name in set(sys.modules) - before if name.startswith("avila_diffusion")}
assert loaded == {"avila_diffusion", "avila_diffusion.version"}, loaded
heavy = {"torch", "numpy", "PIL", "scipy", "safetensors", "tqdm", "dataclasses", "inspect", "typing_extensions"}
assert not (heavy & set(sys.modules)) - before, heavy & set(sys.modules)
assert avila_diffusion.__all__ == sorted(avila_diffusion.__all__, key=lambda name: (name[0].islower() or name[0] == "_", name))
assert "AvilaDiffusion" not in vars(avila_diffusion)
from avila_diffusion import *
assert AvilaDiffusion and GenerateRequest and __version__
assert "torch" not in sys.modules
"""
    run_python(program, tmp_path)


def test_a_procedural_picture_loads_no_torch(tmp_path: Path) -> None:
    program = """
import sys
from avila_diffusion import AvilaDiffusion
AvilaDiffusion().text_to_image("sunset", None, 64, 64).save_png("a.png")
assert "torch" not in sys.modules
"""
    run_python(program, tmp_path)
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize("options", [{"vae": 5}, {"text_encoder": 5}, {"text_encoder": [5]}, {"prediction": 5}])
def test_parts_of_odd_types_are_refused(options: Any, tiny_checkpoint: Any) -> None:
    with pytest.raises(RequestError):
        AvilaDiffusion.with_model(tiny_checkpoint("sd1"), **options)


@pytest.mark.parametrize("path", [None, 5, b"model.safetensors"])
def test_a_model_of_an_odd_type_is_refused(path: Any) -> None:
    with pytest.raises(RequestError, match="a path or a name"):
        AvilaDiffusion.with_model(path)


def test_a_file_replaced_after_loading_lends_no_hash(tiny_checkpoint: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny_checkpoint("sd1").read_bytes())
    diffusion = AvilaDiffusion.with_model(path, steps=1)
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny_checkpoint("sd2").read_bytes())
    other.replace(path)
    infotext = diffusion.text_to_image("a cat", None, 64, 64)[0].infotext
    assert infotext is not None
    assert "Model: model" in infotext
    assert "Model hash" not in infotext


def test_embeddings_by_name(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    torch.save({"string_to_param": {"*": torch.ones(2, 64)}}, folder / "sks.pt")
    path = tiny_checkpoint("sd1")
    given: dict[str, Any] = {"seed": 1, "steps": 1}
    plain = AvilaDiffusion.with_model(path, device="cpu").text_to_image("a sks", **given)
    for embeddings in (folder, [str(folder)]):
        diffusion = AvilaDiffusion.with_model(path, device="cpu", embeddings=embeddings)
        result = diffusion.text_to_image("a sks", **given)
        assert "TI hashes" in str(result[0].infotext) and "TI hashes" not in str(plain[0].infotext)
        assert (result.to_numpy() != plain.to_numpy()).any()
    with pytest.raises(AvilaError, match="is no folder"):
        AvilaDiffusion.with_model(path, embeddings=tmp_path / "nowhere")
