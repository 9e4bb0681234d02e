"""Each field of AUTOMATIC1111's bodies, and what it becomes."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import PIL.Image
import pytest

from avila_diffusion.errors import AvilaError, FileProblem, ModelNotFound
from avila_diffusion.pictures import Picture
from avila_diffusion.request import GenerateRequest
from avila_diffusion.server.models import NO_MODEL, ModelIndex
from avila_diffusion.server.problems import NotAllowed, NotOffered
from avila_diffusion.server.sdapi.fields import InvalidBody
from avila_diffusion.server.sdapi.init_images import NoInitImage
from avila_diffusion.server.sdapi.mapping import Asked, Route, read_asked
from avila_diffusion.server.sdapi.options import KNOWN, Options
from avila_diffusion.server.service import Service
from avila_diffusion.server.settings import Limits, Settings

STYLES = 'name,prompt,negative_prompt\nink,"ink drawing of {prompt}",photo\nsoft,soft light,\n'


@dataclass
class Desk:
    """As much of the service as reading a body looks at."""

    settings: Settings
    models: ModelIndex
    default_model: str = "dream.safetensors"
    default_vae: str | None = None


@pytest.fixture(scope="module")
def desk_of_module(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("models")
    for name in ("Stable-diffusion/dream.safetensors", "Stable-diffusion/sub/other.safetensors", "VAE/soft.safetensors",
                 "VAE/other.vae.safetensors"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 8)
    (folder / "styles.csv").write_text(STYLES, encoding="utf-8")
    index = ModelIndex(str(folder))
    asyncio.run(index.scan())
    settings = Settings(data=folder, models_dir=str(folder), limits=Limits(input_pixels=64 * 64))
    return Desk(settings, index)


@pytest.fixture
def desk(desk_of_module: Desk) -> Desk:
    return Desk(desk_of_module.settings, desk_of_module.models)


def read(desk: Desk, route: Route, body: dict[str, Any], options: Options | None = None) -> Asked:
    service = cast(Service, desk)
    return read_asked(route, body, options or Options(service), service)


def png(width: int = 24, height: int = 16, mode: str = "RGB") -> str:
    buffer = io.BytesIO()
    PIL.Image.new(mode, (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PLAIN = {
    "steps": 50,
    "guidance_scale": 7.0,
    "width": 512,
    "height": 512,
    "sampler": "Euler",
    "schedule": "Automatic",
}

TEXT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"prompt": "a hill", "negative_prompt": "fog"}, {"prompt": "a hill", "negative_prompt": "fog"}),
    ({"steps": "7", "cfg_scale": 4, "batch_size": 2, "n_iter": 3},
     {"steps": 7, "guidance_scale": 4.0, "batch": 2, "count": 3}),
    ({"width": 519, "height": 64}, {"width": 512, "height": 64}),
    ({"width": 60}, {"width": 60}),
    ({"seed": 5}, {"seed": 5}),
    ({"seed": -1}, {"seed": None}),
    ({"seed": -7}, {"seed": None}),
    ({"subseed": 9, "subseed_strength": 0.25}, {"variation_seed": 9, "variation_strength": 0.25}),
    ({"subseed": -1, "subseed_strength": 0.25}, {"variation_seed": None, "variation_strength": 0.25}),
    ({"subseed": 9, "subseed_strength": 0}, {}),
    ({"seed_resize_from_w": 640, "seed_resize_from_h": 480}, {"seed_width": 640, "seed_height": 480}),
    ({"seed_resize_from_w": 0, "seed_resize_from_h": 480}, {}),
    ({"sampler_name": "DPM++ 2M Karras"}, {"sampler": "DPM++ 2M", "schedule": "Karras"}),
    ({"sampler_name": "DPM++ 2M Karras", "scheduler": "exponential"}, {"sampler": "DPM++ 2M", "schedule": "Karras"}),
    ({"sampler_name": "k_euler_a", "scheduler": "SGM Uniform"}, {"sampler": "Euler a", "schedule": "SGM Uniform"}),
    ({"sampler_name": "Euler a", "scheduler": "KARRAS"}, {"sampler": "Euler a", "schedule": "Karras"}),
    ({"sampler_name": None, "sampler_index": "Heun"}, {"sampler": "Heun"}),
    ({"sampler_name": "LMS", "sampler_index": "Heun"}, {"sampler": "LMS"}),
    ({"scheduler": "automatic"}, {}),
    ({"scheduler": ""}, {}),
    ({"tiling": True}, {"tiling": "both"}),
    ({"tiling": False}, {"tiling": "none"}),
    ({"sampler_name": "Euler a", "eta": 0.5, "s_noise": 1.01}, {"sampler": "Euler a", "eta": 0.5, "s_noise": 1.01}),
    ({"sampler_name": "Euler a", "eta": 1.0, "s_noise": 1}, {"sampler": "Euler a"}),
    ({"eta": 1.0}, {}),
    ({"sampler_name": "DDIM", "eta": 1.0}, {"sampler": "DDIM", "eta": 1.0}),
    ({"s_churn": 5, "s_tmin": 0.1, "s_tmax": 0}, {"s_churn": 5.0, "s_tmin": 0.1}),
    ({"s_churn": 0, "s_tmin": 0.1, "s_tmax": 9, "s_noise": 1.1}, {}),
    ({"s_min_uncond": 1.5}, {"ngms": 1.5}),
    ({"denoising_strength": 0.4}, {}),
    ({"enable_hr": True, "denoising_strength": 0.4},
     {"hires_scale": 2.0, "hires_upscaler": "Latent", "strength": 0.4}),
    ({"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "lanczos", "hr_second_pass_steps": 5},
     {"hires_scale": 1.5, "hires_upscaler": "Lanczos", "hires_steps": 5}),
    ({"enable_hr": True, "hr_resize_x": 768}, {"hires_width": 768, "hires_upscaler": "Latent"}),
    ({"enable_hr": True, "hr_resize_x": 768, "hr_resize_y": 700, "hr_scale": 3},
     {"hires_width": 768, "hires_height": 700, "hires_upscaler": "Latent"}),
    ({"enable_hr": True, "hr_sampler_name": "DPM++ 2M Karras", "hr_scheduler": "beta"},
     {"hires_scale": 2.0, "hires_upscaler": "Latent", "hires_sampler": "DPM++ 2M", "hires_schedule": "Karras"}),
    ({"enable_hr": True, "hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler",
      "hr_checkpoint_name": "Use same checkpoint"}, {"hires_scale": 2.0, "hires_upscaler": "Latent"}),
    ({"enable_hr": True, "hr_checkpoint_name": "dream"}, {"hires_scale": 2.0, "hires_upscaler": "Latent"}),
    ({"enable_hr": True, "hr_prompt": "a hill, near", "hr_negative_prompt": "fog"},
     {"hires_scale": 2.0, "hires_upscaler": "Latent", "hires_prompt": "a hill, near", "hires_negative_prompt": "fog"}),
    ({"enable_hr": True, "firstphase_width": 256, "firstphase_height": 200, "width": 512, "height": 400},
     {"width": 256, "height": 200, "hires_width": 512, "hires_height": 400, "hires_upscaler": "Latent"}),
    ({"enable_hr": False, "hr_scale": 2, "hr_upscaler": "nonsense", "hr_sampler_name": "nonsense"}, {}),
    ({"styles": ["ink", "soft"], "prompt": "a hill"},
     {"prompt": "ink drawing of a hill, soft light", "negative_prompt": "photo"}),
    ({"prompt": "a <lora:ink:0.5>hill"}, {"prompt": "a <lora:ink:0.5>hill"}),
    ({"prompt": "a <lora:ink:0.5>hill", "disable_extra_networks": True}, {"prompt": "a hill"}),
    ({"url": "http://elsewhere", "auth": "user:secret", "unheard_of": [1], "comments": {"a": 1}}, {}),
    ({"do_not_save_samples": True, "do_not_save_grid": True, "firstpass_image": None}, {}),
    ({"refiner_checkpoint": "None", "refiner_switch_at": 0.8}, {}),
    ({"refiner_checkpoint": "sub/other", "refiner_switch_at": 0.6}, {"refiner_switch": 0.6}),
    ({"refiner_switch_at": 30}, {}),
    ({"override_settings": {"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 31337, "randn_source": "CPU"}},
     {"clip_skip": 2, "ensd": 31337, "rng": "cpu"}),
    ({"override_settings": {"randn_source": "nv", "unheard_of": 1, "s_churn": 0}}, {"rng": "nv"}),
    ({"override_settings": {"s_churn": 3, "skip_early_cond": 0.2, "rho": 5, "emphasis": "no norm"}},
     {"s_churn": 3.0, "skip_early": 0.2, "rho": 5.0, "emphasis": "No norm"}),
    ({"override_settings": {"eta_ancestral": 0.5, "eta_ddim": 0.3}, "sampler_name": "DDIM"},
     {"sampler": "DDIM", "eta": 0.3}),
    ({"override_settings": {"eta_ancestral": 0.5}, "sampler_name": "Euler a", "eta": 0.2},
     {"sampler": "Euler a", "eta": 0.2}),
    ({"override_settings": {"tiling": True, "s_min_uncond": 1, "s_min_uncond_all": True}},
     {"tiling": "both", "ngms": 1.0, "ngms_all": True}),
    ({"override_settings": {"sd_hypernetwork": "None", "token_merging_ratio": 0}}, {}),
]  # fmt: skip

START: dict[str, Any] = {"resize_mode": "resize"}
MASKED: dict[str, Any] = START | {
    "mask_blur": 4.0,
    "mask_invert": False,
    "mask_soft": False,
    "masked_content": "fill",
    "inpaint_area": "masked",
    "mask_padding": 0,
}
IMAGE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, START),
    ({"denoising_strength": 0.3}, START | {"strength": 0.3}),
    ({"resize_mode": 3, "image_cfg_scale": 2}, {"resize_mode": "latent", "image_guidance_scale": 2.0}),
    ({"resize_mode": "1"}, {"resize_mode": "crop"}),
    ({"resize_mode": 2, "initial_noise_multiplier": 0.9}, {"resize_mode": "fill", "noise_multiplier": 0.9}),
    ({"mask_blur": 7, "inpainting_fill": 1}, START),
    ({"mask": png(mode="L")}, MASKED),
    ({"mask": png(mode="L"), "mask_blur": 7, "inpainting_fill": 2, "inpaint_full_res": False},
     MASKED | {"mask_blur": 7.0, "masked_content": "noise", "inpaint_area": "whole"}),
    ({"mask": png(mode="L"), "mask_blur_x": 6, "mask_blur_y": 6, "inpainting_fill": 3},
     MASKED | {"mask_blur": 6.0, "masked_content": "nothing"}),
    ({"mask": png(mode="L"), "inpaint_full_res_padding": 32, "inpainting_mask_invert": 1, "mask_round": False},
     MASKED | {"mask_padding": 32, "mask_invert": True, "mask_soft": True}),
    ({"mask": ""}, START),
    ({"override_settings": {"img2img_extra_noise": 0.1, "initial_noise_multiplier": 0.8, "img2img_fix_steps": True,
                            "inpainting_mask_weight": 0.5}},
     START | {"extra_noise": 0.1, "noise_multiplier": 0.8, "exact_steps": True}),
    ({"enable_hr": True, "hr_scale": 2}, START),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), TEXT, ids=lambda value: str(value)[:60])
def test_text_to_image(desk: Desk, body: dict[str, Any], expected: dict[str, Any]) -> None:
    values = read(desk, "txt2img", body).values
    assert {name: value for name, value in values.items() if value is not None or name in expected} == PLAIN | expected
    GenerateRequest.from_dict(values)


@pytest.mark.parametrize(("body", "expected"), IMAGE, ids=lambda value: str(value)[:60])
def test_image_to_image(desk: Desk, body: dict[str, Any], expected: dict[str, Any]) -> None:
    values = read(desk, "img2img", {"init_images": [png()]} | body).values
    picture = values.pop("image")
    assert isinstance(picture, Picture)
    assert picture.size == (24, 16)
    mask = values.pop("mask", None)
    assert (mask is not None) == bool(body.get("mask"))
    assert values == PLAIN | expected
    GenerateRequest.from_dict({**values, "image": picture} | ({} if mask is None else {"mask": mask}))


def test_pictures_come_with_or_without_a_prefix(desk: Desk) -> None:
    bodies = (png(), f"data:image/png;base64,{png()}")
    pictures = [read(desk, "img2img", {"init_images": [body]}).values["image"] for body in bodies]
    assert pictures[0] == pictures[1]


WRONG: list[tuple[Route, dict[str, Any], type[AvilaError], str]] = [
    ("txt2img", {"sampler_name": "Eulr"}, InvalidBody, "unknown sampler 'Eulr'; the nearest: Euler"),
    ("txt2img", {"sampler_index": "Eulr"}, InvalidBody, "unknown sampler 'Eulr'"),
    ("txt2img", {"scheduler": "karas"}, InvalidBody, "unknown schedule 'karas'; the nearest: Karras"),
    ("txt2img", {"restore_faces": True}, NotOffered, "restore_faces is not built here"),
    ("txt2img", {"script_name": "x/y/z plot"}, InvalidBody, "there are no scripts here"),
    ("txt2img", {"firstpass_image": "aGk="}, InvalidBody, "firstpass_image is not taken here"),
    ("txt2img", {"styles": ["oil"]}, InvalidBody, "there is no style 'oil'; known: ink, soft"),
    ("txt2img", {"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, InvalidBody, "'R-ESRGAN 4x[+]'; there are Latent"),
    ("txt2img", {"enable_hr": True, "hr_scale": 0.5}, InvalidBody, "hr_scale is 0.5; it must be from 1 to 8"),
    ("txt2img", {"enable_hr": True, "hr_sampler_name": "x"}, InvalidBody, "unknown sampler 'x'"),
    ("txt2img", {"enable_hr": True, "hr_scheduler": "x"}, InvalidBody, "unknown schedule 'x'"),
    ("txt2img", {"enable_hr": True, "hr_checkpoint_name": "other"}, InvalidBody, "the first one's model here"),
    ("txt2img", {"enable_hr": True, "hr_checkpoint_name": "zzz"}, ModelNotFound, "zzz"),
    ("txt2img", {"refiner_checkpoint": "other", "refiner_switch_at": 20}, InvalidBody, "refiner_switch_at is 20"),
    ("txt2img", {"override_settings": {"sd_model_checkpoint": "drem"}}, ModelNotFound, "dream.safetensors"),
    ("txt2img", {"override_settings": {"sd_vae": "zzz"}}, ModelNotFound, "zzz"),
    ("txt2img", {"override_settings": {"randn_source": "TPU"}}, InvalidBody, "it is one of GPU, CPU, NV"),
    ("txt2img", {"override_settings": {"samples_format": "gif"}}, InvalidBody, "it is one of png, jpg, jpeg, webp"),
    ("txt2img", {"override_settings": {"CLIP_stop_at_last_layers": 13}}, InvalidBody, "it must be from 1 to 12"),
    ("txt2img", {"override_settings": {"token_merging_ratio": 0.5}}, InvalidBody, "token_merging_ratio 0.5 is not built"),
    ("txt2img", {"infotext": "a\nSteps: many, Sampler: Euler, Seed: 1"}, InvalidBody, "Steps in the picture's metadata"),
    ("txt2img", {"infotext": "a\nSteps: 5, Sampler: Euler, Seed: 1, Model hash: 0123456789"}, ModelNotFound, "0123456789"),
    ("img2img", {}, NoInitImage, "Init image not found"),
    ("img2img", {"init_images": []}, NoInitImage, "Init image not found"),
    ("img2img", {"init_images": [""]}, NoInitImage, "Init image not found"),
    ("img2img", {"init_images": [png(), png()]}, InvalidBody, "one is taken here"),
    ("img2img", {"init_images": ["!!!"]}, AvilaError, "init_images"),
    ("img2img", {"init_images": [base64.b64encode(b"hello").decode()]}, FileProblem, "init_images"),
    ("img2img", {"init_images": [png(65, 64)]}, AvilaError, "init_images"),
    ("img2img", {"init_images": ["http://127.0.0.1/a.png"]}, NotAllowed, "base64"),
    ("img2img", {"init_images": [png()], "mask": "zzz"}, AvilaError, "mask"),
    ("img2img", {"init_images": [png()], "mask": png(), "mask_blur_x": 2}, InvalidBody, "mask_blur_x is 2 and mask_blur_y 4"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "kind", "line"), WRONG, ids=lambda value: str(value)[:50])
def test_what_cannot_be_done_is_said(
    desk: Desk, route: Route, body: dict[str, Any], kind: type[AvilaError], line: str
) -> None:
    with pytest.raises(kind, match=line) as caught:
        read(desk, route, body)
    assert "\n" not in str(caught.value)
    assert str(desk.settings.models_dir) not in str(caught.value)


INFOTEXT = (
    "a hill <lora:ink:0.5>\nNegative prompt: fog\nSteps: 12, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, "
    "Seed: 99, Size: 640x448, Model: other, VAE: soft, Clip skip: 2, RNG: CPU"
)


def test_an_infotext_stands_under_the_body(desk: Desk) -> None:
    asked = read(desk, "txt2img", {"infotext": INFOTEXT, "steps": 6, "negative_prompt": "", "seed": -1})
    assert asked.values == {
        "prompt": "a hill <lora:ink:0.5>",
        "negative_prompt": "",
        "steps": 6,
        "sampler": "DPM++ 2M",
        "schedule": "Karras",
        "guidance_scale": 5.0,
        "seed": None,
        "width": 640,
        "height": 448,
        "clip_skip": 2,
        "rng": "cpu",
    }
    assert (asked.settled.model, asked.settled.vae) == ("sub/other.safetensors", "soft.safetensors")


def test_override_settings_stand_over_an_infotext(desk: Desk) -> None:
    overrides = {"CLIP_stop_at_last_layers": 1, "randn_source": "GPU", "sd_vae": "None", "sd_model_checkpoint": "dream"}
    asked = read(desk, "txt2img", {"infotext": INFOTEXT, "override_settings": overrides, "sampler_name": "Euler"})
    assert not {"clip_skip", "rng"} & set(asked.values)
    assert (asked.values["sampler"], asked.values["schedule"]) == ("Euler", "Automatic")
    assert (asked.settled.model, asked.settled.vae) == ("dream.safetensors", "None")


TOLD = (
    "a\nSteps: 5, Sampler: Euler, Seed: 1, Variation seed: 7, Variation seed strength: 0.2, Seed resize from: 320x256, "
    "Refiner: other, Refiner switch at: 0.6, Refiner switch by sampling steps: True"
)


def test_what_a_body_says_goes_before_an_infotext_also_where_it_is_nothing(desk: Desk) -> None:
    told = {
        "variation_seed": 7,
        "variation_strength": 0.2,
        "seed_width": 320,
        "seed_height": 256,
        "refiner_switch": 0.6,
    }
    asked = read(desk, "txt2img", {"infotext": TOLD})
    assert asked.values | told | {"refiner_by": "step"} == asked.values
    assert asked.refiner == "other"
    for body, gone in (
        ({"subseed_strength": 0}, ["variation_seed", "variation_strength"]),
        ({"seed_resize_from_w": 0}, ["seed_width", "seed_height"]),
        ({"seed_resize_from_h": -1}, ["seed_width", "seed_height"]),
        ({"refiner_checkpoint": "None"}, ["refiner_switch", "refiner_by"]),
        ({"refiner_switch_at": 1}, ["refiner_switch", "refiner_by"]),
        ({"override_settings": {"refiner_switch_by_sample_steps": False}}, ["refiner_by"]),
    ):
        asked = read(desk, "txt2img", {"infotext": TOLD} | body)
        assert {*told, "refiner_by"} - set(asked.values) == set(gone), body
        assert asked.refiner == (None if "refiner_switch" in gone else "other")
    changes: list[tuple[dict[str, Any], str, Any]] = [
        ({"subseed": 9}, "variation_seed", 9),
        ({"subseed": -1}, "variation_seed", None),
        ({"subseed_strength": 0.5}, "variation_strength", 0.5),
        ({"seed_resize_from_w": 640}, "seed_width", 640),
        ({"refiner_switch_at": 0.3}, "refiner_switch", 0.3),
    ]
    for change, name, value in changes:
        assert read(desk, "txt2img", {"infotext": TOLD} | change).values[name] == value


def test_the_model_of_an_infotext(desk: Desk, tmp_path: Path) -> None:
    text = "a\nSteps: 5, Sampler: Euler, Seed: 1, Model hash: 0123456789"
    assert read(desk, "txt2img", {"infotext": f"{text}, Model: other"}).settled.model == "sub/other.safetensors"
    with pytest.raises(ModelNotFound, match="zzz"):
        read(desk, "txt2img", {"infotext": f"{text}, Model: zzz"})
    (tmp_path / "Stable-diffusion").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"Stable-diffusion/{name}.safetensors").write_text(name, encoding="utf-8")
    index = ModelIndex(str(tmp_path))
    asyncio.run(index.scan())
    index.hash(index.find("two"))
    end = time.monotonic() + 10
    while (digest := index.find("two").short_hash) is None and time.monotonic() < end:
        time.sleep(0.01)
    renamed = Desk(desk.settings, index, "one")
    text = f"a\nSteps: 5, Sampler: Euler, Seed: 1, Model hash: {digest}, Model: one"
    assert read(renamed, "txt2img", {"infotext": text}).settled.model == "two.safetensors"


def test_no_image_cfg_scale_is_no_guidance_by_the_picture(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelIndex, "facts", lambda index, entry: dataclasses.replace(NO_MODEL, variant="pix2pix"))
    told = "a\nSteps: 5, Sampler: Euler, Seed: 1, Image CFG scale: 2.5"
    for body, scale in (
        ({}, 1.0),
        ({"image_cfg_scale": None}, 1.0),
        ({"image_cfg_scale": 1.5}, 1.5),
        ({"infotext": told}, 2.5),
    ):
        asked = read(desk, "img2img", {"init_images": [png()]} | body)
        assert asked.values["image_guidance_scale"] == scale
    assert "image_guidance_scale" not in read(desk, "txt2img", {}).values


def test_pictures_are_kept_for_the_answer_only_where_they_are_asked_for(desk: Desk) -> None:
    body = {"init_images": [png()], "mask": png(mode="L")}
    for included in (False, True):
        asked = read(desk, "img2img", body | {"include_init_images": included})
        assert (asked.body["init_images"] is not None, asked.body["mask"] is not None) == (included, included)
        assert {"image", "mask"} <= set(asked.values)


def test_an_infotext_of_a_second_pass(desk: Desk) -> None:
    second = "Denoising strength: 0.4, Hires upscale: 1.5, Hires steps: 3, Hires upscaler: Latent"
    text = f"a\nSteps: 5, Sampler: Euler, Seed: 1, {second}"
    passes = {"hires_scale": 1.5, "hires_steps": 3, "hires_upscaler": "Latent"}
    told = read(desk, "txt2img", {"infotext": text}).values
    assert told | passes | {"strength": 0.4} == told
    told = read(desk, "txt2img", {"infotext": text, "enable_hr": True, "hr_upscaler": "None"}).values
    assert told | passes | {"hires_upscaler": "None"} == told
    told = read(desk, "txt2img", {"infotext": text, "enable_hr": True, "hr_resize_x": 700}).values
    assert (told["hires_width"], told["hires_scale"], told["hires_steps"]) == (700, None, 3)
    assert not {*passes, "strength"} & set(read(desk, "txt2img", {"infotext": text, "enable_hr": False}).values)
    assert not {*passes} & set(read(desk, "img2img", {"infotext": text, "init_images": [png()]}).values)


def test_models_by_any_name(desk: Desk) -> None:
    for name in ("dream", "DREAM.safetensors", "dream.safetensors [0123456789]"):
        overrides = {"sd_model_checkpoint": name}
        assert read(desk, "txt2img", {"override_settings": overrides}).settled.model == "dream.safetensors"
    asked = read(desk, "txt2img", {"refiner_checkpoint": "sub/other.safetensors [0123456789]"})
    assert asked.refiner == "sub/other.safetensors [0123456789]"


@pytest.mark.parametrize(
    ("model", "vae", "expected"),
    [
        ("dream", None, "None"),
        ("dream", "Automatic", "None"),
        ("dream", "none", "None"),
        ("other", "", "other.vae.safetensors"),
        ("dream", "soft", "soft.safetensors"),
        ("other", None, "other.vae.safetensors"),
        ("other", "automatic", "other.vae.safetensors"),
        ("other", "None", "None"),
    ],
)
def test_the_vae_that_is_meant(desk: Desk, model: str, vae: str | None, expected: str) -> None:
    overrides = {"sd_model_checkpoint": model, "sd_vae": vae}
    assert read(desk, "txt2img", {"override_settings": overrides}).settled.vae == expected


def test_options_hold_until_they_are_set_again(desk: Desk) -> None:
    options = Options(cast(Service, desk))
    before = options.shown()
    assert before["sd_model_checkpoint"] == "dream.safetensors"
    assert set(KNOWN) <= set(before)
    options.change({"CLIP_stop_at_last_layers": "2", "sd_vae": "soft", "sd_model_checkpoint": "other", "odd": [1]})
    told = options.shown()
    assert (told["CLIP_stop_at_last_layers"], told["odd"], told["sd_vae"]) == (2, [1], "soft.safetensors")
    assert (desk.default_model, desk.default_vae) == ("sub/other.safetensors", "soft.safetensors")
    asked = read(desk, "txt2img", {}, options)
    assert (asked.values["clip_skip"], asked.settled.model, asked.settled.vae) == (2, "sub/other.safetensors", None)
    overridden = read(desk, "txt2img", {"override_settings": {"CLIP_stop_at_last_layers": 1}}, options)
    assert "clip_skip" not in overridden.values
    options.change(before)
    assert options.shown() == before | {"odd": [1]}
    assert desk.default_vae is None


def test_wrong_options_change_nothing(desk: Desk) -> None:
    options = Options(cast(Service, desk))
    before = options.shown()
    for body, kind in (
        ({"odd": 1, "CLIP_stop_at_last_layers": 99}, InvalidBody),
        ({"odd": 1, "sd_model_checkpoint": "zzz"}, ModelNotFound),
        ({"odd": 1, "sd_vae": "zzz"}, ModelNotFound),
        ({"odd": "x" * 200_000}, AvilaError),
    ):
        with pytest.raises(kind):
            options.change(body)
        with pytest.raises(kind):
            options.check(body)
    options.check({"odd": 1, "sd_vae": "soft", "sd_model_checkpoint": "other", "CLIP_stop_at_last_layers": 2})
    assert options.shown() == before
    options.change({"sd_vae": ""})
    assert options.shown() == before


def test_no_styles_file(desk: Desk, tmp_path: Path) -> None:
    bare = Desk(Settings(data=tmp_path, models_dir=str(tmp_path / "none")), desk.models)
    with pytest.raises(InvalidBody, match="there is no style 'ink'; known: none"):
        read(bare, "txt2img", {"styles": ["ink"]})
