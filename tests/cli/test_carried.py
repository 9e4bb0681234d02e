"""What of a picture's settings stays beside other options, and what gives way: pair by pair."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest

from avila_diffusion.cli import main
from avila_diffusion.cli.carried import HIRES, HIRES_SIZE, IMAGES, OF_SAMPLERS, RULES, Carried, settle, settle_model
from avila_diffusion.images import Image
from avila_diffusion.metadata import Found
from avila_diffusion.request import PICTURES, SECOND_PASS, GenerateRequest
from avila_diffusion.sampling.names import resolve_sampler

BLACK = numpy.zeros((64, 64, 3), numpy.uint8)
PICTURE = Image(BLACK)
OF_PICTURES: tuple[dict[str, Any], ...] = (
    {},
    {"hires_scale": 2.0, "hires_upscaler": "Lanczos", "hires_steps": 3, "hires_schedule": "Karras", "strength": 0.4},
    {"hires_width": 96, "hires_height": 128},
    {"image": "", "strength": 0.5, "resize_mode": "latent", "noise_multiplier": 0.9, "exact_steps": True},
    {"image": "", "mask": "", "mask_blur": 2.0, "masked_content": "fill", "inpaint_area": "masked"},
    {"image": "", "outpaint": (8, 0, 0, 0), "width": 72, "height": 64},
    {"sampler": "Euler a", "eta": 0.5, "s_noise": 1.01, "ensd": 31337},
    {"sampler": "Euler", "s_churn": 2.0, "s_tmin": 0.3, "s_tmax": 3.0},
    {"sampler": "DDIM", "eta": 0.4},
    {"sampler": "Heun", "sigmas": (14.6, 3.5, 0.8, 0.0), "steps": 3},
    {"sampler": "DPM++ 2M Karras"},
    {"sampler": "DDIM", "compat": "comfyui", "sigmas": (14.6, 3.5, 0.8, 0.0), "steps": 3},
    {
        "schedule": "Karras",
        "rho": 5.0,
        "sigma_min": 0.1,
        "sigma_max": 10.0,
        "guidance_start": 0.2,
        "guidance_stop": 0.8,
    },
    {"guidance_list": (9.0, 7.0), "ngms": 2.0},
    {"emphasis": "No norm", "rng": "gpu", "variation_seed": 4, "variation_strength": 0.3},
    {"seed_width": 128, "seed_height": 64, "rng": "nv"},
    {"compat": "comfyui", "noise_batch": 4, "noise_index": 3},
    {"compat": "diffusers", "rng": "cpu"},
)
OF_COMMAND_LINES: tuple[dict[str, Any], ...] = (
    *({"hires_scale": 1.5}, {"hires_width": 96, "hires_height": None}, {"image": PICTURE}),
    *({"image": PICTURE, "mask": PICTURE}, {"image": PICTURE, "outpaint": (0, 8, 0, 0)}, {"resize_mode": "latent"}),
    *({"steps": 7}, {"schedule": "Automatic"}, {"sigma_max": 0.05}, {"sigma_min": 12.0}, {"rho": 3.0}),
    *({"sampler": name} for name in ("DPM++ 2M", "Euler", "DDIM", "UniPC", "DPM fast", "DPM++ SDE Karras", "lcm")),
    *({"hires_sampler": "euler_karras"}, {"guidance_scale": 3.0}, {"guidance_list": (3.0, 2.0)}),
    *({"guidance_start": 0.9}, {"guidance_stop": 0.1}, {"compat": "a1111"}, {"compat": "comfyui"}, {"compat": "diffusers"}),
    *({"emphasis": "Ignore"}, {"rng": "nv"}, {"rng": "gpu"}, {"ensd": 5}, {"variation_strength": 0.1}, {"batch": 5}),
    {"seed_width": 64, "seed_height": 64},
)  # fmt: skip


def found_in(values: Mapping[str, Any]) -> Found:
    pictures = {name: value for name, value in values.items() if name in PICTURES}
    return Found(source="", request_values={k: v for k, v in values.items() if k not in pictures}, pictures=pictures)


def together(carried: Carried, given: Mapping[str, Any]) -> GenerateRequest:
    """The request, with the pictures that are asked for."""
    return GenerateRequest(**{**carried.values, **dict.fromkeys(carried.pictures, PICTURE), **given})


def check_sampler(request: GenerateRequest) -> None:
    """What the run would refuse of it."""
    sampler, _ = resolve_sampler(request.sampler)
    assert not [name for name in OF_SAMPLERS if getattr(request, name) is not None and name not in sampler.options]
    assert request.sigmas is None or sampler.grid == "schedule" or request.compat == "comfyui"
    assert None in (request.sigma_min, request.sigma_max) or request.sigma_min < request.sigma_max  # type: ignore[operator]


@pytest.mark.parametrize("given", OF_COMMAND_LINES, ids=str)
def test_an_option_wins_over_every_picture(given: dict[str, Any]) -> None:
    for values in OF_PICTURES:
        carried = settle(found_in(values), given)
        request = together(carried, given)
        check_sampler(request)
        for name, value in given.items():
            if name not in PICTURES:
                assert getattr(request, name) == value
        gone = [
            name for name in values if name not in carried.values and name not in carried.pictures and name not in given
        ]
        said = " ".join(carried.notes)
        assert all(name in said for name in gone)
        assert bool(gone) == bool(carried.notes)


def test_levels_take_the_place_of_every_schedule() -> None:
    given = {"sigmas": (9.0, 1.0, 0.0)}
    for values in OF_PICTURES:
        if resolve_sampler(values.get("sampler", "Euler"))[0].grid == "schedule":
            assert together(settle(found_in(values), given), given).steps == 2


@pytest.mark.parametrize(
    ("values", "given", "told"),
    [
        ({"hires_scale": 2.0}, {"hires_width": 96, "hires_height": 96},
         "hires_scale, because --hires-size is another size"),
        ({"hires_width": 96, "hires_height": 9}, {"hires_scale": 2.0},
         "hires_width and hires_height, because --hires-scale is another size"),
        ({"hires_scale": 2.0, "hires_upscaler": "Latent", "hires_steps": 3}, {"image": PICTURE},
         "hires_scale and hires_steps, because with --image there is no second pass"),
        ({"image": "", "mask": "", "mask_blur": 4.0}, {"hires_scale": 2.0},
         "image and mask, because the second pass of --hires-scale follows text to image"),
        ({"sampler": "Euler a", "eta": 0.5}, {"sampler": "DPM++ 2M"},
         "eta, because the one of --sampler has options of its own"),
        ({"sampler": "Euler a", "eta": 0.5}, {"sampler": "ddim"},
         "eta, because the one of --sampler has options of its own"),
        ({"sampler": "Euler a", "eta": 0.5}, {"sampler": "k_euler_a"}, None),
        ({"sampler": "Euler a", "eta": 0.5}, {"sampler": "DPM++ SDE"}, None),
        ({"compat": "comfyui", "noise_batch": 2, "noise_index": 1}, {"compat": "a1111"},
         "noise_batch and noise_index, because --compat draws other noise"),
        ({"compat": "comfyui", "noise_batch": 2, "noise_index": 1}, {"compat": "comfyui"}, None),
        ({"rng": "cpu", "ensd": 5}, {"compat": "diffusers"}, None),
        ({"compat": "comfyui", "noise_batch": 2}, {"ensd": 5, "compat": "comfyui"}, None),
        ({"schedule": "Exponential"}, {"sampler": "DPM++ 2M Karras"},
         "schedule, because --sampler names one"),
        ({"schedule": "Karras"}, {"sampler": "DPM++ 2M Karras"}, None),
        ({"schedule": "Exponential"}, {"sampler": "DPM++ 2M Karras", "schedule": "Beta"}, None),
        ({"sigmas": (1.0, 0.0), "steps": 1}, {"steps": 4, "rho": 5.0},
         "sigmas, because --steps and --rho asks for a schedule"),
        ({"width": 64, "height": 64}, {"image": PICTURE, "outpaint": (8, 0, 0, 0)},
         "width and height, because --outpaint adds to the picture"),
        ({"image": "", "outpaint": [8, 0, 0, 0], "width": 72}, {"image": PICTURE, "outpaint": (8, 0, 0, 0)}, None),
    ],
)  # fmt: skip
def test_what_gives_way_is_told(values: dict[str, Any], given: dict[str, Any], told: str | None) -> None:
    notes = [re.sub(" of the picture (is|are) not used", "", note) for note in settle(found_in(values), given).notes]
    assert notes == ([] if told is None else [told])


def test_the_rules_name_fields() -> None:
    """And no field of a second pass is forgotten."""
    known = GenerateRequest.__dataclass_fields__.keys()
    assert all(known >= {*rule.given, *rule.yields} for rule in RULES)
    assert set(HIRES) == {*HIRES_SIZE, *SECOND_PASS}
    assert not set(IMAGES) & {*HIRES, "strength", "extra_noise"}  # of which a second pass takes the latter two


def options(**given: Any) -> argparse.Namespace:
    named = ("model", "vae", "refiner", "depth", "models_dir", "procedural")
    return argparse.Namespace(**{**dict.fromkeys(named), **given})


def test_the_refiner_is_looked_for_beside_another_model(tiny_checkpoint: Callable[[str], Path]) -> None:
    values = {"refiner_switch": 0.5, "refiner_by": "step"}
    refiner = tiny_checkpoint("sdxl_refiner")

    def settled(name: str | None, **given: Any) -> Carried:
        found = Found(source="", request_values=values, refiner=name)
        carried = settle(found, {})
        settle_model(carried, found, options(**given))
        return carried

    kept = settled(str(refiner), model=str(tiny_checkpoint("sdxl")))
    assert (kept.refiner, kept.values, kept.notes) == (refiner, values, [])
    other = settled(str(refiner), model=str(tiny_checkpoint("sd1")))
    assert (other.refiner, other.values) == (None, {})
    assert other.notes == [
        f"the refiner {refiner} of the picture is not used, because the model of -m draws latents of another kind",
        "refiner_switch and refiner_by of the picture are not used, because there is no refiner",
    ]
    gone = settled("gone", model=str(tiny_checkpoint("sdxl")))
    assert gone.values == {}
    assert gone.notes[0].startswith("the refiner gone of the picture is not used, because no checkpoint named 'gone'")
    assert settled("gone", model=str(tiny_checkpoint("sdxl")), refiner="mine").values == values
    assert settled(None).values == {}
    assert settled("gone").values == values  # which is looked for with the picture's own model


def test_what_another_model_does_not_take_gives_way(tiny_checkpoint: Callable[[str], Path], bundled_file: Path) -> None:
    found = Found(
        source="", request_values={"hires_scale": 2.0}, pictures={"depth": "", "image": ""}, vae="mine.safetensors"
    )
    carried = settle(found, {})
    settle_model(carried, found, options(model=str(bundled_file)))
    assert (carried.values, carried.pictures) == ({}, {"image": ""})
    assert carried.notes == [
        "depth of the picture is not used, because the model of -m follows none",
        "hires_scale of the picture is not used, because the model of -m draws at one size only",
        "the VAE mine.safetensors of the picture is not used, because -m takes another model; --vae takes it along",
    ]
    carried = settle(found, {})
    settle_model(carried, found, options(procedural=True))
    assert carried.notes == ["depth and image of the picture are not used, because --procedural begins with no picture"]


@pytest.fixture
def second_pass(tmp_path: Path) -> str:
    """A picture of two passes."""
    text = (
        "a cat\nSteps: 2, Sampler: Euler a, Seed: 1, Size: 64x64, Eta: 0.5, Denoising strength: 0.4, Hires upscale: 2"
    )
    return str(Image(BLACK, text).save(tmp_path / "h.png"))


def test_the_command_line_wins_and_says_so(
    engine: Any, second_pass: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = str(PICTURE.save(tmp_path / "p.png"))
    line = ["generate", "--from", second_pass, "-m", "mine", "-o", "a.png"]
    assert main([*line, "--hires-size", "96x96"]) == 0
    assert main([*line, "-i", begun, "--strength", "0.3", "--sampler", "DPM++ 2M"]) == 0
    sized, imaged = engine.requests
    assert (sized.hires_scale, sized.hires_width, sized.eta) == (None, 96, 0.5)
    assert (imaged.hires, imaged.strength, imaged.eta, imaged.image is None) == (False, 0.3, None, False)
    told = capsys.readouterr().err.splitlines()
    assert [one for one in told if "of the picture" in one] == [
        "avila: hires_scale of the picture is not used, because --hires-size is another size",
        "avila: hires_scale of the picture is not used, because with --image there is no second pass",
        "avila: eta of the picture is not used, because the one of --sampler has options of its own",
    ]
    assert main([*line, "--hires-size", "96x96", "--json", "-q"]) == 0
    assert "hires_scale of the picture is not used" in capsys.readouterr().out
    assert main([*line, "--hires-size", "96x96", "--hires-scale", "2"]) == 2  # both of the command line


def test_a_second_pass_needs_no_picture_that_is_gone(engine: Any, tmp_path: Path) -> None:
    text = "a\nSteps: 2, Seed: 1, Size: 64x64, Denoising strength: 0.4, Mask blur: 4, Inpaint area: Only masked"
    made = str(Image(BLACK, text).save(tmp_path / "i.png"))
    assert main(["generate", "--from", made, "-m", "mine", "-o", "a.png"]) == 2
    assert main(["generate", "--from", made, "-m", "mine", "-o", "a.png", "--hires-scale", "2"]) == 0
    (request,) = engine.requests
    assert (request.hires_scale, request.strength, request.inpaint_area) == (2, 0.4, "whole")


def test_a_size_wins_over_a_picture_that_kept_its_own() -> None:
    carried = settle(found_in({"resize_mode": "keep", "width": 72, "height": 64}), {"image": PICTURE, "width": 96})
    assert "resize_mode" not in carried.values
    assert carried.notes == ["resize_mode of the picture is not used, because --width asks for a size"]


@pytest.mark.parametrize("given", [{"image": PICTURE}, {"image": PICTURE, "mask": PICTURE}])
def test_where_only_what_is_masked_is_drawn_resize_mode_takes_no_mask_away(given: dict[str, Any]) -> None:
    found = found_in({"image": "", "mask": "", "inpaint_area": "masked", "mask_padding": 8})
    carried = settle(found, {**given, "resize_mode": "latent"})
    assert carried.values["inpaint_area"] == "masked" and carried.values["mask_padding"] == 8
    assert together(carried, {**given, "resize_mode": "latent"}).mask is not None
