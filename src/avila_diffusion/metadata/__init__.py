"""How a picture was made, read from the picture, whichever program wrote it. No torch.

AUTOMATIC1111 and its kin, stable-diffusion.cpp and ourselves write an infotext; ComfyUI, InvokeAI, NovelAI and Fooocus
write JSON. Each has a reader here; `read_request` asks them in turn.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import FileProblem
from ..images import KEY, RECORD_KEY, Image
from .comfyui import read_comfyui
from .fooocus import read_fooocus
from .found import Found, printable
from .invokeai import read_invokeai
from .novelai import read_novelai
from .record import apply_record
from .webui import read_webui

__all__ = ["Found", "read_request", "request_of"]

MOST_CHARACTERS = 8_000_000
"""Of a text that is read. The largest graphs of ComfyUI, with pictures in them, have about a million."""
_READERS = (read_fooocus, read_novelai, read_invokeai, read_webui, read_comfyui)
"""In this order, because savers for ComfyUI write an infotext too, of what they think AUTOMATIC1111 would say."""


def read_request(image: Image) -> Found:
    """How a picture was made, as a request, with a list of what could not be carried over.

    Raises FileProblem for a picture that says nothing of it; whatever else its texts hold is reported, not raised.
    """
    given = dict(image.texts)
    if image.infotext is not None:
        given[KEY] = image.infotext
    if image.record is not None:
        given[RECORD_KEY] = image.record
    return request_of(given)


def request_of(given: Mapping[str, str]) -> Found:
    """The same of a picture's texts alone, as `images.read_texts` gives them."""
    texts = {name: text for name, text in given.items() if len(text) <= MOST_CHARACTERS}
    for reader in _READERS:
        draft = reader(texts)
        if draft is not None:
            apply_record(draft, given.get(RECORD_KEY), given.get(KEY))
            return draft.finish()
    for name, text in given.items():
        if name not in texts:
            raise FileProblem(
                f"the picture's text {printable(name[:40])!r} has {len(text):,} characters; "
                f"at most {MOST_CHARACTERS:,} are read"
            )
    raise FileProblem(
        "the picture carries no metadata about how it was made; give the file as it was written, not a copy that was "
        "edited or sent through a network"
    )
