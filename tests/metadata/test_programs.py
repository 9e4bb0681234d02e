"""Pictures of ComfyUI, InvokeAI, NovelAI and Fooocus as requests, and whatever else may stand in their texts."""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from avila_diffusion.errors import FileProblem
from avila_diffusion.images import Image, read_image
from avila_diffusion.infotext import LoraUsed
from avila_diffusion.metadata import Found, read_request

HERE = Path(__file__).parent
BLACK = numpy.zeros((8, 8, 3), numpy.uint8)
COMFYUI: dict[str, Any] = json.loads((HERE / "comfyui.json").read_text(encoding="utf-8"))
LORA = LoraUsed(name="epiNoiseoffset_v2", text_weight=1.0, unet_weight=1.0)
WANTED = {
    "compat": "comfyui", "sampler": "euler", "schedule": "normal", "seed": 851616030078638, "steps": 20,
    "guidance_scale": 8.0, "prompt": "masterpiece best quality girl", "negative_prompt": "bad hands", "width": 512,
    "height": 512,
}  # fmt: skip


def found_in(infotext: str | None = None, **texts: Any) -> Found:
    plain = {name: text if isinstance(text, str) else json.dumps(text) for name, text in texts.items()}
    return read_request(Image(BLACK, infotext, texts=plain))


def graph(**changes: Any) -> dict[str, Any]:
    """The published graph with inputs changed, as `_3__steps=5`, or nodes added, as `_20=(class, inputs)`."""
    nodes: dict[str, Any] = copy.deepcopy(COMFYUI["prompt"])
    for name, value in changes.items():
        key, _, field = name.removeprefix("_").partition("__")
        if field:
            nodes[key]["inputs"][field] = value
        else:
            nodes[key] = {"class_type": value[0], "inputs": value[1]}
    return nodes


# ComfyUI


@pytest.mark.parametrize("texts", [COMFYUI, {"prompt": COMFYUI["prompt"]}, {"workflow": COMFYUI["workflow"]}])
def test_a_graph_of_comfyui(texts: dict[str, Any]) -> None:
    found = found_in(**texts)
    assert found.source == "ComfyUI"
    assert found.request_values == WANTED
    assert found.request().resolved(512).rng == "cpu"
    assert (found.model, found.loras, found.lost) == ("v1-5-pruned-emaonly", (LORA,), ())


def test_the_same_from_the_exif_of_a_webp(tmp_path: Path) -> None:
    exif = PillowImage.Exif()
    exif[0x0110] = "prompt:" + json.dumps(COMFYUI["prompt"])
    exif[0x010F] = "workflow:" + json.dumps(COMFYUI["workflow"])
    PillowImage.fromarray(BLACK).save(tmp_path / "a.webp", exif=exif)
    assert read_request(read_image(tmp_path / "a.webp")).request_values == WANTED


def test_values_may_come_along_links() -> None:
    found = found_in(prompt=graph(
        _20=("PrimitiveInt", {"value": 7}), _3__seed=["20", 0],
        _21=("PrimitiveStringMultiline", {"value": "a cat"}), _22=("Reroute", {"": ["21", 0]}), _6__text=["22", 0],
        _23=("CLIPSetLastLayer", {"stop_at_clip_layer": -2, "clip": ["10", 1]}), _6__clip=["23", 0],
        _7__clip=["23", 0],
        _24=("LoraLoader", {"lora_name": "x/first.safetensors", "strength_model": 0.5, "strength_clip": 0, "model": ["4", 0],
                            "clip": ["4", 1]}), _10__model=["24", 0], _10__clip=["24", 1],
        _25=("VAELoader", {"vae_name": "v.safetensors"}), _8__vae=["25", 0],
    ))  # fmt: skip
    assert found.request_values == {**WANTED, "seed": 7, "prompt": "a cat", "clip_skip": 2}
    assert found.loras == (LoraUsed(name="first", text_weight=0.0, unet_weight=0.5), LORA)
    assert (found.vae, found.lost) == ("v.safetensors", ())


