"""Embeddings in every form that is about, made by torch and Pillow as others make them, and the real files."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avila_diffusion.checkpoint.embedding_pictures import read_picture
from avila_diffusion.checkpoint.embeddings import (
    ONE,
    find_embeddings,
    read_bundled,
    read_embedding,
)
from avila_diffusion.checkpoint.folders import embedding_folders
from avila_diffusion.errors import FileProblem

MATERIAL = Path(__file__).resolve().parents[3] / "shared" / "material"
VECTORS = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))


def real(name: str) -> Path:
    path = MATERIAL / name
    if not path.exists():
        pytest.skip(f"{name} is not on this machine")
    return path


def table(vectors: Tensor = VECTORS) -> dict[str, Any]:
    """As AUTOMATIC1111 saves one."""
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "inner", "step": 4}


class Numbers:
    """The generator that mixes a picture's margins, one number after the other."""

    def __init__(self) -> None:
        self.state = 0

    def __next__(self) -> int:
        self.state = (1664525 * self.state + 1013904223) % 2**32
        return self.state % 255


def as_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, default=lambda tensor: {"TORCHTENSOR": tensor.tolist()}).encode()


def strips(data: bytes, height: int, width: int) -> PIL.Image.Image:
    """A picture with `data` in its margins."""
    packed = np.frombuffer(zlib.compress(data, 9), np.uint8)
    size = -(-len(packed) // (height * 3)) * height * 3
    padded = np.resize(packed, size)
    picture = np.full((height, width, 3), 0x93, np.uint8)
    numbers = Numbers()
    mix = np.array([next(numbers) & 15 for _ in range(size)], np.uint8)
    low, high = (((half ^ mix) | 0x70).reshape(height, -1, 3) for half in (padded & 15, padded >> 4))
    black = np.zeros((height, 1, 3), np.uint8)
    return PIL.Image.fromarray(np.concatenate([low, black, picture, black, high], axis=1))


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "word.safetensors"
    safetensors.torch.save_file({"emb_params": VECTORS.half()}, path)
    found = read_embedding(path)
    assert (found.name, found.count, found.path) == ("word", 3, path)
    assert torch.equal(found.vectors[ONE], VECTORS.half().float())
    assert found.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    safetensors.torch.save_file({"<cat>": VECTORS[0]}, path)
    assert torch.equal(read_embedding(path).vectors[ONE], VECTORS[:1])
    both = {"clip_l": VECTORS, "clip_g": torch.cat([VECTORS, VECTORS], dim=1)}
    safetensors.torch.save_file(both, path)
    found = read_embedding(path)
    assert {key: tuple(rows.shape) for key, rows in found.vectors.items()} == {"clip_l": (3, 16), "clip_g": (3, 32)}
    assert found.count == 3


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("form", ["a1111", "parameters", "diffusers", "sdxl"])
def test_pickled(form: str, zipped: bool, tmp_path: Path) -> None:
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})
    content: Any = {
        "a1111": table(),
        "parameters": table() | {"string_to_param": parameters},
        "diffusers": OrderedDict({"<cat>": VECTORS}),
        "sdxl": {"clip_l": VECTORS, "clip_g": VECTORS * 2},
    }[form]
    path = tmp_path / "word.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_embedding(path)
    assert found.name == "word"
    expected = {"clip_l": VECTORS, "clip_g": VECTORS * 2} if form == "sdxl" else {ONE: VECTORS}
    assert set(found.vectors) == set(expected)
    assert all(torch.equal(found.vectors[key], rows) for key, rows in expected.items())


@pytest.mark.parametrize("height", [40, 64])
def test_pictures(height: int, tmp_path: Path) -> None:
    path = tmp_path / "word.png"
    strips(as_json(table()), height, 50).save(path)
    found = read_embedding(path)
    assert found.name == "inner"
    torch.testing.assert_close(found.vectors[ONE], VECTORS, rtol=0, atol=0)
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("sd-ti-embedding", base64.b64encode(as_json(table(VECTORS * 2))).decode())
    PIL.Image.new("RGB", (20, 20), (90, 80, 70)).save(path, pnginfo=text)
    torch.testing.assert_close(read_embedding(path).vectors[ONE], VECTORS * 2, rtol=0, atol=0)
    for picture in (PIL.Image.new("RGB", (20, 20), (90, 80, 70)), PIL.Image.new("RGB", (20, 20))):
        picture.save(path)
        with pytest.raises(FileProblem, match="carries no embedding"):
            read_embedding(path)
    striped = np.full((20, 30, 3), 200, np.uint8)
    striped[:, [9, 20]] = 0
    PIL.Image.fromarray(striped).save(path)
    assert read_picture(path) is None


