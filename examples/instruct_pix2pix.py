"""Tell a model what to change: `python examples/instruct_pix2pix.py MODEL IMAGE "make it winter"`."""

import argparse

from avila_diffusion import AvilaDiffusion, AvilaError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="an instruct-pix2pix checkpoint")
parser.add_argument("image")
parser.add_argument("instruction")
parser.add_argument("--stay", type=float, default=1.5, help="how far to stay with the picture")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("-o", "--output", default="instructed.png")
options = parser.parse_args()

try:
    diffusion = AvilaDiffusion.with_model(options.model, steps=options.steps)
    result = diffusion.image_to_image(
        options.image, options.instruction, image_guidance_scale=options.stay, strength=1.0, seed=1
    )
    print(*result.save_png(options.output))
except AvilaError as error:
    parser.exit(1, f"{error}\n")
