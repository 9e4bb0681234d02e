"""Hashes of model files: right, in the background, remembered, and never in the way."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from avila_diffusion import hashes
from avila_diffusion.errors import Cancelled, FileProblem
from avila_diffusion.hashes import hash_in_background, own_hash
from avila_diffusion.machine import cache_folder

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, not made yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AVILA_CACHE", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of three chunks and a bit."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)) * (3 << 12) + b"rest")
    return path


def entries(cache: Path) -> list[Path]:
    """What is in the cache."""
    return sorted(path for path in cache.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    """The hash, straight from the library."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def spoil(cache: Path, value: str) -> None:
    """Make the remembered hash recognisable as such."""
    (entry,) = entries(cache)
    known = json.loads(entry.read_text(encoding="utf-8"))
    entry.write_text(json.dumps({**known, "sha256": value}), encoding="utf-8")


def test_it_is_the_sha256_of_the_whole_file(model: Path) -> None:
    found = hash_in_background(model)
    assert found.result(10) == sha256(model)
    assert found.short() == sha256(model)[:10]
    assert found.done()


def test_an_empty_file_has_a_hash(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert hash_in_background(tmp_path / "empty").result(10) == EMPTY


def test_the_tensors_alone(tmp_path: Path, cache: Path) -> None:
    path, tensors = tmp_path / "lora.safetensors", bytes(range(256)) * 8192
    for metadata in (b'{"__metadata__":{"a":"b"}}', b"{}      "):
        path.write_bytes(len(metadata).to_bytes(8, "little") + metadata + tensors)
        found = hash_in_background(path, tensors_only=True)
        assert found.result(10) == hashlib.sha256(tensors).hexdigest()
        assert found.short() == hashlib.sha256(tensors).hexdigest()[:12]
    spoil(cache, "1" * 64)
    assert hash_in_background(path, tensors_only=True).result(0) == "1" * 64
    assert hash_in_background(path).result(10) == sha256(path), "the whole file is remembered apart"


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 20, b"\x05" + bytes(9)])
def test_tensors_of_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd").write_bytes(content)
    assert hash_in_background(tmp_path / "odd", tensors_only=True).result(10) == EMPTY


def test_it_is_remembered_for_the_same_file_only(model: Path, cache: Path) -> None:
    hash_in_background(model).result(10)
    spoil(cache, "0" * 64)
    again = hash_in_background(str(model))
    assert again.done()
    assert again.result(0) == "0" * 64
    status = model.stat()
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert hash_in_background(model).result(10) == sha256(model)
    spoil(cache, "0" * 64)
    model.write_bytes(model.read_bytes() + b"!")
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # same time, another size
    assert hash_in_background(model).result(10) == sha256(model)
    assert len(entries(cache)) == 1


def test_a_name_from_another_folder_is_the_same_file(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_in_background(model).result(10)
    spoil(cache, "1" * 64)
    monkeypatch.chdir(model.parent)
    assert hash_in_background(model.name).result(0) == "1" * 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"sha256": 5}',
        b'{"sha256": "' + b"0" * 64 + b'"}',
    ],
)
def test_a_damaged_cache_is_passed_over_and_mended(model: Path, cache: Path, content: bytes) -> None:
    hash_in_background(model).result(10)
    (entry,) = entries(cache)
    good = entry.read_bytes()
    entry.write_bytes(content)
    assert hash_in_background(model).result(10) == sha256(model)
    assert entry.read_bytes() == good


