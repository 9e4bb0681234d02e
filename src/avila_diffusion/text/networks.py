"""Tags of networks in a prompt: `<lora:name:weight>`. No torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import RequestError

_OPENING = re.compile(r"<(\w+):")
LORA_KINDS = ("lora", "lyco")


@dataclass(frozen=True)
class NetworkTag:
    """kind: as it was written, "lora", "lyco", "hypernet" or any other word. name: the first argument without "=".

    arguments: the further ones; named: pairs of those that were written name=value. Nothing is checked yet.
    """

    kind: str
    name: str
    arguments: tuple[str, ...] = ()
    named: tuple[tuple[str, str], ...] = ()

    @property
    def is_lora(self) -> bool:
        """Whether it names a LoRA; `lyco` is another word for it."""
        return self.kind in LORA_KINDS

    def __str__(self) -> str:
        named = (f"{name}={value}" for name, value in self.named)
        return f"<{':'.join((self.kind, self.name, *self.arguments, *named))}>"


@dataclass(frozen=True)
class LoraWeights:
    """What a LoRA's change is multiplied by in the text encoders and in the UNet; dyn: the rank it is cut to."""

    text: float = 1.0
    unet: float = 1.0
    dyn: int | None = None


def take_networks(text: str) -> tuple[str, tuple[NetworkTag, ...]]:
    """A prompt without its tags, and the tags in order. What stood around a tag stays, spaces too.

    Tags are taken before the schedule is read, so one inside `[a:b:0.5]` holds all the time.

        >>> take_networks("a hill <lora:ink:0.8>")
        ('a hill ', (NetworkTag(kind='lora', name='ink', arguments=('0.8',), named=()),))

    Source: the behaviour of AUTOMATIC1111 1.10.1.
    """
    kept, tags = [], []
    done = place = 0
    while (opening := _OPENING.search(text, place)) is not None:
        close = text.find(">", opening.end())
        if close == -1:
            break
        if close == opening.end():  # a tag without arguments is text
            place = close
            continue
        kept.append(text[done : opening.start()])
        tags.append(_read_tag(opening[1], text[opening.end() : close]))
        done = place = close + 1
    return "".join([*kept, text[done:]]), tuple(tags)


def lora_weights(tag: NetworkTag) -> LoraWeights:
    """The numbers of a LoRA's tag: `<lora:name:text:unet:dyn>`, or named te=, unet=, dyn=, which go before.

    The weight of the text encoders is 1 where none is given, that of the UNet is that of the text encoders. Raises
    RequestError for a tag without a name, what is no number, and arguments that mean nothing.
    """
    named = dict(tag.named)
    unknown = [name for name in named if name not in ("te", "unet", "dyn")]
    if unknown or len(named) < len(tag.named) or len(tag.arguments) > 3:
        raise RequestError(
            f"{tag} has arguments without a meaning; expected <{tag.kind}:name:text:unet:dyn>, "
            "or te=, unet=, dyn= once each after the name"
        )
    if not tag.name.strip():
        raise RequestError(f"{tag} names no file; expected <{tag.kind}:name:weight>")
    given = dict(zip(("te", "unet", "dyn"), tag.arguments, strict=False)) | named
    text = _number(tag, given.get("te", "1"))
    dyn = _number(tag, given["dyn"]) if "dyn" in given else None
    if dyn is not None and (dyn < 1 or dyn != int(dyn)):
        raise RequestError(f"{tag} is cut to rank {given['dyn']}; expected a whole number from 1 on")
    return LoraWeights(
        text, _number(tag, given["unet"]) if "unet" in given else text, None if dyn is None else int(dyn)
    )


def _read_tag(kind: str, text: str) -> NetworkTag:
    positional, named = [], []
    for item in text.split(":"):
        if item.count("=") == 1:
            name, _, value = item.partition("=")
            named.append((name, value))
        else:
            positional.append(item)
    return NetworkTag(kind, positional[0] if positional else "", tuple(positional[1:]), tuple(named))


def _number(tag: NetworkTag, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{tag} has the weight {text!r}; expected a number such as 0.8")
    return number
