"""Scripts of AUTOMATIC1111 and its extensions in a request: those that would do nothing pass, those that would are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...limits import shown
from .fields import InvalidBody, invalid

_REPEATED = frozenset(("seed", "sampler", "comments", "extra options"))
"""Parts of AUTOMATIC1111's own page that are scripts there; what they hold stands in fields of the request too."""
_SWITCHES = ("enabled", "enable", "is_enabled", "active", "ad_enable")
_UNSET = ("", "none", "None", None)
_WAYS = {
    "refiner": "give refiner_checkpoint and refiner_switch_at",
    "soft inpainting": "give mask_round false, where grey of the mask is painted half",
}


def check_scripts(script_name: str | None, always: Mapping[str, Any]) -> None:
    """Raises InvalidBody for a script that would change the picture: none is built here."""
    if script_name is not None and script_name.strip().casefold() not in ("", "none"):
        raise invalid("script_name", f"script_name is {shown(script_name)}; there are no scripts here, leave it out")
    active = [name for name, told in always.items() if is_active(name, told)]
    if not active:
        return
    details = []
    for name in active:
        way = _WAYS.get(name.strip().casefold(), "leave it out, or switch it off")
        message = f"alwayson_scripts holds {shown(name)}, which is not built here; {way}"
        details.append({"loc": ["body", "alwayson_scripts", name[:80]], "msg": message, "type": "value_error"})
    raise InvalidBody(details)


def is_active(name: str, told: Any) -> bool:
    """Whether a script that is named in a request would do something, by what its arguments say of being switched on."""
    if name.strip().casefold() in _REPEATED:
        return False
    arguments = told.get("args") if isinstance(told, dict) else told
    if isinstance(arguments, dict):
        arguments = [arguments]
    if not isinstance(arguments, list):
        return bool(arguments)
    if not arguments or arguments[0] is False:  # the first is the switch of nearly all of them
        return False
    return any(_asks(argument, name) for argument in arguments)


def _asks(argument: Any, name: str) -> bool:
    if not isinstance(argument, dict):
        return bool(argument)
    for switch in _SWITCHES:
        if switch in argument and not argument[switch]:
            return False
    if "controlnet" in name.casefold():
        unit = (argument.get(key) for key in ("model", "module", "image", "input_image"))
        return any(value not in _UNSET for value in unit)
    return bool(argument)