@pytest.mark.parametrize("value", ["", "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_a_remembered_value_that_is_no_hash_is_passed_over(model: Path, cache: Path, value: str) -> None:
    hash_in_background(model).result(10)
    spoil(cache, value)
    assert hash_in_background(model).result(10) == sha256(model)


def test_a_cache_that_cannot_be_written_does_not_matter(model: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be", encoding="utf-8")
    assert hash_in_background(model).result(10) == sha256(model)
    assert cache.is_file()


def test_a_failed_entry_leaves_nothing_behind(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "in use")

    monkeypatch.setattr(Path, "replace", refuse)
    assert hash_in_background(model).result(10) == sha256(model)
    assert entries(cache) == []


class Gate:
    """Holds the reading thread at the end of its first chunk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        real = hashes.FileHash._check_stop

        def wait(found: hashes.FileHash) -> None:
            self.reached.set()
            assert self.open.wait(10)
            real(found)

        monkeypatch.setattr(hashes.FileHash, "_check_stop", wait)


def test_cancelling_stops_between_chunks(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    found = hash_in_background(model)
    assert gate.reached.wait(10)
    assert not found.done()
    with pytest.raises(TimeoutError, match=r"is not ready after 0\.01 s"):
        found.result(0.01)
    found.cancel()
    gate.open.set()
    with pytest.raises(Cancelled, match=r"hashing model\.safetensors was stopped"):
        found.result(10)
    assert entries(cache) == []


def test_one_that_waits_for_its_turn_can_be_cancelled(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hashes._ONE_AT_A_TIME:
        found = hash_in_background(model)
        found.cancel()
        with pytest.raises(Cancelled):
            found.result(10)
    assert hash_in_background(model).result(10) == sha256(model)


def test_cancelling_after_the_end_changes_nothing(model: Path) -> None:
    found = hash_in_background(model)
    expected = found.result(10)
    found.cancel()
    assert found.result() == expected


@pytest.mark.parametrize("change", ["replaced", "grown", "touched"])
def test_a_file_that_changes_meanwhile_is_not_remembered(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    gate = Gate(monkeypatch)
    before, status = sha256(model), model.stat()
    found = hash_in_background(model)
    assert gate.reached.wait(10)
    if change == "replaced":
        other = model.with_name("other")
        other.write_bytes(b"x" * status.st_size)
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        if sys.platform == "win32":
            pytest.skip("Windows does not let an open file be replaced")
        other.replace(model)
    elif change == "grown":
        with model.open("ab") as stream:
            stream.write(b"more")
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    gate.open.set()
    result = found.result(10)
    assert (result == before) == (change != "grown")
    assert entries(cache) == []


def test_a_file_that_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"none\.safetensors cannot be read \(No such file"):
        hash_in_background(tmp_path / "none.safetensors").result(10)
    with pytest.raises(FileProblem, match="is a folder or device; give a model file"):
        hash_in_background(tmp_path).result(10)
    with pytest.raises(FileProblem, match="cannot be read"):
        hash_in_background("a\0b").result(10)


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), MemoryError("no room")], ids=["disk", "memory"])
def test_a_fault_while_reading_is_not_waited_for_for_ever(
    model: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(wanted: hashes.FileHash) -> str:
        raise fault

    monkeypatch.setattr(hashes, "_hash_and_remember", fail)
    with pytest.raises(FileProblem, match=rf"model\.safetensors .*({fault.args[-1]})"):
        hash_in_background(model).result(10)
    monkeypatch.undo()
    assert not hashes._ONE_AT_A_TIME.locked()


def test_two_processes_share_one_cache(model: Path, cache: Path) -> None:
    files = [model.with_name(f"{number}.bin") for number in range(20)]
    for number, path in enumerate(files):
        path.write_bytes(str(number).encode() * 1000)
    code = (
        "import sys; from avila_diffusion.hashes import hash_in_background as start\n"
        "for _ in range(5): print([start(path).result(20) for path in sys.argv[1:]])"
    )
    command = [sys.executable, "-c", code, *map(str, files)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    expected = f"{[sha256(path) for path in files]}\n" * 5
    for process in running:
        assert process.communicate(timeout=60)[0] == expected
    assert len(entries(cache)) == len(files)
    assert all(json.loads(entry.read_text(encoding="utf-8"))["sha256"] for entry in entries(cache))


def test_a_hash_in_the_making_does_not_keep_python_alive(model: Path) -> None:
    code = (
        "import sys; from avila_diffusion import hashes; hashes._ONE_AT_A_TIME.acquire();"
        "found = hashes.hash_in_background(sys.argv[1]); assert not found.done(); print('left')"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode, done.stderr) == ("left\n", 0, "")
    assert time.perf_counter() - began < 20


def test_the_cache_is_where_the_system_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("AVILA_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for platform, expected in (
        ("win32", tmp_path / "local" / "avila" / "cache"),
        ("darwin", tmp_path / "home" / "Library" / "Caches" / "avila"),
        ("linux", tmp_path / "xdg" / "avila"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_folder() == expected
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the standard
    assert cache_folder() == tmp_path / "home" / ".cache" / "avila"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delenv("LOCALAPPDATA")
    assert cache_folder() == tmp_path / "home" / "AppData" / "Local" / "avila" / "cache"


def test_without_a_home_the_hash_is_still_made(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("AVILA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert hash_in_background(model).result(10) == sha256(model)


@pytest.mark.parametrize(
    ("told", "expected"), [("AB" * 32, "ab" * 6), ("ab" * 31, None), ("x" * 64, None), ("", None), (None, None)]
)
def test_a_lora_may_say_its_own_hash(told: str | None, expected: str | None) -> None:
    assert own_hash({} if told is None else {"sshs_model_hash": told}) == expected
