"""From a prompt to a scene: which known words are in it, and what the seed decides where it says nothing."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from ..errors import RequestError
from .noise import stream
from .palette import HOURS
from .vocabulary import (
    BLOSSOMS,
    COLOURS_ENGLISH,
    COLOURS_PORTUGUESE,
    IGNORED,
    LOCAL,
    NEGATIONS,
    SEASONS,
    STYLES,
    SUBJECTS,
    TIMES,
    WEATHER,
    Words,
)

LONGEST = 4
KINDS = (
    "underwater", "abstract", "city", "forest", "desert", "canyon", "beach", "island", "sea", "lake", "river", "meadow",
    "hills", "mountains",
)  # fmt: skip
"""What a scene is built as: the first of these that was named."""
UNTOLD = ("mountains", "lake", "sea", "forest", "meadow", "desert", "island", "city", "hills", "beach")
"""What is drawn for words that name no scene; the words and the seed decide."""


@dataclass(frozen=True)
class Match:
    """A known expression found in a prompt: its table, meaning and words, and which tokens it covers."""

    table: str
    meaning: str
    words: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What was understood of a prompt and what the seed added.

    kind: how the picture is built (one of KINDS, "space"). subjects: what is in it, as named. time: sunset, sunrise,
    day, dusk or night. weather, season, style: as in the vocabulary. palette: name of the light's colours.
    colours, avoided: wished and unwanted colours of the light; tints: colours of single things, as (thing, colour).
    without: what must not be in it. used, unused: words of the prompt that were and were not understood.
    """

    kind: str
    subjects: tuple[str, ...]
    time: str
    weather: tuple[str, ...]
    season: str
    style: str
    palette: str
    colours: tuple[str, ...] = ()
    avoided: tuple[str, ...] = ()
    tints: tuple[tuple[str, str], ...] = ()
    without: tuple[str, ...] = ()
    used: tuple[str, ...] = field(default=())
    unused: tuple[str, ...] = field(default=())
    seed: int = 0

    def has(self, *names: str) -> bool:
        """Whether any of these subjects or kinds of weather is wished, and none of them was ruled out."""
        return any((name in self.subjects or name in self.weather) and name not in self.without for name in names)

    def tint(self, thing: str) -> str | None:
        """The colour asked for one thing (flowers, water, foliage, ground), or None."""
        return dict(self.tints).get(thing)

    @property
    def caption(self) -> str:
        """One line that says what is shown."""
        things = ", ".join(dict.fromkeys((self.kind, *self.subjects)))
        parts = [things, f"at {self.time}" if self.time != "day" else "by day", *self.weather]
        parts += [self.season] if self.season != "summer" else []
        parts += [" and ".join(self.colours)] if self.colours else []
        return ", ".join(parts) + f" ({self.style}; light: {self.palette}; seed {self.seed})"


def fold(text: str) -> str:
    """Lower case without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def tokens(prompt: str) -> list[str]:
    """The words of a prompt; weights, brackets and network tags of AUTOMATIC1111's syntax are taken off."""
    text = re.sub(r"<[^<>]*>", " ", fold(prompt))
    text = re.sub(r":\s*[-+]?[0-9]*\.?[0-9]+\s*(?=[)\]:])", " ", text)
    return re.findall(r"[a-z0-9]+", text)


def singulars(word: str) -> tuple[str, ...]:
    """The word and what it may be the plural of, in English and Portuguese."""
    found = [word]
    for ending, single in (("oes", "ao"), ("aes", "ao"), ("ais", "al"), ("eis", "el"), ("ies", "y"), ("ens", "em"),
                           ("es", ""), ("s", "")):  # fmt: skip
        if word.endswith(ending) and len(word) - len(ending) >= 2 and not word.endswith("ss"):
            found.append(word[: -len(ending)] + single)
    return tuple(found)


def _index() -> dict[tuple[str, ...], tuple[str, str]]:
    tables: dict[str, Words] = {
        "subject": SUBJECTS,
        "time": TIMES,
        "weather": WEATHER,
        "season": SEASONS,
        "style": STYLES,
        "colour": COLOURS_ENGLISH,
        "cor": COLOURS_PORTUGUESE,
    }
    index: dict[tuple[str, ...], tuple[str, str]] = {}
    for name, words in tables.items():
        for meaning, expressions in words.items():
            for expression in expressions:
                index.setdefault(tuple(expression.split()), (name, meaning))
    return index


