"""Whose turn it is in the worker: clients take turns, one call of the model each."""

from __future__ import annotations

from collections.abc import Hashable

PATIENCE = 8
"""Calls that are made with the same LoRAs while units with others wait: putting others into a model takes about as long as
a call."""
REMEMBERED = 1024


class Turns:
    """Units of work, each of a client. Who was served longest ago is next; who was never served, at once.

    >>> turns = Turns()
    >>> turns.add("long", "anna")
    >>> turns.next(), turns.next()
    ('long', 'long')
    >>> turns.add("short", "ben")
    >>> [turns.next() for _ in range(3)]
    ['short', 'long', 'short']
    """

    def __init__(self) -> None:
        self._units: dict[str, tuple[str, Hashable]] = {}
        self._served: dict[str, int] = {}
        self._turn = 0
        self._key: Hashable = None
        self._calls = 0

    def __len__(self) -> int:
        return len(self._units)

    def add(self, unit: str, client: str, key: Hashable = None) -> None:
        """A new unit of a client. key: of what it puts into the model."""
        self._units[unit] = client, key

    def remove(self, unit: str) -> None:
        """One that has ended. What its client was served is remembered: a new unit does not go before others."""
        self._units.pop(unit, None)
        while len(self._served) > REMEMBERED:
            self._served.pop(min(self._served, key=self._served.__getitem__))

    def next(self) -> str | None:
        """The unit whose turn it is, None where there is none."""
        if not self._units:
            return None
        order = sorted(self._units, key=lambda unit: self._served.get(self._units[unit][0], -1))
        unit = order[0]
        if self._calls < PATIENCE:
            unit = next((one for one in order if self._units[one][1] == self._key), unit)
        client, key = self._units[unit]
        self._calls = self._calls + 1 if key == self._key else 1
        self._key, self._turn = key, self._turn + 1
        self._served[client] = self._turn
        return unit
