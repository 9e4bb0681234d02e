"""Building the kernels: the cache, broken compilers and folders, and builds for other processors than this."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from avila_diffusion import kernels
from avila_diffusion.errors import RequestError
from avila_diffusion.kernels import build, native
from avila_diffusion.models.layers import Conv2d, Linear, attend

POSIX = sys.platform != "win32"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nothing built yet, and an empty cache whose path has a blank and other letters."""
    folder = tmp_path / "cache ávila"
    monkeypatch.setenv("AVILA_CACHE", str(folder))
    build.forget()
    native._kernels.cache_clear()
    build.key.cache_clear()
    yield folder / "kernels"
    build.forget()
    native._kernels.cache_clear()
    build.key.cache_clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without optimising: what is tested is not what comes out."""
    monkeypatch.setattr(build, "FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in build.FLAGS))


needs_compiler = pytest.mark.skipif(not any(build.compilers()), reason="no C compiler is installed")


def stub(path: Path, text: str) -> tuple[str, ...]:
    """A program that stands for a compiler."""
    path.write_text(text, encoding="utf-8")
    return (sys.executable, str(path))


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch, fresh: Path) -> None:
    monkeypatch.setattr(build, "compilers", lambda: iter(()))
    layer, x = Linear(32, 32), torch.ones(3, 32)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(0.5)
        assert not native.serves(x) and native.identity() is None
        assert build.problem is not None and "no C compiler" in build.problem
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not list(fresh.iterdir()), "something half made was left behind"


def test_compilers_that_fail_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: Path) -> None:
    rude = stub(tmp_path / "rude.py", "import sys; print('native.c:1: error: no\\nmore'); sys.exit(1)")
    empty = stub(tmp_path / "empty.py", "import sys; open(sys.argv[-1], 'w').write('not a library')")
    monkeypatch.setattr(build, "compilers", lambda: iter([("no-such-compiler",), rude, empty]))
    assert build.library() is None
    assert build.problem and "\n" not in build.problem
    monkeypatch.setattr(build, "compilers", lambda: iter([("no-such-compiler",), rude]))
    build.forget()
    assert build.library() is None
    assert build.problem and "No such file" in build.problem and "native.c:1: error: no" in build.problem


def test_a_compiler_that_hangs_is_ended_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: Path
) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    monkeypatch.setattr(build, "compilers", lambda: iter([stub(tmp_path / "slow.py", child)]))
    monkeypatch.setattr(build, "SECONDS_TO_BUILD", 0.5)
    started = time.perf_counter()
    assert build.library() is None
    assert time.perf_counter() - started < 5
    assert build.problem and "no answer in 0.5 s" in build.problem
    assert not list(fresh.iterdir())


@needs_compiler
def test_what_is_built_is_kept_and_mended(monkeypatch: pytest.MonkeyPatch, fresh: Path, quick: None) -> None:
    assert isinstance(build.library(), ctypes.CDLL)
    (made,) = fresh.iterdir()
    written = made.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(build, "compilers", lambda: iter(()))
        build.forget()
        assert build.library() is not None and made.stat().st_mtime_ns == written
    if POSIX:  # Windows lets nobody change what is loaded
        whole = made.read_bytes()
        made.unlink()  # what is loaded stays whole
        made.write_bytes(whole[: len(whole) // 2])
        build.forget()
        assert build.library() is not None
        assert made.read_bytes() != whole[: len(whole) // 2]
    monkeypatch.setenv("CC", "another compiler")
    before = build.key()
    build.key.cache_clear()
    assert build.key() != before


@needs_compiler
@pytest.mark.parametrize("what", ["a file", "nothing runs"])
def test_a_cache_that_is_of_no_use(
    what: str, monkeypatch: pytest.MonkeyPatch, fresh: Path, quick: None, tmp_path: Path
) -> None:
    """Then a temporary folder serves, which is gone afterwards."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    real = build._loaded
    if what == "a file":
        fresh.parent.write_text("", encoding="utf-8")
    else:

        def refuse(path: Path) -> ctypes.CDLL:
            if path.is_relative_to(fresh):
                raise OSError("failed to map segment from shared object")
            return real(path)

        monkeypatch.setattr(build, "_loaded", refuse)
    compiler = next(build.compilers())
    monkeypatch.setattr(build, "compilers", lambda: iter([compiler]))
    assert build.library() is not None
    if POSIX:
        assert list(temporary.iterdir()) == []


