"""The infotext: published texts of many programs read as AUTOMATIC1111 reads them, and what is written comes back."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import sd_parsers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avila_diffusion.errors import RequestError
from avila_diffusion.images import Image
from avila_diffusion.infotext import _PAIR, VERSION, LoraUsed, Parsed, read, write
from avila_diffusion.pictures import Picture
from avila_diffusion.request import PICTURES, GenerateRequest

PUBLISHED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "infotexts.json").read_text(encoding="utf-8"))


def Settings(**values: Any) -> GenerateRequest:
    """A resolved request."""
    given = {"prompt": "a cat", "width": 512, "height": 768, "schedule": "Karras", "seed": 1, **values}
    return GenerateRequest(**given).resolved(512)


def as_read(prompt: str) -> str:
    """A prompt as the grammar can carry it: lines without white space at their ends, no empty ones in front."""
    return "\n".join(line.strip() for line in prompt.split("\n")).lstrip("\n")


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: str(case["label"]))
def test_published_infotexts_are_read_as_automatic1111_does(case: dict[str, Any]) -> None:
    expected = dict(case["fields"])
    prompt, negative = expected.pop("Prompt"), expected.pop("Negative prompt")
    assert read(case["text"]) == Parsed(prompt, negative, expected)
    assert list(read(case["text"]).fields) == [name for name in case["fields"] if name in expected]


def test_a_picture_is_described_in_the_order_of_automatic1111() -> None:
    request = Settings(
        prompt="a cat\non a mat", negative_prompt="dog", guidance_scale=7.5, clip_skip=2, rng="cpu", eta=0.5
    )
    text = write(
        request, 42, model="dreamshaper_8", model_hash="879db523c3", vae="vae-ft.safetensors", vae_hash="735e4c3a44"
    )
    assert text == (
        "a cat\non a mat\nNegative prompt: dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 512x768, "
        "Model hash: 879db523c3, Model: dreamshaper_8, VAE hash: 735e4c3a44, VAE: vae-ft.safetensors, "
        f"Clip skip: 2, RNG: CPU, Eta: 0.5, Version: {VERSION}"
    )


def test_what_is_at_its_default_is_left_out() -> None:
    assert write(Settings(prompt="", guidance_scale=7.0), 0) == (
        f"Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 0, Size: 512x768, Version: {VERSION}"
    )


@pytest.mark.parametrize(("sampler", "name"), [("Euler a", "Eta"), ("DDIM", "Eta DDIM"), ("DDIM CFG++", "Eta DDIM")])
def test_eta_has_the_name_automatic1111_gives_it(sampler: str, name: str) -> None:
    fields = read(write(Settings(sampler=sampler, eta=1.0), 1)).fields
    assert fields[name] == "1"
    assert sum(key.startswith("Eta") for key in fields) == 1


WORDS = st.sampled_from(
    ["cat", ",", ":", '"', "\\", "\n", " ", "\t", "{", "}", "'", "👩‍🎨", "é", "日本", "\u3000", "512x512", "Size: 1x1"]
) | st.sampled_from(
    ["(x:1.2)", "<lora:y:0.5>", "Steps: 1, a: b, c: d", "Steps: 20, Sampler: Euler, Seed: 1", "Negative prompt:"]
)
PROMPTS = st.lists(WORDS | st.text(max_size=5), max_size=12).map("".join)
NUMBERS = st.floats(0, 100, allow_nan=False)
ETAS = st.floats(0, 10, allow_nan=False)


def opens_a_negative(prompt: str) -> bool:
    """Where the grammar itself cannot tell."""
    return any(line.strip().startswith("Negative prompt:") for line in prompt.split("\n"))


@given(prompt=PROMPTS, negative=PROMPTS, scale=NUMBERS, eta=st.none() | ETAS, seed=st.integers(0, 2**64 - 1))
@example(prompt="a\nSteps: 1, a: b, c: d", negative="", scale=7, eta=None, seed=0)
@example(prompt="", negative="Steps: 1, a: b, c: d\n\nb", scale=1, eta=0.1, seed=1)
@settings(max_examples=600, deadline=None, derandomize=True)
def test_what_is_written_is_read_again(prompt: str, negative: str, scale: float, eta: float | None, seed: int) -> None:
    if opens_a_negative(prompt) or opens_a_negative(negative):
        return
    request = Settings(prompt=prompt, negative_prompt=negative, guidance_scale=scale, eta=eta, clip_skip=3, rng="cpu")
    parsed = read(write(request, seed, model="m", model_hash="0123456789"))
    assert (parsed.prompt, parsed.negative_prompt) == (as_read(prompt), as_read(negative))
    values = parsed.request_values()
    assert values["guidance_scale"] == scale
    assert values.get("eta") == eta
    assert values["seed"] == seed
    assert {key: value for key, value in values.items() if key not in ("guidance_scale", "eta", "seed")} == {
        "prompt": as_read(prompt),
        "negative_prompt": as_read(negative),
        "width": 512,
        "height": 768,
        "steps": 20,
        "sampler": "DPM++ 2M",
        "schedule": "Karras",
        "clip_skip": 3,
        "rng": "cpu",
    }


EVERYTHING: dict[str, Any] = {
    "steps": 12, "sampler": "Euler", "schedule": "Karras", "clip_skip": 2, "rng": "cpu", "ensd": 31337, "variation_seed": 9,
    "variation_strength": 0.25, "seed_width": 512, "seed_height": 640, "s_churn": 3.5, "s_tmin": 0.1, "s_tmax": 9.0,
    "s_noise": 1.01, "rho": 5.5, "sigma_min": 0.03, "sigma_max": 14.0, "guidance_list": (7.5, 3.0), "guidance_rescale": 0.7,
    "guidance_start": 0.1, "guidance_stop": 0.85, "skip_early": 0.05, "ngms": 1.5, "ngms_all": True,
}  # fmt: skip


def test_every_field_that_changes_the_picture_comes_back() -> None:
    request = Settings(**EVERYTHING)
    parsed = read(write(request, 1))
    assert GenerateRequest(**parsed.request_values()).resolved(512) == request
    # the names by which AUTOMATIC1111 knows them
    expected = {
        "ENSD": "31337", "Variation seed": "9", "Variation seed strength": "0.25", "Seed resize from-1": "512",
        "Seed resize from-2": "640", "Sigma churn": "3.5", "Sigma tmin": "0.1", "Sigma tmax": "9", "Sigma noise": "1.01",
        "Schedule rho": "5.5", "Schedule min sigma": "0.03", "Schedule max sigma": "14", "Skip Early CFG": "0.05",
        "NGMS": "1.5", "NGMS all steps": "True", "RNG": "CPU",
    }  # fmt: skip
    assert parsed.fields.items() >= expected.items()


FROM_A_PICTURE: dict[str, Any] = {
    "strength": 0.4, "exact_steps": True, "extra_noise": 0.1, "noise_multiplier": 0.9, "resize_mode": "crop",
    "image_guidance_scale": 2.5, "mask_blur": 2.5, "mask_invert": True, "mask_soft": True, "masked_content": "noise",
    "inpaint_area": "masked", "mask_padding": 8, "mask_weight": 0.5, "tiling": "x",
}  # fmt: skip
IN_TWO_PASSES: dict[str, Any] = {
    "strength": 0.4, "hires_scale": 1.5, "hires_upscaler": "Latent (nearest-exact)", "hires_steps": 7, "hires_sampler": "DDIM",
    "hires_schedule": "Karras", "hires_prompt": "a dog, 2: \"x\"", "hires_negative_prompt": "rain", "hires_guidance_scale": 3.5,
    "tiling": "both", "refiner_switch": 0.7, "refiner_by": "step",
}  # fmt: skip


def test_settings_of_pictures_come_back(black: Any) -> None:
    picture = Picture.of(black, "image")
    request = Settings(**FROM_A_PICTURE, image=picture, mask=picture)
    parsed = read(write(request, 1))
    again = GenerateRequest(**parsed.request_values(), image=picture, mask=picture).resolved(512)
    assert again == request
    # the names by which AUTOMATIC1111 knows them
    expected = {
        "Denoising strength": "0.4", "Extra noise": "0.1", "Noise multiplier": "0.9", "Resize mode": "Crop and resize",
        "Image CFG scale": "2.5", "Mask blur": "2.5", "Mask mode": "Inpaint not masked", "Masked content": "latent noise",
        "Inpaint area": "Only masked", "Masked area padding": "8", "Conditional mask weight": "0.5",
    }  # fmt: skip
    assert parsed.fields.items() >= expected.items()
    added = Settings(image=picture, outpaint=(8, 0, 16, 0))
    assert GenerateRequest(**read(write(added, 1)).request_values(), image=picture).resolved(512) == added
    assert "Mask mode" not in read(write(added, 1)).fields
    both = replace(added, mask=picture)
    assert read(write(both, 1)).fields["Mask mode"] == "Inpaint masked"
    assert read(write(replace(both, mask_invert=True), 1)).fields["Mask mode"] == "Inpaint not masked"


def test_settings_of_two_passes_come_back() -> None:
    request = Settings(**IN_TWO_PASSES)
    parsed = read(write(request, 1, refiner="refiner_v1", refiner_hash="7440042bbd"))
    assert GenerateRequest(**parsed.request_values()).resolved(512) == request
    expected = {
        "Hires upscale": "1.5", "Hires upscaler": "Latent (nearest-exact)", "Hires steps": "7", "Hires sampler": "DDIM",
        "Hires CFG Scale": "3.5", "Refiner": "refiner_v1 [7440042bbd]", "Refiner switch at": "0.7", "Tiling": "True",
    }  # fmt: skip
    assert parsed.fields.items() >= expected.items()
    sized = Settings(hires_width=640, hires_height=None)
    parsed = read(write(sized, 1))
    assert parsed.fields["Hires resize-1"] == "640"
    assert GenerateRequest(**parsed.request_values()).resolved(512) == sized


@pytest.mark.parametrize(
    "values",
    [
        {"emphasis": "No norm", "prompt": "a (b)"},
        {"emphasis": "Ignore", "prompt": "a [b]"},
        {"emphasis": "None", "negative_prompt": "(c)"},
        {"compat": "diffusers", "prompt": "a (b)"},
        {"compat": "comfyui"},
    ],
    ids=str,
)
def test_how_prompts_are_read_comes_back(values: dict[str, Any]) -> None:
    request = Settings(**values)
    parsed = read(write(request, 1))
    assert parsed.fields.get("Emphasis") == values.get("emphasis")
    assert GenerateRequest(**parsed.request_values()).resolved(512) == request


def test_emphasis_is_named_only_where_there_are_brackets() -> None:
    assert "Emphasis" not in read(write(Settings(emphasis="Ignore"), 1)).fields
    assert "Emphasis" not in read(write(Settings(prompt="a (b)"), 1)).fields


def test_no_field_of_the_request_is_forgotten() -> None:
    """Every field is in one of these tests, so a new one fails here until it is written and read."""
    elsewhere = {
        "prompt", "negative_prompt", "width", "height", "guidance_scale", "seed", "eta",  # as hypothesis has them
        "compat", "emphasis", "sigmas", "noise_batch", "noise_index", "batch", "count",
    }  # fmt: skip
    of_pictures = {*FROM_A_PICTURE, *IN_TWO_PASSES, *PICTURES, "hires_width", "hires_height", "outpaint"}
    assert {field.name for field in fields(GenerateRequest)} == elsewhere | EVERYTHING.keys() | of_pictures


def test_custom_levels_and_comfyuis_batches_come_back() -> None:
    request = Settings(sigmas=(14.5, 3.25, 1e-05, 0), schedule="Automatic")
    assert GenerateRequest(**read(write(request, 1)).request_values()).resolved(512) == request
    assert request.steps == 3
    batch = Settings(compat="comfyui", batch=3, count=2, seed=5)
    assert batch.seeds == (5, 5, 5, 6, 6, 6)
    alone = GenerateRequest(**read(write(batch, batch.seeds[4], index=4)).request_values()).resolved(512)
    assert (alone.seed, alone.batch, alone.noise_batch, alone.noise_index, alone.rng) == (6, 1, 3, 1, "cpu")


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        ({"sampler": "Euler a"}, True),
        ({"sampler": "Euler a", "eta": 0.0}, False),
        ({"sampler": "DPM fast"}, True),
        ({"sampler": "DPM adaptive"}, True),
        ({"sampler": "DPM2 a"}, True),
        ({"sampler": "DPM++ 2S a"}, True),
        ({"sampler": "DPM++ 2M"}, False),
        ({"sampler": "DPM++ 2M SDE"}, False),
        ({"sampler": "Euler"}, False),
        # AUTOMATIC1111 is silent here although the picture depends on it
        ({"sampler": "Euler", "s_churn": 2.0}, True),
        ({"sampler": "DDIM"}, False),
        ({"sampler": "DDIM", "eta": 1.0}, True),
        ({"sampler": "LCM"}, True),
    ],
)
def test_the_seed_delta_is_written_where_noise_is_drawn_from_the_stream(
    settings: dict[str, Any], written: bool
) -> None:
    assert ("ENSD" in read(write(Settings(ensd=31337, **settings), 1)).fields) == written


def test_a_variation_counts_its_own_seed() -> None:
    request = Settings(seed=5, variation_seed=9, variation_strength=0.5, count=3)
    assert request.seeds == (5, 5, 5)
    fields = read(write(request, 5, index=2)).fields
    assert (fields["Seed"], fields["Variation seed"]) == ("5", "11")


@given(value=st.lists(WORDS | st.text(max_size=5), min_size=1, max_size=6).map("".join))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_every_value_of_a_field_comes_back(value: str) -> None:
    fields = read(write(Settings(), 1, extra={"Hires prompt": value})).fields
    if value in ("Hires prompt", ""):
        return
    sizes = value.split("x")
    if len(sizes) == 2 and all(part.isdigit() and part for part in sizes):
        assert [fields["Hires prompt-1"], fields["Hires prompt-2"]] == sizes
    else:
        assert fields["Hires prompt"] == value
    assert fields["Version"] == VERSION
    assert fields["Size-1"] == "512"


def test_loras_stand_where_automatic1111_looks_for_them() -> None:
    loras = [
        LoraUsed(name="add_detail", text_weight=0.8, unet_weight=0.8, hash="7c6bad76eb54"),
        LoraUsed(name="a: style, <v1>", text_weight=1, unet_weight=-0.25, hash="0123456789ab"),
        LoraUsed(name="gone", text_weight=1, unet_weight=1),
    ]
    parsed = read(write(Settings(prompt="a cat,\non a mat"), 1, loras=loras))
    assert parsed.prompt == "a cat,\non a mat <lora:add_detail:0.8> <lora:a style v1:1:-0.25> <lora:gone:1>"
    assert parsed.fields["Lora hashes"] == "add_detail: 7c6bad76eb54, a style v1: 0123456789ab"
    # as its built-in Lora extension takes both apart
    hashes = dict(part.strip().split(":", 1) for part in parsed.fields["Lora hashes"].split(","))
    assert [hashes.get(name) for name in re.findall("<lora:([^:]+):", parsed.prompt)] == [
        " 7c6bad76eb54",
        " 0123456789ab",
        None,
    ]
    assert list(parsed.fields)[-2:] == ["Lora hashes", "Version"]
    assert read(write(Settings(prompt=""), 1, loras=loras[2:])).prompt == "<lora:gone:1>"
    assert "Lora hashes" not in read(write(Settings(), 1, loras=loras[2:])).fields


@given(prompt=PROMPTS, name=st.text(max_size=20), weight=st.floats(-10, 10, allow_nan=False))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_tag_is_one_whatever_the_file_is_called(prompt: str, name: str, weight: float) -> None:
    used = LoraUsed(name=name, text_weight=weight, unet_weight=weight, hash="0" * 12)
    tag = re.fullmatch("<lora:([^:<>]*):([^:<>]*)>", used.tag)
    assert tag is not None and "," not in tag[1] and "\n" not in tag[1]
    assert float(tag[2]) == weight
    if not opens_a_negative(prompt):
        parsed = read(write(Settings(prompt=prompt), 1, loras=[used]))
        assert parsed.prompt == as_read(f"{prompt} {used.tag}" if prompt else used.tag)
        assert parsed.fields["Seed"] == "1"


def test_a_field_that_says_its_own_name_is_written_once_as_in_automatic1111() -> None:
    assert ", Tiling, Version" in write(Settings(), 1, extra={"Tiling": "Tiling"})
    assert "Refiner" not in write(Settings(), 1, extra={"Refiner": None})


@pytest.mark.parametrize(
    ("text", "prompt", "fields"),
    [
        ("", "", {}),
        ("\n\n", "", {}),
        ("only a prompt", "only a prompt", {}),
        ("aa: b, cc: d", "aa: b, cc: d", {}),  # two pairs are no fields
        ("aa: b, cc: d, ee: f", "", {"aa": "b", "cc": "d", "ee": "f"}),
        ("x\naa: , cc: d, ee: f", "x", {"cc": "d", "ee": "f"}),  # three pairs, one of them empty
        ('x\naa: "b, \\"c\\"", cc: "open, dd: 1x2', "x", {"aa": 'b, "c"', "cc": '"open', "dd-1": "1", "dd-2": "2"}),
        ("  x  \r\n y\r\naa: b, cc: d, ee: f \r\n", "x\ny", {"aa": "b", "cc": "d", "ee": "f"}),
    ],
)
def test_odd_texts_are_read_without_fault(text: str, prompt: str, fields: dict[str, str]) -> None:
    assert read(text) == Parsed(prompt, "", fields)


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_is_an_infotext(text: str) -> None:
    read(text)


@pytest.mark.parametrize(("rng", "expected"), [("CPU", "cpu"), ("NV", "nv"), ("GPU", "nv"), (None, "nv")])
def test_the_source_of_noise_is_the_gpus_unless_it_says_cpu(rng: str | None, expected: str) -> None:
    ours = read(write(Settings(rng="gpu"), 1))
    assert ours.request_values()["rng"] == "gpu"
    assert Parsed(fields={} if rng is None else {"RNG": rng}).request_values()["rng"] == expected


def test_a_field_that_is_no_number_is_named() -> None:
    with pytest.raises(RequestError, match="Seed in the picture's metadata is 'abc', not a number"):
        Parsed(fields={"Seed": "abc"}).request_values()


def test_fields_of_others_become_request_values() -> None:
    by_label = {case["label"]: read(case["text"]).request_values() for case in PUBLISHED}
    assert by_label["3488145854 (civitai order)"] == {
        "prompt": "(orante:1.1), (rutkowski:0.66), (teal and orange:0.4)",
        "negative_prompt": "3d, cartoon, lowres",
        "sampler": "DPM++ 2M Karras",
        "steps": 30,
        "guidance_scale": 9.0,
        "seed": 1261263585,
        "width": 512,
        "height": 768,
        "clip_skip": 2,
        "rng": "nv",
        "strength": 0.56,
        "hires_width": 832,
        "hires_height": 1280,
        "hires_steps": 38,
        "hires_upscaler": "Latent",
    }
    assert by_label["sd.cpp with_lcm.png"]["guidance_scale"] == 1.0


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.webp"])
@pytest.mark.parametrize("prompt", ["a cat (on a mat:1.2), 8k", "um pôr do sol, 日没 🌅\nsecond line"])
def test_sd_parsers_reads_our_pictures(
    tmp_path: Path, black: Any, name: str, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It remembers the last JPEG by the address of its picture, which the next one may have.
    monkeypatch.setattr("sd_parsers.extractors._jpeg_usercomment._image_id", None)
    request = replace(Settings(), prompt=prompt, negative_prompt="ugly, blurry", guidance_scale=6.5, steps=31)
    infotext = write(request, 4294967295, model="dreamshaper_8", model_hash="879db523c3")
    path = Image(black, infotext).save(tmp_path / name)
    found = sd_parsers.ParserManager().parse(path)
    assert found is not None
    (sampler,) = found.samplers
    assert [prompt.value for prompt in sampler.prompts] == [prompt]
    assert [prompt.value for prompt in sampler.negative_prompts] == ["ugly, blurry"]
    assert sampler.name == "DPM++ 2M"
    expected = {"seed": "4294967295", "steps": "31", "cfg_scale": "6.5", "scheduler": "Karras"}
    assert sampler.parameters == expected
    assert sampler.model is not None
    assert (sampler.model.name, sampler.model.hash) == ("dreamshaper_8", "879db523c3")


PIECES = ["a", "bc", " ", "-", "/", ":", ",", '"', "\\", "1", "\t", "é", "_", ".", "Steps: 1,"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_pairs_are_found_where_automatic1111_finds_them(line: str) -> None:
    """Its expression, of semantics.md 2.17, takes time by the square of a line's length."""
    theirs = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    assert _PAIR.findall(line) == theirs.findall(line)
