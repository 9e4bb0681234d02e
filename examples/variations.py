"""Pictures near to one another, and all in a grid: `python examples/variations.py MODEL PROMPT`."""

import argparse

from avila_diffusion import AvilaDiffusion, AvilaError, make_grid

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("prompt")
parser.add_argument("--strength", type=float, default=0.1)
parser.add_argument("--count", type=int, default=4)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("-o", "--output", default="variations.png")
options = parser.parse_args()

try:
    diffusion = AvilaDiffusion.with_model(options.model, steps=options.steps)
    result = diffusion.text_to_image(
        options.prompt, seed=1, variation_seed=100, variation_strength=options.strength, count=options.count
    )
    print(*result.save_png(options.output))
    print(make_grid(result.images).save_png("grid.png"))
except AvilaError as error:
    parser.exit(1, f"{error}\n")
