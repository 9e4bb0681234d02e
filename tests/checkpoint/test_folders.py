"""Finding models in the folders of the programs that people have."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avila_diffusion.checkpoint.folders import find_model, list_models, model_folders
from avila_diffusion.errors import ModelNotFound

Tree = Callable[..., Path]

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="about other systems than Windows")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AVILA_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def make(*names: str, root: str = "root") -> Path:
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(b"x" * 10)
        return tmp_path / root

    return make


A1111 = (
    "webui.py",
    "models/Stable-diffusion/dreamshaper_8.safetensors",
    "models/Stable-diffusion/xl/juggernaut.safetensors",
    "models/Stable-diffusion/old/sd-v1-4.ckpt",
    "models/Stable-diffusion/old/sd-v1-4.yaml",
    "models/Stable-diffusion/anime.vae.safetensors",
    "models/Stable-diffusion/Put Stable Diffusion checkpoints here.txt",
    "models/VAE/vae-ft-mse-840000-ema-pruned.safetensors",
    "models/VAE/kl-f8.pt",
    "models/VAE-approx/model.pt",
    "models/Lora/add_detail.safetensors",
    "models/LyCORIS/style.safetensors",
    "models/text_encoder/clip_l.safetensors",
    "embeddings/easynegative.safetensors",
)
COMFY = (
    "models/checkpoints/dreamshaper_8.safetensors",
    "models/checkpoints/xl/juggernaut.safetensors",
    "models/checkpoints/old/sd-v1-4.ckpt",
    "models/vae/vae-ft-mse-840000-ema-pruned.safetensors",
    "models/vae/kl-f8.pt",
    "models/vae_approx/model.pt",
    "models/loras/add_detail.safetensors",
    "models/loras/style.safetensors",
    "models/clip/clip_l.safetensors",
    "models/embeddings/easynegative.safetensors",
)


def names(role: str, folder: Path | str | None = None) -> list[str]:
    return [model.name for model in list_models(role, folder)]


@pytest.mark.parametrize("layout", [A1111, COMFY], ids=["a1111", "comfyui"])
def test_every_level_of_both_layouts_is_recognised(tree: Tree, layout: tuple[str, ...]) -> None:
    root = tree(*layout)
    checkpoints = next(path for path in (root / "models").iterdir() if path.name in ("Stable-diffusion", "checkpoints"))
    for entry in (root, root / "models", checkpoints):
        assert names("checkpoint", entry) == [
            "dreamshaper_8.safetensors",
            "old/sd-v1-4.ckpt",
            "xl/juggernaut.safetensors",
        ]
        vaes = ["kl-f8.pt", "vae-ft-mse-840000-ema-pruned.safetensors"]
        assert names("vae", entry) == ([*vaes, "anime.vae.safetensors"] if layout is A1111 else vaes)
        assert names("text_encoder", entry) == ["clip_l.safetensors"]
        assert names("lora", entry) == ["add_detail.safetensors", "style.safetensors"]
        assert names("taesd", entry) == ["model.pt"]
    assert names("embedding", root) == ["easynegative.safetensors"]


def test_models_tell_their_path_size_and_need(tree: Tree) -> None:
    root = tree(*A1111)
    models = {model.name: model for model in list_models("checkpoint", root)}
    old = models["old/sd-v1-4.ckpt"]
    assert old.path == root / "models" / "Stable-diffusion" / "old" / "sd-v1-4.ckpt"
    assert (old.size, old.role, old.needs_conversion) == (10, "checkpoint", True)
    assert not models["dreamshaper_8.safetensors"].needs_conversion


def test_a_plain_folder_is_taken_as_it_is(tree: Tree) -> None:
    root = tree("a.safetensors", "sub/b.SAFETENSORS", "c.ckpt", "d.vae.safetensors", "e.png", "loras/l.safetensors")
    assert names("checkpoint", root) == ["a.safetensors", "c.ckpt", "sub/b.SAFETENSORS"]
    assert names("lora", root) == ["l.safetensors"]
    assert "d.vae.safetensors" in names("vae", root)


def test_several_folders_come_from_the_environment(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (
        tree(*A1111, root="webui"),
        tree("checkpoints/a.safetensors", "checkpoints/dreamshaper_8.safetensors", root="two"),
    )
    monkeypatch.setenv("AVILA_MODELS", os.pathsep.join([str(one), str(two), str(two / "checkpoints"), "/no/such"]))
    assert model_folders() == [one / "models" / "Stable-diffusion", two / "checkpoints"]
    assert names("checkpoint").count("dreamshaper_8.safetensors") == 1
    assert find_model("dreamshaper_8") == one / "models" / "Stable-diffusion" / "dreamshaper_8.safetensors"
    assert find_model("a") == two / "checkpoints" / "a.safetensors"
    assert model_folders(two) == [two / "checkpoints"], "an explicit folder replaces the environment"


def test_models_in_the_current_folder_are_the_default(tree: Tree, tmp_path: Path) -> None:
    tree("checkpoints/a.safetensors", root="models")
    assert [folder.resolve() for folder in model_folders()] == [(tmp_path / "models" / "checkpoints").resolve()]
    assert names("checkpoint") == ["a.safetensors"]


def test_diffusers_folders_are_one_entry(tree: Tree) -> None:
    root = tree(
        "sdxl/model_index.json",
        "sdxl/unet/diffusion_pytorch_model.safetensors",
        "group/tiny/unet/config.json",
        "group/tiny/unet/model.safetensors",
        "file.safetensors",
    )
    assert names("checkpoint", root) == ["file.safetensors", "group/tiny", "sdxl"]
    assert find_model("SDXL", models=root) == root / "sdxl"
    assert find_model(str(root / "group" / "tiny")) == root / "group" / "tiny"
    assert names("checkpoint", root / "sdxl") == ["sdxl"]
    assert {model.name: model.size for model in list_models("checkpoint", root)}["sdxl"] == 20


def test_hidden_files_and_unfinished_downloads_are_left_out(tree: Tree) -> None:
    root = tree(
        "good.safetensors",
        ".hidden.safetensors",
        ".cache/a.safetensors",
        "a.safetensors.tmp",
        "b.safetensors.part",
        "c.safetensors.crdownload",
        "d.safetensors",
        "d.safetensors.aria2",
    )
    (root / "zero.safetensors").write_bytes(b"")
    notes: list[str] = []
    assert [model.name for model in list_models("checkpoint", root, notes=notes)] == ["good.safetensors"]
    assert len(notes) == 2
    assert "not finished" in notes[0]
    assert "empty" in notes[1]


@posix_only
def test_loops_and_dead_links_do_no_harm(tree: Tree) -> None:
    root = tree("a/x.safetensors", "b/")
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "self").symlink_to(root / "b")
    (root / "dead.safetensors").symlink_to(root / "nowhere")
    (root / "linked.safetensors").symlink_to(root / "a" / "x.safetensors")
    notes: list[str] = []
    found = [model.name for model in list_models("checkpoint", root, notes=notes)]
    assert found == ["a/x.safetensors", "linked.safetensors"]
    assert any("dead.safetensors" in note for note in notes)


@posix_only
def test_unreadable_folders_are_skipped_with_a_note(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree("ok/x.safetensors", "locked/y.safetensors")
    scandir = os.scandir

    def guarded(path: str | os.PathLike[str]) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    notes: list[str] = []
    assert [model.name for model in list_models("checkpoint", root, notes=notes)] == ["ok/x.safetensors"]
    assert notes == [f"{root / 'locked'} was skipped: Permission denied"]


@posix_only
def test_what_may_not_be_looked_at_hides_nothing_else(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree("ok/x.safetensors", "secret/")
    stat = os.stat

    def guarded(path: str | os.PathLike[str] | int, **options: Any) -> os.stat_result:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", guarded)
    assert [model.name for model in list_models("checkpoint", root)] == ["ok/x.safetensors"]


def test_a_path_that_leads_nowhere_says_so(tree: Tree) -> None:
    root = tree("folder/")
    with pytest.raises(ModelNotFound, match=r"there is no file .*x\.safetensors'; check the path"):
        find_model(str(root / "x.safetensors"))
    with pytest.raises(ModelNotFound, match="'root' is a folder but not a diffusers model"):
        find_model("root")
    with pytest.raises(ModelNotFound, match="no models in"):
        find_model("root", paths=False)


def test_a_file_name_may_end_in_a_blank_or_a_quote(tree: Tree) -> None:
    root = tree("'it'", "x ") if sys.platform != "win32" else tree("'it'")
    for path in root.iterdir():
        assert find_model(str(path)) == path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("dreamshaper_8.safetensors", "dreamshaper_8.safetensors"),
        ("dreamshaper_8", "dreamshaper_8.safetensors"),
        ("DreamShaper_8", "dreamshaper_8.safetensors"),
        (" dreamshaper_8 ", "dreamshaper_8.safetensors"),
        ('"dreamshaper_8.safetensors"', "dreamshaper_8.safetensors"),
        ("dreamshaper_8 [879db523c3]", "dreamshaper_8.safetensors"),
        ("dreamshaper_8.safetensors [879DB523C3]", "dreamshaper_8.safetensors"),
        ("dreamshaper_8.safetensors [879db523]", "dreamshaper_8.safetensors"),
        ("xl/juggernaut.safetensors", "xl/juggernaut.safetensors"),
        ("xl\\juggernaut.safetensors [aeb7e9e689]", "xl/juggernaut.safetensors"),
        ("juggernaut", "xl/juggernaut.safetensors"),
        ("JUGGERNAUT.safetensors", "xl/juggernaut.safetensors"),
        ("sd-v1-4", "old/sd-v1-4.ckpt"),
    ],
)
def test_names_are_understood_as_people_give_them(tree: Tree, text: str, wanted: str) -> None:
    root = tree(*A1111)
    assert find_model(text, models=root) == root / "models" / "Stable-diffusion" / wanted


def test_roles_keep_apart(tree: Tree) -> None:
    root = tree(*A1111)
    assert find_model("anime.vae", "vae", root).name == "anime.vae.safetensors"
    with pytest.raises(ModelNotFound):
        find_model("anime.vae", "checkpoint", root)
    with pytest.raises(ModelNotFound):
        find_model("dreamshaper_8", "vae", root)


def test_the_stricter_reading_wins(tree: Tree) -> None:
    root = tree("model.safetensors", "Model.ckpt", "sub/model.safetensors", "sub/other.ckpt", "sub/other.safetensors")
    assert find_model("model", models=root) == root / "model.safetensors"
    assert find_model("sub/model", models=root) == root / "sub" / "model.safetensors"
    assert find_model("other", models=root) == root / "sub" / "other.safetensors", "the converted one of two"
    assert find_model("other.ckpt", models=root) == root / "sub" / "other.ckpt"


def test_a_bracketed_name_of_its_own_is_no_hash(tree: Tree) -> None:
    root = tree("mix [abcdef12].safetensors", "mix.safetensors")
    assert find_model("mix [abcdef12]", models=root).name == "mix [abcdef12].safetensors"


def test_an_ambiguous_name_lists_the_candidates(tree: Tree) -> None:
    root = tree("a/model.safetensors", "b/model.safetensors")
    with pytest.raises(ModelNotFound, match=r"'model' could be a/model\.safetensors, b/model\.safetensors; give more"):
        find_model("model", models=root)


def test_an_unknown_name_gets_the_nearest_and_the_places(tree: Tree) -> None:
    root = tree(*A1111)
    with pytest.raises(ModelNotFound) as caught:
        find_model("dreamshapr8", models=root)
    text = str(caught.value)
    assert "the nearest are dreamshaper_8.safetensors" in text
    assert str(root / "models" / "Stable-diffusion") in text
    assert "AVILA_MODELS" in text
    assert "\n" not in text
    with pytest.raises(ModelNotFound, match=r"there are dreamshaper_8\.safetensors, "):
        find_model("qqqqqq", models=root)


def test_without_folders_it_says_how_to_set_them(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"models \(models: no such folder\); set AVILA_MODELS"):
        find_model("dreamshaper_8")
    with pytest.raises(ModelNotFound, match="no model was named"):
        find_model("  ")


def test_a_path_wins_over_the_folders(tree: Tree, tmp_path: Path) -> None:
    root = tree("a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"here")
    assert find_model("a.safetensors", models=root) == Path("a.safetensors")
    assert find_model(str(tmp_path / "a.safetensors"), models=root) == tmp_path / "a.safetensors"
    assert find_model("a.safetensors", models=root, paths=False) == root / "a.safetensors"


@pytest.mark.parametrize(
    "text",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "..\\secret",
        "x/../../secret.safetensors",
        "a\0.safetensors",
        "a" * 9000,
        "~root",
    ],
)
def test_names_from_the_network_reach_only_what_was_listed(tree: Tree, tmp_path: Path, text: str) -> None:
    root = tree("a.safetensors")
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    with pytest.raises(ModelNotFound) as caught:
        find_model(text, models=root, paths=False)
    assert len(str(caught.value)) < 600
    assert "\0" not in str(caught.value)


def test_impossible_paths_are_not_found(tree: Tree) -> None:
    root = tree("a.safetensors")
    for text in ("a\0b", "a" * 9000, "~no-such-user/x"):
        with pytest.raises(ModelNotFound):
            find_model(text, models=root)


def test_a_folder_of_files_is_not_a_model(tree: Tree) -> None:
    root = tree("a.safetensors")
    with pytest.raises(ModelNotFound, match="not a diffusers model"):
        find_model(str(root))


@posix_only
def test_windows_paths_elsewhere_get_a_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = "d:\\stable-diffusion-webui\\models\\Stable-diffusion"
    with pytest.raises(ModelNotFound, match=r"Windows path .* /mnt/d/stable-diffusion-webui/models/Stable-diffusion"):
        find_model(f"{windows}\\a.safetensors")
    monkeypatch.setenv("AVILA_MODELS", windows)
    with pytest.raises(ModelNotFound, match="Windows path"):
        model_folders()


@pytest.mark.skipif(sys.platform != "win32", reason="drive letters are Windows's")
def test_windows_paths_work_on_windows(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(*A1111)
    folder = str(root / "models" / "Stable-diffusion")
    monkeypatch.setenv("AVILA_MODELS", f"{folder};{root.drive}\\no\\such")
    assert find_model("dreamshaper_8") == Path(folder) / "dreamshaper_8.safetensors"
    assert find_model(f"{folder}\\dreamshaper_8.safetensors") == Path(folder) / "dreamshaper_8.safetensors"