INDEX = _index()
_FIRSTS = frozenset(key[0] for key in INDEX)


def matches(words: list[str]) -> Iterator[Match]:
    """Known expressions in a list of tokens, the longest first at each place, not overlapping."""
    place = 0
    while place < len(words):
        found = _match_at(words, place)
        if found is None:
            place += 1
            continue
        yield found
        place = found.end


def _match_at(words: list[str], place: int) -> Match | None:
    if _FIRSTS.isdisjoint(singulars(words[place])):
        return None
    for length in range(min(LONGEST, len(words) - place), 0, -1):
        taken = words[place : place + length]
        for candidate in product(*map(singulars, taken)):
            if candidate in INDEX:
                table, meaning = INDEX[candidate]
                return Match(table, meaning, " ".join(taken), place, place + length)
    return None


@dataclass(frozen=True)
class Reading:
    """The matches of one prompt that are wished, those that are ruled out ("no clouds"), and the words left over."""

    wished: tuple[Match, ...]
    refused: tuple[Match, ...]
    unused: tuple[str, ...]
    words: tuple[str, ...]

    def of(self, table: str) -> tuple[str, ...]:
        """Meanings of one table, in order, each once."""
        return tuple(dict.fromkeys(match.meaning for match in self.wished if match.table == table))


def read(prompt: str) -> Reading:
    """Find the known words of a prompt."""
    words = tokens(prompt)
    wished: list[Match] = []
    refused: list[Match] = []
    covered: set[int] = set()
    for match in matches(words):
        covered.update(range(match.start, match.end))
        before = words[max(0, match.start - 2) : match.start]
        # Portuguese "no" is "in the": it denies only where an English word follows at once, as in "no clouds".
        denied = any(word in NEGATIONS for word in before if word != "no") or (
            before[-1:] == ["no"] and match.words not in _PORTUGUESE_PLACES
        )
        (refused if denied else wished).append(match)
    left = [
        w
        for i, w in enumerate(words)
        if i not in covered and w not in IGNORED and w not in NEGATIONS and not w.isdigit()
    ]
    return Reading(tuple(wished), tuple(refused), tuple(dict.fromkeys(left)), tuple(words))


_PORTUGUESE_PLACES = frozenset(
    """lago rio mar deserto campo bosque inverno outono verao prado ceu oceano canion vale pico fundo entardecer
    amanhecer anoitecer litoral espaco universo por nascer monte poente nevoeiro""".split()  # noqa: SIM905
)


