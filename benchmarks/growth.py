"""How time grows: `python -m benchmarks.growth [PICTURE]` measures, draws docs/images/growth.png, and says it in numbers.

Time of whole runs of SD 1.5 at full width against pixels, steps, pictures of a batch and chunks of the prompt, beside the
operations they take. All is drawn relative to the smallest run: where the line of time lies on that of the operations or
below it, nothing grows faster than the work does. Every run is made twice, in turns, and the better counts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .drawing import FAINT, FINE, INK, SERIES
from .environment import settle

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "growth.png"
THREADS, ROUNDS, SIDE = 2, 2, 256
TOLERANCE = 1.1
"""Time per operation at a larger size may be that much of the smallest's: measuring is not exact."""


@dataclass(frozen=True)
class Run:
    """One run: pixels along a side, sampling steps, pictures, chunks of 75 tokens in each prompt."""

    side: int = SIDE
    steps: int = 2
    batch: int = 1
    chunks: int = 1


@dataclass
class Curve:
    """Runs that differ in one thing. seconds: the best of each; operations: what each takes."""

    title: str
    axis: str
    values: Sequence[int]
    runs: Sequence[Run]
    seconds: list[float] = field(default_factory=list)
    operations: list[float] = field(default_factory=list)

    def relative(self) -> tuple[list[float], list[float]]:
        """(seconds, operations) as multiples of the first run's."""
        return [s / self.seconds[0] for s in self.seconds], [o / self.operations[0] for o in self.operations]

    def excess(self) -> float:
        """The most that time grew beyond the operations: 1 where it grew as they did, below 1 where it grew less."""
        time_, work = self.relative()
        return max(t / w for t, w in zip(time_, work, strict=True))


def curves() -> list[Curve]:
    sides, steps, batches, chunks = (256, 384, 512, 640, 768), (1, 2, 4, 8), (1, 2, 3, 4), (1, 2, 4, 8)
    return [
        Curve("pixels", "pixels along a side", sides, [Run(side=side) for side in sides]),
        Curve("steps", "sampling steps", steps, [Run(steps=count) for count in steps]),
        Curve("batch", "pictures", batches, [Run(batch=count) for count in batches]),
        Curve("prompt", "chunks of the prompt", chunks, [Run(chunks=count) for count in chunks]),
    ]


class Runner:
    """Runs on one loaded model, text and decoding included."""

    def __init__(self) -> None:
        from .ours import open_model

        self.diffusion = open_model("sd1", "fast", THREADS)

    def seconds(self, run: Run) -> float:
        request = self._request(run)
        began = time.perf_counter()
        for _ in self.diffusion.generate(request):
            pass
        return time.perf_counter() - began

    def operations(self, run: Run) -> float:
        """As computed: of Winograd's convolutions the products that they make, not those that they save."""
        request = self.diffusion.resolved(self._request(run))
        outlook = self.diffusion.outlook(request).rehearsed(None)
        text, step, decode = (
            sum(work.operations for work in stage.work) for stage in (outlook.text, outlook.step, outlook.decode)
        )
        return float(text + run.batch * (run.steps * step + decode))

    def _request(self, run: Run) -> Any:
        from .picture import GUIDANCE

        words = " ".join(["cat"] * (75 * run.chunks - 5))
        options: dict[str, Any] = {"steps": run.steps, "batch": run.batch, "sampler": "euler", "seed": 1}
        options |= {"width": run.side, "height": run.side, "guidance_scale": GUIDANCE}
        return self.diffusion.request(words, negative_prompt=words, **options)


def measure(found: Sequence[Curve], seconds: Callable[[Run], float], count: Callable[[Run], float]) -> None:
    """Fill the curves: ROUNDS times through all runs, after one that makes what is kept."""
    every = list(dict.fromkeys(run for curve in found for run in curve.runs))
    seconds(every[0])
    best = dict.fromkeys(every, float("inf"))
    for _ in range(ROUNDS):
        for run in every:
            best[run] = min(best[run], seconds(run))
    for curve in found:
        curve.seconds = [best[run] for run in curve.runs]
        curve.operations = [count(run) for run in curve.runs]


