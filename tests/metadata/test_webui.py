"""Infotexts as requests: published ones, dialects of older versions, tags; and our record, which makes them exact."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import sd_parsers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avila_diffusion.errors import FileProblem
from avila_diffusion.images import Image, read_image
from avila_diffusion.infotext import LoraUsed, read, write
from avila_diffusion.metadata import Found, read_request
from avila_diffusion.metadata.record import make_record, of_picture
from avila_diffusion.metadata.webui import take_tags
from avila_diffusion.request import GenerateRequest

HERE = Path(__file__).parent
PUBLISHED: dict[str, str] = {
    case["label"]: case["text"] for case in json.loads((HERE.parent / "infotexts.json").read_text(encoding="utf-8"))
}
BLACK = numpy.zeros((8, 8, 3), numpy.uint8)


def found_in(text: str, record: str | None = None) -> Found:
    return read_request(Image(BLACK, text, record=record))


@pytest.mark.parametrize("name", ["a1111.png", "a1111.jpg", "bad_text_after_idat.png"])
def test_pictures_of_automatic1111(name: str) -> None:
    found = read_request(read_image(HERE / name))
    assert found.source == "AUTOMATIC1111"
    assert found.request_values == {
        "prompt": "photo of a duck", "negative_prompt": "monochrome", "sampler": "UniPC", "steps": 15, "width": 512,
        "height": 400, "guidance_scale": 5.0, "seed": 235284042, "rng": "nv",
    }  # fmt: skip
    assert (found.model, found.model_hash) == ("realistic_realisticVisionV20_v20", "c0d1994c73")
    assert (found.lost, found.notes, found.exact) == ((), (), False)


def test_every_published_infotext_becomes_a_request() -> None:
    for text in PUBLISHED.values():
        found_in(text).request().resolved(512)


def test_what_is_not_carried_over_is_named() -> None:
    forge = found_in(PUBLISHED["54611308453 (Forge)"])
    assert forge.source == "AUTOMATIC1111's kin"
    assert forge.lost == ("dynthres_enabled: True",)
    assert not forge.pictures
    request = forge.request()
    assert (request.hires_scale, request.hires_upscaler, request.hires_guidance_scale) == (1.5, "Latent", 4.0)
    assert "sd3_shift: 3 (not understood)" in forge.notes
    assert (forge.vae, forge.vae_hash) == ("sdxl-vae-fp16-fix.vae.safetensors", "235745af8d")
    next_ = found_in(PUBLISHED["54815018922 (SD.Next, awkward quoting)"])
    assert (next_.source, next_.model, next_.embeddings) == ("SD.Next", "dream", {"badhand": "deadbeef"})
    assert next_.loras == (LoraUsed(name="FilmLook", text_weight=0.75, unet_weight=0.75),)
    assert "ControlNet 0: Model: control-depth" in next_.lost
    odd = found_in("a cat\nSteps: 20, Sampler: Undefined, CFG scale: x, Seed: 1, Size: 9999x512, Tiling: True")
    assert odd.request_values == {
        "prompt": "a cat", "negative_prompt": "", "steps": 20, "seed": 1, "height": 512, "rng": "nv", "tiling": "both"
    }  # fmt: skip
    assert [one.split("'")[0].split(" is")[0] for one in odd.lost] == [
        "CFG scale: x",
        "unknown sampler ",
        "width",
    ]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ("Mask blur: 4", ["image", "mask"]),
        ("Mask mode: Inpaint not masked", ["image", "mask"]),
        ("Masked content: latent noise", ["image", "mask"]),
        ("Inpaint area: Only masked, Masked area padding: 32", ["image", "mask"]),
        ("Masked area padding: 8", ["image", "mask"]),
        ("Soft mask: True", ["image", "mask"]),
        ("Mask blur: 4, Soft mask: True, Outpaint: 8 0 0 0", ["image"]),
        ("Mask blur: 4, Mask mode: Inpaint masked, Outpaint: 8 0 0 0", ["image", "mask"]),
        ("Resize mode: Crop and resize", ["image"]),
    ],
)
def test_every_field_of_masks_asks_for_the_mask(fields: str, wanted: list[str]) -> None:
    """AUTOMATIC1111 writes no blur of 0."""
    found = found_in(f"a\nSteps: 2, Seed: 1, Denoising strength: 0.5, {fields}")
    assert list(found.pictures) == wanted
    blurred = "mask" in wanted and "Mask blur" not in fields
    assert found.request_values.get("mask_blur") == (0 if blurred else 4 if "Mask blur" in fields else None)
    assert not found.lost
    assert not found_in(f"a\nSteps: 2, Seed: 1, {fields}").pictures


def test_fields_at_their_defaults_change_nothing() -> None:
    text = "a\nSteps: 2, Seed: 1, Emphasis: {}, Beta schedule alpha: {}, Beta scheduler beta: 0.6"
    assert found_in(text.format("Original", 0.6)).lost == ()
    assert found_in(text.format("No norm", 0.7)).lost == ("Beta schedule alpha: 0.7",)


@pytest.mark.parametrize(
    ("version", "more", "prompt", "expected"),
    [
        ("v1.5.1", "Sampler: DDIM", "[a:b:0.5]", ["1.6.0: [from", "1.6.0: prompts", "1.7.0"]),
        ("v1.5.2", "Sampler: Euler", "a", ["1.7.0"]),
        ("v1.6.0-2-g4afaaf8a", "Sampler: DDIM", "[a:b:0.5]", ["1.7.0"]),
        ("v1.7.0-224-gdeadbeef", "Sampler: Euler", "a", ["1.7.0"]),
        ("v1.7.0-225-gdeadbeef", "Sampler: Euler", "a", []),
        ("v1.7.0-225-gdeadbeef", "Refiner: x", "a", ["1.8.0"]),
        ("v1.8.0", "Refiner: x", "[a:b:0.5]", []),
        ("v1.10.1", "Sampler: DDIM", "[a:b:0.5]", []),
        ("f2.0.1v1.10.1-previous", "Sampler: DDIM", "[a:b:0.5]", []),
    ],
)
def test_older_versions_read_otherwise(version: str, more: str, prompt: str, expected: list[str]) -> None:
    notes = found_in(f"{prompt}\nSteps: 5, Seed: 1, {more}, Version: {version}").notes
    assert [
        note.removeprefix("made before ").startswith(start) for note, start in zip(notes, expected, strict=True)
    ] == [True] * len(expected)


def test_stable_diffusion_cpp() -> None:
    found = found_in((HERE / "sdcpp.txt").read_text(encoding="utf-8"))
    assert (found.source, found.model) == ("stable-diffusion.cpp", "sd3_medium_incl_clips_t5xxlfp16")
    assert found.request_values == {
        "prompt": 'a lovely cat holding a sign says "Stable Diffusion CPP"', "negative_prompt": "", "sampler": "euler",
        "steps": 20, "guidance_scale": 4.5, "seed": 42, "width": 1024, "height": 1024, "rng": "nv",
    }  # fmt: skip
    lcm = found_in(PUBLISHED["sd.cpp with_lcm.png"])
    assert lcm.request_values["prompt"] == "a lovely cat"
    assert [lora.name for lora in lcm.loras] == ["lcm-lora-sdv1-5"]
    text = "a\nSteps: 2, Eta: 0.0, Seed: 1, RNG: {}, Sampler: {}, Version: stable-diffusion.cpp"
    assert found_in(text.format("std_default", "euler_a")).lost == ("RNG: std_default",)
    assert found_in(text.format("cpu", "dpm++2m karras")).request_values["rng"] == "cpu"
    assert "eta" not in found_in(text.format("cuda", "euler_a")).request_values
    assert found_in(text.format("cuda", "ddim_trailing")).request_values["eta"] == 0


@pytest.mark.parametrize(
    ("prompt", "rest", "expected", "wrong"),
    [
        ("a <lora:x:0.5> b", "a b", [("x", 0.5, 0.5)], 0),
        ("<lora:x>", "", [("x", 1.0, 1.0)], 0),
        ("a <lora:x:0.5:1>, b<lyco:y z:-1>", "a, b", [("x", 0.5, 1.0), ("y z", -1.0, -1.0)], 0),
        ("<lora:x:te=0.2:unet=0.7>", "", [("x", 0.2, 0.7)], 0),
        ("<lora:x:0.3:unet=0.7>", "", [("x", 0.3, 0.7)], 0),
        ("<lora:x:1:1:4>", "", [("x", 1.0, 1.0)], 1),
        ("<lora:x:high>", "", [], 1),
        ("<hypernet:x:1> <lora:>", "<hypernet:x:1> <lora:>", [], 0),
    ],
)
def test_tags_are_taken_out_of_the_prompt(prompt: str, rest: str, expected: list[Any], wrong: int) -> None:
    left, loras, said = take_tags(prompt, {"x": "abc"})
    assert (left, len(said)) == (rest, wrong)
    assert [(lora.name, lora.text_weight, lora.unet_weight) for lora in loras] == expected
    assert all(lora.hash == ("abc" if lora.name == "x" else None) for lora in loras)


def test_a_picture_without_metadata_is_said() -> None:
    for image in (Image(BLACK), Image(BLACK, " \n")):
        with pytest.raises(FileProblem, match="carries no metadata about how it was made"):
            read_request(image)


# The record

WORDS = st.sampled_from(
    [
        "cat",
        ",",
        ":",
        '"',
        "\\",
        "\n",
        " ",
        "\t",
        "👩‍🎨",
        "日本",
        "512x512",
        "Steps: 1",
        "Negative prompt: x",
        "\ud800",
        "\0",
        "\r",
    ]
) | st.sampled_from(
    ["<lora:y:0.5>", "Steps: 20, Sampler: Euler, Seed: 1", "\nSteps: 1, aa: b, cc: d", "BREAK", "(x:1.2)"]
)
PROMPTS = st.lists(WORDS | st.text(max_size=4), max_size=8).map("".join)
LORAS = st.lists(
    st.builds(
        LoraUsed, name=st.text(min_size=1, max_size=6), text_weight=st.sampled_from([1.0, -0.25, 1e-9]),
        unet_weight=st.sampled_from([1.0, 0.3]), hash=st.sampled_from([None, "0123456789ab"]),
    ),
    max_size=2,
)  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "steps": 12, "sampler": "Euler a", "schedule": "Karras", "clip_skip": 2, "rng": "gpu", "ensd": 31337, "variation_seed": 9,
    "variation_strength": 0.25, "seed_width": 512, "seed_height": 640, "s_churn": 3.5, "s_tmin": 0.1, "s_tmax": 9.0,
    "s_noise": 1.01, "rho": 5.5, "sigma_min": 0.03, "sigma_max": 14.0, "guidance_list": (7.5, 3.0), "guidance_rescale": 0.7,
    "guidance_start": 0.1, "guidance_stop": 0.85, "skip_early": 0.05, "ngms": 1.5, "ngms_all": True, "eta": 0.5,
}  # fmt: skip
REQUESTS = st.sampled_from(
    [
        {}, EVERYTHING, {"compat": "comfyui", "batch": 3, "noise_batch": 4, "noise_index": 1, "count": 2},
        {"sigmas": (14.5, 3.25, 1e-05, 0)}, {"batch": 2, "count": 2, "seed": 2**64 - 2}, {"sampler": "Euler", "ensd": 7},
    ]
)  # fmt: skip


@given(prompt=PROMPTS, negative=PROMPTS, options=REQUESTS, loras=LORAS, pick=st.integers(0, 5))
@example(prompt="Negative prompt: a", negative="Steps: 1, aa: b, cc: d", options={}, loras=[], pick=0)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_with_its_record_every_picture_comes_back_exactly(
    prompt: str, negative: str, options: dict[str, Any], loras: list[LoraUsed], pick: int
) -> None:
    values = {"width": 512, "height": 768, "seed": 1, **options}
    request = GenerateRequest(prompt=prompt, negative_prompt=negative, **values).resolved(512)
    index = pick % len(request.seeds)
    infotext = write(request, request.seeds[index], index=index, model="m", loras=loras, embeddings={"e": "0" * 12})
    record = make_record(request, index, infotext, loras=loras, embeddings={"e": "0" * 12}, conditions={"threads": 2})
    found = found_in(infotext, record)
    assert found.request().resolved(512) == of_picture(request, index)
    assert found.exact
    assert found.loras == tuple(loras)
    assert (found.embeddings, found.conditions) == ({"e": "0" * 12}, {"threads": 2})
    alone = found.request().resolved(512)
    assert make_record(alone, 0, infotext, loras=loras) == make_record(request, index, infotext, loras=loras)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.avif"])
@pytest.mark.parametrize(
    "prompt",
    [
        'say "hi", a: b\nSteps: 1',
        "um pôr do sol, 日没 🌅\n\n second line ",
        "Negative prompt: \ud800",
        "a\nSteps: 1, aa: b, cc: d",
    ],
)
def test_it_comes_back_from_every_format(tmp_path: Path, name: str, prompt: str) -> None:
    request = GenerateRequest(prompt=prompt, negative_prompt='"no", x: y', seed=3, width=64, height=64).resolved(64)
    infotext = write(request, 3)
    image = Image(BLACK, infotext, record=make_record(request, 0, infotext))
    found = read_request(read_image(image.save(tmp_path / name)))
    assert found.exact
    assert found.request() == request
    assert found.source == "avila_diffusion"


def test_the_record_is_compact() -> None:
    request = GenerateRequest(prompt="a cat, 日本", seed=3, width=64, height=64).resolved(64)
    infotext = write(request, 3)
    told = json.loads(make_record(request, 0, infotext))
    assert set(told) == {"avila_diffusion", "infotext"}
    # lines lose white space at their ends in the infotext
    odd = replace(request, prompt="a cat ")
    assert json.loads(make_record(odd, 0, write(odd, 3)))["request"] == {"prompt": "a cat "}


def test_a_record_of_another_text_is_not_used() -> None:
    request = GenerateRequest(prompt="a cat ", seed=3, width=64, height=64).resolved(64)
    infotext = write(request, 3)
    record = make_record(request, 0, infotext)
    changed = found_in(infotext.replace("cat", "dog"), record)
    assert (changed.request_values["prompt"], changed.exact) == ("a dog", False)
    assert "was changed after the picture was made" in changed.notes[0]
    assert "is damaged" in found_in(infotext, record[:-3]).notes[0]
    told = json.loads(record)
    told["request"] = {"prompt": "a cat ", "from_the_future": 1, "steps": -5, "clip_skip": "x"}
    newer = found_in(infotext, json.dumps(told))
    assert newer.request_values["prompt"] == "a cat "
    assert not {"steps", "clip_skip", "from_the_future"} & newer.request_values.keys()
    assert newer.lost[0] == "from_the_future: 1"
    assert len(newer.lost) == 3


def test_what_stands_in_the_prompt_already_is_not_repeated() -> None:
    request = GenerateRequest(prompt="a <lora:x:0.5> cat", seed=3, width=64, height=64).resolved(64)
    loras = [
        LoraUsed(name="x", text_weight=0.5, unet_weight=0.5, hash="0123456789ab", in_prompt=True),
        LoraUsed(name="y", text_weight=1, unet_weight=0.25),
    ]
    infotext = write(request, 3, loras=loras)
    assert read(infotext).prompt == "a <lora:x:0.5> cat <lora:y:1:0.25>"
    assert read(infotext).fields["Lora hashes"] == "x: 0123456789ab"
    found = found_in(infotext, make_record(request, 0, infotext, loras=loras))
    assert found.request_values["prompt"] == "a <lora:x:0.5> cat"
    assert found.loras == (loras[1],)


def test_embeddings_stand_where_automatic1111_looks_for_them() -> None:
    request = GenerateRequest(prompt="a", seed=3, width=64, height=64).resolved(64)
    text = write(request, 3, embeddings={"bad, hand": "0123456789ab", "other": "ab" * 6, "none": ""})
    assert read(text).fields["TI hashes"] == "bad hand: 0123456789ab, other: abababababab"
    assert 'TI hashes: "bad hand: 0123456789ab, other: abababababab", Version' in text
    assert "TI hashes" not in write(request, 3, embeddings={"none": ""})


def test_sd_parsers_is_not_misled_by_the_record(tmp_path: Path) -> None:
    request = GenerateRequest(prompt="a cat", negative_prompt="dog", seed=3, width=64, height=64, schedule="Karras")
    request = request.resolved(64)
    infotext = write(request, 3, model="m", model_hash="0123456789")
    path = Image(BLACK, infotext, record=make_record(request, 0, infotext, conditions={"threads": 2})).save(
        tmp_path / "a.png"
    )
    told = sd_parsers.ParserManager().parse(path)
    assert told is not None
    (sampler,) = told.samplers
    found = read_request(read_image(path))
    assert [prompt.value for prompt in sampler.prompts] == [found.request_values["prompt"]]
    assert (sampler.name, sampler.parameters["seed"]) == (found.request_values["sampler"], "3")
    assert sampler.model is not None
    assert (sampler.model.name, sampler.model.hash) == (found.model, found.model_hash)


@pytest.mark.parametrize("piece", ["a", " ", "a: ", "<lora:", ' "', "a,", "\n", 'aa: "b,', "-"])
def test_long_texts_take_no_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    for whole in (
        text,
        f"{text}\nSteps: 1, Seed: 2, Lora hashes: {text}",
        f"{text}\nSteps: 1, Seed: 2, TI hashes: {json.dumps(text)}",
    ):
        if whole.strip():
            started = time.process_time()
            found_in(whole)
            assert time.process_time() - started < 2  # 0.2 s at most


def test_the_mode_of_emphasis_is_carried_over() -> None:
    text = "a (b)\nSteps: 2, Seed: 1, Sampler: Euler, Emphasis: {}"
    found = found_in(text.format("No norm"))
    assert (found.lost, found.request().emphasis) == ((), "No norm")
    assert found_in(text.format("Loud")).lost == ("Emphasis: Loud",)
    assert found_in(text.format("Original")).request().emphasis == "Original"


@pytest.mark.parametrize("version", ["v1.5.1", "1.5.1", "v1.5.0-RC", "v1.8.0-RC", "v1.8.0-RC-12-gabcdef0"])
def test_versions_of_candidates_and_without_git_are_known(version: str) -> None:
    """A copy without git takes the version from its list of changes, where it has no v."""
    found = found_in(f"a [b:c:1]\nSteps: 1, Sampler: Euler, Seed: 2, Refiner: r, Version: {version}")
    assert (found.source, found.version) == ("AUTOMATIC1111", version)
    assert any("before 1.8.0" in note for note in found.notes)
    assert any("before 1.6.0" in note for note in found.notes) == ("1.5" in version)


def test_a_hypernetwork_in_the_prompt_is_named() -> None:
    found = found_in("a <hypernet:h:0.3> cat\nSteps: 1, Sampler: Euler, Seed: 2")
    assert (found.request_values["prompt"], found.lost) == ("a cat", ("hypernetwork: <hypernet:h:0.3>",))


def test_the_second_pass_of_old_versions_is_named() -> None:
    assert found_in("a\nSteps: 1, Seed: 2, Sampler: Euler, First pass size: 0x0").lost == ("First pass size: 0x0",)


@pytest.mark.parametrize("name", ["Beta schedule", "Beta scheduler"])
def test_another_beta_distribution_is_named(name: str) -> None:
    text = "a\nSteps: 1, Seed: 2, Sampler: Euler, Schedule type: Beta, {0} alpha: 0.6, {0} beta: 0.8"
    assert found_in(text.format(name)).lost == (f"{name} beta: 0.8",)


def test_a_text_too_long_to_be_read_is_refused_at_once() -> None:
    with pytest.raises(FileProblem, match=r"'parameters' has 9,000,000 characters; at most 8,000,000 are read"):
        found_in("a" * 9_000_000)
