"""What was decided about a file and why: the load report, returned by the API and printed by `avila inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SHOWN = 12
"""Names listed in the text form before "and N more"; the JSON form lists all."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One thing that was decided: what, the value, and the reason."""

    what: str
    value: str
    reason: str


@dataclass(kw_only=True)
class LoadReport:
    """Every tensor of the given files ends in exactly one list. Names are those in the file; after its name, where there
    are several.

    used: how many tensors each network took. ignored: names → why. unknown: names that nothing recognised.
    missing, mis_shaped: what a network needed and did not find, or found with another shape. dtypes: tensors of each.
    """

    source: str
    family: str = ""
    variant: str = ""
    prediction: str = ""
    dtypes: dict[str, int] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mis_shaped: list[str] = field(default_factory=list)

    def decide(self, what: str, value: str, reason: str) -> None:
        self.decisions.append(Decision(what=what, value=value, reason=reason))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "family": self.family,
            "variant": self.variant,
            "prediction": self.prediction,
            "dtypes": self.dtypes,
            "decisions": [{"what": d.what, "value": d.value, "reason": d.reason} for d in self.decisions],
            "used": self.used,
            "ignored": self.ignored,
            "unknown": self.unknown,
            "missing": self.missing,
            "mis_shaped": self.mis_shaped,
        }

    def lines(self) -> list[str]:
        """The report for people."""
        width = max([len(decision.what) for decision in self.decisions] + [9])
        lines = [f"{d.what:<{width}}  {d.value}  ({d.reason})" for d in self.decisions]
        lines.append(f"{'dtypes':<{width}}  {_counts(self.dtypes)}")
        lines.append(f"{'used':<{width}}  {_counts(self.used) or 'nothing'}")
        reasons = Counter(self.ignored.values())
        lines += [f"{'ignored':<{width}}  {count:,} tensors: {why}" for why, count in reasons.items()]
        for what, names in (("unknown", self.unknown), ("missing", self.missing), ("mis-shaped", self.mis_shaped)):
            lines += [f"{what:<{width}}  {name}" for name in shorten(names)]
        return lines


def shorten(names: Iterable[str], most: int = SHOWN) -> list[str]:
    """The first names and how many more there are."""
    names = list(names)
    return names if len(names) <= most else [*names[:most], f"… and {len(names) - most:,} more"]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
