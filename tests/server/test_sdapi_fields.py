"""Bodies as pydantic would read them, and scripts that do nothing."""

from __future__ import annotations

from typing import Any

import pytest

from avila_diffusion.errors import AvilaError, RequestError
from avila_diffusion.server.problems import QueueFull, status_of
from avila_diffusion.server.sdapi import error_response
from avila_diffusion.server.sdapi.fields import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, InvalidBody, read_fields
from avila_diffusion.server.sdapi.scripts import check_scripts, is_active

TAKEN: list[tuple[str, Any, Any]] = [
    ("steps", 20, 20),
    ("steps", "20", 20),
    ("steps", " 20 ", 20),
    ("steps", 20.0, 20),
    ("steps", "20.0", 20),
    ("steps", True, 1),
    ("steps", None, 50),
    ("seed", 2**64 - 1, 2**64 - 1),
    ("seed", -5, -5),
    ("cfg_scale", "7.5", 7.5),
    ("cfg_scale", 7, 7.0),
    ("tiling", "true", True),
    ("tiling", 0, False),
    ("tiling", None, None),
    ("send_images", "off", False),
    ("prompt", 12, "12"),
    ("prompt", None, ""),
    ("styles", "ink", ["ink"]),
    ("styles", "", []),
    ("styles", ["a", "b"], ["a", "b"]),
    ("override_settings", {"x": 1}, {"x": 1}),
    ("inpainting_mask_invert", True, 1),
    ("script_args", [], []),
]

REFUSED: list[tuple[str, Any, str]] = [
    ("steps", "abc", "type_error.integer"),
    ("steps", 20.5, "type_error.integer"),
    ("steps", [20], "type_error.integer"),
    ("steps", {}, "type_error.integer"),
    ("steps", 1e999, "type_error.integer"),
    ("steps", "9" * 5000, "type_error.integer"),
    ("steps", 0, "value_error.number.not_ge"),
    ("steps", 1001, "value_error.number.not_le"),
    ("seed", 2**64, "value_error.number.not_le"),
    ("cfg_scale", "nan", "type_error.float"),
    ("cfg_scale", "x", "type_error.float"),
    ("cfg_scale", -1, "value_error.number.not_ge"),
    ("cfg_scale", 10**400, "type_error.float"),
    ("denoising_strength", 1.1, "value_error.number.not_le"),
    ("tiling", "perhaps", "type_error.bool"),
    ("tiling", 2, "type_error.bool"),
    ("tiling", {}, "type_error.bool"),
    ("prompt", ["a"], "type_error.str"),
    ("prompt", True, "type_error.str"),
    ("styles", {"a": 1}, "type_error.list"),
    ("styles", [["a"]], "type_error.list"),
    ("override_settings", [], "type_error.dict"),
    ("alwayson_scripts", "x", "type_error.dict"),
    ("width", 0, "value_error.number.not_ge"),
    ("width", 8193, "value_error.number.not_le"),
    ("batch_size", 0, "value_error.number.not_ge"),
    ("resize_mode", 4, "value_error.number.not_le"),
    ("inpainting_fill", -1, "value_error.number.not_ge"),
]


@pytest.mark.parametrize(("name", "given", "read"), TAKEN, ids=lambda value: repr(value)[:30])
def test_values_are_brought_to_their_type(name: str, given: Any, read: Any) -> None:
    body = read_fields({name: given}, IMAGE_TO_IMAGE)
    assert body[name] == read
    assert type(body[name]) is type(read)
    assert (name in body) == (given is not None)


@pytest.mark.parametrize(("name", "given", "kind"), REFUSED, ids=lambda value: repr(value)[:30])
def test_what_cannot_be_read_is_named(name: str, given: Any, kind: str) -> None:
    with pytest.raises(InvalidBody) as caught:
        read_fields({name: given}, IMAGE_TO_IMAGE)
    (detail,) = caught.value.details
    assert detail["loc"] == ["body", name]
    assert detail["type"] == kind
    assert detail["msg"].startswith(f"{name} is ")
    assert "\n" not in detail["msg"]
    assert len(detail["msg"]) < 250


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidBody) as caught:
        read_fields({"steps": 0, "width": "wide", "cfg_scale": 7, "nonsense": []}, TEXT_TO_IMAGE)
    assert [detail["loc"][1] for detail in caught.value.details] == ["steps", "width"]


