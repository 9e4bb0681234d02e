"""What a run of the engine answers from and writes to: a journal, a trail, or both. The engine sees no more of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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

    def recorded(self, denoise: Denoise, index: int) -> Denoise:
        """The answers of the journal as far as it reaches for picture `index` of the run, then those of `denoise`.

        The function raises JournalProblem where the journal recorded another question, or ends before the branch.
        """
        image = self.first + index

        def answer(call: Call) -> Denoised:
            denoised = None if self.journal is None else self.journal.answer(image, call)
            if denoised is None:
                if self.branch is not None and call.step < self.branch.at:
                    raise JournalProblem(
                        f"step {call.step + 1} of picture {image + 1} lies before the branch at {self.branch.at} and is not "
                        "recorded; go on with the journal first, or branch earlier"
                    )
                denoised = denoise(call)
                if self.journal is not None:
                    self.journal.add_call(image, call, denoised)
            if self.trail is not None:
                self.trail.add(index, call, denoised)
            return denoised

        return answer

    def keep(self, index: int, stage: str, tensor: Tensor) -> None:
        """What a stage of picture `index` ended in. Raises JournalProblem where the journal has another one."""
        if self.journal is not None:
            self.journal.keep(self.first + index, stage, tensor)


def deferred(make: Callable[[], Denoise]) -> Denoise:
    """A denoiser that is made at its first call: where the journal answers everything, no prompt need be read."""
    made: list[Denoise] = []

    def denoise(call: Call) -> Denoised:
        if not made:
            made.append(make())
        return made[0](call)

    return denoise
