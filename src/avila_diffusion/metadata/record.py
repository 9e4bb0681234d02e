"""Our own record beside the infotext: what the infotext of a picture cannot say, so that it can be made again exactly.

The rule: every setting that AUTOMATIC1111 or we have a name for stands in the infotext, where people read it. The record is
computed: the infotext is read back, and each field of the request that does not come out the same goes into the record. With it
go the versions, dtypes and device, the LoRAs with both weights, and the embeddings. A digest binds it to its infotext: where
somebody changed that, the record is not used. JSON in ASCII, in the PNG text chunk `avila`, elsewhere in Exif's maker note.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from ..infotext import LoraUsed, read
from ..request import PICTURES, GenerateRequest
from ..version import __version__
from .found import Draft, load_json, number, rows, table, text_of
from .webui import draft_of

_DIGITS = 16


def make_record(
    request: GenerateRequest,
    index: int,
    infotext: str,
    *,
    loras: Sequence[LoraUsed] = (),
    embeddings: Mapping[str, str] | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> str:
    """The record of picture `index` of a resolved request, which has this infotext.

    conditions: what its bits depend on beside request and files, plain values.
    """
    wanted = of_picture(request, index)
    told = draft_of(read(infotext)).finish().request().resolved(request.width or 0)
    missing = {
        field.name: getattr(wanted, field.name)
        for field in fields(wanted)
        if field.name not in PICTURES and getattr(told, field.name) != getattr(wanted, field.name)
    }
    values: dict[str, Any] = {"avila_diffusion": __version__, "infotext": _digest(infotext)}
    if missing:
        values["request"] = missing
    pictures = {name: given.digest for name in PICTURES if (given := getattr(request, name)) is not None}
    if pictures:
        values["pictures"] = pictures
    if loras:
        values["loras"] = [asdict(lora) for lora in loras]
    if embeddings:
        values["embeddings"] = dict(embeddings)
    if conditions:
        values["conditions"] = dict(conditions)
    return json.dumps(values, separators=(",", ":"))


def of_picture(request: GenerateRequest, index: int) -> GenerateRequest:
    """The request that makes picture `index` of a resolved request alone."""
    inside = request.noise_index + index % request.batch if request.compat == "comfyui" else request.noise_index
    return replace(
        request,
        seed=request.seeds[index],
        variation_seed=request.variation_seeds[index],
        noise_index=inside,
        batch=1,
        count=1,
    )


def apply_record(draft: Draft, record: str | None, infotext: str | None) -> None:
    """Complete what an infotext said by the record beside it."""
    if record is None:
        return
    found = load_json(record)
    if not isinstance(found, dict):
        draft.notes.append("the record of avila_diffusion in the picture is damaged and was not used")
        return
    if infotext is None or found.get("infotext") != _digest(infotext):
        draft.notes.append("the text was changed after the picture was made, so avila_diffusion's record was not used")
        return
    known = {field.name for field in fields(GenerateRequest)}
    for name, value in table(found.get("request")).items():
        if name in known:
            draft.values[name] = value
        else:
            draft.lose(name, value)
    # Those of the prompt stand in the prompt, where whoever runs the request finds them.
    draft.loras = [lora for lora in map(_lora, rows(found.get("loras"))) if lora is not None and not lora.in_prompt]
    if isinstance(found.get("embeddings"), dict):
        draft.embeddings = {str(name): str(digest) for name, digest in found["embeddings"].items()}
    pictures = table(found.get("pictures")).items()
    draft.pictures = {name: digest for name, digest in pictures if name in PICTURES and isinstance(digest, str)}
    draft.conditions = table(found.get("conditions"))
    draft.exact = not draft.lost


def _lora(value: object) -> LoraUsed | None:
    told = table(value)
    name, text, unet = text_of(told.get("name")), number(told.get("text_weight")), number(told.get("unet_weight"))
    if name is None or text is None or unet is None:
        return None
    return LoraUsed(
        name=name,
        text_weight=text,
        unet_weight=unet,
        hash=text_of(told.get("hash")),
        in_prompt=told.get("in_prompt") is True,
    )


def _digest(infotext: str) -> str:
    # As the text comes back from a file: without lone surrogates, and from Exif without NUL at its ends.
    text = infotext.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip("\0 \n")
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