def test_the_samplers_in_parts() -> None:
    found = found_in(prompt=graph(
        _3=("SamplerCustomAdvanced", {"noise": ["20", 0], "guider": ["21", 0], "sampler": ["22", 0], "sigmas": ["23", 0],
                                      "latent_image": ["5", 0]}),
        _20=("RandomNoise", {"noise_seed": 3}),
        _21=("CFGGuider", {"model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "cfg": 2.5}),
        _22=("KSamplerSelect", {"sampler_name": "dpmpp_2m"}),
        _23=("KarrasScheduler", {"steps": 9, "sigma_max": 14.0, "sigma_min": 0.03, "rho": 7.0}),
    ))  # fmt: skip
    expected = {"sampler": "dpmpp_2m", "schedule": "Karras", "steps": 9, "seed": 3, "guidance_scale": 2.5}
    levels = {"sigma_max": 14.0, "sigma_min": 0.03, "rho": 7.0}
    assert found.request_values == {**WANTED, **expected, **levels}
    assert (found.loras, found.lost) == ((LORA,), ())


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"_3__denoise": 0.5}, "denoise: 0.5"),
        ({"_5__batch_size": 4}, "which picture of the batch of 4 it is"),
        ({"_20": ("FreeU", {"model": ["10", 0]}), "_3__model": ["20", 0]}, "node 20: FreeU on the way of the model"),
        (
            {"_20": ("ControlNetApply", {"conditioning": ["6", 0]}), "_3__positive": ["20", 0]},
            "node 20: ControlNetApply on the way of the positive prompt",
        ),
        ({"_20": ("VAEEncode", {"pixels": ["9", 0]}), "_3__latent_image": ["20", 0]}, "the picture began with VAEEncode"),
        (
            {"_20": ("KSampler", {"latent_image": ["21", 0]}), "_21": ("LatentUpscale", {"samples": ["3", 0]}),
             "_8__samples": ["20", 0]},
            "node 20: another pass of KSampler",
        ),
        ({"_7__clip": ["4", 1]}, "the negative prompt goes through other LoRAs"),
        ({"_20": ("Seed Everywhere", {"seed_x": 3}), "_3__seed": ["20", 0]}, "node 3: seed comes from Seed Everywhere"),
        ({"_3__cfg": ["77", 0]}, "node 3: cfg comes from no node"),
        ({"_20": ("Math", {"a": 1}), "_3__denoise": ["20", 0]}, "node 3: denoise comes from Math"),
        ({"_20": ("Join", {"a": "x"}), "_6__text": ["20", 0]}, "node 6: text comes from Join"),
        ({"_20": ("Pick", {"a": "x"}), "_4__ckpt_name": ["20", 0]}, "node 4: ckpt_name comes from Pick"),
        ({"_20": ("Pick", {"a": "x"}), "_10__lora_name": ["20", 0]}, "node 10: lora_name comes from Pick"),
        ({"_20": ("Pick", {"a": "x"}), "_5__width": ["20", 0]}, "node 5: width comes from Pick"),
        ({"_20": ("ImageSharpen", {"image": ["8", 0]}), "_9__images": ["20", 0]}, "node 20: ImageSharpen"),
        ({"_8": ("VAEDecodeTiled", {"samples": ["3", 0], "vae": ["4", 2]})}, "node 8: VAEDecodeTiled"),
        ({"_7": ("ConditioningZeroOut", {"conditioning": ["6", 0]})}, "node 7: ConditioningZeroOut on the way of the neg"),
        ({"_6__text": "a cat <lora:x:0.5>"}, "words to ComfyUI, a LoRA here: <lora:x:0.5>"),
        ({"_3__sampler_name": "res_9s"}, "unknown sampler 'res_9s'"),
        ({"_3__steps": 0}, "steps is 0"),
        ({"_3": ("Sampler Of Somebody", {})}, "the graph has no sampler that is known here"),
    ],
)  # fmt: skip
def test_what_a_graph_does_beyond_a_request_is_named(changes: dict[str, Any], lost: str) -> None:
    found = found_in(prompt=graph(**changes))
    assert any(one.startswith(lost) for one in found.lost), found.lost
    found.request()


def test_what_a_node_empties_is_not_the_other_prompt() -> None:
    found = found_in(prompt=graph(_7=("ConditioningZeroOut", {"conditioning": ["6", 0]})))
    assert found.request_values["negative_prompt"] == ""


def test_a_vae_that_decodes_in_tiles_is_named_all_the_same() -> None:
    decode = ("VAEDecodeTiled", {"samples": ["3", 0], "vae": ["25", 0]})
    assert found_in(prompt=graph(_25=("VAELoader", {"vae_name": "v.safetensors"}), _8=decode)).vae == "v.safetensors"


