"""`avila doctor`: each finding from what it is made of, and the whole on this machine."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from avila_diffusion import diagnose, kernels, machine
from avila_diffusion.cli import main
from avila_diffusion.kernels import build, native
from avila_diffusion.machine import GraphicsCard, Memory


def test_this_machine_can_make_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--models-dir", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["broken"] is False
    findings = {finding["topic"]: finding for finding in said["findings"]}
    wanted = [
        "avila",
        "python",
        "torch",
        "numpy",
        "processor",
        "kernels",
        "threads",
        "speed",
        "device",
        "memory",
        "bundled",
        "models",
    ]
    assert [topic for topic in wanted if topic not in findings] == []
    assert not [finding for finding in findings.values() if "could not be checked" in finding["text"]]
    assert float(findings["speed"]["text"].split()[0]) > 0.5
    assert findings["models"]["text"] == "no checkpoints found"


def test_something_broken_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken = diagnose.Diagnosis((diagnose.Finding("bad", "torch", "not installed", "install it"),))
    monkeypatch.setattr(diagnose, "diagnose", lambda models_dir: broken)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == "bad   torch        not installed; install it\n"


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Memory:
        raise OSError("no memory today")

    monkeypatch.setattr(machine, "memory", fail)
    monkeypatch.setattr(diagnose, "measure_matrix_rate", lambda: 1.0)
    found = [finding for finding in diagnose.diagnose().findings if finding.topic == "memory"]
    assert [(finding.state, finding.text) for finding in found] == [
        ("warn", "could not be checked: OSError: no memory today")
    ]


@pytest.mark.parametrize(
    ("name", "least", "state", "words"),
    [
        ("numpy", (1, 26), "ok", ""),
        ("numpy", (99, 1), "bad", "is older than 99.1"),
        ("no-such-package", (1,), "bad", "not installed"),
    ],
)
def test_packages(name: str, least: tuple[int, ...], state: str, words: str) -> None:
    finding = diagnose.check_package(name, least)
    assert (finding.state, finding.topic) == (state, name)
    assert words in finding.text
    assert (f'-m pip install "{name}>=' in finding.hint) == (state == "bad")


def test_a_package_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("[WinError 126] c10.dll\n was not found")

    monkeypatch.setattr("importlib.import_module", fail)
    finding = diagnose.check_package("numpy", (1, 26))
    assert finding.state == "bad"
    assert finding.text.endswith("cannot be imported: [WinError 126] c10.dll was not found")


def test_the_packages_are_those_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {line.lower() for line in project["project"]["dependencies"]}
    assert {f"{name}>={'.'.join(map(str, least))}" for name, least in diagnose.PACKAGES.items()} == wanted


@pytest.mark.parametrize(
    ("card", "version", "words"),
    [
        (GraphicsCard("nvidia", "RTX 4090", (13, 0), (8, 9)), "2.13.0+cpu", "torch==2.13.0+cu130"),
        (GraphicsCard("nvidia", "RTX 4090", (12, 8), (8, 9)), "2.13.0+cpu", "torch==2.13.0+cu126"),
        (GraphicsCard("nvidia", "GTX 1080", (13, 0), (6, 1)), "2.13.0", "torch==2.13.0+cu126"),
        (GraphicsCard("nvidia", "RTX 4090", (13, 0), (8, 9)), "2.6.0", "torch==2.6.0+cu126"),
        (GraphicsCard("nvidia", "GTX 1080", (11, 4), (6, 1)), "2.13.0", "update the NVIDIA driver"),
        (GraphicsCard("amd", "gfx1100"), "2.13.0+cpu", "torch==2.13.0+rocm7.2"),
        (GraphicsCard("amd", "gfx1100"), "2.12.0+cpu", "pytorch.org/get-started"),
        (GraphicsCard("apple", "Apple silicon"), "2.13.0", "arm64"),
    ],
)
def test_a_card_that_torch_cannot_use_gets_a_remedy(card: GraphicsCard, version: str, words: str) -> None:
    said = diagnose.remedy(card, version)
    assert words in said
    if "torch==" in words:
        tag = words.partition("+")[2]
        assert said.startswith(f'"{sys.executable}" -m pip install "{words}" --index-url https://')
        assert said.endswith(f"/whl/{tag}")


def test_nvidia_smi_is_read() -> None:
    overview = "| NVIDIA-SMI 580.95.05    Driver Version: 580.95.05    CUDA Version: 13.0 |"
    cards = machine.parse_nvidia_smi("NVIDIA GeForce RTX 4090, 8.9\nTesla P40, 6.1\n", overview)
    assert cards == [
        GraphicsCard("nvidia", "NVIDIA GeForce RTX 4090", (13, 0), (8, 9)),
        GraphicsCard("nvidia", "Tesla P40", (13, 0), (6, 1)),
    ]
    assert machine.parse_nvidia_smi("NVIDIA-SMI has failed", "") == []


def test_meminfo_is_read() -> None:
    text = "MemTotal:       24689460 kB\nMemFree:         1000 kB\nMemAvailable:   23059148 kB\n"
    assert machine.parse_meminfo(text) == Memory(24689460 * 1024, 23059148 * 1024)
    assert machine.parse_meminfo("MemTotal: 10 kB\nMemFree: 4 kB\n") == Memory(10240, 4096)
    assert machine.parse_meminfo("") is None


def test_vm_stat_is_read() -> None:
    text = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:    10.\nPages active:  99.\n"
    text += "Pages inactive:  5.\nPages purgeable:  1.\n"
    assert machine.parse_vm_stat(text, 1 << 34) == Memory(1 << 34, 16 * 16384)


def test_cores_are_counted() -> None:
    block = "processor\t: {}\nphysical id\t: 0\ncore id\t\t: {}\n\n"
    assert machine.count_cpuinfo_cores("".join(block.format(n, n % 2) for n in range(4))) == 2
    assert machine.count_cpuinfo_cores("processor : 0\nBogoMIPS : 50\n") is None
    core, cache = struct.pack("<II40x", 0, 48), struct.pack("<II48x", 2, 56)
    assert machine.count_core_records(core + cache + core + core) == 3
    assert machine.count_core_records(b"") == 0


@pytest.mark.parametrize(("available", "state"), [(2e9, "warn"), (20e9, "ok")])
def test_little_memory_is_warned_of(monkeypatch: pytest.MonkeyPatch, available: float, state: str) -> None:
    monkeypatch.setattr(machine, "memory", lambda: Memory(int(32e9), int(available)))
    (finding,) = diagnose._check_memory()
    assert finding.state == state
    assert f"{available / 1e9:.1f} GB available of 32.0 GB" in finding.text


def test_a_folder_that_cannot_be_written_is_bad(tmp_path: Path) -> None:
    assert diagnose.check_folder("outputs", tmp_path).state == "ok"
    finding = diagnose.check_folder("outputs", tmp_path / "missing")
    assert finding.state == "bad"
    assert "-o" in finding.hint


def test_a_models_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVILA_MODELS", str(tmp_path / "gone"))
    findings = list(diagnose._check_models(None))
    assert (findings[0].state, findings[0].text) == ("warn", f"{tmp_path / 'gone'} of AVILA_MODELS is not a folder")


def test_the_rate_is_measured() -> None:
    assert 0.1 < diagnose.measure_matrix_rate(size=128, seconds=0.01) < 1e5


def test_the_bundled_model_is_looked_for(bundled: Path) -> None:
    (finding,) = diagnose._check_bundled()
    assert (finding.state, finding.text) == ("ok", f"{bundled}, {bundled.stat().st_size / 1e6:.0f} MB")


def test_a_bundled_model_that_is_missing_is_named(no_bundled: None) -> None:
    (finding,) = diagnose._check_bundled()
    assert finding.state == "warn"
    assert "is missing" in finding.text


def test_kernels_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "identity", lambda: None)
    monkeypatch.setattr(build, "problem", "no C compiler was found")
    monkeypatch.setattr(kernels, "ENABLED", True)
    (found,) = diagnose._check_kernels()
    assert (found.state, found.text) == ("warn", "not built: no C compiler was found")
    assert "pip install ziglang" in found.hint
    monkeypatch.setattr(native, "identity", lambda: "avila 12, 8 lanes, gcc 12")
    monkeypatch.setattr(native, "threads_used", lambda: "threads of libgomp.so.1")
    (found,) = diagnose._check_kernels()
    assert (found.state, found.text) == ("ok", "avila 12, 8 lanes, gcc 12; threads of libgomp.so.1")
    monkeypatch.setattr(kernels, "ENABLED", False)
    (found,) = diagnose._check_kernels()
    assert found.state == "warn" and "AVILA_KERNELS" in found.text
