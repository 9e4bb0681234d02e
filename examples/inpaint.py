"""Paint what is white in a mask: `python examples/inpaint.py MODEL IMAGE MASK PROMPT [--close]`."""

import argparse

from avila_diffusion import AvilaDiffusion, AvilaError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("image")
parser.add_argument("mask")
parser.add_argument("prompt")
parser.add_argument("--close", action="store_true", help="draw the masked part alone, at the full size")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("-o", "--output", default="inpainted.png")
options = parser.parse_args()

try:
    diffusion = AvilaDiffusion.with_model(options.model, steps=options.steps)
    area = "masked" if options.close else "whole"
    result = diffusion.inpaint(
        options.image, options.mask, options.prompt, inpaint_area=area, masked_content="fill", strength=0.9, seed=1
    )
    print(*result.save_png(options.output))
except AvilaError as error:
    parser.exit(1, f"{error}\n")
