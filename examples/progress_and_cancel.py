"""Watch a run and stop it: `python examples/progress_and_cancel.py [MODEL] [--stop-after EVENTS]`."""

import argparse
import threading

from avila_diffusion import AvilaDiffusion, GenerateRequest, GenerateResult
from avila_diffusion.errors import Cancelled

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?")
parser.add_argument("--stop-after", type=int, metavar="EVENTS", help="cancel after so many events")
options = parser.parse_args()

diffusion = AvilaDiffusion() if options.model is None else AvilaDiffusion.with_model(options.model)
request = GenerateRequest(prompt="a sunset over mountains", width=512, height=512, steps=20)
cancel = threading.Event()  # may be set from any thread, a window's or a server's

try:
    for number, event in enumerate(diffusion.generate(request, cancel=cancel), 1):
        if isinstance(event, GenerateResult):
            print("done:", *event.save_png("progress.png"))
        else:
            print(f"{event.stage}: picture {event.image + 1} of {event.images}, step {event.step} of {event.of}")
        if number == options.stop_after:
            cancel.set()
except Cancelled:
    print("cancelled; nothing was written")
