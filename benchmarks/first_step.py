"""`python -m benchmarks.first_step CHECKPOINT`, in a fresh process: how long from `import torch` to the first UNet step.

One line of JSON: seconds since Python began to run this file, when torch was there, when the first UNet call began, and when
it ended. 512x512, with guidance, as `avila generate` does it.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402


def main() -> None:
    import torch

    times = {"torch": time.perf_counter() - BEGAN}
    from avila_diffusion import AvilaDiffusion, Progress

    torch.set_num_threads(int(sys.argv[2]))
    diffusion = AvilaDiffusion.with_model(sys.argv[1])
    request = diffusion.request("a lighthouse at dawn", "rain", width=512, height=512, steps=2, sampler="euler", seed=1)
    for event in diffusion.generate(request):
        if isinstance(event, Progress) and event.stage == "sample" and event.step < 2:
            times[("begins", "ends")[event.step]] = time.perf_counter() - BEGAN
            if event.step == 1:
                break
    print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
