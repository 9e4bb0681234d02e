"""kill -9 of the server: every acknowledged job ends once, with the bytes of an undisturbed run. test_long has more of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .disturbed import draw

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="looks into /proc")


def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path, models_folder: Path) -> None:
    calm = draw(tmp_path / "calm", models_folder, jobs=12)
    wild = draw(tmp_path / "wild", models_folder, jobs=12, kills=3, seed=3)
    assert wild.kills == 3 and wild.doubled == 0 and wild.orphans == 0
    assert set(wild.states.values()) == {"done"}
    assert wild.digests == calm.digests
    assert all(len(pictures) == 1 + number % 2 for number, pictures in calm.digests.items())
