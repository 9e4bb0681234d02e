"""A picture from the model that comes with the package: `python examples/bundled.py [PROMPT] [FILE]`."""

import sys

from avila_diffusion import AvilaDiffusion, AvilaError

prompt = sys.argv[1] if len(sys.argv) > 1 else "a 3d render of a red apple"
target = sys.argv[2] if len(sys.argv) > 2 else "bundled.png"

try:
    result = AvilaDiffusion.bundled().text_to_image(prompt, None, 512, 512, seed=1)
    for path in result.save_png(target):
        print(f"{path}: drawn at {result.drawn_at}, seed {result.seed}, {result.seconds:.1f} s")
except AvilaError as error:
    sys.exit(f"{error}")
