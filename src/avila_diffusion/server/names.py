"""Names from outside, looked up among those that are known: a table, never a path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

LONGEST = 1024
"""Characters of a name that is looked up; no file has more."""
_MOST_COMPARED = 2000
_HASH = re.compile(r"\s*\[([0-9a-fA-F]{6,64})\]$")
_DIGITS = re.compile(r"[0-9a-fA-F]{10,64}")


class Names(Generic[Item]):
    """What things are called. Each has tiers of names, the strictest first, and perhaps a SHA-256."""

    def __init__(self, items: Iterable[tuple[Item, Sequence[Sequence[str]], str | None]]) -> None:
        listed = list(items)
        self._tables: list[tuple[Callable[[str], str], dict[str, list[Item]]]] = []
        for fold in (str, str.casefold):
            for tier in range(max((len(tiers) for _, tiers, _ in listed), default=0)):
                table: dict[str, list[Item]] = {}
                for item, tiers, _ in listed:
                    for key in dict.fromkeys(map(fold, tiers[tier])):
                        table.setdefault(key, []).append(item)
                self._tables.append((fold, table))
        self._digests = [(digest, item) for item, _, digest in listed if digest is not None]

    def find(self, text: str, *, hashes: bool = True) -> list[Item]:
        """All that the strictest reading fits: a name, a name and a hash in brackets, a hash alone unless `hashes` is False.
        Backslashes are slashes."""
        if len(text) > LONGEST:
            return []
        wanted = text.replace("\\", "/")
        bracket = _HASH.search(wanted)
        for candidate in dict.fromkeys((wanted, wanted[: bracket.start()] if bracket else wanted)):
            for fold, table in self._tables:
                if matches := table.get(fold(candidate)):
                    hashed = self._hashed(bracket[1]) if bracket and len(matches) > 1 else []
                    return [one for one in matches if one in hashed] or list(matches)
        if bracket or not hashes:
            return self._hashed(bracket[1]) if bracket and hashes else []
        return self._hashed(wanted) if _DIGITS.fullmatch(wanted) else []

    def _hashed(self, digits: str) -> list[Item]:
        return [item for digest, item in self._digests if digest.startswith(digits.lower())]


def near(wanted: str, names: Sequence[str], most: int = 3) -> list[str]:
    """The names whose stems look like what was asked for."""
    stems = {_stem(name): name for name in names[:_MOST_COMPARED]}
    found = difflib.get_close_matches(_stem(wanted.replace("\\", "/"))[:80], stems, n=most, cutoff=0.5)
    return [stems[stem] for stem in found]


def _stem(name: str) -> str:
    last = name.rpartition("/")[2]
    return (last.rpartition(".")[0] or last).casefold()


def one_line(text: str, most: int = 120) -> str:
    """A text from outside as a message shows it: quoted, on one line, in ASCII."""
    return ascii(text) if len(text) <= most else ascii(text[: most - 3]) + "…"
