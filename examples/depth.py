"""Follow a depth map, near is light: `python examples/depth.py MODEL DEPTH PROMPT [--image IMAGE]`."""

import argparse

from avila_diffusion import AvilaDiffusion, AvilaError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="a depth checkpoint of SD 2")
parser.add_argument("depth")
parser.add_argument("prompt")
parser.add_argument("--image")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("-o", "--output", default="depth.png")
options = parser.parse_args()

try:
    diffusion = AvilaDiffusion.with_model(options.model, steps=options.steps)
    result = diffusion.text_to_image(options.prompt, image=options.image, depth=options.depth, strength=0.9, seed=1)
    print(*result.save_png(options.output))
except AvilaError as error:
    parser.exit(1, f"{error}\n")
