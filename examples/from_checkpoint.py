"""A picture from a checkpoint: `python examples/from_checkpoint.py MODEL [PROMPT] [FILE]`."""

import sys

from avila_diffusion import AvilaDiffusion, AvilaError

if len(sys.argv) < 2:
    sys.exit(__doc__)
model = sys.argv[1]
prompt = sys.argv[2] if len(sys.argv) > 2 else "a beautiful sunset over mountains, photorealistic"
target = sys.argv[3] if len(sys.argv) > 3 else "from_checkpoint.png"

try:
    diffusion = AvilaDiffusion.with_model(model, steps=20)
    print("\n".join(diffusion.report.lines()))
    result = diffusion.text_to_image(prompt, "ugly, blurry, bad quality", seed=42)
    for path in result.save_png(target):
        print(f"{path}: {result.request.sampler}, seed {result.seed}, {result.seconds:.1f} s")
except AvilaError as error:
    sys.exit(f"{error}")
