"""`avila samplers`, `avila schedules`."""

from __future__ import annotations

import json

import pytest

from avila_diffusion.cli import main
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES


@pytest.mark.parametrize(("command", "table"), [("samplers", SAMPLERS), ("schedules", SCHEDULES)])
def test_every_name_is_listed_with_its_aliases(
    capsys: pytest.CaptureFixture[str], command: str, table: dict[str, object]
) -> None:
    assert main([command]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(table)
    assert main([command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["key"] for row in rows] == list(table)
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(row["name"])
        assert all(alias in line for alias in row["aliases"])


@pytest.mark.parametrize("command", ["samplers", "schedules"])
def test_every_listed_name_can_be_asked_for(capsys: pytest.CaptureFixture[str], command: str) -> None:
    from avila_diffusion.request import GenerateRequest

    assert main([command, "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        for name in (row["name"], row["key"], *row["aliases"]):
            asked = {command.removesuffix("s"): name}
            assert getattr(GenerateRequest(**asked).resolved(64), command.removesuffix("s")) == row["name"]
