"""What a server takes: requests resolved, and everything refused that can be known before a job is made."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from avila_diffusion.errors import AvilaError, FileProblem, ModelNotFound, RequestError, Unsupported
from avila_diffusion.pictures import Picture
from avila_diffusion.server.acceptance import check_unchanged, examine, resolve
from avila_diffusion.server.models import ModelIndex
from avila_diffusion.server.problems import TooLarge
from avila_diffusion.server.settings import Limits, Settings
from avila_diffusion.server.submission import Submission

Try = Callable[..., Any]


def png(width: int = 64, height: int = 64, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def write_lora(path: Path, alias: str | None = None) -> None:
    header: dict[str, Any] = {"lora_unet_x.alpha": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}
    if alias is not None:
        header["__metadata__"] = {"ss_output_name": alias}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))


@pytest.fixture(scope="module")
def index(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> ModelIndex:
    folder = tmp_path_factory.mktemp("models")
    checkpoints = folder / "Stable-diffusion"
    checkpoints.mkdir()
    for family in ("sd1", "sdxl", "sdxl_refiner"):
        (checkpoints / f"{family}.safetensors").write_bytes(tiny_checkpoint(family).read_bytes())
    write_lora(folder / "Lora/ink.safetensors")
    write_lora(folder / "Lora/renamed.safetensors", alias="watercolour")
    found = ModelIndex(str(folder))
    asyncio.run(found.scan())
    return found


@pytest.fixture
def accept(index: ModelIndex, tmp_path: Path) -> Try:
    """resolve, with values as keywords; limits: of the server."""

    def tried(
        model: str | None = "sd1",
        limits: Mapping[str, Any] | None = None,
        vae: str | None = None,
        refiner: str | None = None,
        **values: Any,
    ) -> Any:
        settings = Settings(data=tmp_path, limits=replace(Limits(), **dict(limits or {})))
        asked = Submission(values=values, client="me", model=model, vae=vae, refiner=refiner)
        return examine(asked, index, settings, "procedural")

    return tried


def test_nothing_is_left_open(index: ModelIndex, tmp_path: Path) -> None:
    asked = Submission(values={"prompt": "a hill", "sampler": "k_dpmpp_2m_ka"}, client="me", model="SD1")
    request, using = resolve(asked, index, Settings(data=tmp_path), "procedural")
    assert request.seed is not None and request.seed >= 0 and (request.width, request.height) == (64, 64)
    assert (request.sampler, request.schedule) == ("DPM++ 2M", "Karras")
    assert using.to_dict() == {"model": "sd1.safetensors", "vae": None, "refiner": None}


def test_the_default_model_and_its_recommendations(accept: Try, index: ModelIndex, tmp_path: Path) -> None:
    request, models, _ = accept(model=None)
    assert models.using.model == "procedural" and request.width == 512
    bundled = next((one for one in index.entries() if one.name == "bundled"), None)
    if bundled is None:
        pytest.skip("this copy has no bundled model")
    told = index.facts(bundled).defaults
    request, models, _ = accept(model="bundled", steps=3)
    assert request.guidance_scale == told["guidance_scale"] and request.steps == 3
    assert models.using.model == "bundled"


def test_pictures_come_as_bytes_and_never_by_name(accept: Try, tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(png())
    picture = Picture(png(72, 80))
    for given in (picture, picture.to_json()):
        request, _, _ = accept(image=given)
        assert request.image == picture and (request.width, request.height) == (72, 80)
    for value in (str(tmp_path / "there.png"), png(), 3):
        with pytest.raises(RequestError, match="image must be a table of base64"):
            accept(image=value)
    with pytest.raises(AvilaError):
        accept(image={"base64": "AAAA"})


LIMITED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"pictures": 4}, {"batch": 5}, "is 5 pictures; this server makes at most 4"),
    ({"pictures": 4}, {"batch": 1, "count": 5}, "is 5 pictures; this server makes at most 4"),
    ({"steps": 30}, {"steps": 31}, "steps is 31; this server makes at most 30"),
    ({"steps": 30}, {"hires_scale": 2.0, "hires_steps": 31}, "hires_steps is 31; this server makes at most 30"),
    ({"pixels": 4096}, {"width": 72, "height": 64}, "72x64, 4,608 pixels; this server draws at most 4,096"),
    ({"pixels": 16384}, {"hires_scale": 2.5}, "the second pass would be 160x160, 25,600 pixels"),
    ({"memory": 10**8}, {"width": 512, "height": 512}, "GB, and the server allows 0.10 GB a job"),
]


@pytest.mark.parametrize(("limits", "values", "said"), LIMITED)
def test_every_limit_is_said_with_its_number(
    accept: Try, limits: dict[str, Any], values: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError) as told:
        accept(limits=limits, **values)
    assert said in str(told.value) and "\n" not in str(told.value)


def test_what_is_just_within_the_limits_is_taken(accept: Try) -> None:
    accept(limits={"pictures": 4, "steps": 30, "pixels": 16384}, batch=2, count=2, steps=30, hires_scale=2.0)


def test_large_pictures_are_refused_by_their_heads(accept: Try) -> None:
    bomb = png(4000, 4000, "1")
    assert len(bomb) < 20_000
    for name in ("image", "depth"):
        with pytest.raises(
            TooLarge, match=rf"{name} is 4000x4000, 16,000,000 pixels; this server reads at most 1,000,000"
        ):
            accept(limits={"input_pixels": 1_000_000}, **{name: Picture(bomb)})
    with pytest.raises(RequestError, match="the picture with outpaint would be 2112x2112"):
        accept(limits={"pixels": 2**22}, image=Picture(png()), outpaint=(1024, 1024, 1024, 1024))


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"width": 65}, RequestError, "width 65 is not a multiple of 8"),
        ({"width": 8, "height": 64}, RequestError, "the smallest is 64"),
        ({"refiner_switch": 0.5}, RequestError, "refiner_switch needs a refiner"),
        ({"steps": 0}, RequestError, "steps is 0"),
        ({"sampler": "Eulr"}, RequestError, "unknown sampler"),
        ({"colour": "red"}, RequestError, "unknown field colour"),
        ({"model": "sd9"}, ModelNotFound, "no checkpoint named 'sd9'; the nearest"),
        ({"vae": "soft"}, ModelNotFound, "no VAE named 'soft'"),
        ({"prompt": "a <lora:inc:1>"}, RequestError, "prompt: no LoRA named 'inc'; the nearest: ink"),
        ({"hires_prompt": "<lora:nix>", "hires_scale": 2.0}, RequestError, "hires_prompt: no LoRA named 'nix'"),
        ({"prompt": "<lora:/etc/passwd:1>"}, RequestError, "no LoRA named '/etc/passwd'"),
        ({"prompt": "<lora:../ink:1>"}, RequestError, "no LoRA named"),
        ({"prompt": "<lora:ink:much>"}, RequestError, "expected a number"),
        ({"prompt": "<hypernet:ink:1>"}, Unsupported, "hypernetworks are not supported"),
        ({"model": "procedural", "refiner": "sdxl_refiner"}, RequestError, "refiner needs a model"),
        ({"refiner": "sdxl_refiner"}, RequestError, "cannot refine latents of sd1"),
    ],
)
def test_what_cannot_be_asked(accept: Try, values: dict[str, Any], error: type[AvilaError], said: str) -> None:
    with pytest.raises(error, match=said) as told:
        accept(**values)
    assert "\n" not in str(told.value)


def test_loras_by_the_name_they_were_trained_under(accept: Try) -> None:
    accept(prompt="<lora:watercolour:0.5> a hill <lora:INK>")


def test_the_procedural_generator_draws_text_alone(accept: Try) -> None:
    accept(model="procedural", prompt="<lora:nothing:1> a hill", width=100, height=70)
    with pytest.raises(RequestError, match="image needs a model"):
        accept(model="procedural", image=Picture(png()))


def test_fixed_sizes(accept: Try, index: ModelIndex) -> None:
    if not any(one.name == "bundled" for one in index.entries()):
        pytest.skip("this copy has no bundled model")
    accept(model="bundled", width=500, height=333)
    for values in ({"width": 1024, "height": 128}, {"hires_scale": 2.0}):
        with pytest.raises(RequestError):
            accept(model="bundled", **values)


def test_refiner_and_vae_of_the_same_family(accept: Try) -> None:
    _, models, _ = accept(model="sdxl", refiner="sdxl_refiner", refiner_switch=0.5)
    assert models.using.refiner == "sdxl_refiner.safetensors" and models.refiner_facts is not None
    for own in ("", "None", "Automatic"):
        assert accept(vae=own)[1].using.vae is None


def test_a_default_vae_is_for_users_models_alone(index: ModelIndex, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    with pytest.raises(ModelNotFound):
        resolve(Submission(values={}, client="me", model="sd1"), index, settings, "procedural", "soft")
    for name, vae in (("procedural", None), ("sd1", "none")):
        resolve(Submission(values={}, client="me", model=name, vae=vae), index, settings, "procedural", "soft")


def test_a_changed_file_is_said(index: ModelIndex, tmp_path: Path) -> None:
    _, using = resolve(Submission(values={}, client="me", model="sd1"), index, Settings(data=tmp_path), "procedural")
    check_unchanged(index, using)
    entry = index.find("sd1")
    assert entry.path is not None
    entry.path.touch()
    with pytest.raises(FileProblem, match=r"sd1\.safetensors was changed on disk"):
        check_unchanged(index, using)
    asyncio.run(index.scan())


def test_no_torch(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from avila_diffusion.server.acceptance import resolve\n"
        "from avila_diffusion.server.models import ModelIndex\n"
        "from avila_diffusion.server.settings import Settings\n"
        "from avila_diffusion.server.submission import Submission\n"
        f"index = ModelIndex({str(tmp_path)!r}); asyncio.run(index.scan())\n"
        "for name in [one.name for one in index.entries()]:\n"
        "    resolve(Submission(values={'prompt': 'a AND b'}, client='c', model=name), index, Settings(data=Path()), name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_pixels_that_are_added_to_nothing(accept: Try) -> None:
    """As on the command line: they are left aside, and the run says so."""
    assert accept(outpaint=(1, 2, 3, 4)) is not None


def test_a_second_pass_of_no_size_is_named_by_what_asked_for_it(accept: Try) -> None:
    with pytest.raises(RequestError, match=r"^hires_width asks for a second pass of 1x1: width 0 is too small"):
        accept(width=64, height=64, hires_width=1)
