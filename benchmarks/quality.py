"""How well a model that was trained on emoji and scenes draws what is asked: `python -m benchmarks.quality MODEL PICTURES`.

PICTURES is the folder that `scripts/make_bundled_dataset` writes. The pictures are those of the ordinary engine, made
many at a time; that they are is checked in every run. Judged is by hand-made features (`benchmarks.features`), whose own
worth is measured beside them as controls. Intervals are 95 %, by the bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from avila_diffusion.device import use_threads
from avila_diffusion.training.data import read_dataset
from avila_diffusion.training.losses import ssim

from .drawing import Panel, draw_plot, draw_sheet
from .features import (
    LOOK,
    SHAPE,
    FeatureSpace,
    Logistic,
    Pixels,
    degrade,
    describe,
    describe_surface,
    interval,
    name_colours,
    rank,
    spoil,
    spread,
)
from .painter import Painter, Settings, to_unit

Row = dict[str, Any]
Bools = npt.NDArray[np.bool_]

PREFIXES = {"flat": "flat emoji of ", "3d": "a 3d render of "}
"""The natural caption of a style is this and the thing, "a 3d render of a red apple"."""
UNSEEN = "an icon of {thing}, {style} look"
"""Wording of the same that is in no caption."""
SCENE = {"layout": 1.0, "fine": 0.7, "coarse": 0.7}
"""Blocks and weights for scenes, which have no background."""
SWEEP = {"guidance": (1.0, 2.0, 3.0, 4.0, 6.0, 8.0), "steps": (5, 10, 20, 40)}
SWEEP_PROMPTS = 150
DIVERSE, SEEDS = 8, 8
"""Prompts of each kind, and pictures of each prompt, that diversity is measured on."""
THINGS_3D = """a red apple, a grinning face, a purple whale, a blue dragon, a slice of pizza, a rocket, a yellow crown,
    a green couch, a fox, a red evergreen tree, a soccer ball, a pink dinosaur, a house, a black squid, an alarm clock,
    a hamburger"""
THINGS_FLAT = """a green car, a cat face, a red star, the flag of brazil, a purple basketball, a birthday cake, an orange
    snake, a black frog, a sunflower, a blue octopus, a guitar, a pink fox, a police officer, a grey umbrella, a penguin,
    a red mango"""
SCENES = (
    "a beach at sunset",
    "snowy mountains by day",
    "a city at night in the rain",
    "a forest in the fog",
    "the northern lights over a lake at night",
    "a blue galaxy",
    "a meadow with red flowers",
    "a coral reef under water",
    "a desert at dusk, oil painting",
    "a mountain lake at sunrise, watercolor",
    "the sea with a sailboat at sunset, synthwave",
    "a winter forest, pixel art",
    "a canyon by day, line art",
    "a full moon over the sea at night, black and white",
    "abstract fluid art in purple",
    "green hills under a cloudy sky, poster",
)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows of a metadata.jsonl and their pixels."""

    rows: Sequence[Row]
    pixels: Pixels

    @classmethod
    def read(cls, folder: Path, listing: str) -> Pictures:
        lines = (folder / listing).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return cls(rows, np.stack([_read(folder / row["file_name"]) for row in rows]))

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, name: str) -> list[str]:
        return [row[name] for row in self.rows]

    def where(self, keep: Bools | Sequence[bool] | npt.NDArray[np.int64]) -> Pictures:
        """Those of a mask, or of indices in their order."""
        places = np.asarray(keep)
        places = np.flatnonzero(places) if places.dtype == bool else places
        return Pictures([self.rows[index] for index in places.tolist()], self.pixels[places])

    def of(self, *kinds: str) -> Pictures:
        return self.where([row["kind"] in kinds for row in self.rows])


def _read(path: Path) -> Pixels:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def thing(row: Row) -> str:
    """What is shown, without the style: "a red apple"."""
    return str(row["text"]).removeprefix(PREFIXES[row["style"]])


