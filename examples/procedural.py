"""A picture without a model: `python examples/procedural.py [PROMPT] [FILE]`."""

import sys

from avila_diffusion import AvilaDiffusion

prompt = sys.argv[1] if len(sys.argv) > 1 else "a sunset over mountains, with a lake"
target = sys.argv[2] if len(sys.argv) > 2 else "procedural.png"

result = AvilaDiffusion().text_to_image(prompt, None, 512, 512)
for path in result.save_png(target):
    print(f"{path}: seed {result.seed}, {result.seconds:.1f} s")
