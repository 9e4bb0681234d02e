"""A picture in two passes, the second larger: `python examples/high_resolution.py MODEL PROMPT`."""

import argparse

from avila_diffusion import AvilaDiffusion, AvilaError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("prompt")
parser.add_argument("--scale", type=float, default=2.0)
parser.add_argument("--upscaler", default="Latent (bicubic antialiased)")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("-o", "--output", default="high_resolution.png")
options = parser.parse_args()

try:
    diffusion = AvilaDiffusion.with_model(options.model, steps=options.steps)
    result = diffusion.text_to_image(
        options.prompt, hires_scale=options.scale, hires_upscaler=options.upscaler, strength=0.55, seed=1
    )
    print(*result.save_png(options.output), f"{result[0].width}x{result[0].height}")
except AvilaError as error:
    parser.exit(1, f"{error}\n")
