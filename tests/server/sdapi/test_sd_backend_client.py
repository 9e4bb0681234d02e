"""sd-backend-client, a client from PyPI that checks every answer against pydantic models: each of its calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import PIL.Image
import pytest
from sd_backend_client import (
    A1111Webservice,
    DiffusionParams,
    DiffusionRequestBody,
    DiffusionUpscalingParams,
    GenerationError,
    GenerationStatus,
    InpaintFillOption,
    ServerError,
    connect_to_backend,
)

from ..real import until
from .conftest import Served


@pytest.fixture
def backend(served: Served) -> Iterator[Any]:
    made = connect_to_backend(served.url)
    yield made
    made.disconnect()  # type: ignore[attr-defined]


@pytest.fixture
def picture() -> PIL.Image.Image:
    return PIL.Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def small(**more: Any) -> Any:
    values: dict[str, Any] = {
        "prompt": "a hill",
        "width": 64,
        "height": 64,
        "steps": 2,
        "cfg_scale": 2.0,
        "seed": 5,
        "sampler": "euler",
    }
    return DiffusionParams(**(values | more))


def test_it_takes_the_server_for_a_webui(backend: Any) -> None:
    assert isinstance(backend, A1111Webservice)


def test_text_to_image(backend: Any) -> None:
    progress: list[Any] = []
    done = backend.submit_txt2img(small(batch_size=2, scheduler="karras")).wait(60, 0.02, progress.append)
    assert (done.seeds, done.seed) == ([5, 6], 5)
    assert [image.size for image in done.images] == [(64, 64)] * 2
    info = done.raw_info
    assert (info.sampler_name, info.restore_faces, info.batch_size) == ("Euler", False, 2)
    assert progress[-1].status is GenerationStatus.FINISHED


def test_blocking_calls(backend: Any, picture: PIL.Image.Image) -> None:
    made = backend.txt2img(small(init_images=None))
    assert made["info"].seed == 5
    made = backend.img2img(picture, None, small(denoising_strength=0.4))
    assert made["info"].denoising_strength == 0.4


def test_image_to_image_and_inpainting(backend: Any, picture: PIL.Image.Image) -> None:
    done = backend.submit_img2img(small(init_images=[picture], denoising_strength=0.5)).wait(60)
    assert done.images[0].size == (64, 64)
    mask = PIL.Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    body = DiffusionRequestBody(**small().model_dump(), inpainting_fill=InpaintFillOption.ORIGINAL)
    body.init_images, body.mask, body.mask_blur, body.inpaint_full_res = [picture], mask, 2, True
    done = backend.submit_inpaint(body).wait(60)
    assert done.images[0].convert("RGB").getpixel((2, 2)) == picture.getpixel((2, 2))
    body.inpaint_crop_points = [(60, 60)]
    assert backend.submit_inpaint(body).wait(60).images[0].size == (64, 64)


def test_enlarging(backend: Any, picture: PIL.Image.Image) -> None:
    assert backend.submit_upscale(picture, 128, 96).wait(60).images[0].size == (128, 96)
    by_model = DiffusionUpscalingParams(
        use_stable_diffusion_upscaling=True, use_ultimate_upscale_script=False, diffusion_params=small(), step_count=2
    )
    assert backend.submit_upscale(picture, 128, 128, by_model).wait(60).images[0].size == (128, 128)
    with pytest.raises(GenerationError, match="there are no scripts here"):
        backend.submit_upscale(picture, 128, 128, DiffusionUpscalingParams(use_stable_diffusion_upscaling=True)).wait(
            60
        )


def test_another_model_and_options(backend: Any) -> None:
    done = backend.submit_txt2img(small(sd_model_name="small/tiny2.safetensors")).wait(60)
    assert done.raw_info.sd_model_name == "tiny2"
    config = backend.get_config()
    backend.set_config({"CLIP_stop_at_last_layers": 2})
    assert backend.get_config()["CLIP_stop_at_last_layers"] == 2
    backend.set_config(config)
    assert backend.get_config() == config


def test_what_it_can(backend: Any) -> None:
    told = backend.get_capabilities()
    assert (told.controlnet, told.ultimate_upscale, told.soft_inpainting, told.interrogate) == (False,) * 4
    assert told.scheduler is True
    assert backend.get_soft_inpainting_parameters() == []


def test_what_there_is(backend: Any) -> None:
    names = {one.name for one in backend.list_checkpoints()}
    assert {"tiny.safetensors", "small/tiny2.safetensors", "procedural"} <= names
    assert {"euler", "euler_ancestral", "dpmpp_2m", "ddim", "uni_pc"} <= {one.name for one in backend.list_samplers()}
    assert {"karras", "ddim_uniform", "beta"} <= {one.name for one in backend.list_schedulers()}
    assert [one.name for one in backend.list_upscalers()] == ["Lanczos", "Nearest"]
    assert [(one.name, one.display_name) for one in backend.list_loras()] == [("ink", "Fine Ink")]
    assert backend.list_vaes() == backend.list_hypernetworks() == backend.list_controlnet_models() == []
    assert [style.name for style in backend.get_styles()] == ["ink"]
    assert "Latent" in backend.get_latent_upscale_modes()
    assert backend.get_script_info() == []
    assert backend.get_scripts().txt2img == []


def test_looking_again(backend: Any) -> None:
    for again in (backend.refresh_checkpoints, backend.refresh_vae, backend.refresh_loras):
        assert again().json() is None


def test_progress_and_stopping(backend: Any, served: Served) -> None:
    idle = backend.progress_check()
    assert (idle.progress, idle.state.job_count) == (0.0, 0)
    assert backend.interrupt() == {}
    handle = backend.submit_txt2img(small(steps=400))
    until(lambda: handle.poll().status is GenerationStatus.ACTIVE and served.service.running())
    until(lambda: backend.progress_check().state.sampling_step > 1)
    told = handle.poll()
    assert 0 < told.progress < 1
    assert handle.cancel() is True
    with pytest.raises(GenerationError):
        handle.wait(60)
    until(lambda: not served.service.live())
    assert served.jobs()[0].state == "done"


def test_stopping_what_was_not_begun(backend: Any, served: Served) -> None:
    assert served.service.floor is not None
    served.service.floor.open = False
    try:
        handle = backend.submit_txt2img(small(steps=400))
        until(lambda: served.service.live())
        assert handle.cancel() is True
        with pytest.raises(GenerationError):
            handle.wait(60)
        assert handle.poll().status is GenerationStatus.CANCELLED
    finally:
        served.service.floor.open = True


def test_what_is_not_built(backend: Any, picture: PIL.Image.Image) -> None:
    for call in (
        lambda: backend.interrogate(picture),
        backend.get_controlnet_version,
        backend.get_controlnet_models,
        backend.get_controlnet_modules,
        backend.get_controlnet_settings,
    ):
        with pytest.raises(ServerError) as caught:
            call()
        assert caught.value.status_code in (404, 501)
    assert backend.get_thumbnail("x") is None
