"""Samplers and schedules by any name that people know them by. No torch.

The rows are in `catalogue`; here is how a text finds its row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from ..errors import RequestError
from .catalogue import SAMPLERS, SamplerInfo
from .schedule_catalogue import SCHEDULES, ScheduleInfo
from .schedule_catalogue import Compat as Compat

__all__ = ["SAMPLERS", "SCHEDULES", "SamplerInfo", "ScheduleInfo", "resolve_sampler", "resolve_schedule"]

JOINT_SUFFIXES: dict[str, str] = {"ka": "karras", "k": "karras", "exp": "exponential"}
"""Short endings of joint names: k_dpmpp_2m_ka and k_…_exp in AUTOMATIC1111, dpmpp_2m_k in InvokeAI."""


def resolve_sampler(text: str) -> tuple[SamplerInfo, ScheduleInfo | None]:
    """The sampler of any name, and the schedule where the name holds one too.

    Case, spaces, dashes and underscores do not matter. Known are the names of AUTOMATIC1111 ("DPM++ 2M Karras",
    k_dpmpp_2m_ka), ComfyUI (dpmpp_2m), stable-diffusion.cpp (dpm++2m), InvokeAI (dpmpp_2m_k) and diffusers' classes.
    Names of algorithms that are not here, such as sd.cpp's dpm++2mv2 or diffusers' DPMSolverSinglestepScheduler (without
    the noise of "DPM++ 2S a"), are unknown, and not taken for their neighbours.

    >>> [info.key for info in resolve_sampler("DPM++ 2M Karras") if info]
    ['dpmpp_2m', 'karras']

    Raises RequestError for an unknown name, with the nearest ones.
    """
    name = _plain(text)
    if name in _SAMPLER_KEYS:
        return SAMPLERS[_SAMPLER_KEYS[name]], None
    for suffix, key in _SUFFIX_KEYS.items():
        if name.endswith(suffix) and name.removesuffix(suffix) in _SAMPLER_KEYS:
            return SAMPLERS[_SAMPLER_KEYS[name.removesuffix(suffix)]], SCHEDULES[key]
    raise RequestError(_unknown("sampler", text, SAMPLERS, _SAMPLER_KEYS))


def resolve_schedule(text: str) -> ScheduleInfo:
    """The schedule of any name; "Automatic" leaves the choice to the sampler.

    Raises RequestError for an unknown name, with the nearest ones.
    """
    name = _plain(text)
    if name in _SCHEDULE_KEYS:
        return SCHEDULES[_SCHEDULE_KEYS[name]]
    raise RequestError(_unknown("schedule", text, SCHEDULES, _SCHEDULE_KEYS))


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter not in " \t-_")


def _keys(infos: Iterable[SamplerInfo | ScheduleInfo]) -> dict[str, str]:
    return {_plain(name): info.key for info in infos for name in (info.key, info.name, *info.aliases)}


def _unknown(kind: str, text: str, infos: Mapping[str, SamplerInfo | ScheduleInfo], keys: dict[str, str]) -> str:
    shown = repr(text[:80])  # which escapes all that would break the line, each to up to 10 characters
    shown = shown if len(shown) < 100 else shown[:100] + "…"
    other, others = ("schedule", _SCHEDULE_KEYS) if kind == "sampler" else ("sampler", _SAMPLER_KEYS)
    if _plain(text) in others:
        return f"{shown} is a {other}, not a {kind}; give it as {other} (--{other} on the command line)"
    near = difflib.get_close_matches(_plain(text[:80]), keys, n=6, cutoff=0.5)
    names = list(dict.fromkeys(infos[keys[match]].name for match in near))[:4]
    offer = f"the nearest: {', '.join(names)}" if names else f"`avila {kind}s` lists those there are"
    return f"unknown {kind} {shown}; {offer}"


_SAMPLER_KEYS = _keys(SAMPLERS.values())
_SCHEDULE_KEYS = _keys(SCHEDULES.values())
# Longest first: "sgmuniform" ends in "uniform" too.
_SUFFIX_KEYS = dict(sorted({**_SCHEDULE_KEYS, **JOINT_SUFFIXES}.items(), key=lambda pair: -len(pair[0])))