WIDTH, HEIGHT = 300, 280
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 50, 44


def draw(found: Sequence[Curve]) -> Image.Image:
    """A panel for each curve: time and operations, relative to the first run."""
    plot = Image.new("RGB", (len(found) * WIDTH * FINE, HEIGHT * FINE), "white")
    for number, curve in enumerate(found):
        _draw_panel(ImageDraw.Draw(plot), curve, number * WIDTH)
    return plot.resize((plot.width // FINE * 2, plot.height // FINE * 2), Image.Resampling.LANCZOS)


def _draw_panel(pen: ImageDraw.ImageDraw, curve: Curve, offset: int) -> None:
    font, title = ImageFont.load_default(size=11 * FINE), ImageFont.load_default(size=13 * FINE)
    left, right, top, bottom = offset + LEFT, offset + WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    lines = dict(zip(("time", "operations"), curve.relative(), strict=True))
    highest, low, high = max(map(max, lines.values())) * 1.05, curve.values[0], curve.values[-1]

    def place(value: float, relative: float) -> tuple[float, float]:
        across = (value - low) / (high - low)
        return (left + 8 + across * (right - left - 16)) * FINE, (bottom - relative / highest * (bottom - top)) * FINE

    def text(x: float, y: float, words: str, colour: tuple[int, int, int] = INK, of: Any = font) -> None:
        pen.text((x * FINE, y * FINE), words, fill=colour, font=of, anchor="mm")

    text((left + right) / 2, 14, curve.title, of=title)
    text((left + right) / 2, HEIGHT - 12, curve.axis)
    for tick in range(0, int(highest) + 1, max(round(highest / 5), 1)):
        y = place(low, tick)[1]
        pen.line([(left * FINE, y), (right * FINE, y)], FAINT, FINE)
        text(left - 14, y / FINE, f"{tick}x")
    for value in curve.values:
        text(place(value, 0)[0] / FINE, bottom + 12, str(value))
    pen.line([(left * FINE, top * FINE), (left * FINE, bottom * FINE), (right * FINE, bottom * FINE)], INK, FINE)
    for number, (name, relative) in enumerate(lines.items()):
        points = [place(value, of) for value, of in zip(curve.values, relative, strict=True)]
        pen.line(points, SERIES[number], 2 * FINE, joint="curve")
        for x, y in points:
            pen.ellipse([x - 3 * FINE, y - 3 * FINE, x + 3 * FINE, y + 3 * FINE], fill=SERIES[number])
        text(left + (number + 0.5) / len(lines) * (right - left), 34, name, SERIES[number])


def say(found: Sequence[Curve]) -> list[str]:
    """Lines for people: times, and by how much time outgrew the operations."""
    lines = []
    for curve in found:
        times = ", ".join(f"{value}: {s:.2f} s" for value, s in zip(curve.values, curve.seconds, strict=True))
        excess = curve.excess()
        verdict = "grows no faster" if excess <= TOLERANCE else "GROWS FASTER"
        lines.append(f"{curve.title}: {times}; {verdict} than the operations (at most {excess:.2f} of their growth)")
    return lines


def main() -> int:
    settle(THREADS)
    found = curves()
    runner = Runner()
    measure(found, runner.seconds, runner.operations)
    print("\n".join(say(found)))
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    draw(found).quantize(64).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    record: Mapping[str, Any] = {
        curve.title: {"values": list(curve.values), "seconds": curve.seconds, "operations": curve.operations}
        for curve in found
    }
    print(json.dumps(record))
    return 0 if all(curve.excess() <= TOLERANCE for curve in found) else 1


if __name__ == "__main__":
    sys.exit(main())
