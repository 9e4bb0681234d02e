"""The arithmetic of `scripts/bench`: what it counts, what it makes of measurements, and what it writes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import __main__ as command
from benchmarks import children, environment, growth, operations, picture, report, timing, weights
from benchmarks.parts import PARTS
from benchmarks.report import BEGIN, END, Figure

from avila_diffusion import AvilaDiffusion
from avila_diffusion.config import NoiseConfig
from avila_diffusion.kernels import native
from avila_diffusion.sampling.names import SCHEDULES
from avila_diffusion.sampling.schedules import NoiseTable, schedule_sigmas


@pytest.mark.parametrize(
    ("count", "published"),
    [
        (lambda: operations.unet_operations("sd1", 64, 64), 401.6),
        (lambda: operations.decode_operations(64, 64), 1257),
    ],
)
def test_operations_are_the_published_ones(count: Callable[[], int], published: float) -> None:
    assert count() / 2e9 == pytest.approx(published, rel=4e-4)  # published in GMAC


def test_operations_of_kernels_by_shape() -> None:
    matrix = SimpleNamespace(columns=5, k=7, gate=0)
    linear = SimpleNamespace(rows=3, matrix=matrix)
    assert operations.kernel_operations(native.LINEAR, linear) == 2 * 3 * 5 * 7
    matrix.gate = 1
    assert operations.kernel_operations(native.LINEAR, linear) == 2 * 3 * 10 * 7
    convolution = SimpleNamespace(batch=2, height=4, width=6, in_=3, out=5)
    assert operations.kernel_operations(native.WINOGRAD, convolution) == 2 * 9 * 2 * 24 * 15
    attention = SimpleNamespace(batch=1, heads=2, d=8, queries=10, keys=20)
    assert operations.kernel_operations(native.ATTENTION, attention) == 4 * 16 * 200
    assert operations.kernel_operations(native.GROUP_NORM, None) == 0


def test_watched_sees_what_kernels_do() -> None:
    x, weight = torch.randn(4, 64), torch.randn(32, 64)
    if not native.serves(x, weight):
        pytest.skip("no kernels of ours here")
    with operations.watched() as shares:
        native.linear(x, native.pack_rows(weight), None, 32)
    assert shares.operations == {"packing weights": 0, "linear, 1x1 convolution": 2 * 4 * 64 * 32}
    assert 0 < sum(shares.seconds.values()) <= shares.total
    rows = shares.rows()
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert rows[-1]["kind"] == operations.REST
    native.linear(x, native.pack_rows(weight), None, 32)
    assert len(shares.operations) == 2, "it goes on watching"


def test_layouts_have_the_released_size() -> None:
    sizes = {family: sum(int(np.prod(s)) for s in weights.layout(family).values()) for family in ("sd1", "sdxl")}
    assert sizes["sd1"] == pytest.approx(1.066e9, rel=2e-3)
    assert sizes["sdxl"] == pytest.approx(3.47e9, rel=2e-3)


def test_seeded_weights_are_the_same_each_time_and_of_order_one() -> None:
    one = weights.seeded("a.weight", (64, 32, 3, 3))
    assert one.dtype == torch.float16
    assert torch.equal(one, weights.seeded("a.weight", (64, 32, 3, 3)))
    assert not torch.equal(one, weights.seeded("b.weight", (64, 32, 3, 3)))
    assert float(one.float().std()) == pytest.approx((32 * 9) ** -0.5, rel=0.02)
    assert float(weights.seeded("norm.weight", (320,)).float().mean()) == pytest.approx(1, abs=0.01)
    assert float(weights.seeded("norm.bias", (320,)).float().mean()) == pytest.approx(0, abs=0.01)


RECORDS: dict[str, Any] = {
    "step": {
        "seconds": {"fast": [2.0, 1.0, 3.0], "lean": [1.2, 1.1], "diffusers": [2.5, 2.0], "openvino": [1.5, 1.3]},
        "operations": 1.6e12,
        "matrix_gflops": 200.0,
        "shares": [{"kind": "attention", "seconds": 0.5, "share": 0.5, "gflop": 50.0, "gflops": 100.0}],
        "when": "2026-01-02 03:04",
    },
    "sdxl": {"seconds": {"lean": [10.0], "diffusers": [12.0]}, "again": {"fast": [8.0], "lean": [9.0]}},
    "whole": {"seconds": {"ours": [40.0], "diffusers": [100.0], "openvino": [72.0]}, "conversion": 100, "steps": 20},
    "memory": {
        "seconds": {"fast": [40.0], "lean": [44.0], "1.5G": [70.0]},
        "peaks": {"fast": {"held": 5.5e9, "mapped": 2e9}, "lean": {"held": 2.9e9, "mapped": None}},
        "file": 2.0e9,
    },
    "load": {"best": {"torch": 2.0, "begins": 3.2, "ends": 9.0}},
}
RECORDS["sdxl"] |= {"operations": 1e12, "matrix_gflops": 200.0}
RECORDS["whole"]["peaks"] = {"ours": {"held": 5.5e9, "mapped": 2e9}}


def test_figures_are_ratios_of_the_bests() -> None:
    found = report.figures(RECORDS)
    values = [figure.value for figure in found]
    assert values[:3] == pytest.approx([1.3, 2.0, 1.1])
    assert values[3] is None  # decode was not measured
    assert values[4:7] == pytest.approx([1.2 * 9 / 8, 1.8, 5.5])
    assert values[7] == pytest.approx(2.9)
    assert values[8:] == [None, pytest.approx(1.75), pytest.approx(1.2)]
    assert (found[7].least, found[7].aim) == pytest.approx((1.1 * 2 + 1.5, 1.1 * 2 + 0.6))
    verdicts = [figure.verdict for figure in found]
    assert verdicts[:4] == ["yes", "yes", "yes", "not measured"]
    assert verdicts[4:] == ["yes", "yes", "yes", "yes", "not measured", "no", "yes"]
    assert all(figure.verdict == "not measured" for figure in report.figures({}))


@pytest.mark.parametrize(
    ("better", "value", "verdict"),
    [("more", 2.0, "aim"), ("more", 1.5, "yes"), ("more", 1.1, "no"), ("less", 0.5, "aim"), ("less", 1.5, "no")],
)
def test_verdicts(better: Any, value: float, verdict: str) -> None:
    least, aim = (1.2, 1.9) if better == "more" else (1.2, 0.9)
    assert Figure("step", "f", "-", value, least, aim, "x", better).verdict == verdict


def test_tables_are_tables_and_hold_the_numbers() -> None:
    lines = report.goal(RECORDS)
    assert len(lines) == 13
    assert {line.count(" | ") for line in lines} == {5}
    assert lines[2] == "| SD 1.5 UNet step, 64x64, CFG, fast | OpenVINO float32 | 1.30x | 1.25x | 1.60x | yes |"
    assert "| the same, lean | fast | 1.10x | at most 1.15x | 1.05x | yes |" in lines
    body = report.body({"processor": "P", "threads": 2, "memory_gb": None}, RECORDS)
    assert body.startswith("processor P, threads 2. Measured: step 2026-01-02, best of 3.\n")
    assert "| ours, fast | 1 s | 2 s | 1.00 | 1600 GFLOP/s = 8.00 |" in body
    assert "| attention | 500 ms | 50% | 50 | 100 = 0.50 |" in body
    assert "unknown" in body
    assert set(report.SECTIONS) == set(PARTS) == set(command.PARTS)


def test_a_part_is_measured_again_and_the_others_stay(tmp_path: Path) -> None:
    document, about = tmp_path / "document.md", {"processor": "P 1.5", "threads": 2}
    document.write_text(f"before\n{BEGIN}{END}\nafter\n", encoding="utf-8")

    def written(records: dict[str, Any], about: dict[str, Any] = about) -> str:
        command.write(document, about, records)
        return report.marked(document.read_text(encoding="utf-8"))[1]

    old = {part: {"when": "2026-01-02 03:04", **record} for part, record in RECORDS.items()}
    old["memory"]["file"] = 2132625150  # as the seeded checkpoint has; the bound is made of it
    old["decode"] = RECORDS["step"] | {"seconds": {"fast": [1.0], "openvino": [3.0]}}
    assert written(old) == written({}) == report.body(about, old)
    again: dict[str, Any] = {}
    for part in ("sdxl", "decode", "step"):
        again[part] = {**old[part], "seconds": {**old[part]["seconds"], "fast": [0.5]}, "when": "2026-02-03 04:05"}
        assert written({part: again[part]}) == report.body(about, old | again)
    alone = written({"step": {**again["step"], "seconds": {"fast": [0.5]}}})
    first, _, row, *_ = (line for line in alone.splitlines() if line)
    assert "threads 2. Measured: step 2026-02-03, best of 1; sdxl 2026-02-03, best of 1; " in first
    assert "whole 2026-01-02, best of 1" in first and "### SDXL" in alone and "| 6.00x |" in alone
    assert alone.count("not measured") == 3 + 1, f"peers did not run this time: {row}"
    other = written({"load": RECORDS["load"]}, about | {"threads": 4})
    assert "### Until" in other and "### SDXL" not in other and other.count("not measured") == 10
    assert [found.name for found in tmp_path.iterdir()] == ["document.md"]
    assert "before\n" in document.read_text(encoding="utf-8") and "\nafter\n" in document.read_text(encoding="utf-8")


def test_a_document_is_not_emptied(tmp_path: Path) -> None:
    document, about = tmp_path / "document.md", {"processor": "P 1.5", "threads": 2}
    for text in (None, "no marks"):
        if text is not None:
            document.write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit, match=r"nothing can be written into .*document.md"):
            command.check_document(document, about, ["step"], peers=True)
    document.write_text(f"{BEGIN}{END}", encoding="utf-8")
    command.write(document, about, {part: {"when": "2026-01-02", **record} for part, record in RECORDS.items()})
    command.check_document(document, about, ["step", "memory"], peers=True)
    command.check_document(document, about, ["memory", "load"], peers=False)
    command.check_document(document, {"processor": "other"}, command.PARTS, peers=True)
    with pytest.raises(SystemExit, match="has peers in step; give --peers"):
        command.check_document(document, about, ["step", "memory"], peers=False)
    with pytest.raises(
        SystemExit, match=r"another machine \(processor P 1.5, threads 2\); measure whole, memory, load, sdxl"
    ):
        command.check_document(document, {"processor": "other"}, ["step"], peers=True)


def test_the_marks_of_a_document() -> None:
    text = f"before\n{BEGIN}old\n{END}\nafter\n"
    assert report.marked(text) == (f"before\n{BEGIN}", "old\n", f"{END}\nafter\n")
    for broken in ("nothing", BEGIN, END + BEGIN, text + text):
        with pytest.raises(ValueError, match="once each"):
            report.marked(broken)


def test_what_the_document_says_can_be_read_again_and_the_readme_agrees() -> None:
    between = report.marked(report.DOCUMENT.read_text(encoding="utf-8"))[1]
    said = report.Said.of(between)
    assert len(said.values) == len(report.figures({})) and len(said.sections) == len(said.made) > 5
    assert report.body({"processor": said.about.removeprefix("processor ")}, {}, between) == between
    values = [said.values[figure.name, figure.against] for figure in report.figures({})]
    readme = (report.DOCUMENT.parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"are {values[0]:.1f} times as fast as OpenVINO's and {values[1]:.1f} times as fast as diffusers'" in readme
    assert f"{values[5]:.1f}" == f"{values[0]:.1f}", "of whole pictures the same is said"


def test_rounds_take_turns_and_two_do_not_count() -> None:
    calls: list[str] = []
    seconds = timing.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" * 5
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_overrides_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*environment.OVERRIDES, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", "4")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    assert environment.settle(3) == ["OPENBLAS_CORETYPE"]
    assert "OPENBLAS_CORETYPE" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_peak_memory_of_a_child() -> None:
    ran = children.run(["-c", "import time; x = bytearray(b'1' * 200_000_000); time.sleep(0.3); print('done')"])
    assert ran.output.strip() == "done"
    assert ran.seconds > 0.3
    if sys.platform == "linux":
        assert ran.held is not None
        assert 2e8 < ran.held < 5e8
    with pytest.raises(RuntimeError, match=r"ended with 1.*no such thing"):
        children.run(["-c", "raise SystemExit('no such thing')"])
    assert children.parse_status("Name: x\nRssAnon: 3 kB\nRssFile: 2 kB\nRssShmem: 1 kB\n") == (4096, 2048)
    assert children.parse_status("Name: x\nState: Z\n") is None


def test_the_peers_sampler_is_second_order_and_its_levels_are_ours() -> None:
    table, sigmas = picture.levels(20)
    ours = schedule_sigmas(SCHEDULES["karras"], 20, NoiseTable.from_config(NoiseConfig()))
    assert np.abs(sigmas - ours.numpy()).max() < 1e-3
    assert len(table) == 1000

    def error(steps: int) -> float:
        """Data of variance 1: the exact path is x · sqrt((1 + σ²) / (1 + σ₀²)). The last step to 0 is left out of it."""
        levels = np.geomspace(10, 0.1, steps + 1)

        def denoise(x: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
            seen.append(x)
            return np.asarray(x / (1 + sigma**2), np.float32)

        seen: list[NDArray[np.float32]] = []
        picture.dpm_2m(denoise, np.ones(1, np.float32), np.append(levels, 0))
        return abs(float(seen[-1][0]) / math.sqrt(1.01 / 101) - 1)

    assert 3 < error(20) / error(40) < 5.5


def test_growth_is_told_by_the_worst_ratio() -> None:
    found = growth.curves()
    growth.measure(
        found, lambda run: 1.0 + run.side**2 * run.steps * run.batch, lambda run: run.side**2 * run.steps * run.batch
    )
    assert all(curve.excess() <= 1.0 for curve in found)
    assert all("grows no faster" in line for line in growth.say(found))
    found[0].seconds[-1] *= 1.3
    assert found[0].excess() == pytest.approx(1.3, rel=0.01)
    assert "GROWS FASTER" in growth.say(found)[0]
    plot = growth.draw(found)
    assert plot.width == 4 * growth.WIDTH * 2
    assert len(plot.getcolors(maxcolors=1 << 20) or []) > 10


def test_operations_of_a_run_are_those_that_it_makes(tiny_checkpoint: Any) -> None:
    runner = object.__new__(growth.Runner)
    runner.diffusion = AvilaDiffusion.with_model(tiny_checkpoint("sd1"), device="cpu")
    one, two, three, pair = (
        runner.operations(growth.Run(side=64, steps=steps, batch=batch))
        for steps, batch in ((1, 1), (2, 1), (3, 1), (1, 2))
    )
    assert three - two == two - one > 0
    assert pair - one > two - one, "another picture is another step, and another decode"
    assert runner.operations(growth.Run(side=64, chunks=2)) > two
    assert runner.seconds(growth.Run(side=64, steps=1)) > 0


def test_the_command_says_what_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no part nothing; there are machine, step" in done.stderr
    with pytest.raises(SystemExit):
        command.read_arguments(["--rounds", "0"])
    assert command.read_arguments(["step", "--peers"]).part == ["step"]