def describe(prompt: str, negative_prompt: str = "", seed: int = 0) -> Scene:
    """Understand a prompt. seed: 0 to 2**64 - 1, decides what the words leave open.

    Raises RequestError for text that is not text or a seed out of range.
    """
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if not isinstance(text, str):
            raise RequestError(f"{name} must be text, not {type(text).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise RequestError(f"seed is {seed!r}; a picture needs a whole number from 0 to 2**64 - 1")
    reading, negative = read(prompt), read(negative_prompt)
    refused = (*reading.refused, *negative.wished)
    without = tuple(dict.fromkeys(match.meaning for match in refused if match.table not in ("colour", "cor")))
    colours, tints = _colours(reading)
    avoided = tuple(dict.fromkeys(match.meaning for match in refused if match.table in ("colour", "cor")))
    subjects = tuple(name for name in reading.of("subject") if name not in without)
    weather = tuple(name for name in reading.of("weather") if name not in without)
    seasons = tuple(name for name in reading.of("season") if name not in without)
    styles = tuple(name for name in reading.of("style") if name not in without and name != "photo")
    times = tuple(name for name in reading.of("time") if name not in without)
    said = " ".join(word for word in reading.words if word not in IGNORED)
    key = zlib.crc32(said.encode("utf-8")) ^ (seed & 0xFFFFFFFF)
    kind = _kind(subjects, weather, seasons, times, without, seed, key)
    time = _time(times, subjects, weather, kind, without, seed)
    style = styles[0] if styles else "photo"
    return Scene(
        kind=kind,
        subjects=subjects,
        time=time,
        weather=weather,
        season=seasons[0] if seasons else ("winter" if "snow" in weather else "summer"),
        style=style,
        palette=_palette(time, weather, style, kind, subjects, seed),
        colours=tuple(c for c in colours if c not in avoided),
        avoided=avoided,
        tints=tints,
        without=without,
        used=tuple(dict.fromkeys(match.words for match in (*reading.wished, *reading.refused))),
        unused=reading.unused,
        seed=seed,
    )


def _colours(reading: Reading) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Colours of the whole light, and those that touch a thing: before it in English, after it in Portuguese."""
    whole: list[str] = []
    local: dict[str, str] = {}
    blossom: str | None = None
    for number, match in enumerate(reading.wished):
        if match.meaning == "flowers":
            own = [
                BLOSSOMS[words]
                for words in map(" ".join, product(*map(singulars, match.words.split())))
                if words in BLOSSOMS
            ]
            blossom = own[0] if own else blossom
        if match.table not in ("colour", "cor"):
            continue
        beside = (
            reading.wished[number + 1 : number + 2]
            if match.table == "colour"
            else reading.wished[max(0, number - 1) : number]
        )
        touching = [m for m in beside if m.start == match.end or m.end == match.start]
        thing = LOCAL.get(touching[0].meaning) if touching else None
        if thing is None:
            whole.append(match.meaning)
        else:
            local.setdefault(thing, match.meaning)
    if blossom is not None:
        local.setdefault("flowers", blossom)
    return tuple(dict.fromkeys(whole)), tuple(local.items())


def _kind(subjects: tuple[str, ...], weather: tuple[str, ...], seasons: tuple[str, ...], times: tuple[str, ...],
          without: tuple[str, ...], seed: int, key: int) -> str:  # fmt: skip
    for kind in KINDS:
        if kind in subjects:
            return kind
    if "space" in subjects:
        return "space"
    if "flowers" in subjects:
        return "meadow"
    if "palms" in subjects:
        return "beach"
    if "boat" in subjects:
        return "sea"
    rng = stream(seed, "kind")
    if "aurora" in subjects or "winter" in seasons:
        options = ["mountains", "lake", "forest"]
    elif "stars" in subjects or "milky way" in subjects or "moon" in subjects:
        options = ["mountains", "lake", "desert", "sea"]
    elif "autumn" in seasons or "spring" in seasons:
        options = ["forest", "lake", "meadow"]
    elif times or weather or subjects:
        options = ["mountains", "sea", "lake", "hills"]
    else:
        options, rng = list(UNTOLD), stream(key, "kind")
    options = [name for name in options if name not in without] or ["hills"]
    return options[int(rng.integers(len(options)))]


def _time(
    times: tuple[str, ...],
    subjects: tuple[str, ...],
    weather: tuple[str, ...],
    kind: str,
    without: tuple[str, ...],
    seed: int,
) -> str:
    if times:
        return next((name for name in times if name != "day"), "day")
    if kind == "space" or {"stars", "milky way", "moon", "aurora", "space"} & set(subjects):
        return "night"
    if kind in ("underwater", "abstract") or "clear" in weather:
        return "day"
    options = {
        "city": ("night", "sunset", "dusk", "night"),
        "forest": ("sunrise", "day", "sunrise", "sunset"),
        "beach": ("day", "sunset", "day"),
        "island": ("day", "sunset", "sunrise"),
        "canyon": ("sunset", "day", "day"),
        "desert": ("sunset", "day", "sunrise"),
        "meadow": ("day", "sunset", "sunrise", "day"),
    }.get(kind, ("sunset", "day", "sunrise", "day", "dusk"))
    left = [name for name in options if name not in without] or ["day"]
    return left[int(stream(seed, "time").integers(len(left)))]


def _palette(time: str, weather: tuple[str, ...], style: str, kind: str, subjects: tuple[str, ...], seed: int) -> str:
    if style == "neon":
        return "neon"
    if "storm" in weather and time == "day":
        return "storm"
    if ("rain" in weather or ("clouds" in weather and "clear" not in weather)) and time == "day":
        return "overcast" if "rain" in weather else "day soft"
    names = HOURS[time]
    if time == "night" and kind in ("desert", "canyon"):
        names = ("night clear", "night violet")  # teal turns sand green
    if time == "day" and (kind in ("beach", "island", "underwater") or "palms" in subjects):
        names = ("day tropic", "day azure")
    return names[int(stream(seed, "palette").integers(len(names)))]
