"""Prompt editing: which text holds at which call of the model. No torch.

    [from:to:when]   from, and after `when` to
    [to:when]        nothing, then to
    [from::when]     from, then nothing
    [a|b|c]          another one at each call

Any text can be read, in time linear in its length (times the number of different texts it makes). Nothing recurses.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..errors import RequestError

_MARK = re.compile(r"\\.?|[()\[\]:|]")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_CLOSES = {")": "(", "]": "["}


@dataclass(frozen=True)
class Segment:
    """A text and the last call at which it holds; calls count from 0. See `segment_at`."""

    end: int
    text: str


@dataclass(frozen=True, slots=True)
class _Change:
    """`before` up to `when`, then `after`."""

    before: Sequence[_Item]
    after: Sequence[_Item]
    when: str


@dataclass(frozen=True, slots=True)
class _Turns:
    """One after the other."""

    options: Sequence[Sequence[_Item]]


_Item = str | _Change | _Turns


@dataclass(slots=True)
class _Bracket:
    """One that is open. start: its place among the items. colons, bars: places of those directly in it."""

    shape: str
    start: int
    colons: list[int] = field(default_factory=list)
    bars: list[int] = field(default_factory=list)
    broken: bool = False  # holds what only the outermost level may hold


def schedule_prompt(
    text: str,
    steps: int,
    *,
    calls: int | None = None,
    hires: tuple[int, ...] | None = None,
    old_timelines: bool = False,
) -> tuple[Segment, ...]:
    """The texts that a prompt stands for, in order of the calls, each with the last call at which it holds.

    steps: of this pass. calls: how often the sampler calls the model in it, which is what `when` counts: 2 x steps for
    samplers of second order, `steps` where it is None. A `when` with a point in it is a fraction of the calls, another
    one is the number of a call.

    hires: the calls of each pass before this one, if this is the pass of a high-resolution fix: whole numbers count from
    the beginning of the first pass, and fractions from 1.0 to 2.0 are this one's. old_timelines: below 1 a fraction,
    else a call, also where there is no point; every pass reads the prompt as the first one did (AUTOMATIC1111 before
    1.6).

    A text outside the grammar, such as a bar outside brackets or a backslash at the end, is itself, whole. Raises
    RequestError for passes without calls.

        >>> schedule_prompt("a [red:blue:0.5] car", 20)
        (Segment(end=10, text='a red car'), Segment(end=20, text='a blue car'))

    Source: the behaviour of AUTOMATIC1111 1.10.1.
    """
    total = steps if calls is None else calls
    if min(total, *(hires or (1,))) < 1:
        raise RequestError(f"a prompt is scheduled over 1 or more model calls, not over {total} after {hires or 0}")
    passes, past = len(hires or ()), sum(hires or ())
    if old_timelines and hires:
        total = past
    tree = _parse(text)
    if tree is None:
        return (Segment(total, text),)

    def place(when: str) -> int:
        number = float(when)
        if old_timelines:
            number = number * total if number < 1 else number
        else:
            number = (number - passes) * total if "." in when else number - past
        return int(number) if math.isfinite(number) and number < total else total if number > 0 else 0

    items = list(_walk(tree))
    places = {item.when: place(item.when) for item in items if isinstance(item, _Change)}
    counts = {len(item.options) for item in items if isinstance(item, _Turns)}
    ends = {total, *(end for end in places.values() if end >= 1), *(range(1, total + 1) if counts else ())}
    changes = sorted(set(places.values()))
    texts: dict[tuple[int, ...], str] = {}  # turns come again and again
    segments = []
    for end in sorted(ends):
        key = (bisect_left(changes, end), *((end - 1) % count for count in counts))
        if key not in texts:
            texts[key] = _at(tree, end, places)
        segments.append(Segment(end, texts[key]))
    return tuple(segments)


def segment_at(segments: Sequence[Segment], call: int) -> Segment:
    """The segment that holds at a call, counted from 0: the first one that has not ended.

    So the first segment lasts a call longer than its number says. Past the last one, where an adaptive sampler may get,
    it is the first one again. Both as in AUTOMATIC1111.
    """
    return next((segment for segment in segments if call <= segment.end), segments[0])


def _parse(text: str) -> Sequence[_Item] | None:
    """Texts and what changes between them; None where the text is outside the grammar."""
    items: list[_Item] = []
    stack = [_Bracket("", -1)]  # the lowest one is the outermost level
    done = 0
    for match in _MARK.finditer(text):
        mark = match[0]
        if mark[0] == "\\":
            if len(mark) == 1:  # nothing, or a line feed, behind it
                return None
            continue
        items.append(text[done : match.start()])
        done = match.end()
        top = stack[-1]
        if mark in "([":
            stack.append(_Bracket(mark, len(items)))
        elif mark in ":|":
            (top.colons if mark == ":" else top.bars).append(len(items))
        elif _CLOSES[mark] == top.shape:
            stack.pop()
            change = None if top.broken else _read_change(items, top)
            if change is not None:
                items[top.start :] = [change]
                continue
            if top.bars:
                return None
            # Emphasis stays as it is: it is another parser's.
            emphasis = not top.broken and len(top.colons) <= (1 if mark == ")" else 0)
            stack[-1].broken |= not emphasis
        elif any(bracket.bars for bracket in stack):
            return None
        else:  # no bracket that is open can be closed over this one
            stack = [_Bracket("", -1)]
        items.append(mark)
    items.append(text[done:])
    return None if any(bracket.bars for bracket in stack) else items


def _read_change(items: list[_Item], bracket: _Bracket) -> _Item | None:
    """What a square bracket that closes now stands for; None where it is emphasis, or only a character."""
    start, colons, bars = bracket.start, bracket.colons, bracket.bars
    if bracket.shape == "(":
        return None
    if bars:
        borders = [start, *bars, len(items)]
        options = [items[one + 1 : other] for one, other in pairwise(borders)]
        return None if colons else _Turns(options)
    if len(colons) not in (1, 2):
        return None
    tail = items[colons[-1] + 1 :]
    words = [item for item in tail if isinstance(item, str)]
    when = _WHEN.fullmatch("".join(words)) if len(words) == len(tail) else None
    if when is None:
        return None
    before = items[start + 1 : colons[0]] if len(colons) == 2 else []
    after = items[(colons[0] if len(colons) == 2 else start) + 1 : colons[-1]]
    return _Change(before, after, when[1])


def _walk(items: Sequence[_Item]) -> Iterator[_Item]:
    todo = [items]
    while todo:
        for item in todo.pop():
            yield item
            if isinstance(item, _Change):
                todo += [item.before, item.after]
            elif isinstance(item, _Turns):
                todo += item.options


def _at(items: Sequence[_Item], call: int, places: dict[str, int]) -> str:
    """The text at a call, counted from 1."""
    texts: list[str] = []
    todo = [iter(items)]
    while todo:
        item = next(todo[-1], None)
        if item is None:
            todo.pop()
        elif isinstance(item, str):
            texts.append(item)
        elif isinstance(item, _Change):
            todo.append(iter(item.before if call <= places[item.when] else item.after))
        else:
            todo.append(iter(item.options[(call - 1) % len(item.options)]))
    return "".join(texts)
