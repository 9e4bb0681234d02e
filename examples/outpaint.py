"""Add to a picture on both sides: `python examples/outpaint.py MODEL IMAGE PROMPT [--pixels N]`."""

import argparse

from avila_diffusion import AvilaDiffusion, AvilaError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("image")
parser.add_argument("prompt")
parser.add_argument("--pixels", type=int, default=128)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("-o", "--output", default="outpainted.png")
options = parser.parse_args()

try:
    diffusion = AvilaDiffusion.with_model(options.model, steps=options.steps)
    sides = (options.pixels, 0, options.pixels, 0)  # left, upper, right, lower
    result = diffusion.image_to_image(
        options.image, options.prompt, outpaint=sides, masked_content="fill", mask_blur=8, strength=0.9, seed=1
    )
    print(*result.save_png(options.output))
except AvilaError as error:
    parser.exit(1, f"{error}\n")
