"""Every component of every family at full width in float32 against diffusers and transformers, 256x256, to 2e-5.

Run by `scripts/test --full`: about 16 GB of memory, 8 GB of disk and some minutes a family. The figures are printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOLERANCE = 2e-5
FAMILIES = ("sd1", "sd2", "sdxl_base", "sdxl_refiner")
pytestmark = pytest.mark.full


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(
    request: pytest.FixtureRequest, write_seeded: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    path = write_seeded(tmp_path_factory.mktemp("full"), request.param)
    yield path
    path.unlink()


@pytest.mark.parametrize("component", ["text", "vae", "unet"])
def test_equals_the_reference(component: str, checkpoint: Path, answer_of: Any, capsys: Any) -> None:
    asked = (checkpoint.stem, component, checkpoint)
    reference, ours = answer_of("full_reference", *asked), answer_of("full_ours", *asked)
    assert ours.keys() == reference.keys()
    for name, theirs in reference.items():
        top = float(theirs.abs().max())
        assert 0.1 < top < 1000, f"{name} is not of a size that shows errors: {top}"
        difference = float((ours[name] - theirs).abs().max()) / top
        with capsys.disabled():
            print(f"\n{checkpoint.stem} {name}: {difference:.1e} of the maximum {top:.3g}", end="")
        assert difference <= TOLERANCE
