"""Decode by TAESD, and look on while it draws: `python examples/small_decoder.py MODEL TAESD PROMPT`."""

import argparse

from avila_diffusion import AvilaDiffusion, AvilaError, GenerateResult

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("taesd", help="a file such as taesd.safetensors")
parser.add_argument("prompt")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("-o", "--output", default="small.png")
options = parser.parse_args()

try:
    diffusion = AvilaDiffusion.with_model(
        options.model, vae=options.taesd, preview_decoder=options.taesd, steps=options.steps
    )
    for event in diffusion.generate(diffusion.request(options.prompt, seed=1)):
        if isinstance(event, GenerateResult):
            print(*event.save_png(options.output))
        elif event.preview is not None:
            event.preview().save_png(f"preview-{event.step:02}.png")
except AvilaError as error:
    parser.exit(1, f"{error}\n")
