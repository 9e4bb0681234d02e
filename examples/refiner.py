"""SDXL, and its refiner for the last steps: `python examples/refiner.py BASE REFINER PROMPT`."""

import argparse

from avila_diffusion import AvilaDiffusion, AvilaError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("base")
parser.add_argument("refiner")
parser.add_argument("prompt")
parser.add_argument("--switch", type=float, default=0.8, help="share of the noise that the base takes away")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("-o", "--output", default="refined.png")
options = parser.parse_args()

try:
    diffusion = AvilaDiffusion.with_model(options.base, refiner=options.refiner, steps=options.steps)
    result = diffusion.text_to_image(options.prompt, refiner_switch=options.switch, seed=1)
    print(*result.save_png(options.output))
except AvilaError as error:
    parser.exit(1, f"{error}\n")