def test_samplers_of_a_node_of_their_own() -> None:
    parts = {"sampler": ["22", 0], "sigmas": ["23", 0], "latent_image": ["5", 0], "cfg": 2.5, "noise_seed": 3}
    ways = {"model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0]}
    levels = ("BasicScheduler", {"scheduler": "karras", "steps": 9, "denoise": 1})
    euler = ("SamplerEulerAncestral", {"eta": 0.5, "s_noise": 1.01})
    found = found_in(prompt=graph(_3=("SamplerCustom", {**parts, **ways}), _22=euler, _23=levels))
    assert (found.request_values["sampler"], found.lost) == ("euler_ancestral", ())
    assert (found.request_values["eta"], found.request_values["s_noise"]) == (0.5, 1.01)
    found = found_in(prompt=graph(_3=("SamplerCustom", {**parts, **ways}), _22=("SamplerDPMPP_SDE", {}), _23=levels))
    assert found.lost == ("sampler: SamplerDPMPP_SDE",)
    noise = {"noise": ["24", 0], "guider": ["21", 0], **parts}
    nodes = {"_24": ("DisableNoise", {}), "_21": ("CFGGuider", {**ways, "cfg": 2.0})}
    changes = {"_3": ("SamplerCustomAdvanced", noise), "_22": ("KSamplerSelect", {"sampler_name": "euler"})}
    assert found_in(prompt=graph(**changes, **nodes, _23=levels)).lost == ("add_noise: disable",)


def test_a_drawing_with_a_bypassed_node_and_a_primitive() -> None:
    drawing = copy.deepcopy(COMFYUI["workflow"])
    nodes = {node["id"]: node for node in drawing["nodes"]}
    nodes[10]["mode"] = 4  # the LoRA: its model and its text encoder go past it
    drawing["nodes"].append({"id": 99, "type": "PrimitiveNode", "widgets_values": [123, "fixed"]})
    drawing["links"].append([999, 99, 0, 3, 4, "INT"])
    nodes[3]["inputs"].append({"name": "seed", "type": "INT", "link": 999, "widget": {"name": "seed"}})
    found = found_in(workflow=drawing)
    assert found.request_values == {**WANTED, "seed": 123}
    assert (found.model, found.loras, found.lost) == ("v1-5-pruned-emaonly", (), ())


def test_a_huge_graph_takes_no_time() -> None:
    nodes: dict[str, Any] = {
        str(number): {"class_type": "KSampler", "inputs": {"latent_image": [str(number + 1), 0]}}
        for number in range(4000)
    }
    nodes |= {f"o{number}": {"class_type": "SaveImage", "inputs": {"images": ["0", 0]}} for number in range(900)}
    started = time.process_time()
    found_in(prompt=nodes)
    assert time.process_time() - started < 1.5  # 0.3 s; 5 s where each output walks the graph anew


def test_a_graph_of_too_many_nodes_is_said() -> None:
    nodes = {str(number): {"class_type": "Note", "inputs": {}} for number in range(5001)}
    assert found_in(prompt=nodes).lost == ("the graph has 5,001 nodes; at most 5,000 are read",)


def test_a_graph_in_circles_ends() -> None:
    nodes = graph(_3__model=["10", 0], _10__model=["10", 0], _6=("ConditioningCombine", {"conditioning_1": ["6", 0]}))
    nodes["5"] = {"class_type": "Reroute", "inputs": {"": ["5", 0]}}
    found_in(prompt=nodes)


# InvokeAI


def test_a_picture_of_invokeai() -> None:
    found = read_request(read_image(HERE / "invokeai.png"))
    assert (found.source, found.model, found.vae) == ("InvokeAI", "juggernautXL", "VAEFix")
    assert found.request_values["prompt"] == "digital artwork, oil painting. painterly brushstrokes, holidays,"
    assert found.request_values["negative_prompt"].startswith("grainy+, photo, oversaturated")
    numbers = {"width": 1024, "height": 1024, "steps": 35, "seed": 3293022630, "guidance_scale": 8.0, "rng": "cpu"}
    assert found.request_values.items() >= {**numbers, "sampler": "euler"}.items()
    assert [one.split()[0] for one in found.lost] == ["ipAdapters:", "negative_prompt"]


def test_invokeais_loras_and_options() -> None:
    found = found_in(invokeai_metadata={
        "generation_mode": "img2img", "positive_prompt": "a well-lit cat", "seed": 1, "steps": 5, "scheduler": "dpmpp_2m_k",
        "cfg_scale": 3, "clip_skip": 1, "strength": 0.5, "seamless_x": True, "rand_device": "cuda", "app_version": "4.2.0",
        "model": {"name": "dream", "hash": "blake3:00"}, "loras": [{"model": {"name": "x"}, "weight": 0.3}, {"weight": 1}],
    })  # fmt: skip
    assert found.request_values.items() >= {"sampler": "dpmpp_2m_k", "clip_skip": 2, "rng": "nv"}.items()
    assert (found.model, found.version) == ("dream", "4.2.0")
    assert found.loras == (LoraUsed(name="x", text_weight=0.3, unet_weight=0.3),)
    assert [one.split(":")[0] for one in found.lost] == ["loras", "generation_mode", "strength", "seamless_x"]


def test_older_pictures_of_invokeai() -> None:
    expected = {
        "prompt": "a cat", "negative_prompt": "dog, rain", "width": 512, "height": 640, "seed": 7, "steps": 30,
        "guidance_scale": 7.5, "sampler": "k_lms", "rng": "nv",
    }  # fmt: skip
    told: dict[str, Any] = {"sd-metadata": {
        "model": "stable diffusion", "model_weights": "sd-1.5.ckpt", "model_hash": "cc6cb27103417325ff94f52b7a5d2dde",
        "app_version": "2.2.4", "image": {
            "prompt": [{"prompt": "a cat [dog, rain]", "weight": 1.0}], "steps": 30, "cfg_scale": 7.5, "seed": 7, "width": 512,
            "height": 640, "sampler": "k_lms", "type": "txt2img", "threshold": 0, "seamless": False,
        }}}  # fmt: skip
    second = found_in(**told)
    assert second.request_values == expected
    assert (second.model, second.lost, second.version) == ("sd-1.5", (), "2.2.4")
    for options in ("-s 30 -S 7 -W 512 -H 640 -C 7.5 -A k_lms", "-s30 -S7 -W512 -H640 -C7.5 -Ak_lms"):
        assert found_in(Dream=f'"a cat [dog, rain]" {options}').request_values == expected
    assert found_in(Dream='"a cat" -s 30 -G 0.8').lost == ("-G: 0.8",)


# NovelAI and Fooocus


def test_a_picture_of_novelai() -> None:
    comment = {
        "steps": 28, "sampler": "k_euler_ancestral", "seed": 5, "strength": 0.7, "noise": 0.2, "scale": 11.0, "uc": "lowres",
        "width": 512, "height": 768,
    }  # fmt: skip
    texts = {"Software": "NovelAI", "Source": "Stable Diffusion 1D44365E", "Description": "a cat"}
    found = found_in(**texts, Comment=comment)
    assert found.request_values == {
        "prompt": "a cat", "negative_prompt": "lowres", "steps": 28, "sampler": "k_euler_ancestral", "seed": 5, "width": 512,
        "height": 768, "guidance_scale": 11.0, "rng": "nv", "clip_skip": 2, "ensd": 31337,
    }  # fmt: skip
    assert [one.split(":")[0] for one in found.lost] == ["strength", "noise"]
    later = {
        "sampler": "ddim_v3",
        "noise_schedule": "karras",
        "uc": "{{x}}",
        "uncond_scale": 1.0,
        "sm": True,
        "cfg_rescale": 0.5,
    }
    found = found_in(**texts | {"Source": "NovelAI Diffusion V3 1E1C8C83"}, Comment=later)
    assert found.request_values.items() >= {"sampler": "DDIM", "schedule": "karras", "guidance_rescale": 0.5}.items()
    assert not {"ensd", "clip_skip"} & found.request_values.keys()
    assert [one.split(":")[0][:12] for one in found.lost] == ["the prompts ", "sm"]


def test_a_picture_of_fooocus() -> None:
    told = {
        "prompt": "cat", "full_prompt": ["cat", "cinematic"], "negative_prompt": "", "styles": "['Fooocus V2']", "seed": "9",
        "resolution": "(896, 1152)", "steps": 30, "guidance_scale": 4, "sharpness": 2.0, "base_model": "jugg.safetensors",
        "base_model_hash": "d91d35736d", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "refiner_model": "None",
        "loras": [["offset.safetensors", 0.1, "4852686128"]], "version": "Fooocus v2.5.5", "vae": "Default (model)",
    }  # fmt: skip
    found = found_in(json.dumps(told))
    assert (found.source, found.model, found.model_hash, found.vae) == ("Fooocus", "jugg", "d91d35736d", None)
    assert found.request_values == {
        "prompt": "cat, cinematic", "negative_prompt": "", "seed": 9, "width": 896, "height": 1152, "steps": 30,
        "guidance_scale": 4.0, "sampler": "dpmpp_2m_sde_gpu", "schedule": "karras", "rng": "cpu",
    }  # fmt: skip
    assert found.loras == (LoraUsed(name="offset", text_weight=0.1, unet_weight=0.1, hash="4852686128"),)
    assert [one.split(":")[0] for one in found.lost] == ["styles", "sharpness"]


# Anything


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["3", "5", 1e400, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def spoilt(value: Any, draw: random.Random, odd: Any) -> Any:
    """A copy in which one place holds something odd."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
        return odd
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    copied = value.copy()
    copied[key] = spoilt(value[key], draw, odd)
    return copied


INVOKEAI = json.loads(read_image(HERE / "invokeai.png").texts["invokeai_metadata"])
SECOND = {
    "image": {"prompt": [{"prompt": "a [b]"}], "steps": 3, "sampler": "k_lms", "type": "txt2img"},
    "model_hash": "a",
}
NOVELAI = {"steps": 2, "sampler": "x", "seed": 1, "scale": 2, "uc": "a", "prompt": "b", "n_samples": 1}
FOOOCUS = {"base_model": "a", "loras": [["a", 1, "b"]], "resolution": "(1, 2)", "full_prompt": ["a"], "prompt": "x"}
RECORD = {"request": {"steps": 1}, "loras": [{"name": "x", "text_weight": 1, "unet_weight": 1}], "conditions": {}}
SOUND = (
    ("prompt", COMFYUI["prompt"]), ("workflow", COMFYUI["workflow"]), ("invokeai_metadata", INVOKEAI), ("sd-metadata", SECOND),
    ("Comment", NOVELAI), ("parameters", FOOOCUS), ("avila", RECORD),
)  # fmt: skip


@given(odd=JSON, where=st.sampled_from(SOUND), seed=st.integers(0, 10_000))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_no_json_stops_the_reader(odd: Any, where: tuple[str, Any], seed: int) -> None:
    name, sound = where
    text = json.dumps(spoilt(sound, random.Random(seed), odd))[:100_000]
    record = text if name == "avila" else None
    texts = {"Description": "a", name: text}
    image = Image(BLACK, text if name == "parameters" else "a cat" if record else None, record=record, texts=texts)
    try:
        found = read_request(image)
    except FileProblem:
        return
    found.request()
    json.dumps(found.to_dict())


@given(text=st.text(max_size=80), name=st.sampled_from(["prompt", "workflow", "Dream", "Comment", "sd-metadata", "x"]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_text_stops_the_reader(text: str, name: str) -> None:
    for value in (text, f'"{text}" -s {text}', "[" * 20_000, "{" * 5, '{"a":' * 5_000):
        try:
            found_in(**{name: value}).request()
        except FileProblem as error:
            assert "carries no metadata" in str(error)
        found_in(value + "\nSteps: 1, Seed: 2, Size: 1x1").request()


def test_blanks_in_an_old_prompt_of_invokeai_take_no_time() -> None:
    prompt = "a" + " " * 80_000 + "cat [dog]"
    started = time.process_time()
    texts: dict[str, Any] = {"sd-metadata": {"image": {"prompt": prompt}}}
    found = found_in(None, **texts)
    assert time.process_time() - started < 1  # 5 s where every blank is tried as the first
    assert found.request_values["negative_prompt"] == "dog"


@pytest.mark.parametrize(
    "texts",
    [
        {"invokeai_metadata": {"positive_prompt": "a", "model": {"name": "m"}, "new_thing": 3, "off": False}},
        {"sd-metadata": {"image": {"prompt": "a", "steps": 2, "new_thing": 3, "off": None}}},
        {"Description": "a", "Comment": {"uc": "", "steps": 2, "new_thing": 3, "off": []}},
        {"parameters": {"base_model": "m", "steps": 2, "new_thing": 3, "off": ""}},
    ],
)
def test_a_field_that_is_not_known_is_named(texts: dict[str, Any]) -> None:
    notes = [note for note in found_in(**texts).notes if "not understood" in note]
    assert notes == ["new_thing: 3 (not understood)"]


@pytest.mark.parametrize(("source", "skip"), [("Stable Diffusion 81274D13", 2), ("Stable Diffusion XL C1E1DE52", None)])
def test_only_the_first_models_of_novelai_skip_a_layer(source: str, skip: int | None) -> None:
    found = found_in(Description="a", Source=source, Comment={"uc": "", "steps": 2})
    assert (found.request_values.get("clip_skip"), "ensd" in found.request_values) == (skip, skip is not None)
