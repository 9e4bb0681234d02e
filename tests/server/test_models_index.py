"""The index of models: what it lists, and what of all that clients may say it takes for a name."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avila_diffusion.errors import FileProblem, ModelNotFound, PickleRefused
from avila_diffusion.hashes import hash_in_background
from avila_diffusion.server.entries import Entry
from avila_diffusion.server.models import ModelIndex

_opened: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.remove"):
        _opened.append(f"{event} {arguments[0] if arguments else ''}")


sys.addaudithook(_audit)


@contextmanager
def opening() -> Iterator[list[str]]:
    """What is opened meanwhile."""
    global _opened
    found = _opened = []
    try:
        yield found
    finally:
        _opened = None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A1111's folders with files of nothing in them, and a file outside."""
    models = tmp_path / "models"
    for name in (
        "Stable-diffusion/dream.safetensors",
        "Stable-diffusion/sub/dream.safetensors",
        "Stable-diffusion/sub/Only.safetensors",
        "Stable-diffusion/old.ckpt",
        "Stable-diffusion/both.ckpt",
        "Stable-diffusion/both.safetensors",
        "VAE/soft.safetensors",
        "VAE-approx/taesd_decoder.safetensors",
        "Lora/ink.safetensors",
        "Lora/pickled.pt",
    ):
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 3)
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    return models


@pytest.fixture
def index(folder: Path) -> ModelIndex:
    found = ModelIndex(str(folder))
    asyncio.run(found.scan())
    return found


def test_lists_users_files_first_and_what_comes_with_the_package_last(index: ModelIndex) -> None:
    names = [one.name for one in index.entries()]
    assert names[0] == "both.ckpt" and names[-1] == "procedural"
    assert names[-2:] == ["bundled", "procedural"] or "bundled" not in names
    assert [one.name for one in index.entries("vae")] == ["soft.safetensors"]
    assert index.entries("controlnet") == [] and index.entries("no such role") == []
    assert all(one.path is None or one.path.is_absolute() for one in index.entries())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dream.safetensors", "dream.safetensors"),
        ("dream", "dream.safetensors"),
        ("sub/dream", "sub/dream.safetensors"),
        ("sub\\dream.safetensors", "sub/dream.safetensors"),
        ("SUB/DREAM", "sub/dream.safetensors"),
        ("only", "sub/Only.safetensors"),
        ("Only.safetensors", "sub/Only.safetensors"),
        (" 'Only' ", "sub/Only.safetensors"),
        ("Only [0123456789]", "sub/Only.safetensors"),
        ("both", "both.safetensors"),
        ("procedural", "procedural"),
        ("Procedural", "procedural"),
    ],
)
def test_finds_by_any_name(index: ModelIndex, text: str, name: str) -> None:
    assert index.find(text).name == name