def test_bundled_in_a_lora(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    tensors = {
        "bundle_emb.sks.string_to_param.*": VECTORS,
        "bundle_emb.big.clip_l": VECTORS + 1,
        "bundle_emb.big.clip_g": VECTORS + 2,
        "lora_unet_x.alpha": torch.tensor(1.0),
    }
    safetensors.torch.save_file(tensors, path)
    found = {item.name: item for item in read_bundled(path)}
    assert set(found) == {"sks", "big"}
    assert torch.equal(found["sks"].vectors[ONE], VECTORS)
    assert torch.equal(found["big"].vectors["clip_g"], VECTORS + 2)


def test_the_real_files() -> None:
    found = read_embedding(real("textual_inversion/a1111_5x768.safetensors"))
    with safetensors.safe_open(found.path, "pt") as file:
        assert torch.equal(found.vectors[ONE], file.get_tensor("emb_params").float())
    assert (found.count, found.hash[:12]) == (5, "082897a88340")
    assert read_embedding(real("textual_inversion/concept_cat-toy.bin")).vectors[ONE].shape == (1, 768)
    path = real("textual_inversion/concept_cat-toy.bin")
    cat = torch.load(path, weights_only=True)["<cat-toy>"]
    assert torch.equal(read_embedding(path).vectors[ONE][0], cat)
    original = read_embedding(real("textual_inversion/ldm_original.pt"))
    assert original.vectors[ONE].shape == (1, 768)
    assert 0.001 < float(original.vectors[ONE].abs().max()) < 10
    words = read_bundled(real("lora/cloneofsimo_disney_rank1.safetensors"))
    assert [(item.name, tuple(item.vectors[ONE].shape)) for item in words] == [("<s1>", (1, 768)), ("<s2>", (1, 768))]


WRONG: dict[str, tuple[Any, str]] = {
    "two": ({"a": VECTORS, "b": VECTORS}, "2 tensors"),
    "none": ({"a": 1}, "0 tensors"),
    "a list": ([VECTORS], "holds list"),
    "whole numbers": ({"a": torch.ones(2, 3, dtype=torch.int64)}, "not a list of vectors"),
    "cube": ({"a": torch.ones(2, 3, 4)}, "not a list of vectors"),
    "too many": ({"a": torch.ones(76, 4)}, "76 vectors"),
    "no width": ({"a": torch.ones(2, 0)}, "vectors of 0 numbers"),
    "empty": ({"a": torch.ones(0, 4)}, "0 vectors"),
    "nan": ({"a": torch.full((1, 4), torch.nan)}, "NaN"),
    "uneven": ({"clip_l": torch.ones(2, 4), "clip_g": torch.ones(3, 4)}, "other numbers of vectors"),
    "odd table": ({"string_to_param": 3}, "string_to_param is int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_none(name: str, tmp_path: Path) -> None:
    content, words = WRONG[name]
    path = tmp_path / "word.pt"
    torch.save(content, path)
    with pytest.raises(FileProblem, match=words) as refused:
        read_embedding(path)
    assert "word.pt" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_is_no_embedding(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({f"layer.{number}": VECTORS.clone() for number in range(9)}, path)
    with pytest.raises(FileProblem, match="9 tensors; an embedding has one or two"):
        read_embedding(path)
    with pytest.raises(FileProblem):
        read_embedding(tmp_path / "nowhere.pt")


@given(data=st.binary(max_size=300), text=st.booleans(), bare=st.booleans())
def test_damaged_pictures(data: bytes, text: bool, bare: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    if bare:
        path.write_bytes(data)
    elif text:
        info = PIL.PngImagePlugin.PngInfo()
        info.add_text("sd-ti-embedding", base64.b64encode(data).decode())
        PIL.Image.new("RGB", (8, 8), (9, 9, 9)).save(path, pnginfo=info)
    else:
        strips(data, 16, 8).save(path)
    with pytest.raises(FileProblem):
        read_embedding(path)


def test_folders(tmp_path: Path) -> None:
    """A1111's folder beside `models`, ComfyUI's within it; pictures by their own name, previews not at all."""
    for folder in ("models/Stable-diffusion", "models/embeddings", "embeddings/deep/er", "models/Lora"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("embeddings/a.pt", "embeddings/deep/er/b.pt", "models/embeddings/c.pt", "models/embeddings/a.pt"):
        torch.save(table(), tmp_path / name)
    torch.save(table(), tmp_path / "models/Lora/lora.pt")
    (tmp_path / "embeddings/empty.pt").touch()
    strips(as_json(table()), 40, 50).save(tmp_path / "embeddings/picture.png")
    strips(as_json(table()), 40, 50).save(tmp_path / "embeddings/a.preview.png")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "embeddings/plain.png")
    (tmp_path / "embeddings/deep/loop").symlink_to(tmp_path / "embeddings", target_is_directory=True)
    for entry in (tmp_path, tmp_path / "models", tmp_path / "models/Stable-diffusion"):
        folders = embedding_folders(entry)
        assert {folder.resolve() for folder in folders} == {tmp_path / "embeddings", tmp_path / "models/embeddings"}
        notes: list[str] = []
        assert set(find_embeddings(folders, notes=notes)) == {"a", "b", "c", "inner"}
        assert len(notes) == 2
    assert embedding_folders(tmp_path / "models/Lora/nowhere") == []
    plain = tmp_path / "plain"
    plain.mkdir()
    torch.save(table(), plain / "cat.pt")
    assert embedding_folders(plain) == []
    assert find_embeddings([plain]) == {"cat": plain / "cat.pt"}
