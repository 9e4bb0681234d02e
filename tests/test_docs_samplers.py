"""docs/samplers.md says what the rows and the schedules say."""

from __future__ import annotations

import re

import pytest
import torch
from benchmarks.convergence import PICTURE, Curve, deterministic, draw, measure
from benchmarks.sampler_table import DOCUMENT, filled

from avila_diffusion.config import NoiseConfig
from avila_diffusion.errors import RequestError
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES, resolve_sampler
from avila_diffusion.sampling.schedules import NoiseTable, ScheduleOptions, schedule_sigmas

TEXT = DOCUMENT.read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_rows() -> None:
    assert filled(TEXT) == TEXT, "run python -m benchmarks.sampler_table"
    names = [info.name for info in SAMPLERS.values()] + [info.name for info in SCHEDULES.values()]
    assert [name for name in names if f"\n| {name} |" not in TEXT] == ["Automatic"]


def test_a_changed_row_would_be_seen() -> None:
    assert filled(TEXT.replace("| 2n - 1 |", "| 2n |", 1)) == TEXT


@pytest.mark.parametrize("column", [0, 1], ids=["a1111", "comfyui"])
@pytest.mark.parametrize("name", ["KL Optimal", "Beta", "Align Your Steps", "Align Your Steps GITS"])
def test_the_levels_of_both_readings(name: str, column: int) -> None:
    table = NoiseTable.from_config(NoiseConfig())
    (row,) = re.findall(rf"^\| {name} \| (\d[^|]*) \| (\d[^|]*) \|$", TEXT, re.MULTILINE)
    written = [float(word) for word in re.findall(r"\d+\.\d{4}|(?<= )0(?=:|$)", row[column])]
    (info,) = [info for info in SCHEDULES.values() if info.name == name]
    sigmas = schedule_sigmas(info, 10, table, ScheduleOptions(compat="comfyui" if column else "a1111"))
    got = torch.cat([sigmas[:4], sigmas[-3:]])
    torch.testing.assert_close(got, torch.tensor(written, dtype=torch.float64), rtol=0, atol=5.1e-5)


def test_the_automatic_schedules_are_those_of_the_rows() -> None:
    section = " ".join(TEXT.partition("### Automatic")[2].split())
    for sampler in SAMPLERS.values():
        if sampler.automatic == "exponential":
            assert sampler.key in ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
        elif sampler.automatic != "uniform":
            name = SCHEDULES[sampler.automatic].name
            (listed,) = re.findall(rf"{name} for ([^;]*);", section)
            assert sampler.name in re.split(r", | and ", listed)


def test_the_names_that_are_refused_are() -> None:
    paragraph = TEXT.split("\n\n")[2]
    names = [name for name in re.findall(r"`([^`]+)`", paragraph.split("are refused")[0]) if "*" not in name]
    assert len(names) >= 8
    for name in names:
        with pytest.raises(RequestError, match="unknown sampler"):
            resolve_sampler(name)


def test_the_picture_is_there_and_can_be_drawn() -> None:
    assert PICTURE.stat().st_size < 300_000
    curves = [Curve(info, tuple(measure(info, n) for n in (8, 64, 96))) for info in deterministic()[:2]]
    assert draw(curves).size > (500, 100)


def test_the_measured_order_is_that_of_the_row() -> None:
    for key, order in (("euler", 1), ("heun", 2), ("dpmpp_2m", 2)):
        info = SAMPLERS[key]
        assert info.order == order
        curve = Curve(info, tuple(measure(info, n) for n in (16, 64, 128)))
        assert abs(curve.order() - order) < 0.1
        assert curve.points[0][0] == (16 if key != "heun" else 32)
