"""What a picture looks like, in numbers made by hand: no weights, so nothing here has seen what a model was trained on.

Pictures are (count, 128, 128, 3), uint8, usually an object on white. `describe` gives named blocks of numbers that a
`FeatureSpace` puts on one scale; `name_colours` and `Logistic` answer what colour and what style it is.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.optimize import minimize

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Names = npt.NDArray[np.str_]
Blocks = dict[str, Floats]

ORIENTATIONS = 8
LAYOUT, FINE, COARSE, SILHOUETTE = 12, 16, 8, 16
"""Cells along a side of each block's grid."""
LOOK = {"layout": 1.0, "fine": 0.7, "coarse": 0.7, "silhouette": 0.5}
"""Blocks and weights of the whole look of a picture: colour, edges and outline count about alike."""
SHAPE = {"fine": 0.7, "coarse": 0.7, "silhouette": 1.0}
"""The same with no colour in it."""
WHITE = 0.035
"""Distance from white in Oklab up to which a pixel may be background: a grey of about 244, the noise of an autoencoder."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white")
HUES = ((12, "pink"), (44, "red"), (75, "orange"), (112, "yellow"), (195, "green"), (280, "blue"), (325, "purple"))
"""What is vivid, by its hue in Oklch up to these degrees; pink beyond."""
VOTES = {"black": 0.8, "grey": 0.8, "white": 0.5}
"""Votes of a pixel where it is not 1: outlines, shadows and lights are on things of every colour."""
GREYISH = 0.045
"""Chroma below which a pixel is black, grey or white."""
MINIMUM = 150
"""Pixels that must be left of a thing whose edge is taken off."""

SCALES = (0.7, 1.2, 2.0, 4.0, 8.0)
"""Widths in pixels of the edges that a texture is told by."""


@cache
def _linear() -> Floats:
    """The light of each 8-bit value: sRGB's curve."""
    value = np.arange(256) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_oklab(pixels: Pixels) -> Floats:
    """Lightness 0 to 1, and the green-red and blue-yellow axes (Ottosson 2020): (..., 3)."""
    to_cones = np.array(
        (
            (0.4122214708, 0.5363325363, 0.0514459929),
            (0.2119034982, 0.6806995451, 0.1073969566),
            (0.0883024619, 0.2817188376, 0.6299787005),
        ),
        dtype=np.float32,
    )
    to_lab = np.array(
        (
            (0.2104542553, 0.7936177850, -0.0040720468),
            (1.9779984951, -2.4285922050, 0.4505937099),
            (0.0259040371, 0.7827717662, -0.8086757660),
        ),
        dtype=np.float32,
    )
    lab: Floats = np.cbrt(_linear()[pixels] @ to_cones.T) @ to_lab.T
    return lab


def find_foreground(lab: Floats) -> npt.NDArray[np.bool_]:
    """(count, h, w): what is not white, and what is white but closed in, as the inside of a white cup is."""
    distance = np.sqrt((1 - lab[..., 0]) ** 2 + lab[..., 1] ** 2 + lab[..., 2] ** 2)
    found = np.empty(distance.shape, dtype=bool)
    for index, pale in enumerate(distance < WHITE):
        regions, _ = ndimage.label(pale)
        border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
        found[index] = ~np.isin(regions, border[border > 0])
    return found


@cache
def _pool(cells: int, pixels: int) -> Floats:
    """(cells, pixels): each cell is a Gaussian mean of the pixels round it, so that a small shift changes little."""
    cell = pixels / cells
    centres = (np.arange(cells) + 0.5) * cell - 0.5
    weights = np.exp(-((np.arange(pixels) - centres[:, None]) ** 2) / (2 * (0.5 * cell) ** 2))
    scaled: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return scaled


def pool(maps: Floats, cells: int) -> Floats:
    """(count, h, w, channels) → (count, cells, cells, channels)."""
    rows = np.einsum("ch,nhwk->ncwk", _pool(cells, maps.shape[1]), maps, optimize=True)
    pooled: Floats = np.einsum("dw,ncwk->ncdk", _pool(cells, maps.shape[2]), rows, optimize=True)
    return pooled


def gradients(lightness: Floats, cells: int, blur: float) -> Floats:
    """Histograms of oriented gradients (Dalal & Triggs 2005) of (count, h, w): (count, cells, cells, orientations).

    An edge and its negative are the same. Pixels share between neighbouring orientations and cells; each cell is scaled
    by the energy round it, and the square root is taken, so that a few strong edges do not drown the rest.
    """
    smooth = ndimage.gaussian_filter(lightness, (0, blur, blur), mode="nearest")
    dy, dx = np.gradient(smooth, axis=(1, 2))
    place = (np.arctan2(dy, dx) % np.pi) * (ORIENTATIONS / np.pi)
    low = np.floor(place)
    part = place - low
    strength = np.hypot(dx, dy)
    bins = np.arange(ORIENTATIONS)
    first, second = low.astype(int) % ORIENTATIONS, (low.astype(int) + 1) % ORIENTATIONS
    maps = (strength * (1 - part))[..., None] * (first[..., None] == bins)
    maps += (strength * part)[..., None] * (second[..., None] == bins)
    pooled = pool(maps.astype(np.float32), cells)
    energy = ndimage.uniform_filter(pooled.sum(axis=-1), (0, 3, 3), mode="nearest")
    scaled: Floats = np.sqrt(pooled / (energy[..., None] + 0.01))
    return scaled