class Retrieval:
    """Finds the real pictures that look most like a given one, among all emoji in one style and in both."""

    def __init__(self, emoji: Pictures) -> None:
        self._blocks = describe(emoji.pixels)
        self._space = FeatureSpace.fit(self._blocks, LOOK)
        self.points = self._space.place(self._blocks)
        self.labels = np.array(emoji.values("emoji"))
        self.styles = np.array(emoji.values("style"))

    def ranks(self, pixels: Pixels, rows: Sequence[Row]) -> dict[str, npt.NDArray[np.int64]]:
        """Place of the right emoji among those of the row's style, and among all."""
        points = self._space.place(describe(pixels))
        wanted, styles = np.array([row["emoji"] for row in rows]), np.array([row["style"] for row in rows])
        same = np.zeros(len(rows), dtype=np.int64)
        for style in PREFIXES:
            asked, among = styles == style, self.styles == style
            if asked.any():
                same[asked] = rank(points[asked], wanted[asked], self.points[among], self.labels[among])
        return {"same style": same, "both styles": rank(points, wanted, self.points, self.labels)}

    def score(self, pixels: Pixels, rows: Sequence[Row]) -> dict[str, list[float]]:
        return {
            f"{gallery}, top {top}": list(interval(ranks <= top))
            for gallery, ranks in self.ranks(pixels, rows).items()
            for top in (1, 5)
        }

    def chance(self, rows: Sequence[Row]) -> dict[str, float]:
        sizes = {style: int((self.styles == style).sum()) for style in PREFIXES}
        same = float(np.mean([1 / sizes[row["style"]] for row in rows]))
        both = 1 / len(set(self.labels.tolist()))
        return {f"{g}, top {k}": k * p for g, p in (("same style", same), ("both styles", both)) for k in (1, 5)}

    def cross_styles(self) -> dict[str, float]:
        """How often a real picture finds its emoji in the other style at once, and in the first five."""
        found = []
        for style in PREFIXES:
            among = self.styles != style
            asked = (self.styles == style) & np.isin(self.labels, self.labels[among])
            found.append(rank(self.points[asked], self.labels[asked], self.points[among], self.labels[among]))
        ranks = np.concatenate(found)
        return {f"top {top}": float((ranks <= top).mean()) for top in (1, 5)}


def shift_within(rows: Sequence[Row]) -> list[Row]:
    """For each row another one of its style: what a picture of the wrong thing would score."""
    shifted = list(rows)
    for style in PREFIXES:
        places = [index for index, row in enumerate(rows) if row["style"] == style]
        for place, other in zip(places, places[1:] + places[:1], strict=True):
            shifted[place] = rows[other]
    return shifted


def measure_retrieval(painter: Painter, finder: Retrieval, rows: Sequence[Row], settings: Settings) -> Row:
    natural = painter.paint([row["text"] for row in rows], settings, "captions")
    wording = [UNSEEN.format(thing=thing(row), style=row["style"]) for row in rows]
    figures: Row = {"prompts": len(rows), "caption": finder.score(natural, rows)}
    for style in PREFIXES:
        kept = [index for index, row in enumerate(rows) if row["style"] == style]
        figures[f"caption, {style} alone"] = finder.score(natural[kept], [rows[index] for index in kept])
    figures["unseen wording"] = finder.score(painter.paint(wording, settings, "unseen wording"), rows)
    figures["judged by another's caption"] = finder.score(natural, shift_within(rows))
    figures["chance"] = finder.chance(rows)
    return figures


