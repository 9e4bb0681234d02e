"""`avila samplers`, `avila schedules`."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from avila_diffusion.cli import main
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES
from avila_diffusion.sampling.rows import calls_formula


@pytest.mark.parametrize(("command", "table"), [("samplers", SAMPLERS), ("schedules", SCHEDULES)])
def test_every_name_is_listed_with_its_aliases(
    capsys: pytest.CaptureFixture[str], command: str, table: dict[str, Any]
) -> None:
    assert main([command]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?! )", said.rstrip())][1:]
    assert len(entries) == len(table)
    for entry, info in zip(entries, table.values(), strict=True):
        assert entry.startswith(f"{info.name} ")
        assert all(alias in entry for alias in info.aliases)


def test_the_list_of_samplers_says_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "sampler"
    for words in (["DPM++ 2M", "1", "Karras"], ["Heun", "2", "Uniform"], ["DPM adaptive", "varies", "Uniform"]):
        assert any(re.split(r"  +", line)[:3] == words for line in lines)


def test_the_rows_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(SAMPLERS)
    assert rows["heun"] == {
        "key": "heun",
        "name": "Heun",
        "aliases": list(SAMPLERS["heun"].aliases),
        "paper": "Karras et al. 2022, arXiv:2206.00364, algorithm 2",
        "order": 2,
        "calls_per_step": 2,
        "calls": "2n - 1",
        "second_order": True,
        "stochastic": False,
        "brownian": False,
        "options": {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": None, "s_noise": 1.0},
        "automatic": "uniform",
        "grid": "schedule",
        "ends": "zero",
        "starts": {"text": "scaled", "image": "first"},
    }
    assert rows["dpm_adaptive"]["calls_per_step"] is None
    assert rows["tcd"]["options"]["eta"] == 0.3
    assert rows["ddim"]["starts"] == {"text": "unit", "image": "above"}
    assert main(["schedules", "--json"]) == 0
    schedules = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(schedules) == list(SCHEDULES)
    assert schedules["karras"]["options"] == {"rho": 7.0, "sigma_min": None, "sigma_max": None}
    assert schedules["kl_optimal"]["ends"] == "lowest"
    assert [key for key, row in schedules.items() if row["differs_in_comfyui"]] == [
        "kl_optimal", "align_your_steps", "gits", "beta", "turbo"
    ]  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 19, 20, 30, 36, 100, 600])
def test_the_formula_of_calls_is_what_is_counted(n: int) -> None:
    from avila_diffusion.config import NoiseConfig
    from avila_diffusion.sampling.samplers import SAMPLERS as FUNCTIONS
    from avila_diffusion.sampling.schedules import NoiseTable, calls, sampler_sigmas

    table = NoiseTable.from_config(NoiseConfig())
    for key in FUNCTIONS:
        info = SAMPLERS[key]
        made = calls(info, sampler_sigmas(info, SCHEDULES["automatic"], n, table))
        formula = re.sub(r"(\d)n", r"\1 * n", calls_formula(info))
        if made is None:
            assert info.calls == "adaptive"
        else:
            assert made == eval(formula, {"max": max, "ceil": math.ceil, "floor": math.floor, "n": n}), key


@pytest.mark.parametrize("command", ["samplers", "schedules"])
def test_every_listed_name_can_be_asked_for(capsys: pytest.CaptureFixture[str], command: str) -> None:
    from avila_diffusion.request import GenerateRequest

    assert main([command, "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        for name in (row["name"], row["key"], *row["aliases"]):
            asked = {command.removesuffix("s"): name}
            assert getattr(GenerateRequest(**asked).resolved(64), command.removesuffix("s")) == row["name"]
