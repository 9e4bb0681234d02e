"""webuiapi, a client from PyPI that was written for AUTOMATIC1111, drives the server: each of its calls that is built here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import PIL.Image
import pytest
import webuiapi

from .conftest import Served

SMALL = {"width": 64, "height": 64, "steps": 2, "cfg_scale": 2, "seed": 5}


@pytest.fixture
def api(served: Served) -> Iterator[Any]:
    made = webuiapi.WebUIApi(host="127.0.0.1", port=served.port, sampler="Euler", steps=2)
    yield made
    made.session.close()


@pytest.fixture
def picture() -> PIL.Image.Image:
    return PIL.Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def test_text_to_image(api: Any) -> None:
    made = api.txt2img(prompt="a hill", negative_prompt="fog", styles=["ink"], **SMALL)
    assert made.image.size == (64, 64)
    assert made.image.format == "PNG"
    info = made.info
    assert (info["prompt"], info["negative_prompt"]) == ("ink drawing of a hill", "fog, photo")
    assert (info["seed"], info["all_seeds"], info["styles"]) == (5, [5], ["ink"])
    assert info["infotexts"][0] == made.image.info["parameters"]
    assert (info["sampler_name"], info["steps"], info["cfg_scale"]) == ("Euler", 2, 2.0)
    assert info["sd_model_name"] == "tiny"
    assert info["extra_generation_params"]["Schedule type"]
    assert made.parameters["prompt"] == "a hill"
    again = api.txt2img(prompt="a hill", negative_prompt="fog", styles=["ink"], **SMALL)
    assert again.json["images"] == made.json["images"]


def test_several_pictures(api: Any) -> None:
    made = api.txt2img(prompt="a hill", batch_size=2, n_iter=2, **SMALL)
    assert len(made.images) == 4
    assert made.info["all_seeds"] == [5, 6, 7, 8]
    assert made.info["index_of_first_image"] == 0
    assert len({image.tobytes() for image in made.images}) == 4
    alone = api.txt2img(prompt="a hill", **SMALL | {"seed": 7})
    assert alone.image.tobytes() == made.images[2].tobytes()


def test_variations(api: Any) -> None:
    made = api.txt2img(prompt="a hill", n_iter=2, subseed=9, subseed_strength=0.5, **SMALL)
    assert (made.info["all_seeds"], made.info["all_subseeds"]) == ([5, 5], [9, 10])
    assert made.info["subseed_strength"] == 0.5


def test_a_second_pass(api: Any) -> None:
    made = api.txt2img(
        prompt="a hill",
        enable_hr=True,
        hr_scale=2,
        hr_upscaler=webuiapi.HiResUpscaler.Latent,
        hr_second_pass_steps=2,
        **SMALL,
    )
    assert made.image.size == (128, 128)
    assert made.info["denoising_strength"] == 0.7
    assert made.info["extra_generation_params"]["Hires upscale"] == "2"


def test_image_to_image(api: Any, picture: PIL.Image.Image) -> None:
    made = api.img2img(images=[picture], prompt="a hill", denoising_strength=0.5, **SMALL)
    assert made.image.size == (64, 64)
    assert made.info["denoising_strength"] == 0.5
    assert made.parameters["init_images"] is None
    shown = api.img2img(images=[picture], prompt="a hill", include_init_images=True, **SMALL)
    assert len(shown.parameters["init_images"]) == 1


def test_inpainting_keeps_what_is_not_masked(api: Any, picture: PIL.Image.Image) -> None:
    mask = PIL.Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 24))
    made = api.img2img(
        images=[picture],
        mask_image=mask,
        mask_blur=0,
        inpainting_fill=1,
        inpaint_full_res=False,
        prompt="a hill",
        **SMALL,
    )
    below = (0, 24, 64, 64)
    assert made.image.convert("RGB").crop(below).tobytes() == picture.crop(below).tobytes()
    assert made.image.convert("RGB").tobytes() != picture.tobytes()


def test_other_formats_and_no_pictures(api: Any) -> None:
    for name, kind in (("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")):
        made = api.txt2img(prompt="a hill", override_settings={"samples_format": name}, **SMALL)
        assert made.image.format == kind
    made = api.txt2img(prompt="a hill", send_images=False, **SMALL)
    assert made.images == []
    assert made.info["all_seeds"] == [5]


def test_extras(api: Any, picture: PIL.Image.Image) -> None:
    made = api.extra_single_image(picture, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=2.5)
    assert made.image.size == (160, 160)
    assert "Postprocess upscaler: Lanczos" in made.info
    assert "Postprocess upscaler: Lanczos" in made.image.info["parameters"]
    cut = api.extra_single_image(
        picture, upscaler_1="Nearest", resize_mode=1, upscaling_resize_w=128, upscaling_resize_h=96
    )
    assert cut.image.size == (128, 96)
    whole = api.extra_single_image(
        picture,
        upscaler_1="Nearest",
        resize_mode=1,
        upscaling_resize_w=128,
        upscaling_resize_h=96,
        upscaling_crop=False,
    )
    assert whole.image.size == (128, 128)
    assert api.extra_single_image(picture).image.tobytes() == picture.tobytes()
    several = api.extra_batch_images([picture, picture.resize((32, 16))], upscaler_1="Nearest", upscaling_resize=2)
    assert [image.size for image in several.images] == [(128, 128), (64, 32)]


def test_extras_blend_two(api: Any, picture: PIL.Image.Image) -> None:
    both = {"upscaler_1": "Lanczos", "upscaler_2": "Nearest", "upscaling_resize": 2}
    first, mixed, second = (
        api.extra_single_image(picture, extras_upscaler_2_visibility=share, **both).image.tobytes()
        for share in (0, 0.5, 1)
    )
    assert len({first, mixed, second}) == 3


def test_png_info(api: Any) -> None:
    made = api.txt2img(prompt="a hill, steep", negative_prompt="fog", **SMALL)
    read = api.png_info(made.image)
    assert read.info == made.info["infotexts"][0]
    told = read.parameters
    assert (told["Prompt"], told["Negative prompt"], told["Steps"]) == ("a hill, steep", "fog", "2")
    assert (told["Size-1"], told["Clip skip"], told["RNG"]) == ("64", "1", "GPU")
    assert api.png_info(PIL.Image.new("RGB", (8, 8))).info == ""


def test_what_there_is(api: Any) -> None:
    assert api.util_get_model_names()[0].startswith(("bundled", "procedural", "small/tiny2"))
    titles = [model["title"] for model in api.get_sd_models()]
    assert {title.partition(" [")[0] for title in titles} >= {
        "tiny.safetensors",
        "small/tiny2.safetensors",
        "procedural",
    }
    assert {"Euler", "Euler a", "DPM++ 2M", "DDIM"} <= set(api.util_get_sampler_names())
    assert {"automatic", "karras", "sgm_uniform"} <= set(api.util_get_scheduler_names())
    assert [one["name"] for one in api.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    assert api.get_latent_upscale_modes()[0] == {"name": "Latent"}
    (lora,) = api.get_loras()
    assert (lora["name"], lora["alias"], lora["path"]) == ("ink", "Fine Ink", "ink.safetensors")
    assert (
        api.get_embeddings()["loaded"]["blob"] | {"shape": 64, "vectors": 2} == api.get_embeddings()["loaded"]["blob"]
    )
    style = {"name": "ink", "prompt": "ink drawing of {prompt}", "negative_prompt": "photo"}
    assert api.get_prompt_styles() == [style]
    assert api.get_sd_vae() == api.get_hypernetworks() == api.get_face_restorers() == api.get_realesrgan_models() == []
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    memory = api.get_memory()
    assert memory["ram"]["total"] > memory["ram"]["free"] > 0
    assert "error" in memory["cuda"]
    assert api.get_cmd_flags()["api"] is True
    assert not (api.has_controlnet or api.has_adetailer or api.has_animatediff)


def test_no_list_tells_where_files_lie(api: Any, served: Served) -> None:
    lists = (
        api.get_sd_models,
        api.get_loras,
        api.get_embeddings,
        api.get_cmd_flags,
        api.get_options,
        api.get_prompt_styles,
    )
    for shown in lists:
        assert str(served.service.settings.models_dir) not in json.dumps(shown())


def test_models_are_changed(api: Any, served: Served) -> None:
    before = api.util_get_current_model()
    assert before in api.util_get_model_names()
    api.util_set_model("small/tiny2")
    assert api.util_get_current_model().startswith("small/tiny2.safetensors")
    assert api.txt2img(prompt="a hill", **SMALL).info["sd_model_name"] == "tiny2"
    api.set_options({"sd_model_checkpoint": before})
    assert served.service.default_model == "tiny.safetensors"
    overrides = {"sd_model_checkpoint": "procedural"}
    made = api.txt2img(prompt="sunset", override_settings=overrides, **SMALL)
    assert made.info["sd_model_name"] == "avila procedural"
    assert api.util_get_current_model() == before


def test_options_make_the_round_trip(api: Any) -> None:
    options = api.get_options()
    api.set_options(options | {"CLIP_stop_at_last_layers": 2, "something_else": {"a": [1]}})
    told = api.get_options()
    assert (told["CLIP_stop_at_last_layers"], told["something_else"]) == (2, {"a": [1]})
    assert api.txt2img(prompt="a hill", **SMALL).info["clip_skip"] == 2
    overrides = {"CLIP_stop_at_last_layers": 1}
    assert api.txt2img(prompt="a hill", override_settings=overrides, **SMALL).info["clip_skip"] == 1
    assert api.get_options()["CLIP_stop_at_last_layers"] == 2
    kept = {"override_settings": overrides, "override_settings_restore_afterwards": False}
    api.txt2img(prompt="a hill", **kept, **SMALL)
    assert api.get_options() == options | {"something_else": {"a": [1]}}


def test_nothing_to_wait_for_or_stop(api: Any) -> None:
    api.util_wait_for_ready(check_interval=0.01)
    progress = api.get_progress()
    assert (progress["progress"], progress["state"]["job_count"], progress["current_image"]) == (0, 0, None)
    assert api.interrupt() == {}
    assert api.skip() is None
    assert api.refresh_checkpoints() is None


ABSENT = ("controlnet_version", "controlnet_model_list", "controlnet_module_list", "list_prompt_gen_models")


@pytest.mark.parametrize("name", ABSENT)
def test_extensions_are_absent(api: Any, name: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        getattr(api, name)()


@pytest.mark.parametrize("name", ["get_artists", "get_artist_categories"])
def test_routes_of_old_are_absent(api: Any, name: str) -> None:
    assert set(getattr(api, name)()) >= {"error", "detail"}


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"controlnet_units": [webuiapi.ControlNetUnit(module="canny", model="control_canny")]}, 422, "ControlNet"),
    ({"adetailer": [webuiapi.ADetailer()]}, 422, "ADetailer"),
    ({"sag": webuiapi.Sag()}, 422, "Self Attention Guidance"),
    ({"script_name": "x/y/z plot"}, 422, "there are no scripts here"),
    ({"restore_faces": True}, 501, "restore_faces is not built here"),
    ({"sampler_name": "Eulr"}, 422, "the nearest: Euler"),
    ({"enable_hr": True, "hr_upscaler": webuiapi.HiResUpscaler.ESRGAN_4x}, 422, "there are Latent"),
    ({"override_settings": {"sd_model_checkpoint": "drem"}}, 404, "tiny.safetensors"),
    ({"prompt": "<lora:inkk:1>"}, 422, "ink"),
    ({"steps": 0}, 422, "steps is 0; it must be from 1 to 1,000"),
    ({"width": 32}, 422, "width 32 is too small; the smallest is 64"),
    ({"width": 8192, "height": 8192}, 422, "pixels"),
]


@pytest.mark.parametrize(("given", "status", "line"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused(api: Any, given: dict[str, Any], status: int, line: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        # The client keeps what one call put into its default of alwayson_scripts.
        api.txt2img(**{"prompt": "a hill", "alwayson_scripts": {}} | SMALL | given)
    assert caught.value.args[0] == status
    assert line in caught.value.args[1]


def test_describing_a_picture_is_refused(api: Any, picture: PIL.Image.Image) -> None:
    with pytest.raises(RuntimeError, match="501"):
        api.interrogate(picture)
    with pytest.raises(RuntimeError, match="there are None, Lanczos, Nearest"):
        api.extra_single_image(picture, upscaler_1=webuiapi.Upscaler.ESRGAN_4x)
    with pytest.raises(RuntimeError, match="501"):
        api.extra_single_image(picture, gfpgan_visibility=0.5)
