"""LoRAs by their own name and by the one they were trained under."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from avila_diffusion.checkpoint.lora.find import find_lora
from avila_diffusion.errors import ModelNotFound


def _write(path: Path, alias: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({"lora_unet_x.alpha": torch.ones(1)}, path, metadata={"ss_output_name": alias})
    return path


def test_the_alias_of_a_renamed_file(tmp_path: Path) -> None:
    renamed = _write(tmp_path / "Lora/ink v2 (final).safetensors", "ink")
    other = _write(tmp_path / "Lora/water.safetensors", "sea")
    (tmp_path / "Lora/broken.safetensors").write_bytes(b"\x00" * 20)
    assert find_lora("ink", tmp_path) == renamed
    assert find_lora("water", tmp_path) == find_lora("sea", tmp_path) == other
    own = _write(tmp_path / "Lora/ink.safetensors", "another")
    assert find_lora("ink", tmp_path) == own, "a file's own name goes before another's alias"
    with pytest.raises(ModelNotFound, match="oil"):
        find_lora("oil", tmp_path)


def test_an_alias_of_several_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _write(tmp_path / f"Lora/{name}.safetensors", "twin")
    with pytest.raises(
        ModelNotFound, match=r"several LoRAs were trained under the name 'twin': .*a\.safetensors, .*b\.saf"
    ):
        find_lora("twin", tmp_path)
