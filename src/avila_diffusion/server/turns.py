"""Whose turn it is in the worker: units of work go round, one call of the model each."""

from __future__ import annotations

from collections.abc import Hashable

PATIENCE = 8
"""Calls that are made with the same LoRAs while units with others wait: putting others into a model takes about as long as a call."""


class Turns:
    """Units in the order of their next turns.

    >>> turns = Turns()
    >>> for name in ("long", "short"):
    ...     turns.add(name)
    >>> [turns.next() for _ in range(3)]
    ['short', 'long', 'short']
    """

    def __init__(self) -> None:
        self._units: dict[str, Hashable] = {}
        self._last: Hashable = None
        self._calls = 0

    def __len__(self) -> int:
        return len(self._units)

    def add(self, unit: str, key: Hashable = None) -> None:
        """A new unit, whose turn is next. key: of what it puts into the model."""
        self._units = {unit: key, **self._units}

    def remove(self, unit: str) -> None:
        """One that has ended."""
        self._units.pop(unit, None)

    def next(self) -> str | None:
        """The unit whose turn it is, which goes to the end of the row; None where there is none."""
        if not self._units:
            return None
        unit = next(iter(self._units))
        if self._calls < PATIENCE:
            unit = next((one for one, key in self._units.items() if key == self._last), unit)
        key = self._units.pop(unit)
        self._units[unit] = key
        self._calls = self._calls + 1 if key == self._last else 1
        self._last = key
        return unit
