"""A discriminator of patches (Isola et al. 2017, arXiv:1611.07004) with the hinge loss, for autoencoders that look sharp."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..models.layers import Conv2d, GroupNorm


class PatchDiscriminator(nn.Module):
    """Pictures (batch, 3, h, w) of -1 to 1 → a verdict for each patch, (batch, 1, about h / 8, w / 8), high for real ones.

    Group norms stand where the paper has batch norms: no statistics to keep, and the same answer for any batch.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv_in = Conv2d(3, width, 4, stride=2, padding=1)
        self.down = nn.ModuleList(Conv2d(width << n, width << n + 1, 4, stride=2, padding=1) for n in range(2))
        self.norms = nn.ModuleList(GroupNorm(width << n + 1, eps=1e-6) for n in range(2))
        self.conv_out = Conv2d(width << 2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv_in(x), 0.2)
        for down, norm in zip(self.down, self.norms, strict=True):
            h = F.leaky_relu(norm(down(h)), 0.2)
        verdicts: Tensor = self.conv_out(h)
        return verdicts


def hinge_losses(discriminator: PatchDiscriminator, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """(of the generator, of the discriminator), scalars (Lim & Ye 2017): their sum can go back in one pass.

    The generator's moves no weight of the discriminator, and the discriminator's none of what made the pictures.
    """
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    fooled = -functional_call(discriminator, frozen, (made,)).mean()
    verdicts: Tensor = discriminator(torch.cat([real, made.detach()]))
    of_real, of_made = verdicts.chunk(2)
    return fooled, 0.5 * (F.relu(1.0 - of_real).mean() + F.relu(1.0 + of_made).mean())