def test_cc_with_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", '"/opt/my compilers/cc" -m64')
    assert next(build.compilers()) == ("/opt/my compilers/cc", "-m64")


def test_cc_with_an_open_quote_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    others = list(build.compilers())
    for useless in ('"gcc', " "):
        monkeypatch.setenv("CC", useless)
        assert list(build.compilers()) == others


@needs_compiler
@pytest.mark.skipif(not POSIX, reason="without a link to a compiler")
def test_relative_paths_are_of_the_folder_at_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: Path, quick: None
) -> None:
    compiler = next(found for found in build.compilers() if len(found) == 1)
    (tmp_path / "mine").symlink_to(compiler[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", "./mine")
    monkeypatch.setenv("AVILA_CACHE", fresh.parent.name)
    assert next(build.compilers()) == (str(tmp_path / "mine"),)
    monkeypatch.setattr(build, "compilers", lambda real=build.compilers: iter([next(real())]))
    found = build.library()
    assert found is not None, build.problem
    assert list(fresh.iterdir()) == [Path(found._name)]


@pytest.mark.parametrize(("value", "on"), [("", True), ("torch", False), ("TORCH", False), (" torch ", False)])
def test_how_the_kernels_are_turned_off(value: str, on: bool) -> None:
    assert kernels.wanted(value) is on


def test_a_word_that_turns_nothing_off_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^AVILA_KERNELS is 'off': it can be \"torch\".*unset"):
        kernels.wanted("off")


def test_an_import_builds_nothing(tmp_path: Path) -> None:
    environment = dict(os.environ, AVILA_CACHE=str(tmp_path / "none"))
    line = "import avila_diffusion.models.layers, avila_diffusion.pipeline.provenance, sys; sys.exit(0)"
    done = subprocess.run([sys.executable, "-c", line], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not (tmp_path / "none").exists()


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are x86 targets")
@pytest.mark.skipif(not kernels.ENABLED, reason="the kernels are turned off")
@pytest.mark.parametrize(("target", "lanes"), [("-march=x86-64-v3", 8), ("-march=x86-64", 4)])
def test_builds_for_other_processors(target: str, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if lanes == 8 and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    compiler = next(found for found in build.compilers() if shutil.which(found[0]))
    if "zig" in compiler:
        target = target.replace("-march=x86-64", "-mcpu=x86_64").replace("-v3", "_v3")
    monkeypatch.setattr(build, "compilers", lambda: iter([compiler]))
    monkeypatch.setattr(build, "TARGETS", (target,))
    found = native._kernels()
    assert found is not None, build.problem
    assert found.vector == lanes
    draw = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    with torch.no_grad():
        linear, small, large = Linear(100, 77), Conv2d(48, 16, 3, padding=1), Conv2d(48, 40, 3, padding=1)
        for layer in (linear, small, large):
            layer.weight.copy_(normal(*layer.weight.shape) / layer.weight[0].numel() ** 0.5)
            assert layer.bias is not None
            layer.bias.copy_(normal(len(layer.bias)))
        for layer, x in ((linear, normal(33, 100)), (small, normal(2, 48, 11, 9)), (large, normal(1, 48, 25, 30))):
            assert error(layer(x), layer(x.double())) < 1e-6
        x[0, 5, 10, 20] = 1e4
        unseen = torch.ones(25, 30, dtype=torch.bool)
        unseen[9:12, 19:22] = False
        assert error(large(x)[..., unseen], large(x.double())[..., unseen]) < 1e-6
        for d in (1, 40, 64, 80, 160):
            q, k, v = normal(2, 50, 2 * d), normal(2, 600, 2 * d), normal(2, 600, 2 * d)
            assert error(attend(q, k, v, 2), attend(q.double(), k.double(), v.double(), 2)) < 5e-7
        x = normal(2, 64, 9, 5)
        ones, zeros = torch.ones(64), torch.zeros(64)
        wanted = F.silu(F.group_norm(x.double(), 32, ones.double(), zeros.double(), 1e-5))
        assert error(native.group_norm(x, 32, ones, zeros, 1e-5, True), wanted) < 5e-7
    assert kernels.ENABLED