class Judges:
    """Say which colour, object and style a picture shows.

    passed: some of the pictures after the autoencoder; style is learned from both and from spoilt ones, so that a flaw
    does not decide. A quarter of the emoji, in all their colours, is kept from the learning and tells how good it is.
    """

    def __init__(self, real: Pictures, passed: Pictures) -> None:
        sources = (real, passed, Pictures(passed.rows, spoil(passed.pixels)))
        names = np.unique(real.values("emoji"))
        kept = np.random.default_rng(0).choice(names, len(names) // 4, replace=False)
        surfaces = [describe_surface(pictures.pixels) for pictures in sources]
        unseen = [np.isin(pictures.values("emoji"), kept) for pictures in sources]
        truth = [np.array(pictures.values("style")) == "3d" for pictures in sources]
        learned = [np.concatenate([v[~u] for v, u in zip(values, unseen, strict=True)]) for values in (surfaces, truth)]
        self._style = Logistic.fit(learned[0], learned[1])
        self.style_accuracy = {
            name: float((self._style.holds(surfaces[k][unseen[k]]) == truth[k][unseen[k]]).mean())
            for k, name in enumerate(("real pictures", "after the autoencoder", "spoilt"))
        }
        objects = real.where(["object" in row for row in real.rows])
        blocks = describe(objects.pixels)
        self._space = FeatureSpace.fit(blocks, SHAPE)
        self._points, self._objects = self._space.place(blocks), np.array(objects.values("object"))
        self._styles = np.array(objects.values("style"))
        self.objects = {style: len(set(self._objects[self._styles == style])) for style in PREFIXES}

    def judge(self, pixels: Pixels, rows: Sequence[Row]) -> dict[str, Bools]:
        """Whether each picture shows what its row says."""
        points, colours = self._space.place(describe(pixels)), name_colours(pixels)
        ranks = np.zeros(len(rows), dtype=np.int64)
        styles = np.array([row["style"] for row in rows])
        for style in PREFIXES:
            asked, among = np.flatnonzero(styles == style), self._styles == style
            if len(asked):
                wanted = [rows[index]["object"] for index in asked.tolist()]
                ranks[asked] = rank(points[asked], wanted, self._points[among], self._objects[among])
        right = {
            "colour": np.array([colour == row["colour"] for colour, row in zip(colours, rows, strict=True)]),
            "object, top 1": ranks <= 1,
            "object, top 5": ranks <= 5,
            "style": self._style.holds(describe_surface(pixels)) == (styles == "3d"),
        }
        return {**right, "all, object in top 5": right["colour"] & right["object, top 5"] & right["style"]}

    def score(self, pixels: Pixels, rows: Sequence[Row]) -> dict[str, list[float]]:
        """Shares of right pictures; style of either style too, where a judge that always says the same would show."""
        judged = self.judge(pixels, rows)
        styles = np.array([row["style"] for row in rows])
        alone = {f"style, {style} alone": judged["style"][styles == style] for style in PREFIXES}
        return {name: list(interval(hits)) for name, hits in (judged | alone).items() if len(hits)}


def measure_composition(painter: Painter, judges: Judges, held: Pictures, settings: Settings) -> Row:
    made = painter.paint(held.values("text"), settings, "unseen colours")
    return {
        "prompts": len(held),
        "generated": judges.score(made, held.rows),
        "real pictures, the most there is": judges.score(held.pixels, held.rows),
        "judged by another's caption": judges.score(made, shift_within(held.rows)),
        "chance of an object in the top 5": {style: 5 / count for style, count in judges.objects.items()},
    }


def measure_diversity(painter: Painter, library: Pictures, settings: Settings) -> Row:
    """Mean distance between pictures of one prompt, divided by that between pictures of different prompts."""
    rng = np.random.default_rng(settings.seed)
    scenes, emoji = library.of("scene"), library.of(*PREFIXES)
    texts, counts = np.unique(scenes.values("text"), return_counts=True)
    groups = {
        "scenes": (scenes, "text", rng.choice(texts[counts >= 4], DIVERSE, replace=False), SCENE),
        "emoji": (emoji, "emoji", rng.choice(np.unique(emoji.of("3d").values("emoji")), DIVERSE, replace=False), LOOK),
    }
    figures: Row = {}
    for kind, (pictures, key, chosen, weights) in groups.items():
        space = FeatureSpace.fit(describe(pictures.pixels), weights)
        real = [pictures.where(np.array(pictures.values(key)) == name) for name in chosen]
        prompts = [one.rows[0]["text"] for one in real for _ in range(SEEDS)]
        seeds = [settings.seed + number for _ in real for number in range(SEEDS)]
        made = painter.paint(prompts, settings, f"diversity of {kind}", seeds)
        figures[kind] = {
            "generated": _ratio([space.place(describe(part)) for part in np.split(made, len(real))]),
            "training pictures": _ratio([space.place(describe(one.pixels)) for one in real]),
        }
    return figures


def _ratio(groups: Sequence[npt.NDArray[np.float32]]) -> float:
    """Mean spread within the groups over the mean distance of points in different ones."""
    label = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    points = np.concatenate(groups).astype(np.float64)
    distances = np.sqrt(np.maximum(2 - 2 * points @ points.T, 0))
    return float(np.mean([spread(group) for group in groups]) / distances[label[:, None] != label].mean())


def measure_autoencoder(painter: Painter, folder: Path, held: Pictures) -> Row:
    """PSNR in dB and SSIM of 8-bit pictures: encoded, the mode taken, decoded."""
    kept = read_dataset(folder, painter.model.spec.size).split(0.03)[1]
    back = [kept.pixels(index).permute(1, 2, 0).numpy() for index in range(len(kept))]
    sets = {"held out": held.pixels, "kept back by name": np.stack(back)}
    sets |= {f"held out, {kind}": held.of(kind).pixels for kind in ("recolour", "scene")}
    figures: Row = {}
    for name, pixels in sets.items():
        made = painter.reconstruct(pixels, f"autoencoder, {name}")
        errors = ((made.astype(np.float64) - pixels) ** 2).mean(axis=(1, 2, 3))
        similar = torch.cat([ssim(to_unit(a[None]), to_unit(b[None])) for a, b in zip(made, pixels, strict=True)])
        figures[name] = {
            "pictures": len(pixels),
            "PSNR, mean": float(psnr(errors).mean()),
            "PSNR, pooled": float(psnr(errors.mean())),
            "SSIM": float(similar.mean()),
        }
    return figures


def psnr(mean_square: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Peak signal to noise in dB, of mean squared errors in levels of 255; at most 100."""
    return 10 * np.log10(255**2 / np.maximum(np.asarray(mean_square, dtype=np.float64), 255**2 / 1e10))


def sweep(
    painter: Painter, finder: Retrieval, rows: Sequence[Row], judges: Judges, held: Pictures, settings: Settings
) -> dict[str, dict[str, list[float]]]:
    """Retrieval in the top 5 and right colours, against guidance and against steps."""
    figures: dict[str, dict[str, list[float]]] = {}
    for axis, values in SWEEP.items():
        lines: dict[str, list[float]] = {"emoji in the top 5": [], "right colour": []}
        for value in values:
            changed = replace(settings, **{axis: value})  # type: ignore[arg-type]
            emoji = painter.paint([row["text"] for row in rows], changed, f"{axis} {value:g}, captions")
            combined = painter.paint(held.values("text"), changed, f"{axis} {value:g}, colours")
            lines["emoji in the top 5"].append(finder.score(emoji, rows)["same style, top 5"][0])
            lines["right colour"].append(float(judges.judge(combined, held.rows)["colour"].mean()))
        figures[axis] = {axis: list(values), **lines}
    return figures


def sheet_prompts() -> list[str]:
    things = {"3d": THINGS_3D, "flat": THINGS_FLAT}
    named = [PREFIXES[style] + " ".join(one.split()) for style, text in things.items() for one in text.split(",")]
    return [*named, *SCENES]


def table(record: Row, depth: int = 0) -> list[str]:
    """Nested figures as lines: shares in per cent with their intervals, other numbers as they are."""
    lines = []
    for name, value in record.items():
        start = "  " * depth + name
        if isinstance(value, dict):
            lines += [start, *table(value, depth + 1)]
        elif isinstance(value, list) and len(value) == 3:
            lines.append(f"{start:<44}{value[0]:>8.1%}   {value[1]:.1%} to {value[2]:.1%}")
        elif isinstance(value, list):
            lines.append(f"{start:<44}" + "".join(f"{one:>8.3g}" for one in value))
        else:
            lines.append(f"{start:<44}{value:>8.4g}" if isinstance(value, int | float) else f"{start:<44}{value}")
    return lines


def measure(painter: Painter, folder: Path, settings: Settings, prompts: int, swept: int) -> Row:
    """All figures."""
    library, held = Pictures.read(folder, "metadata.jsonl"), Pictures.read(folder, "heldout.jsonl")
    rng = np.random.default_rng(settings.seed)
    emoji, drawn = library.of(*PREFIXES), library.of(*PREFIXES, "recolour")
    captions = {caption for row in library.rows for caption in row["captions"]}
    chosen = emoji.where(rng.choice(len(emoji), min(prompts, len(emoji)), replace=False))
    assert not captions & {UNSEEN.format(thing=thing(row), style=row["style"]) for row in emoji.rows}
    record: Row = {"as the engine, levels of 255": painter.differ_from_engine(sheet_prompts()[:3], settings)}
    record["autoencoder"] = measure_autoencoder(painter, folder, held)
    finder = Retrieval(emoji)
    some = drawn.where(rng.choice(len(drawn), min(1500, len(drawn)), replace=False))
    judges = Judges(drawn, Pictures(some.rows, painter.reconstruct(some.pixels, "pictures for the judge of style")))
    spoilt = degrade(chosen.pixels) | {"autoencoder": painter.reconstruct(chosen.pixels, "pictures for retrieval")}
    combos, recoloured = held.of("recolour"), library.of("recolour")
    after = painter.reconstruct(combos.pixels, "unseen colours")
    record["controls"] = {
        "real pictures found again": {
            name: {k: v for k, v in finder.score(pixels, chosen.rows).items() if k.startswith("same")}
            for name, pixels in spoilt.items()
        },
        "found in the other style": finder.cross_styles(),
        "colour of real recolourings": list(interval(_right_colours(recoloured.pixels, recoloured.rows))),
        "style of emoji not learned from": judges.style_accuracy,
        "unseen colours after the autoencoder": judges.score(after, combos.rows),
    }
    record["retrieval"] = measure_retrieval(painter, finder, chosen.rows, settings)
    record["composition"] = measure_composition(painter, judges, combos, settings)
    record["diversity"] = measure_diversity(painter, library, settings)
    if swept:
        some_combos = Pictures(combos.rows[:swept], combos.pixels[:swept])
        record["sweep"] = sweep(painter, finder, chosen.rows[:swept], judges, some_combos, settings)
    return record


def _right_colours(pixels: Pixels, rows: Sequence[Row]) -> Bools:
    return np.array([name == row["colour"] for name, row in zip(name_colours(pixels), rows, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--out", type=Path, help="folder for sheet.png, sweep.png and quality.json")
    parser.add_argument("--prompts", type=int, default=500, help="emoji that are asked for, default 500")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--sampler", default="DPM++ 2M")
    parser.add_argument(
        "--sweep",
        type=int,
        nargs="?",
        default=0,
        const=SWEEP_PROMPTS,
        metavar="N",
        help=f"also against guidance and steps, on N emoji ({SWEEP_PROMPTS}) and as many unseen colours, at most all",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first picture, and of what is chosen")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads, default 2")
    parser.add_argument("--json", action="store_true", help="the line of JSON alone")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    settings = Settings(arguments.steps, arguments.guidance, arguments.sampler, arguments.seed)
    painter = Painter.load(arguments.model)
    out: Path | None = arguments.out
    if out is not None:  # first: it is what one looks at
        out.mkdir(parents=True, exist_ok=True)
        prompts = sheet_prompts()
        draw_sheet(painter.paint(prompts, settings, "sheet"), prompts).save(out / "sheet.png")
    record: Row = {"model": arguments.model.name, "settings": asdict(settings)}
    record |= measure(painter, arguments.pictures, settings, arguments.prompts, arguments.sweep)
    if out is not None:
        (out / "quality.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        if arguments.sweep:
            draw_sweep(record["sweep"], settings).save(out / "sweep.png")
    if not arguments.json:
        print("\n".join(table(record)))
    print(json.dumps(record))


def draw_sweep(figures: dict[str, dict[str, list[float]]], settings: Settings) -> Image.Image:
    fixed = {"guidance": f"{settings.steps} steps", "steps": f"guidance {settings.guidance:g}"}
    return draw_plot(
        [
            Panel(
                f"{settings.sampler}, {fixed[axis]}", axis, found[axis], {k: v for k, v in found.items() if k != axis}
            )
            for axis, found in figures.items()
        ]
    )


if __name__ == "__main__":
    main()
