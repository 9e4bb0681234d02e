"""The two prompts of a request as what they stand for at each model call: parts joined by AND, texts that change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..config import ModelSpec
from ..request import GenerateRequest
from ..sampling.denoiser import Cond
from ..text.prompt import (
    AndPart,
    Segment,
    read_prompt,
    schedule_part,
    segment_at,
    take_networks,
    unknown_marks,
    weight_notes,
)


@dataclass(frozen=True)
class Scheduled:
    """One part: the texts it stands for, in order of the calls, and how much its guidance counts."""

    segments: tuple[Segment, ...]
    weight: float = 1.0

    @property
    def texts(self) -> list[str]:
        return [segment.text for segment in self.segments]


@dataclass(frozen=True)
class Prompts:
    """positive: one part, or several joined by AND. negative: None where it is never looked at."""

    positive: tuple[Scheduled, ...]
    negative: Scheduled | None
    notes: tuple[str, ...] = ()


def read_prompts(
    request: GenerateRequest,
    spec: ModelSpec,
    calls: int,
    *,
    negative: bool,
    earlier: tuple[int, ...] | None = None,
) -> Prompts:
    """Both prompts of a resolved request, networks' tags and comments taken out.

    calls: of the model, as schedules count them; earlier: those of the passes before this one. negative: whether the
    sampling looks at the negative prompt at its scale of guidance; it does at any scale where the weights of the parts do
    not add up to 1. Prompts of ComfyUI and diffusers are one text without schedule, and have no AND.
    """
    dialect = request.compat
    read = read_prompt(request.prompt, dialect=dialect)
    (opposite,) = read_prompt(request.negative_prompt, negative=True, dialect=dialect).parts

    def scheduled(part: AndPart) -> Scheduled:
        return Scheduled(schedule_part(part, request.steps, calls=calls, dialect=dialect, hires=earlier), part.weight)

    positive, other = tuple(map(scheduled, read.parts)), scheduled(opposite)
    negative = negative or sum(part.weight for part in positive) != 1
    seen = [part.text for part in (*read.parts, *((opposite,) if negative else ()))]
    notes = [*unknown_marks(seen, dialect), *weight_notes(read.parts)]
    if take_networks(opposite.text)[1]:
        notes.append("tags such as <lora:…> in the negative prompt were read as words; put them into the prompt")
    if not negative and request.negative_prompt.strip():
        notes.append("the negative prompt was not used, because guidance is off")
    if request.clip_skip > 1 and not any(tower.clip_skip for tower in spec.text):
        notes.append(f"clip_skip {request.clip_skip} was not used; {spec.family} has a layer of its own")
    return Prompts(positive, other if negative else None, tuple(notes))


@dataclass(frozen=True)
class ConditionedPart:
    """A part of a prompt with a Cond for each of its segments."""

    part: Scheduled
    conds: tuple[Cond, ...]

    def at(self, call: int) -> Cond:
        """The Cond that holds at a call, counted from 0."""
        segments = self.part.segments
        return self.conds[segments.index(segment_at(segments, call))]


@dataclass(frozen=True)
class Conditions:
    """Both prompts, encoded."""

    positive: tuple[ConditionedPart, ...]
    negative: ConditionedPart | None
    _long: dict[tuple[int, int], Cond] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, call: int) -> tuple[tuple[Cond, ...], Cond | None]:
        """(conds, uncond) of a call, counted from 0.

        Parts that AND joins are brought to one length by the last vector of the shorter ones, as AUTOMATIC1111 does; it is
        seen by the attention and so by the picture.
        """
        conds = [part.at(call) for part in self.positive]
        longest = max(cond.context.shape[1] for cond in conds)
        negative = None if self.negative is None else self.negative.at(call)
        return tuple(self._lengthened(cond, longest) for cond in conds), negative

    def _lengthened(self, cond: Cond, length: int) -> Cond:
        """The same Cond at every call, so that what the network made of its text serves again."""
        if cond.context.shape[1] == length:
            return cond
        known = (id(cond), length)  # of those that `positive` holds
        if known not in self._long:
            self._long[known] = _lengthened(cond, length)
        return self._long[known]


def condition(
    prompts: Prompts, encode: Callable[[Sequence[str], bool], Sequence[tuple[Tensor, Tensor | None]]]
) -> Conditions:
    """Encode every part. encode: (the texts of a part, whether it is the negative prompt) → (context, vector) of each."""

    def made(part: Scheduled, negative: bool) -> ConditionedPart:
        found = encode(part.texts, negative)
        return ConditionedPart(part, tuple(Cond(context, vector, part.weight) for context, vector in found))

    positive = tuple(made(part, False) for part in prompts.positive)
    return Conditions(positive, None if prompts.negative is None else made(prompts.negative, True))


def _lengthened(cond: Cond, length: int) -> Cond:
    import torch

    last = cond.context[:, -1:].expand(-1, length - cond.context.shape[1], -1)
    return replace(cond, context=torch.cat([cond.context, last], dim=1))
