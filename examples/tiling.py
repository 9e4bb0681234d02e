"""A picture whose edges fit together, and two by two of it: `python examples/tiling.py MODEL PROMPT`."""

import argparse

from avila_diffusion import AvilaDiffusion, AvilaError, make_grid

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("prompt")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("-o", "--output", default="tile.png")
options = parser.parse_args()

try:
    diffusion = AvilaDiffusion.with_model(options.model, steps=options.steps)
    result = diffusion.text_to_image(options.prompt, tiling="both", seed=1)
    print(*result.save_png(options.output))
    print(make_grid([result[0]] * 4).save_png("floor.png"))
except AvilaError as error:
    parser.exit(1, f"{error}\n")
