"""The fields of a request as options of the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection
from typing import Any

from ..errors import RequestError
from .parser import typed_text
from .picture_options import add_picture_options, read_picture_options

MODEL_SIZE = "default: the model's own size"
NEEDS = {
    "variation_seed": "variation_strength",
    "ngms_all": "ngms",
    "s_tmin": "s_churn",
    "s_tmax": "s_churn",
}
"""Options that mean nothing without another."""


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every field of `GenerateRequest` but the prompt. What is not given is not in `given`."""
    picture = parser.add_argument_group("the picture")
    picture.add_argument("-n", "--negative-prompt", type=typed_text, metavar="TEXT", help="what to stay away from")
    picture.add_argument("-W", "--width", type=int, metavar="PIXELS", help=MODEL_SIZE)
    picture.add_argument("-H", "--height", type=int, metavar="PIXELS", help=MODEL_SIZE)
    picture.add_argument("--steps", type=int, metavar="N", help="sampling steps; default: the model's, else 20")
    picture.add_argument("--sampler", "--sampling-method", metavar="NAME", help="see `avila samplers`")
    picture.add_argument("--schedule", "--scheduler", metavar="NAME", help="see `avila schedules`; default Automatic")
    picture.add_argument(
        "--cfg",
        "--cfg-scale",
        "--guidance-scale",
        dest="guidance_scale",
        type=float,
        metavar="X",
        help="default: the model's, else 7",
    )
    picture.add_argument("-s", "--seed", type=int, metavar="N", help="of the first picture; default: random")
    picture.add_argument("-b", "--batch", type=int, metavar="N", help="pictures made together, default 1")
    picture.add_argument("--count", "--batch-count", type=int, metavar="N", help="batches one after another, default 1")
    picture.add_argument("--clip-skip", type=int, metavar="N", help="1 is the text tower's last layer (default)")
    picture.add_argument(
        "--emphasis", choices=("Original", "No norm", "Ignore", "None"), help="how brackets weigh; default Original"
    )
    add_picture_options(parser)
    _add_noise(parser.add_argument_group("the noise"))
    _add_sampling(parser.add_argument_group("sampler, schedule and guidance in detail"))


def _add_noise(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--rng", choices=("nv", "cpu", "gpu"), help="whose random numbers; nv (default): an NVIDIA GPU's"
    )
    group.add_argument(
        "--compat",
        choices=("a1111", "comfyui", "diffusers"),
        help="whose prompts, noise, schedules and starts; default a1111",
    )
    group.add_argument("--variation-seed", "--subseed", type=int, metavar="N", help="default: random")
    group.add_argument(
        "--variation-strength", "--subseed-strength", type=float, metavar="X", help="0 to 1, how far to go towards it"
    )
    group.add_argument("--seed-resize", metavar="WxH", help="noise of a picture of this size, pasted into the middle")
    group.add_argument("--ensd", type=int, metavar="N", help="added to the seed for the noise of ancestral samplers")
    group.add_argument("--noise-batch", type=int, metavar="N", help="as ComfyUI: of a batch of N …")
    group.add_argument("--noise-index", type=int, metavar="K", help="… the picture K, from 0")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    numbers = {
        "eta": "noise of ancestral and SDE samplers and DDIM",
        "s-churn": "noise added before steps of Euler, Heun, DPM2 (Karras et al. 2022)",
        "s-tmin": "lowest noise level for that",
        "s-tmax": "highest",
        "s-noise": "factor of the noise between steps",
        "rho": "bend of Karras (default 7) and Polyexponential (1)",
        "sigma-min": "where the schedule ends; default: the model's lowest level",
        "sigma-max": "where it starts; default: the model's highest",
        "guidance-rescale": "0 to 1, phi of Lin et al. 2023",
        "guidance-start": "share of the steps before guidance begins",
        "guidance-stop": "share of the steps after which it ends",
        "skip-early": "share of the steps, at first, without the negative prompt",
        "ngms": "noise level (timestep for DDIM, PLMS, UniPC) below which every second call has no negative prompt",
    }
    for name, text in numbers.items():
        group.add_argument(f"--{name}", type=float, metavar="X", help=text)
    group.add_argument("--ngms-all", action="store_true", default=None, help="not every second call but all")
    group.add_argument("--sigmas", metavar="X,X,…,0", help="noise levels in place of schedule and steps")
    group.add_argument("--cfg-list", dest="guidance_list", metavar="X,X,…", help="a guidance scale per step")


def given(options: argparse.Namespace, carried: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a request that the command line names, but for the prompt. Raises RequestError.

    carried: the fields that a picture brings beside.
    """
    from ..request import GenerateRequest

    names = [name for name in GenerateRequest.__dataclass_fields__ if name != "prompt"]
    values = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    for name in ("sigmas", "guidance_list"):
        if name in values:
            values[name] = _numbers(name, values[name])
    if options.seed_resize is not None:
        values["seed_width"], values["seed_height"] = _size(options.seed_resize)
    values |= read_picture_options(options)
    _refuse_useless(values, carried)
    return values


def _refuse_useless(values: dict[str, Any], carried: Collection[str]) -> None:
    """Raise RequestError for options that have no effect beside, or without, others.

    Of a command line only: AUTOMATIC1111 records some of these together, and what it recorded can be asked for again.
    """
    for name, needed in NEEDS.items():
        if name in values and needed not in values and needed not in carried:
            option, other = (f"--{each.replace('_', '-')}" for each in (name, needed))
            raise RequestError(f"{option} has no effect without {other}; add that, or leave it out")
    if "guidance_scale" in values and "guidance_list" in values:
        raise RequestError("--cfg-list takes the place of --cfg; leave out one of the two")
    scales = len(values.get("guidance_list", ()))
    if scales > values.get("steps", scales):
        raise RequestError(
            f"--cfg-list names {scales} scales for {values['steps']} steps; leave out those that are over"
        )
    if "sigmas" in values and values.get("steps", len(values["sigmas"]) - 1) != len(values["sigmas"]) - 1:
        raise RequestError(
            f"--sigmas names {len(values['sigmas'])} levels, which are {len(values['sigmas']) - 1} steps, "
            f"and --steps asks for {values['steps']}; leave out one of the two"
        )
    if values.get("s_tmin", 0.0) > values.get("s_tmax", math.inf):
        raise RequestError(f"--s-tmin {values['s_tmin']:g} lies above --s-tmax {values['s_tmax']:g}; exchange them")


def _numbers(name: str, text: str) -> tuple[float, ...]:
    option, example = {"sigmas": ("--sigmas", "14.6,3.5,0.8,0"), "guidance_list": ("--cfg-list", "9,7,5")}[name]
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"{option} {text[:80]!r} is no list of numbers; write it as {example}") from None


def _size(text: str) -> tuple[int, int]:
    width, x, height = text.lower().partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise RequestError(f"--seed-resize {text[:80]!r} is no size; write it as 512x768")
    return int(width), int(height)
