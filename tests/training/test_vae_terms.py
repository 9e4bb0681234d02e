"""The terms of VAE training beside the plain ones: the discriminator, the decoder alone, the curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from avila_diffusion.errors import RequestError
from avila_diffusion.images import read_image
from avila_diffusion.models.vae import VAE
from avila_diffusion.training.curves import running_mean, write_curve
from avila_diffusion.training.data import generator
from avila_diffusion.training.discriminator import PatchDiscriminator, hinge_losses
from avila_diffusion.training.initialise import create
from avila_diffusion.training.loop import Trainer
from avila_diffusion.training.vae import VAELoss, VAEModel, VAETask

Make = Callable[..., Any]


def test_one_backward_pass_gives_each_side_its_own_gradient() -> None:
    discriminator = create(PatchDiscriminator, generator(0, 0))
    rng = generator(0, 1)
    made = torch.randn(2, 3, 32, 32, generator=rng, requires_grad=True)
    real = torch.randn(2, 3, 32, 32, generator=rng)
    weights = list(discriminator.parameters())
    fooled, caught = hinge_losses(discriminator, made, real)
    together = torch.autograd.grad(fooled + caught, [made, *weights])

    expected_made = torch.autograd.grad(-discriminator(made).mean(), [made])
    of_real, of_made = discriminator(real), discriminator(made.detach())
    hinge = 0.5 * (F.relu(1 - of_real).mean() + F.relu(1 + of_made).mean())
    expected_weights = torch.autograd.grad(hinge, weights)
    assert float(expected_made[0].abs().max()) > 0
    for ours, theirs in zip(together, [*expected_made, *expected_weights], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert of_real.shape == (2, 1, 4, 4)


def test_a_discriminator_is_trained_and_not_exported(vae_task: Make, loop: Make, tmp_path: Path) -> None:
    settings = loop(steps=3)
    task = vae_task(settings, adversarial=0.1, adversarial_from=2)
    first = {name: p.detach().clone() for name, p in task.parameters.items()}
    out = tmp_path / "vae.safetensors"
    reports = list(Trainer(task, settings, tmp_path / "state", out).run())
    assert {"fooled", "caught"} <= set(reports[-1].losses)
    assert all(not torch.equal(p, first[n]) for n, p in task.parameters.items() if "discriminator.down" in n)
    from avila_diffusion.training.latents import read_vae

    assert set(dict(read_vae(out).named_parameters())) == {n for n in first if not n.startswith("discriminator")}


def test_a_decoder_alone_is_trained_on_a_finished_encoder(data: Any, loop: Make, tmp_path: Path) -> None:
    model = VAEModel(encoder_channels=(32, 32), decoder_channels=(32, 32), decoder_blocks=1)
    finished = create(lambda: VAE(model.config), generator(9, 0))
    settings = loop(steps=3)
    task = VAETask(model, VAELoss(encoder=False), data, settings, finished)
    assert all(torch.equal(p, q) for p, q in zip(task.vae.parameters(), finished.parameters(), strict=True))
    list(Trainer(task, settings, tmp_path / "state", tmp_path / "vae.safetensors").run())
    theirs = dict(finished.named_parameters())
    for name, parameter in task.vae.named_parameters():
        moved = not torch.equal(parameter, theirs[name])
        assert moved is name.startswith(("decoder.", "post_quant_conv."))


def test_another_architecture_is_no_beginning(data: Any, loop: Make) -> None:
    model = VAEModel(encoder_channels=(32, 32), decoder_channels=(32, 32))
    other = create(lambda: VAE(VAEModel(encoder_channels=(32,), decoder_channels=(32,)).config), generator(9, 0))
    with pytest.raises(RequestError, match="another architecture"):
        VAETask(model, VAELoss(), data, loop(), other)


def test_the_curve_is_a_picture_that_falls(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    write_curve(path, [{"step": 20, "loss": 1.0}])
    assert not path.exists()
    write_curve(path, [{"step": 20 * n, "loss": 2.0**-n} for n in range(1, 40)])
    pixels = read_image(path).pixels
    blue = (pixels[..., 2].astype(int) - pixels[..., 0]) > 100
    columns = blue.nonzero()[1]
    left, right = (blue[:, column].nonzero()[0].mean() for column in (columns.min() + 5, columns.max() - 5))
    assert left < 100 < 300 < right


def test_a_running_mean_by_hand() -> None:
    import numpy as np

    values = np.arange(40.0)
    assert running_mean(values)[[0, 20, 39]].tolist() == [1.0, 20.0, 38.0]
