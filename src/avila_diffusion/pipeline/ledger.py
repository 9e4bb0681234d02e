"""What a run of the engine answers from and writes to: a journal, a trail, or both. The engine sees no more of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from ..errors import JournalProblem
from ..sampling.guidance import Call, Denoise, Denoised
from .branch import Branch
from .journal import Journal
from .trail import Trail


@dataclass(frozen=True, eq=False)
class Ledger:
    """first: number in the job of the run's first picture. branch: where the run leaves a recorded one."""

    journal: Journal | None = None
    first: int = 0
    branch: Branch | None = None
    trail: Trail | None = None

    def recorded(self, denoise: Denoise, index: int, earlier: int = 0) -> Denoise:
        """The answers of the journal as far as it reaches for picture `index` of the run, then those of `denoise`.

        earlier: calls of the passes before this one. The function raises JournalProblem where the journal recorded another
        question, or ends before the branch.
        """
        image = self.first + index

        def answer(call: Call) -> Denoised:
            counted = replace(call, number=earlier + call.number)
            denoised = None if self.journal is None else self.journal.answer(image, counted)
            if denoised is None:
                if self.branch is not None and not earlier and call.step < self.branch.at:
                    raise JournalProblem(
                        f"step {call.step + 1} of picture {image + 1} lies before the branch at {self.branch.at} and is not "
                        "recorded; go on with the journal first, or branch earlier"
                    )
                denoised = denoise(call)
                if self.journal is not None:
                    self.journal.add_call(image, counted, denoised)
            if self.trail is not None:
                self.trail.add(index, counted, denoised)
            return denoised

        return answer

    def keep(self, index: int, stage: str, tensor: Tensor) -> None:
        """What a stage of picture `index` ended in. Raises JournalProblem where the journal has another one."""
        if self.journal is not None:
            self.journal.keep(self.first + index, stage, tensor)

    def stage(self, index: int, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What a stage of picture `index` ended in, from the journal, or made and recorded there."""
        if self.journal is None:
            return make()
        found = self.journal.stage(self.first + index, name)
        if found is None:
            found = make()
            self.journal.keep(self.first + index, name, found)
        return found


Made = TypeVar("Made")


def once(make: Callable[[], Made]) -> Callable[[], Made]:
    """The same, made at the first call and kept."""
    made: list[Made] = []

    def found() -> Made:
        if not made:
            made.append(make())
        return made[0]

    return found
