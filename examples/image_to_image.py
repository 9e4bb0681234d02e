"""Change a picture by a prompt: `python examples/image_to_image.py MODEL IMAGE PROMPT`."""

import argparse

from avila_diffusion import AvilaDiffusion, AvilaError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("image")
parser.add_argument("prompt")
parser.add_argument("--strength", type=float, default=0.6)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("-o", "--output", default="changed.png")
options = parser.parse_args()

try:
    diffusion = AvilaDiffusion.with_model(options.model, steps=options.steps)
    result = diffusion.image_to_image(options.image, options.prompt, strength=options.strength, seed=1)
    print(*result.save_png(options.output))
except AvilaError as error:
    parser.exit(1, f"{error}\n")