def describe(pixels: Pixels, chunk: int = 64) -> Blocks:
    """The blocks of pictures, (count, numbers) each: colour layout, gradients at two scales, silhouette."""
    parts: list[Blocks] = []
    for begin in range(0, len(pixels), chunk):
        lab = to_oklab(pixels[begin : begin + chunk])
        inside = find_foreground(lab).astype(np.float32)[..., None]
        blocks = {
            "layout": pool(lab * np.array((1, 2, 2), np.float32), LAYOUT),  # colour spans half of what lightness does
            "fine": gradients(lab[..., 0], FINE, 1.0),
            "coarse": gradients(lab[..., 0], COARSE, 3.0),
            "silhouette": pool(inside, SILHOUETTE),
        }
        parts.append({name: block.reshape(len(lab), -1).astype(np.float32) for name, block in blocks.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Blocks on one scale: each without its mean, divided by its spread over the gallery, and weighted."""

    weights: Mapping[str, float]
    means: Blocks
    spreads: dict[str, float]

    @classmethod
    def fit(cls, gallery: Blocks, weights: Mapping[str, float]) -> FeatureSpace:
        means = {name: gallery[name].mean(axis=0) for name in weights}
        spreads = {name: float(np.sqrt(((gallery[name] - means[name]) ** 2).sum(axis=1).mean())) for name in weights}
        return cls(weights, means, spreads)

    def place(self, blocks: Blocks) -> Floats:
        """(count, numbers), of length 1: the products of two are cosines."""
        scaled = [(blocks[n] - self.means[n]) * (w / max(self.spreads[n], 1e-9)) for n, w in self.weights.items()]
        joined: Floats = np.concatenate(scaled, axis=1)
        joined /= np.maximum(np.linalg.norm(joined, axis=1, keepdims=True), 1e-9)
        return joined


def rank(
    queries: Floats, wanted: Sequence[str] | Names, gallery: Floats, labels: Sequence[str] | Names
) -> npt.NDArray[np.int64]:
    """Place, from 1, of the wanted label for each query: labels are ordered by the nearest of their pictures."""
    names, place = np.unique(np.array(labels), return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(names)))
    best = np.maximum.reduceat(queries @ gallery[order].T, starts, axis=1)
    index = {name: number for number, name in enumerate(names.tolist())}
    own = best[np.arange(len(queries)), [index[label] for label in wanted]]
    places: npt.NDArray[np.int64] = (best > own[:, None]).sum(axis=1) + 1
    return places


def spread(points: Floats) -> float:
    """Mean distance of two different points."""
    squares = np.maximum(2 - 2 * points.astype(np.float64) @ points.T.astype(np.float64), 0)
    return float(np.sqrt(squares)[~np.eye(len(points), dtype=bool)].mean())


def interval(hits: npt.ArrayLike, rounds: int = 4000) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % interval of the mean by the bootstrap, percentiles over resampled prompts."""
    values = np.asarray(hits, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(values), size=(rounds, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def count_colours(pixels: Pixels, chunk: int = 64) -> npt.NDArray[np.float64]:
    """(count, colours): the share of each of COLOURS in the thing that is shown, without its edge."""
    shares = []
    for begin in range(0, len(pixels), chunk):
        lab = to_oklab(pixels[begin : begin + chunk])
        names = _name_pixels(lab)
        for name, inside in zip(names, find_foreground(lab), strict=True):
            core = ndimage.binary_erosion(inside, iterations=2)
            among = name[core if core.sum() > MINIMUM else inside]
            shares.append(np.bincount(among, minlength=len(COLOURS)) / max(len(among), 1))
    return np.array(shares)


def name_colours(pixels: Pixels) -> list[str]:
    """The colour of the thing in each picture: what most of it is, by the VOTES."""
    votes = count_colours(pixels) * [VOTES.get(colour, 1.0) for colour in COLOURS]
    return [COLOURS[index] for index in votes.argmax(axis=1)]


def _name_pixels(lab: Floats) -> npt.NDArray[np.int64]:
    """The place in COLOURS of each pixel's colour."""
    code = {colour: index for index, colour in enumerate(COLOURS)}
    light, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    found = np.select([hue < limit for limit, _ in HUES], [code[name] for _, name in HUES], code["pink"])
    found = np.where((found == code["red"]) & (light > 0.72), code["pink"], found)
    found = np.where((found == code["pink"]) & (light < 0.6) & ((hue > 340) | (hue < 12)), code["red"], found)
    found = np.where((hue > 20) & (hue < 90) & (light < 0.62) & (chroma < 0.135), code["brown"], found)
    plain = np.select([light < 0.42, light < 0.8], [code["black"], code["grey"]], code["white"])
    return np.where(chroma < GREYISH, plain, found)


def describe_surface(pixels: Pixels, chunk: int = 64) -> Floats:
    """(count, numbers): how steep the thing is at several scales, in lightness and colour, and how light and vivid it is.

    Flat drawings have steps and nothing between; rendered ones have slopes. The numbers are histograms over the thing's
    pixels, square roots taken, so neither its shape nor its hue is in them.
    """
    steepness = np.geomspace(0.001, 0.25, 11)
    lights, vividness = np.linspace(0.1, 0.95, 12), np.linspace(0.02, 0.25, 8)
    tables = []
    for begin in range(0, len(pixels), chunk):
        lab = to_oklab(pixels[begin : begin + chunk])
        inside = find_foreground(lab)
        tone = np.digitize(lab[..., 0], lights) * (len(vividness) + 1)
        tone += np.digitize(np.hypot(lab[..., 1], lab[..., 2]), vividness)
        columns = [_histogram(tone, inside, (len(lights) + 1) * (len(vividness) + 1))]
        for sigma in SCALES:
            for channel in np.moveaxis(lab, -1, 0):
                # The second argument of each pair is the order of the derivative, along rows or along columns.
                slopes = (_derive(channel, sigma, order) for order in ((1, 0), (0, 1)))
                columns.append(_histogram(np.digitize(np.hypot(*slopes), steepness), inside, len(steepness) + 1))
        tables.append(np.concatenate(columns, axis=1))
    return np.sqrt(np.concatenate(tables)).astype(np.float32)


def _derive(channel: Floats, sigma: float, order: tuple[int, int]) -> Floats:
    slopes: Floats = ndimage.gaussian_filter(channel, (0, sigma, sigma), order=(0, *order), mode="nearest")
    return slopes


def _histogram(bins: npt.NDArray[np.int64], inside: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.float64]:
    rows = (np.bincount(b[i], minlength=count) / max(int(i.sum()), 1) for b, i in zip(bins, inside, strict=True))
    return np.stack(list(rows))


@dataclass(frozen=True, eq=False)
class Logistic:
    """Logistic regression on scaled numbers: says whether something is of a kind."""

    mean: Floats
    deviation: Floats
    weights: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, numbers: Floats, is_kind: npt.NDArray[np.bool_], decay: float = 1e-3) -> Logistic:
        mean, deviation = numbers.mean(axis=0), numbers.std(axis=0) + 1e-6
        z = _with_one((numbers - mean) / deviation)
        sign = np.where(is_kind, 1.0, -1.0)

        def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            margin = sign * (z @ weights)
            shrunk = np.append(decay * weights[:-1], 0.0)
            slope = -(sign * np.exp(-np.logaddexp(0, margin))) @ z / len(z) + shrunk
            return float(np.logaddexp(0, -margin).mean() + shrunk @ weights / 2), slope

        found = minimize(loss, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500})
        return cls(mean, deviation, found.x)

    def holds(self, numbers: Floats) -> npt.NDArray[np.bool_]:
        return _with_one((numbers - self.mean) / self.deviation) @ self.weights > 0


def _with_one(numbers: Floats) -> npt.NDArray[np.float64]:
    return np.append(numbers, np.ones((len(numbers), 1)), axis=1).astype(np.float64)


def degrade(pixels: Pixels) -> dict[str, Pixels]:
    """Pictures spoilt in ways that leave what they show."""
    noise = np.random.default_rng(0).normal(0, 20, pixels.shape)
    framed = np.pad(pixels, ((0, 0), (4, 0), (4, 0), (0, 0)), constant_values=255)
    return {
        "JPEG of quality 30": np.stack([_as_jpeg(picture, 30) for picture in pixels]),
        "blur of 2 pixels": ndimage.gaussian_filter(pixels, (0, 2, 2, 0)),
        "shift by 4 pixels": framed[:, :-4, :-4],
        "colour noise of 20 levels": (pixels + noise).clip(0, 255).astype(np.uint8),
    }


def _as_jpeg(picture: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def spoil(pixels: Pixels) -> Pixels:
    """Each picture a little blurred and spotted, in its own measure, as by an unfinished model."""
    rng = np.random.default_rng(0)
    spoilt = np.empty_like(pixels)
    for index, picture in enumerate(pixels):
        blur, grain, strength = rng.uniform(0, 1.5), rng.uniform(0.5, 2), rng.uniform(0, 15) * rng.uniform(0, 1)
        spots = ndimage.gaussian_filter(rng.normal(size=picture.shape), (grain, grain, 0))
        soft = ndimage.gaussian_filter(picture.astype(np.float64), (blur, blur, 0))
        spoilt[index] = (soft + spots * (strength / spots.std())).clip(0, 255)
    return spoilt
