"""Contact sheets: many small pictures in one."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..images import Image


def write_sheet(path: Path, pictures: Tensor, columns: int, gap: int = 4) -> None:
    """Write pictures (count, 3, h, w) of -1 to 1 side by side to `path`, on white."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = numpy.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=numpy.uint8)
    pixels = ((pictures.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for number, picture in enumerate(pixels):
        top, left = gap + number // columns * (height + gap), gap + number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    Image(sheet).save_png(path)
