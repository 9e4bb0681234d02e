"""One prompt and seed by every sampler, drawn by the bundled model: docs/images/samplers.jpg.

python -m benchmarks.sampler_sheet
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from avila_diffusion import AvilaDiffusion
from avila_diffusion.sampling.names import SAMPLERS

PROMPT, COLUMNS, SIDE, ROW = "a 3d render of a red apple", 8, 132, 150
SHEET = Path(__file__).resolve().parent.parent / "docs" / "images" / "samplers.jpg"


def main() -> None:
    diffusion = AvilaDiffusion.bundled(seed=5, steps=20, width=128, height=128)
    rows = -(-len(SAMPLERS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * ROW), "white")
    draw = ImageDraw.Draw(sheet)
    for number, info in enumerate(SAMPLERS.values()):
        picture = diffusion.text_to_image(PROMPT, sampler=info.name, schedule="Automatic").to_pil()
        x, y = number % COLUMNS * SIDE, number // COLUMNS * ROW
        sheet.paste(picture, (x, y))
        draw.text((x, y + 130), info.name, fill="black")
    sheet.save(SHEET, quality=88)
    print(SHEET)


if __name__ == "__main__":
    main()
