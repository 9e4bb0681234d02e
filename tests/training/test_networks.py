"""New networks: their architecture, first weights, losses in diffusers' terms, and files that the ordinary loader reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from avila_diffusion import AvilaDiffusion
from avila_diffusion.checkpoint.keys import unet_from_diffusers
from avila_diffusion.checkpoint.load import load_model
from avila_diffusion.config import VAEConfig
from avila_diffusion.models.layers import Linear
from avila_diffusion.models.unet import UNet
from avila_diffusion.models.vae import VAE
from avila_diffusion.training.data import generator
from avila_diffusion.training.initialise import create
from avila_diffusion.training.latents import Latents, encode, read_vae, standardise
from avila_diffusion.training.loop import Trainer
from avila_diffusion.training.losses import target
from avila_diffusion.training.state import Trained
from avila_diffusion.training.unet import Captions, spread_timesteps, tell, tokenize

from .conftest import SMALL_UNET, SMALL_VAE

Make = Callable[..., Any]


def test_the_unet_is_diffusers_of_the_same_numbers() -> None:
    """Same weights, same answer, in float64; zeros of the first weights replaced, so that every part speaks."""
    ours = create(lambda: UNet(SMALL_UNET.unet), generator(0, 0)).double().requires_grad_(False)
    for parameter in ours.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator(0, 1), dtype=torch.float64), alpha=0.05)
    theirs = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=[1, 2],
        use_linear_projection=True,
    ).double()
    state = dict(ours.named_parameters())
    names = unet_from_diffusers(list(theirs.state_dict()))
    theirs.load_state_dict({name: state[mine].detach() for mine, name in names.items()})
    x, t = torch.randn(2, 4, 16, 16, generator=generator(0, 2)).double(), torch.tensor([3.0, 700.0]).double()
    context = torch.randn(2, 77, 64, generator=generator(0, 3)).double()
    answer = ours(x, t, context)
    assert 0.1 < float(answer.std()) < 10
    torch.testing.assert_close(answer, theirs(x, t, context).sample, rtol=1e-7, atol=1e-7)


def test_a_new_unet_answers_nothing_and_learns(unet_task: Make, loop: Make) -> None:
    task = unet_task(loop(batch=4))
    losses = task.loss(0)
    assert 0.5 < float(losses["loss"].detach()) < 1.5  # the mean square of v itself, about 1
    gradients = torch.autograd.grad(losses["loss"], list(task.parameters.values()), allow_unused=True)
    assert any(g is not None and float(g.abs().max()) > 0 for g in gradients)


def test_the_denoising_loss_by_hand(unet_task: Make, loop: Make) -> None:
    """The batch of a step drawn again from its seeds; with a network that answers 0 the loss is the mean square of v."""
    task = unet_task(loop(batch=4), min_snr=5.0)
    rng = generator(0, 3)
    from avila_diffusion.training.data import order

    x0 = task.latents.sample(order(8, 4, 3, 0), rng)
    noise = torch.randn(x0.shape, generator=rng)
    sigma = task.table.t_to_sigma(spread_timesteps(4, 1000, rng)).float()
    wanted = target(x0, noise, sigma, "v")
    weights = torch.minimum(sigma**-2, torch.tensor(5.0)) / (sigma**-2 + 1)
    expected = (weights * wanted.square().mean(dim=(1, 2, 3))).mean()
    torch.testing.assert_close(task.loss(3)["loss"], expected)


def test_the_head_teaches_the_text_tower_alone_at_first(unet_task: Make, loop: Make, tmp_path: Path) -> None:
    settings = loop(steps=12, batch=8, ema=0.0, learning_rate=0.01, warmup=0, decay=0.0)
    task = unet_task(settings, text_head=0.5, text_first=11, caption_dropout=0.25)
    first = {name: p.detach().clone() for name, p in task.parameters.items()}
    trainer = Trainer(task, settings, tmp_path / "state", tmp_path / "out.safetensors")
    trained = Trained.begin(task.parameters, averaged=False)
    rows = [trainer._step(trained, step) for step in range(11)]
    assert rows[-1]["text"] < 0.8 * rows[0]["text"]
    for name, parameter in task.parameters.items():
        assert torch.equal(parameter, first[name]) is name.startswith("unet."), name
    both = trainer._step(trained, 11)
    assert both["loss"] == pytest.approx(both["denoising"] + 0.5 * both["text"])
    assert any(not torch.equal(p, first[name]) for name, p in task.parameters.items() if name.startswith("unet."))
    task.export(tmp_path / "out.safetensors")
    assert not load_model(tmp_path / "out.safetensors").report.unknown


def test_the_second_loss_by_hand() -> None:
    """Two texts, one of them empty; the head sees the mean of the features from the end token on."""
    head = create(lambda: Linear(2, 4), generator(0, 0))
    tokens = torch.tensor([[49406, 320, 49407, 49407], [49406, 49407, 49407, 49407]])
    context, x0 = torch.randn(2, 4, 2, generator=generator(0, 1)), torch.randn(2, 1, 4, 4, generator=generator(0, 2))
    wanted = x0[0].reshape(2, 2, 2, 2).mean(dim=(1, 3)).flatten()
    expected = (head(context[0, 2:].mean(dim=0)) - wanted).square().mean()
    torch.testing.assert_close(tell(head, context, tokens, x0), expected)


def test_bfloat16_is_near_float32_in_loss_and_gradient(unet_task: Make, loop: Make) -> None:
    exact, half = unet_task(loop(batch=4)), unet_task(loop(batch=4, precision="bfloat16"))
    for task in (exact, half):
        with torch.no_grad():
            for name, parameter in task.parameters.items():
                if parameter.dim() > 1:
                    parameter.add_(torch.randn(parameter.shape, generator=generator(4, len(name))), alpha=0.05)
    results = []
    for task in (exact, half):
        loss = task.loss(0)["loss"]
        gradient = torch.autograd.grad(loss, list(task.parameters.values()), allow_unused=True)
        results.append((float(loss.detach()), torch.cat([g.flatten() for g in gradient if g is not None])))
    assert results[0][0] == pytest.approx(results[1][0], rel=0.02)
    assert float(torch.nn.functional.cosine_similarity(results[0][1], results[1][1], dim=0)) > 0.99


def test_timesteps_are_spread_over_the_whole_range() -> None:
    t = spread_timesteps(10, 1000, generator(0, 0)).sort().values
    assert bool(((t >= torch.arange(10) * 99.9) & (t <= torch.arange(1, 11) * 99.9)).all())


def test_captions_are_dropped_and_chosen_evenly() -> None:
    captions = Captions([["a red apple", "an apple"], ["a cat"]])
    empty, rows = tokenize(""), captions.draw([0] * 300, 0.5, generator(0, 0)).tolist()
    assert 100 < rows.count(empty) < 200
    assert rows.count(tokenize("a red apple")) > 40 and rows.count(tokenize("an apple")) > 40
    assert captions.draw([1, 1], 0.0, generator(0, 0)).tolist() == [tokenize("a cat")] * 2
    assert captions.draw([1, 1], 1.0, generator(0, 0)).tolist() == [empty] * 2


def test_standardised_latents_are_the_same_autoencoder(data: Any, tmp_path: Path) -> None:
    vae = create(lambda: VAE(SMALL_VAE.config), generator(1, 0)).double().eval().requires_grad_(False)
    pictures = data.pictures(range(4)).double()
    before = vae.encode(pictures)
    decoded = vae.decode(before.mode)
    latents = standardise(vae, Latents(before.mean, (0.5 * before.log_variance).exp()))
    after = vae.encode(pictures)
    torch.testing.assert_close(after.mean, latents.mean)
    torch.testing.assert_close((0.5 * after.log_variance).exp(), latents.deviation)
    torch.testing.assert_close(vae.decode(after.mode), decoded)
    assert float(after.mean.mean(dim=(0, 2, 3)).abs().max()) < 1e-10
    total = after.mean.var(dim=(0, 2, 3)) + latents.deviation.square().mean(dim=(0, 2, 3))
    torch.testing.assert_close(total, torch.ones_like(total))


def test_latents_are_made_once_and_anew_for_another_autoencoder(data: Any, tmp_path: Path) -> None:
    cache = tmp_path / "latents.safetensors"
    first, second = (create(lambda: VAE(SMALL_VAE.config), generator(n, 0)).requires_grad_(False) for n in (1, 2))
    made = encode(first, data, cache)
    written = cache.stat().st_mtime_ns
    assert torch.equal(encode(first, data, cache).mean, made.mean) and cache.stat().st_mtime_ns == written
    assert not torch.equal(encode(second, data, cache).mean, made.mean)


def test_a_trained_vae_is_read_back_and_learns(vae_task: Make, loop: Make, tmp_path: Path) -> None:
    settings = loop(steps=30, batch=4, learning_rate=3e-3, optimizer="muon", ema=0.0)
    task = vae_task(settings, kl=0.0, ssim=0.1, scales=2, crop=24)
    out = tmp_path / "vae.safetensors"
    reports = list(Trainer(task, settings, tmp_path / "state", out).run())
    assert reports[-1].losses["reconstruction"] < 0.8 * float(vae_task(settings).loss(0)["reconstruction"].detach())
    vae = read_vae(out)
    for name, parameter in vae.named_parameters():
        assert torch.equal(parameter, task.parameters[name])
    assert (tmp_path / "state" / "sheet-0000030.png").exists()


def test_the_exported_checkpoint_goes_through_the_ordinary_loader_and_draws(
    unet_task: Make, loop: Make, tmp_path: Path
) -> None:
    settings = loop(ema=0.0)
    task, out = unet_task(settings), tmp_path / "model.safetensors"
    list(Trainer(task, settings, tmp_path / "state", out).run())
    model = load_model(out)
    assert model.spec.unet == task.spec.unet and model.spec.noise == task.spec.noise
    assert model.spec.latent == task.spec.latent and model.spec.text == task.spec.text
    assert isinstance(model.spec.vae, VAEConfig)
    assert model.spec.vae.decoder_channels == SMALL_VAE.config.decoder_channels
    assert not model.report.unknown and not model.report.ignored
    for name, parameter in model.unet.named_parameters():
        torch.testing.assert_close(parameter.float(), task.parameters[f"unet.{name}"].detach(), rtol=1e-3, atol=1e-5)
    result = AvilaDiffusion.with_model(out, steps=2, seed=1).text_to_image("a square", "", 64, 64)
    assert result[0].width == 64
