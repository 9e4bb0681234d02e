"""How far a run is, as people see it."""

from __future__ import annotations

import io
import sys

import pytest

from avila_diffusion.cli.progress import ProgressDisplay
from avila_diffusion.result import Progress


class Terminal(io.StringIO):
    """stderr of a person."""

    def isatty(self) -> bool:
        return True


def event(stage: str, step: int, image: int = 0) -> Progress:
    return Progress(stage=stage, image=image, images=2, step=step, of=4)


def play(display: ProgressDisplay) -> None:
    display.show(event("text", 0))
    for image in range(2):
        for step in range(1, 5):
            display.show(event("sample", step, image))
        display.show(event("decode", 4, image))
    display.say("done")
    display.close()


def test_on_a_terminal_it_is_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    play(ProgressDisplay(2, quiet=False))
    said = terminal.getvalue()
    assert "8/8" in said
    assert "5/8" in said
    assert "decoding" in said
    assert said.endswith("avila: done\n")
    assert said.count("\n") == 1


def test_elsewhere_it_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play(ProgressDisplay(2, quiet=False))
    first = "avila: sampling: picture 1 of 2, step 1 of 4"
    second = "avila: sampling: picture 2 of 2, step 1 of 4"
    assert capsys.readouterr().err.splitlines() == [first, second, "avila: done"]
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    play(ProgressDisplay(2, quiet=False))
    assert "avila: sampling: picture 1 of 2, step 3 of 4" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_of_unknown_length_shows_how_far_it_is(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    display = ProgressDisplay(1, quiet=False)
    display.show(Progress(stage="sample", image=0, images=1, step=3, of=0))
    assert ("3step" in stream.getvalue()) if terminal else stream.getvalue().endswith("sampling: step 3\n")


def test_pictures_of_a_later_run_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    display = ProgressDisplay(2, quiet=False)
    for run in range(2):
        for step in range(1, 5):
            display.show(event("sample", step), first=run)
    display.close()
    assert "8/8" in terminal.getvalue()


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    play(ProgressDisplay(2, quiet=True))
    assert capsys.readouterr().err == ""