def test_finds_by_hash(index: ModelIndex, folder: Path) -> None:
    data = (folder / "Stable-diffusion/sub/dream.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(ModelNotFound):
        index.find(digest)
    index.hash(index.find("sub/dream"))
    for _ in range(200):
        if index.find("sub/dream").digest is not None:
            break
        asyncio.run(asyncio.sleep(0.01))
    entry = index.find("sub/dream")
    assert entry.digest == digest and entry.title == f"sub/dream.safetensors [{digest[:10]}]"
    for text in (digest, digest[:10], digest.upper(), entry.title, f"gone.safetensors [{digest[:10]}]"):
        assert index.find(text) is entry
    with pytest.raises(ModelNotFound):
        index.find(digest, hashes=False)
    again = ModelIndex(str(folder))
    asyncio.run(again.scan())
    assert again.find("sub/dream").digest == digest, "it was remembered"


def test_several_are_named(tmp_path: Path) -> None:
    for name in ("a/x.safetensors", "b/x.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    index = ModelIndex(str(tmp_path))
    asyncio.run(index.scan())
    with pytest.raises(ModelNotFound, match=r"a/x\.safetensors, b/x\.safetensors; give more of the name"):
        index.find("x")
    digest = hash_in_background(tmp_path / "a/x.safetensors").result(10)
    asyncio.run(index.scan())
    assert index.find(f"x [{digest[:10]}]").name == "a/x.safetensors"


def test_unknown_names_say_what_is_near_and_no_folder(index: ModelIndex, folder: Path) -> None:
    with pytest.raises(
        ModelNotFound, match=r"no checkpoint named 'dreem'; the nearest: (sub/)?dream\.safetensors"
    ) as told:
        index.find("dreem")
    assert str(folder) not in str(told.value)
    with pytest.raises(ModelNotFound, match="no VAE named 'x'; there are soft"):
        index.find("x", "vae")
    with pytest.raises(ModelNotFound, match="the server's models folder has none"):
        index.find("x", "controlnet")
    with pytest.raises(ModelNotFound, match="was named"):
        index.find("  ")


def test_pickled_files_are_listed_and_refused_where_they_are_not_read(index: ModelIndex) -> None:
    assert next(one for one in index.entries() if one.name == "old.ckpt").needs_conversion
    with pytest.raises(PickleRefused, match=r"avila convert old\.ckpt old\.safetensors"):
        index.find("old")
    assert not index.find("pickled", "lora").needs_conversion


def test_kin_of_a_role_is_found(index: ModelIndex) -> None:
    assert index.find("taesd_decoder", "vae").role == "taesd"


def test_links_lead_where_their_owner_let_them(folder: Path, tmp_path: Path) -> None:
    try:
        (folder / "Stable-diffusion/link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    except OSError:
        pytest.skip("no links here")
    index = ModelIndex(str(folder))
    asyncio.run(index.scan())
    assert index.find("link").name == "link.safetensors"


def test_a_changed_file_is_noticed(index: ModelIndex, folder: Path) -> None:
    entry = index.find("sub/dream")
    assert not index.changed(entry) and not index.changed(index.find("procedural"))
    assert entry.path is not None
    os.utime(entry.path, (1, 1))
    assert index.changed(entry)
    asyncio.run(index.scan())
    assert not index.changed(index.find("sub/dream"))
    (folder / "Stable-diffusion/sub/dream.safetensors").unlink()
    assert index.changed(index.find("sub/dream"))


def test_facts_are_of_the_head_and_kept(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny_checkpoint("sd1")
    index = ModelIndex(str(path.parent))
    asyncio.run(index.scan())
    entry = index.find(path.stem)
    assert not index.knows(replace(entry, changed=1.0))
    facts = asyncio.run(index.facts_of(entry))
    assert (facts.family, facts.variant, facts.prediction) == ("sd1", "base", "epsilon")
    assert (
        facts.spec is not None and facts.size == (facts.spec.defaults.size or facts.spec.size) and facts.problem == ""
    )
    assert index.knows(entry)
    with opening() as opened:
        assert index.facts(entry) is facts
    assert opened == []
    assert not any(str(path.parent) in line for line in facts.lines)
    assert index.facts(index.find("procedural")).size == 512


def test_damaged_files_say_so_without_their_folder(index: ModelIndex, folder: Path) -> None:
    with pytest.raises(FileProblem) as told:
        index.facts(index.find("dream.safetensors"))
    assert "dream.safetensors" in str(told.value) and str(folder) not in str(told.value)
    assert index.default().name in ("bundled", "procedural"), "none of the others can be loaded"


def test_thousands_of_files_are_scanned_soon(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"model{number:04}.safetensors").write_bytes(b"x")
    index = ModelIndex(str(tmp_path))

    async def scanned() -> int:
        """How often the loop went on meanwhile."""
        scanning = asyncio.ensure_future(index.scan())
        turns = 0
        while not scanning.done():
            await asyncio.sleep(0.01)
            turns += 1
        await scanning
        return turns

    assert asyncio.run(scanned()) > 2, "the loop was held up"
    assert index.find("model1999").name == "model1999.safetensors"


PIECES = (
    *("..", "../", "..\\", "....//", "/", "\\", "%2e%2e", "%2f", "\0", "~", "C:", "\u2024", "\u202e", "\uff0e\uff0f"),
    *(
        "secret",
        ".safetensors",
        "sub",
        "dream",
        "/etc/passwd",
        "models",
        "Stable-diffusion",
        "old.ckpt",
        "[0123456789]",
    ),
)


def test_no_name_opens_anything(folder: Path, tmp_path: Path) -> None:
    index = ModelIndex(str(folder))
    asyncio.run(index.scan())
    known = {(role, one.name) for role in ("checkpoint", "vae", "taesd") for one in index.entries(role)}
    absolute = [str(tmp_path / "secret.safetensors"), str(folder), f"{folder}/VAE/soft.safetensors"]
    chance = random.Random(7)

    def tried(name: str, role: str) -> None:
        with opening() as opened:
            try:
                found: Entry | None = index.find(name, role)
            except (ModelNotFound, PickleRefused) as error:
                found = None
                assert "\n" not in str(error)
                assert name in absolute or str(tmp_path) not in str(error)
        assert opened == []
        assert found is None or (found.role, found.name) in known
        assert found is None or ".." not in name.replace("\\", "/").split("/")

    for _ in range(9_000):
        tried("".join(chance.choices(PIECES, k=chance.randint(1, 8))), chance.choice(("checkpoint", "vae")))
    for name in absolute:
        tried(name, "checkpoint")
        tried(name, "vae")
    text = given(name=st.text(max_size=40), role=st.sampled_from(["checkpoint", "vae"]))
    settings(max_examples=1_000, deadline=None, database=None)(text(tried))()
