"""LoRA and textual inversion on tiny checkpoints of every family: only the new numbers move, and files load as others do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from avila_diffusion import AvilaDiffusion
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.checkpoint.lora.apply import apply_loras
from avila_diffusion.checkpoint.lora.files import read_lora
from avila_diffusion.checkpoint.safetensors import TensorFile, write_safetensors
from avila_diffusion.errors import RequestError, Unsupported
from avila_diffusion.text.tokenizer import clip_tokenizer
from avila_diffusion.training.data import Dataset, read_dataset
from avila_diffusion.training.embedding import EmbeddingModel, EmbeddingTask
from avila_diffusion.training.loop import Trainer
from avila_diffusion.training.lora import LoraModel, LoraTask
from avila_diffusion.training.personal import Personal
from avila_diffusion.training.unet import DenoisingLoss

Make = Callable[..., Any]


@pytest.fixture
def whole(pictures: Path) -> Dataset:
    return read_dataset(pictures, 64)


def personal(model: Model, data: Dataset, settings: Any, text: bool = False) -> Personal:
    return Personal(model, DenoisingLoss(sample_steps=2, sample_prompts=("a square",)), data, settings, text)


def answer(model: Model) -> torch.Tensor:
    """Of the UNet to fixed input, float32."""
    rng = torch.Generator().manual_seed(7)
    x, context = (
        torch.randn(1, 4, 8, 8, generator=rng),
        torch.randn(1, 77, model.spec.unet.context_channels, generator=rng),
    )
    adm = model.spec.unet.adm_channels
    vector = None if adm is None else torch.randn(1, adm, generator=rng)
    with torch.no_grad():
        found: torch.Tensor = model.unet(x, torch.tensor([300.0]), context, vector=vector)
    return found


@pytest.mark.parametrize(
    ("family", "targets", "text"),
    [("sd1", "attention", True), ("sd2", "transformer", True), ("sdxl", "all", False), ("sd1", "all", False)],
)
def test_a_trained_lora_loads_as_any_other_and_does_the_same(
    family: str, targets: str, text: bool, tiny_checkpoint: Make, whole: Dataset, loop: Make, tmp_path: Path
) -> None:
    model = load_model(tiny_checkpoint(family))
    untouched = answer(model)
    settings = loop(steps=3, learning_rate=0.02, ema=0.0, warmup=0, decay=0.0)
    lora = LoraModel(rank=3, alpha=1.5, targets=targets, text=text, dtype="float32")  # type: ignore[arg-type]
    task = LoraTask(lora, personal(model, whole, settings, text))
    assert torch.equal(answer(model), untouched)  # a change begins as none
    before = {name: p.detach().clone() for name, p in model.unet.named_parameters()}
    out = tmp_path / "mine.safetensors"
    list(Trainer(task, settings, tmp_path / "state", out).run())
    for name, parameter in model.unet.named_parameters():
        assert torch.equal(parameter, before[name])  # the checkpoint's own weights stay
    for target in task.targets.values():
        target.layer.release()
    trained = answer(model)
    assert float((trained - untouched).abs().max()) > 1e-3 * float(untouched.abs().max())

    fresh = load_model(tiny_checkpoint(family))
    report = apply_loras(fresh, [(read_lora(out), 1.0, 1.0)])[0]
    assert not report.unmatched and not report.mis_shaped and report.scales == (0.5,)
    assert set(report.matched) == {"unet"} | ({"text encoder 1"} if text else set())
    torch.testing.assert_close(answer(fresh), trained, rtol=1e-5, atol=1e-5)
    with TensorFile(out) as file:
        names = [name for name in file.names if name.startswith("lora_unet_")]
        assert any("input_blocks" in name for name in names) is (family == "sdxl")
        assert any("down_blocks" in name for name in names) is (family != "sdxl")
        moved = {name: float(file.tensor(name).abs().max()) > 0 for name in file.names if "lora_up" in name}
    # Every target was in the gradient, but for the last layer of SD 2's text tower, which the model does not use.
    assert all(there or (family == "sd2" and "_te_" in name and "layers_2" in name) for name, there in moved.items())
    result = AvilaDiffusion.with_model(tiny_checkpoint(family), steps=1, seed=1, lora=out).text_to_image(
        "a", "", 64, 64
    )
    assert result[0].width == 64


def test_the_gradient_of_a_lora_is_that_of_the_sum(tiny_checkpoint: Make, whole: Dataset, loop: Make) -> None:
    """dL/dup = scale · dL/dW · downᵀ, with dL/dW taken from the whole weight in a second model."""
    settings = loop()
    model, other = load_model(tiny_checkpoint("sd1")), load_model(tiny_checkpoint("sd1"))
    task = LoraTask(LoraModel(rank=2, alpha=6.0, targets="attention"), personal(model, whole, settings))
    name = next(name for name in task.targets if name.endswith("attn2_to_v"))
    up, down = (task.parameters[f"{name}.lora_{part}.weight"] for part in ("up", "down"))
    (gradient,) = torch.autograd.grad(task.loss(1)["loss"], [up])
    path = next(path for path, module in model.unet.named_modules() if module is task.targets[name].layer)
    layer: Any = other.unet.get_submodule(path)
    layer.weight = torch.nn.Parameter(layer.weight.float())
    (wanted,) = torch.autograd.grad(personal(other, whole, settings).loss(1)["loss"], [layer.weight])
    expected = 3.0 * wanted @ down.detach().T
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_an_embedding_moves_its_vectors_alone(
    family: str, tiny_checkpoint: Make, whole: Dataset, loop: Make, tmp_path: Path
) -> None:
    model = load_model(tiny_checkpoint(family))
    settings = loop(steps=2, learning_rate=0.05, ema=0.0, warmup=0, decay=0.0, weight_decay=0.0)
    task = EmbeddingTask(EmbeddingModel(word="square", vectors=3, begin="red"), personal(model, whole, settings, True))
    first = {name: p.detach().clone() for name, p in task.parameters.items()}
    before = answer(model)
    out = tmp_path / "word.safetensors"
    list(Trainer(task, settings, tmp_path / "state", out).run())
    assert torch.equal(answer(model), before)
    with TensorFile(out) as file:
        assert set(file.names) == ({"clip_l", "clip_g"} if family == "sdxl" else {"emb_params"})
        for name in file.names:
            vectors = file.tensor(name)
            assert vectors.shape == (3, 64)
            assert float((vectors - first[name]).abs().min(dim=1).values.max()) > 0.01  # every vector moved


def test_the_word_becomes_its_vectors(tiny_checkpoint: Make, whole: Dataset, loop: Make) -> None:
    """Vectors that begin as those of a word give the features of that word."""
    model = load_model(tiny_checkpoint("sd1"))
    part = personal(model, whole, loop(), True)
    with torch.no_grad():
        wanted = part.conditions(["a red number"])[0]
        EmbeddingTask(EmbeddingModel(word="square", vectors=1, begin="red"), part)
        found = part.conditions(["a square number"])[0]
    torch.testing.assert_close(found, wanted)
    first = len(clip_tokenizer())
    assert part.read("square, square")[:3] == [first, *clip_tokenizer().encode(","), first]


def test_a_word_that_no_caption_has_is_refused(tiny_checkpoint: Make, whole: Dataset, loop: Make) -> None:
    with pytest.raises(RequestError, match="no caption has the word 'zebra'"):
        EmbeddingTask(EmbeddingModel(word="zebra"), personal(load_model(tiny_checkpoint("sd1")), whole, loop()))


def test_models_that_want_a_picture_are_refused(tiny_state: Make, whole: Dataset, loop: Make, tmp_path: Path) -> None:
    state = tiny_state("sd1")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    state[name] = torch.cat([state[name], torch.zeros(64, 5, 3, 3)], dim=1)
    path = tmp_path / "inpainting.safetensors"
    write_safetensors(path, state, {"avila.family": "sd1"})
    with pytest.raises(Unsupported, match="inpainting"):
        personal(load_model(path), whole, loop())


@pytest.mark.parametrize("changes", [{"rank": 0}, {"rank": 9999}, {"alpha": 0.0}, {"alpha": -1.0}])
def test_ranks_and_alphas_out_of_range(changes: dict[str, int]) -> None:
    with pytest.raises(RequestError, match="must be from"):
        LoraModel(**changes)  # type: ignore[arg-type]


def test_words_are_whole_words(tiny_checkpoint: Make, whole: Dataset, loop: Make) -> None:
    part = personal(load_model(tiny_checkpoint("sd1")), whole, loop())
    with pytest.raises(RequestError, match="no caption has the word"):
        EmbeddingTask(EmbeddingModel(word="squar"), part)
    task = EmbeddingTask(EmbeddingModel(word="square", vectors=1), part)
    first = len(clip_tokenizer())
    assert [task.read(text).count(first) for text in ("a Square.", "squares", "square square", "")] == [1, 0, 2, 0]


@pytest.mark.parametrize("begin", ["", "one two three four five"])
def test_beginnings_that_do_not_fit_the_vectors(begin: str) -> None:
    with pytest.raises(RequestError, match="tokens; expected 1 to 4"):
        EmbeddingModel(word="x", begin=begin)


def test_settings_that_mean_nothing_here_are_refused(tiny_checkpoint: Make, pictures: Path, loop: Make) -> None:
    model = load_model(tiny_checkpoint("sd1"))
    with pytest.raises(Unsupported, match="compile"):
        personal(model, read_dataset(pictures, 64), loop(compile=True))
    with pytest.raises(RequestError, match="at least 64"):
        personal(model, read_dataset(pictures, 56), loop())
