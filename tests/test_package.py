"""What is shipped: the version, the typing marker, the data, and a wheel that has them all."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import avila_diffusion

ROOT = Path(__file__).resolve().parent.parent


def test_the_version_is_said_once() -> None:
    text = (ROOT / "src" / "avila_diffusion" / "version.py").read_text(encoding="utf-8")
    assert f'__version__ = "{avila_diffusion.__version__}"' in text
    try:
        assert importlib.metadata.version("avila-diffusion") == avila_diffusion.__version__
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("run from the source folder, without an install")


def test_the_changelog_knows_the_version() -> None:
    assert f"## [{avila_diffusion.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_public_names() -> None:
    for name in avila_diffusion.__all__:
        assert getattr(avila_diffusion, name) is not None
    assert dir(avila_diffusion) == avila_diffusion.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = avila_diffusion.nonsense


def test_the_wheel_holds_the_whole_package(tmp_path: Path) -> None:
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed; scripts/test installs it")
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"avila_diffusion-{avila_diffusion.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entries,) = (name for name in names if name.endswith("entry_points.txt"))
        assert archive.read(entries).decode() == "[console_scripts]\navila = avila_diffusion.cli:main\n"
    source = ROOT / "src"
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    wanted = {line.removeprefix("src/") for line in tracked.stdout.splitlines()} or {
        path.relative_to(source).as_posix() for path in source.rglob("*.py")
    }
    assert sorted(wanted - names) == []
    assert "avila_diffusion/py.typed" in names
    assert any(name.startswith("avila_diffusion/data/") for name in names)
    assert not [name for name in names if "__pycache__" in name]
