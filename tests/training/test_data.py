"""Data sets on disk and settings in TOML: what is read, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avila_diffusion.errors import AvilaError, FileProblem, RequestError
from avila_diffusion.images import Image
from avila_diffusion.training.architectures import DiffusionModel
from avila_diffusion.training.data import Dataset, generator, read_dataset
from avila_diffusion.training.recipes import make_trainer, read_recipe
from avila_diffusion.training.settings import LoopSettings, read_settings
from avila_diffusion.training.unet import DenoisingLoss, DiffusionLoss
from avila_diffusion.training.vae import VAELoss


def picture(path: Path, width: int = 40, height: int = 24) -> Path:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return Image(pixels).save_png(path)


def test_a_folder_with_captions_beside_the_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a half\n", encoding="utf-8")
    (tmp_path / "note.md").write_text("not a picture")
    data = read_dataset(tmp_path, 16)
    assert [(item.path.name, item.captions) for item in data.items] == [("a.png", ("a half",)), ("b.png", ("",))]


def test_pictures_are_cut_to_their_middle_square(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 48, 16)
    found = read_dataset(tmp_path, 16).pictures([0])
    assert found.shape == (1, 3, 16, 16) and found.dtype == torch.float32
    assert float(found[..., :7].max()) < -0.9 and float(found[..., 9:].min()) > 0.9


def test_metadata_names_the_pictures_and_all_their_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "left-out.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one", "captions": ["one", "two"]}\n\n')
    assert read_dataset(tmp_path, 16).items[0].captions == ("one", "two")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one"}')
    assert read_dataset(tmp_path, 16).items[0].captions == ("one",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file_name": "none.png", "text": ""}', "there is no"),
        ("{", "expected an object"),
        ('{"text": "a"}', "expected an object"),
        ("[]", "expected an object"),
        ('{"file_name": "a.png", "captions": [1]}', "must be strings"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png"}}\n{line}\n')
    with pytest.raises(FileProblem, match=f"line 2: .*{said}"):
        read_dataset(tmp_path, 16)


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="has no pictures"):
        read_dataset(tmp_path, 16)
    with pytest.raises(FileProblem, match="is not a folder"):
        read_dataset(tmp_path / "none", 16)
    with pytest.raises(RequestError, match="multiple of 8"):
        read_dataset(tmp_path, 20)


def test_what_is_kept_back_depends_on_names_only(data: Dataset) -> None:
    train, check = data.split(0.4)
    assert len(train) + len(check) == len(data) and 0 < len(check) < len(data)
    fewer = Dataset(data.items[::2], data.size).split(0.4)[1]
    assert {item.path for item in fewer.items} <= {item.path for item in check.items}


def test_random_streams_differ_by_seed_number_and_purpose() -> None:
    draws = {
        tuple(torch.rand(2, generator=generator(*key)).tolist())
        for key in ((0, 0), (1, 0), (0, 1), (0, 0, 1), (2**40, 0))
    }
    assert len(draws) == 5


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"steps": 5}, "needs batch"),
        ({"steps": 5, "batch": 1, "learningrate": 1}, "did you mean learning_rate"),
        ({"steps": "5", "batch": 1}, "train.steps is '5'; expected int"),
        ({"steps": True, "batch": 1}, "expected int"),
        ({"steps": 0, "batch": 1}, "at least 1"),
        ({"steps": 1, "batch": 1, "decay": 1.5}, "from 0 to 1"),
        ({"steps": 1, "batch": 1, "learning_rate": float("nan")}, "finite"),
        ({"steps": 1, "batch": 1, "betas": [0.9]}, "expected 2"),
        ({"steps": 1, "batch": 1, "betas": [0.9, 1.0]}, "below 1"),
        ({"steps": 1, "batch": 1, "precision": "float8"}, "one of"),
        ([], "expected a table"),
    ],
)
def test_settings_that_cannot_be_used(table: object, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_settings(LoopSettings, table, "train")


def test_settings_take_whole_numbers_for_fractions() -> None:
    settings = read_settings(
        LoopSettings, {"steps": 5, "batch": 1, "clip": 2, "minutes": 3, "betas": [0, 0.5]}, "train"
    )
    assert settings.clip == 2.0 and settings.minutes == 3.0 and settings.betas == (0.0, 0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("out = ", "is not TOML"),
        ("train = 1", "expected a table"),
        ("outt = 'x'\n[train]\nsteps=1\nbatch=1", "means nothing"),
        ("[train]\nsteps=1\nbatch=1", "needs out"),
        ("out='o.safetensors'\nstate='s'\n[train]\nsteps=1\nbatch=1\n[data]\nfolder='f'\nsize=64", "encoder_channels"),
        (
            "out='o.safetensors'\nstate='s'\n[train]\nsteps=1\nbatch=1\n[data]\nfolder='f'\nsize=64\n"
            "[model]\nencoder_channels=[48]\ndecoder_channels=[32]",
            "multiple of 32",
        ),
        (
            "out='o.safetensors'\nstate='s'\n[train]\nsteps=1\nbatch=1\n[data]\nfolder='f'\nsize=64\n"
            "[model]\nencoder_channels=[32]\ndecoder_channels=[32]",
            "is not a folder",
        ),
    ],
)
def test_recipes_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((RequestError, FileProblem), match=said):
        make_trainer("vae", read_recipe(path))


def test_a_missing_recipe_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (VAELoss, {"scales": 0}),
        (VAELoss, {"kl": -1}),
        (VAELoss, {"crop": -4}),
        (VAELoss, {"kl_warmup": -3}),
        (DenoisingLoss, {"min_snr": -1.0}),
        (DenoisingLoss, {"min_snr": 0}),
        (DenoisingLoss, {"caption_dropout": 1.5}),
        (DiffusionLoss, {"text_head": -1}),
        (DiffusionLoss, {"text_first": 5}),
        (DiffusionModel, {"channels": [32], "transformers": [1], "text_layers": 0}),
        (DiffusionModel, {"channels": [32], "transformers": [1], "blocks": -1}),
        (DiffusionModel, {"channels": [32], "transformers": [1], "head_channels": -32}),
        (LoopSettings, {"steps": 1, "batch": 1, "seed": -1}),
        (LoopSettings, {"steps": 1, "batch": 1, "minutes": -5.0}),
    ],
)
def test_numbers_out_of_range(kind: type, table: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=r"must be (from|at least)"):
        read_settings(kind, table, "loss")


def test_nothing_left_to_train_on_is_said(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(FileProblem, match="none of 1 pictures"):
        read_dataset(tmp_path, 16).split(0.999999)


def test_captions_may_hold_what_ends_lines_elsewhere(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one\u2028two\u0085"}\n', encoding="utf-8")
    assert read_dataset(tmp_path, 16).items[0].captions == ("one\u2028two\u0085",)


RECIPE = """
out = "{out}"
state = "state"
data = {{ folder = "pictures", size = {size} }}
model = {{ encoder_channels = [32, 32], decoder_channels = [32, 32]{more} }}
train = {{ steps = 1, batch = 1 }}
"""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"out": "x.png"}, r"must end in \.safetensors"),
        ({"out": "folder.safetensors"}, "is a folder"),
        ({"out": "state/state.safetensors"}, "which the run reads from"),
        ({"out": "b.safetensors", "more": ', begin = "b.safetensors"'}, "which the run reads from"),
        ({"out": "pictures/a.png/x.safetensors"}, "cannot be written"),
        ({"out": "x" * 300 + ".safetensors"}, "cannot be written"),
        ({"out": "a\\u0000.safetensors"}, "needs out"),
        ({"more": ', begin = "none.safetensors"'}, "none.safetensors"),
    ],
)
def test_results_that_could_not_be_written_are_refused_first(
    tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "folder.safetensors").mkdir()
    picture(tmp_path / "pictures" / "a.png")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(**{"out": "out.safetensors", "size": 16, "more": "", **changes}), encoding="utf-8")
    with pytest.raises(AvilaError, match=said):
        make_trainer("vae", read_recipe(path))


def test_a_folder_for_the_result_is_made(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    picture(tmp_path / "pictures" / "a.png")
    path = tmp_path / "recipe.toml"
    path.write_text("\ufeff" + RECIPE.format(out="deep/☃.safetensors", size=16, more=""), encoding="utf-8")
    list(make_trainer("vae", read_recipe(path)).run())
    assert (tmp_path / "deep" / "☃.safetensors").is_file()