def test_defaults_are_those_of_the_original() -> None:
    body = read_fields({}, TEXT_TO_IMAGE)
    assert (body["steps"], body["cfg_scale"], body["width"], body["height"]) == (50, 7.0, 512, 512)
    assert (body["sampler_index"], body["sampler_name"], body["seed"], body["subseed"]) == ("Euler", None, -1, -1)
    assert (body["denoising_strength"], body["hr_scale"], body["send_images"]) == (0.75, 2.0, True)
    image = read_fields({}, IMAGE_TO_IMAGE)
    assert (image["inpainting_fill"], image["inpaint_full_res"], image["inpaint_full_res_padding"]) == (0, True, 0)
    assert (image["mask_blur_x"], image["mask_round"], image["resize_mode"]) == (4, True, 0)


IDLE: list[tuple[str, Any]] = [
    ("ControlNet", {"args": []}),
    ("ControlNet", {}),
    ("ControlNet", None),
    ("controlnet", {"args": [{"enabled": False, "model": "canny"}]}),
    ("controlnet", {"args": [{"enabled": True, "model": "None", "module": "none"}]}),
    ("ADetailer", {"args": [False, {"ad_model": "face_yolov8n.pt"}]}),
    ("animatediff", {"args": [{"enable": False, "model": "mm"}]}),
    ("Refiner", {"args": [False, "", 0.8]}),
    ("Seed", {"args": [-1, False, -1, 0, 0, 0]}),
    ("Sampler", {"args": [20, "DPM++ 2M", "Automatic"]}),
    ("Comments", {"args": ["a"]}),
    ("anything", {"args": [None, "", 0, []]}),
    ("soft inpainting", {"args": [False, 1, 0.5]}),
]
BUSY: list[tuple[str, Any]] = [
    ("ControlNet", {"args": [{"model": "control_canny", "image": "aGk="}]}),
    ("controlnet", {"args": {"enabled": True, "module": "canny"}}),
    ("ADetailer", {"args": [True, {"ad_model": "face_yolov8n.pt"}]}),
    ("Self Attention Guidance", {"args": [True, 0.75, 1.5]}),
    ("Refiner", {"args": [True, "xl", 0.8]}),
    ("soft inpainting", {"args": [True, 1, 0.5]}),
    ("reactor", {"args": ["aGk=", True]}),
    ("odd", "text"),
]


@pytest.mark.parametrize(("name", "told"), IDLE, ids=str)
def test_scripts_that_do_nothing_pass(name: str, told: Any) -> None:
    assert not is_active(name, told)
    check_scripts(None, {name: told})


@pytest.mark.parametrize(("name", "told"), BUSY, ids=str)
def test_scripts_that_would_do_something_are_named(name: str, told: Any) -> None:
    with pytest.raises(InvalidBody, match=name) as caught:
        check_scripts("", {"fine": {"args": []}, name: told})
    assert [detail["loc"] for detail in caught.value.details] == [["body", "alwayson_scripts", name]]


@pytest.mark.parametrize("name", [None, "", "none", "None", " NONE "])
def test_no_script_is_fine(name: str | None) -> None:
    check_scripts(name, {})


def test_another_script_is_not() -> None:
    with pytest.raises(InvalidBody, match="script_name is 'x/y/z plot'; there are no scripts here"):
        check_scripts("x/y/z plot", {})


def test_error_shapes() -> None:
    wrong = InvalidBody([{"loc": ["body", "steps"], "msg": "steps is 0", "type": "value_error"}])
    assert (
        error_response(wrong, 422).body
        == b'{"detail":[{"loc":["body","steps"],"msg":"steps is 0","type":"value_error"}]}'
    )
    told = error_response(RequestError("two\nlines"), 422)
    assert told.body == b'{"error":"RequestError","detail":"two lines","body":"","errors":"two lines"}'
    full = QueueFull("no room", 2.2)
    answer = error_response(full, status_of(full))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert error_response(AvilaError("x"), 500).status_code == 500
