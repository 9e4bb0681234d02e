"""Fitting, masks and putting together: against Pillow, scipy and sums done by hand."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy
import PIL.Image
import PIL.ImageOps
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from avila_diffusion import masking
from avila_diffusion.masking import (
    Box,
    Mode,
    blurred,
    default_size,
    doubled,
    extended,
    filled,
    fit,
    inverted,
    paste,
    region,
    upscaled,
)

Pixels = NDArray[numpy.uint8]
MODES: list[Mode] = ["resize", "crop", "fill"]
LANCZOS = PIL.Image.Resampling.LANCZOS
SIZES = (1, 2, 3, 5, 8, 13)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), numpy.uint8)


def hole(height: int = 48, width: int = 64) -> Pixels:
    """A mask with a hard-edged part in it."""
    mask = numpy.zeros((height, width), numpy.uint8)
    mask[10:30, 20:50] = 255
    return mask


# Fitting


def fitted_by_hand(pixels: Pixels, width: int, height: int, mode: Mode) -> Pixels:
    """By the scale that covers or is covered, in floats, and numpy for what is cut off or repeated."""
    down, across = pixels.shape[:2]
    scales = width / across, height / down
    scale = max(scales) if mode == "crop" else min(scales)
    sides = [
        length if one == scale else max(int(side * length_other / other + 1e-9), 1)
        for one, length, side, length_other, other in (
            (scales[0], width, across, height, down),
            (scales[1], height, down, width, across),
        )
    ]
    resized = numpy.asarray(PIL.Image.fromarray(pixels).resize((sides[0], sides[1]), LANCZOS))
    left, top = width // 2 - sides[0] // 2, height // 2 - sides[1] // 2
    if mode == "crop":
        return resized[-top : height - top, -left : width - left]

    def edge(last: Pixels, before: Pixels) -> Pixels:
        return (last + (last.astype(float) - before) / 8 + 0.5).clip(0, 255).astype(numpy.uint8)

    second = min(1, sides[1] - 1), min(1, sides[0] - 1)
    above, below = edge(resized[0], resized[second[0]]), edge(resized[-1], resized[-1 - second[0]])
    rows = [above[None]] * top + [resized] + [below[None]] * (height - top - sides[1])
    tall = numpy.concatenate(rows)
    before, behind = edge(tall[:, 0], tall[:, second[1]]), edge(tall[:, -1], tall[:, -1 - second[1]])
    if left or width - left - sides[0]:
        columns = [before[:, None]] * left + [tall] + [behind[:, None]] * (width - left - sides[0])
        return numpy.concatenate(columns, axis=1)
    return tall


def check_fit(mode: Mode) -> None:
    for across, down, width, height in itertools.product(SIZES, repeat=4):
        pixels = noise(down, across, across)
        found = fit(pixels, width, height, mode)
        assert found.shape == (height, width, 3)
        assert found.flags.writeable
        expected = fitted_by_hand(pixels, width, height, mode)
        assert numpy.array_equal(found, expected), (across, down, width, height)


@pytest.mark.parametrize("mode", ["crop", "fill"])
def test_sizes_and_places_of_all_small_pictures(mode: Mode) -> None:
    check_fit(mode)


def test_resizing_disregards_proportions() -> None:
    pixels = noise(30, 50)
    expected = numpy.asarray(PIL.Image.fromarray(pixels).resize((20, 44), LANCZOS))
    assert numpy.array_equal(fit(pixels, 20, 44, "resize"), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_fitting_picture_stays_as_it_is(mode: Mode) -> None:
    pixels = noise(24, 40)
    assert numpy.array_equal(fit(pixels, 40, 24, mode), pixels)
    assert numpy.array_equal(fit(hole(24, 40), 40, 24, mode), hole(24, 40))


@pytest.mark.parametrize("mode", MODES)
def test_masks_fit_as_pictures_do(mode: Mode) -> None:
    mask = noise(21, 34)[..., 0]
    for width, height in ((16, 16), (50, 11), (11, 50)):
        as_picture = fit(mask[..., None].repeat(3, 2), width, height, mode)
        assert numpy.array_equal(fit(mask, width, height, mode), as_picture[..., 0])


def test_sizes_by_hand() -> None:
    # 1000x600 into 512x512. Cropped: 1000 * 512 // 600 = 853 wide, 256 - 426 = -170: columns 170 to 682 are kept.
    wide = noise(600, 1000)
    resized = numpy.asarray(PIL.Image.fromarray(wide).resize((853, 512), LANCZOS))
    assert numpy.array_equal(fit(wide, 512, 512, "crop"), resized[:, 170:682])
    # Filled: 600 * 512 // 1000 = 307 high, 256 - 153 = 103: rows 103 to 410, then 102 rows.
    resized = numpy.asarray(PIL.Image.fromarray(wide).resize((512, 307), LANCZOS))
    found = fit(wide, 512, 512, "fill")
    assert numpy.array_equal(found[103:410], resized)
    assert (found[:103] == found[0]).all()
    assert (found[410:] == found[511]).all()


def test_a_picture_of_one_line_fits_anything() -> None:
    assert fit(noise(1, 10000), 512, 512, "fill").shape == (512, 512, 3)
    assert fit(noise(1, 9000), 64, 64, "crop").shape == (64, 64, 3)
    assert fit(noise(10000, 1)[..., 0], 64, 512, "fill").shape == (512, 64)


# Blur


def blurred_by_scipy(mask: Pixels, x: float, y: float) -> Pixels:
    values = mask
    for axis, sigma in ((1, x), (0, y)):
        if sigma:
            soft = scipy.ndimage.gaussian_filter1d(
                values.astype(float), sigma, axis, mode="mirror", radius=int(2.5 * sigma + 0.5)
            )
            values = numpy.rint(soft).astype(numpy.uint8)
    return values


def check_blur(x: float, y: float) -> None:
    for mask in (hole(), noise(48, 64)[..., 0], noise(5, 3)[..., 0], noise(7, 1)[..., 0], noise(1, 2)[..., 0]):
        assert numpy.array_equal(blurred(mask, x, y), blurred_by_scipy(mask, x, y))


@pytest.mark.parametrize(("x", "y"), [(4, 4), (1, 0), (0, 1), (0.3, 7), (64, 2.5), (10, 64)])
def test_blur_against_scipy(x: float, y: float) -> None:
    check_blur(x, y)


def test_blur_by_hand() -> None:
    # Sigma 1: int(2.5 + 0.5) = 3 on either side; weights 1, e^-0.5, e^-2, e^-4.5, together 2.50609 (both sides).
    row = numpy.zeros((1, 9), numpy.uint8)
    row[0, 4] = 255
    weights = numpy.exp([0, -0.5, -2, -4.5])
    values = numpy.rint(255 * weights / (weights[0] + 2 * weights[1:].sum())).astype(int).tolist()
    assert values == [102, 62, 14, 1]
    assert blurred(row, 1, 0).tolist() == [[0, 1, 14, 62, 102, 62, 14, 1, 0]]
    assert blurred(row.T, 0, 1).tolist() == [[value] for value in (0, 1, 14, 62, 102, 62, 14, 1, 0)]
    # At the border column 1 is seen again on the other side of column 0, column 0 is not.
    row = numpy.zeros((1, 9), numpy.uint8)
    row[0, 0] = 255
    assert blurred(row, 1, 0)[0, :4].tolist() == [102, 62, 14, 1]


def test_no_blur_changes_nothing() -> None:
    mask = noise(9, 9)[..., 0]
    for sigma in (0, 0.0, 0.1):
        found = blurred(mask, sigma, sigma)
        assert numpy.array_equal(found, mask)
        assert not numpy.shares_memory(found, mask)


@pytest.mark.parametrize("value", [0, 255])
def test_blur_leaves_what_is_even(value: int) -> None:
    mask = numpy.full((20, 30), value, numpy.uint8)
    assert (blurred(mask, 5, 30) == value).all()


def test_doubled_and_inverted() -> None:
    every = numpy.arange(256, dtype=numpy.uint8)[None]
    assert doubled(every)[0].tolist() == [min(2 * value, 255) for value in range(256)]
    assert numpy.array_equal(inverted(every), numpy.asarray(PIL.ImageOps.invert(PIL.Image.fromarray(every))))


# The part to work on


def region_by_hand(mask: Pixels, padding: int, width: int, height: int) -> tuple[int, ...] | None:
    found = PIL.Image.fromarray(mask).getbbox()
    if found is None:
        return None
    across, down = mask.shape[1], mask.shape[0]
    left, top, right, bottom = found
    left, top = max(0, left - padding), max(0, top - padding)
    right, bottom = min(across, right + padding), min(down, bottom + padding)
    have, ratio = (right - left) / (bottom - top), width / height
    if have > ratio:
        top, bottom = stretched(top, bottom, (right - left) / ratio, down)
    else:
        left, right = stretched(left, right, (bottom - top) * ratio, across)
    return left, top, right, bottom


def stretched(start: int, stop: int, wanted: float, most: int) -> tuple[int, int]:
    """The stretch of the wanted length that lies nearest to the middle of the old one, within the picture."""
    length = min(stop - start + int(wanted - (stop - start)), most)
    if length == most:
        return 0, most
    begin = start - int(wanted - (stop - start)) // 2
    return (
        (begin, begin + length) if 0 <= begin <= most - length else (0, length) if begin < 0 else (most - length, most)
    )


boxes = st.tuples(*[st.integers(0, 40)] * 4)


@given(boxes, st.integers(0, 50), st.integers(1, 64), st.integers(1, 64), st.integers(1, 41), st.integers(1, 41))
@settings(deadline=None, max_examples=400)
def test_regions(box: tuple[int, int, int, int], padding: int, width: int, height: int, across: int, down: int) -> None:
    mask = numpy.zeros((down, across), numpy.uint8)
    mask[min(box[:2]) : max(box[:2]), min(box[2:]) : max(box[2:])] = 1
    found = region(mask, padding, width, height)
    assert found == region_by_hand(mask, padding, width, height)
    if found is None:
        assert not mask.any()
        return
    assert mask[found.top : found.bottom, found.left : found.right].sum() == mask.sum()  # all of it is in
    assert 0 <= found.left < found.right <= across
    assert 0 <= found.top < found.bottom <= down
    wide, high = found.right - found.left, found.bottom - found.top
    if wide < across and high < down:
        assert abs(wide - high * width / height) < 1 or abs(high - wide * height / width) < 1


@pytest.mark.parametrize(
    ("part", "padding", "size", "expected"),
    [
        # (left, top, right, bottom) of what is masked in 200x100. 4 pixels more: 146..194, 36..64, 48x28; 20 rows are
        # missing to a square: 10 above and 10 below.
        ((150, 40, 190, 60), 4, (512, 512), (146, 26, 194, 74)),
        # One column is missing: int(41 - 40) // 2 = 0 before, 1 behind.
        ((10, 10, 50, 51), 0, (64, 64), (10, 10, 51, 51)),
        # At the right border: 60..160 by 2:1 wants 200 columns, which is the whole picture.
        ((150, 0, 160, 100), 0, (128, 64), (0, 0, 200, 100)),
        # 30 columns would be 175..205: moved back to 170..200.
        ((180, 20, 200, 50), 0, (64, 64), (170, 20, 200, 50)),
        # Above: 40 rows for the box 0..10 start at -15, and are moved to 0.
        ((60, 0, 100, 10), 0, (64, 64), (60, 0, 100, 40)),
        # Higher than the picture: 150 columns want 150 rows, and there are 100.
        ((20, 30, 170, 60), 0, (64, 64), (20, 0, 170, 100)),
        # 2:3: 32 columns want 48 rows; 38 are missing, and 10 - 19 is above the picture.
        ((10, 10, 42, 20), 0, (64, 96), (10, 0, 42, 48)),
    ],
)
def test_regions_by_hand(
    part: tuple[int, int, int, int], padding: int, size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    mask = numpy.zeros((100, 200), numpy.uint8)
    mask[part[1] : part[3], part[0] : part[2]] = 1
    assert region(mask, padding, *size) == Box(*expected)


def test_an_empty_mask_has_no_region() -> None:
    assert region(numpy.zeros((8, 8), numpy.uint8), 32, 64, 64) is None


# Painting what is masked


def filled_by_pillow(pixels: Pixels, mask: Pixels) -> Pixels:
    """Pasted through the mask instead of multiplied, and laid over by hand instead of by Pillow."""
    kept = PIL.Image.new("RGBa", pixels.shape[1::-1])
    opaque = PIL.Image.fromarray(pixels).convert("RGBA").convert("RGBa")
    kept.paste(opaque, mask=PIL.ImageOps.invert(PIL.Image.fromarray(mask)))
    under = numpy.zeros((*mask.shape, 4))
    for radius in [256, 64, 16, 16, 4, 4, 4, 4, 2, 2, 0]:
        over = numpy.asarray(kept.filter(PIL.ImageFilter.GaussianBlur(radius)).convert("RGBA")).astype(float)
        share = over[..., 3:] / 255
        alpha = share + under[..., 3:] * (1 - share)
        colours = over[..., :3] * share + under[..., :3] * under[..., 3:] * (1 - share)
        under = numpy.concatenate([colours / numpy.maximum(alpha, 1e-9), alpha], axis=2)
    return numpy.rint(under[..., :3]).astype(numpy.uint8)


def check_filled() -> None:
    smooth = numpy.asarray(PIL.Image.fromarray(noise(6, 8)).resize((64, 48), PIL.Image.Resampling.BICUBIC))
    for mask in (hole(), blurred(hole(), 4, 4)):
        found = filled(smooth, mask)
        assert numpy.array_equal(found[mask == 0], smooth[mask == 0])
        assert numpy.abs(found.astype(int) - filled_by_pillow(smooth, mask)).max() <= 4  # it rounds eleven times


def test_filled_against_pillow() -> None:
    check_filled()


def test_filled_is_near_to_what_surrounds_it() -> None:
    even = numpy.full((48, 64, 3), (10, 200, 90), numpy.uint8)
    found = filled(even, hole())
    assert numpy.abs(found.astype(int) - even).max() <= 8  # colours go through 8 bits multiplied by a small alpha
    halves = even.copy()
    halves[:, 32:] = (200, 20, 30)
    found = filled(halves, hole())
    assert found[20, 24, 1] > 110 > found[20, 46, 1]


def check_reach() -> None:
    pixels, mask = numpy.full((16, 900, 3), 200, numpy.uint8), numpy.zeros((16, 900), numpy.uint8)
    mask[:, 150:750] = 255
    assert (filled(pixels, mask) > 150).all()


def test_the_middle_of_a_wide_part_is_reached() -> None:
    check_reach()


def test_filled_without_anything_to_go_by_is_black() -> None:
    pixels = noise(16, 16)
    assert not filled(pixels, numpy.full((16, 16), 255, numpy.uint8)).any()
    assert numpy.array_equal(filled(pixels, numpy.zeros((16, 16), numpy.uint8)), pixels)


# Putting together


def check_paste(box: Box | None) -> None:
    original = noise(48, 64, 1)
    part = box or Box(0, 0, 64, 48)
    made = noise(part.bottom - part.top, part.right - part.left, 2)
    soft = blurred(hole(), 3, 3)
    inside = numpy.zeros_like(soft, bool)
    inside[part.top : part.bottom, part.left : part.right] = True
    laid = original.copy()
    laid[part.top : part.bottom, part.left : part.right] = made
    for mask in (soft, doubled(soft), hole()):
        found = paste(original, made, mask, box)
        assert numpy.array_equal(found[mask == 0], original[mask == 0])
        assert numpy.array_equal(found[(mask == 255) & inside], laid[(mask == 255) & inside])
        share = mask[..., None] / 255
        # Kept colours go through 8 bits multiplied by their alpha, as in the WebUI: the less is kept the coarser they are.
        off = numpy.abs(found - (laid * share + original * (1 - share)))
        assert off.max() <= 1.6
        assert off.mean() < 0.5


@pytest.mark.parametrize("box", [None, Box(16, 6, 56, 40), Box(0, 0, 64, 48), Box(30, 12, 64, 48)])
def test_paste_keeps_blends_and_replaces(box: Box | None) -> None:
    check_paste(box)


def test_an_empty_mask_gives_the_bytes_back() -> None:
    original, made = noise(48, 64, 1), noise(48, 64, 2)
    nothing = numpy.zeros((48, 64), numpy.uint8)
    assert numpy.array_equal(paste(original, made, nothing), original)
    assert numpy.array_equal(paste(original, noise(512, 512), nothing, Box(3, 4, 50, 40)), original)
    assert numpy.array_equal(paste(original, made, inverted(nothing)), made)


def test_what_was_made_larger_is_made_smaller_for_its_box() -> None:
    made, box = noise(512, 512), Box(8, 4, 40, 36)
    found = paste(noise(48, 64, 1), made, inverted(numpy.zeros((48, 64), numpy.uint8)), box)
    small = numpy.asarray(PIL.Image.fromarray(made).resize((32, 32), LANCZOS))
    assert numpy.array_equal(found[4:36, 8:40], small)
    # 512x256 for a box of 32x32 is cut off at its sides.
    wide = noise(256, 512)
    found = paste(noise(48, 64, 1), wide, inverted(numpy.zeros((48, 64), numpy.uint8)), box)
    small = numpy.asarray(PIL.Image.fromarray(wide).resize((64, 32), LANCZOS))[:, 16:48]
    assert numpy.array_equal(found[4:36, 8:40], small)


# Outpainting, enlarging, sizes


def test_extended() -> None:
    pixels = noise(3, 4)
    found, mask = extended(pixels, 2, 0, 1, 5)
    assert found.shape == (8, 7, 3)
    assert numpy.array_equal(found[:3, 2:6], pixels)
    assert (found[3:, 2:6] == pixels[-1]).all()
    assert (found[:3, :2] == pixels[:, :1]).all()
    assert (found[:3, 6:] == pixels[:, -1:]).all()
    assert (found[4:, :2] == pixels[-1, 0]).all()
    assert not mask[:3, 2:6].any()
    assert mask.sum() == 255 * (8 * 7 - 3 * 4)
    same, nothing = extended(pixels, 0, 0, 0, 0)
    assert numpy.array_equal(same, pixels)
    assert not nothing.any()


def test_upscalers_that_are_no_networks() -> None:
    pixels = noise(48, 64)
    picture = PIL.Image.fromarray(pixels)
    lanczos = numpy.asarray(picture.resize((128, 96), LANCZOS))
    assert numpy.array_equal(upscaled(pixels, 128, 96, "Lanczos"), lanczos)
    assert numpy.array_equal(upscaled(pixels, 128, 96, "None"), lanczos)
    assert numpy.array_equal(upscaled(pixels, 128, 96, "Nearest"), pixels.repeat(2, 0).repeat(2, 1))
    for how in ("None", "Lanczos", "Nearest"):  # smaller: Lanczos, whatever is asked for
        small = numpy.asarray(picture.resize((32, 24), LANCZOS))
        assert numpy.array_equal(upscaled(pixels, 32, 24, how), small)


def test_upscaling_by_hand_where_sizes_are_odd() -> None:
    # 64x48 to 100x96: scale 2 covers it, so 128x96 first, then Lanczos to 100x96.
    pixels = noise(48, 64)
    first = PIL.Image.fromarray(pixels.repeat(2, 0).repeat(2, 1))
    assert numpy.array_equal(upscaled(pixels, 100, 96, "Nearest"), numpy.asarray(first.resize((100, 96), LANCZOS)))
    # 64x48 to 100x75: scale 1.5625, so 100x75, then 96x72, then 100x75 again.
    steps = PIL.Image.fromarray(pixels)
    for size in ((100, 75), (96, 72), (100, 75)):
        steps = steps.resize(size, LANCZOS)
    assert numpy.array_equal(upscaled(pixels, 100, 75, "Lanczos"), numpy.asarray(steps))
    assert upscaled(noise(1, 1), 3, 3, "Nearest").shape == (3, 3, 3)


SD1 = 512 * 512


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((517, 519), (512, 512)),
        ((768, 512), (768, 512)),
        ((1024, 1024), (1024, 1024)),
        ((1032, 1024), (1024, 1016)),  # just over four times as many: by sqrt(2^20 / 1056768) = 0.99612
        ((4000, 3000), (1176, 880)),
        ((256, 256), (256, 256)),
        ((255, 256), (504, 512)),  # just under a quarter: 511.0 and 513.0
        ((100, 100), (512, 512)),
        ((1, 1), (512, 512)),
        ((64, 1100), (64, 1096)),
        ((40, 2000), (64, 2000)),
        ((1, 10000), (64, 8192)),
        ((10000, 1), (8192, 64)),
    ],
)
def test_default_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert default_size(*size, SD1) == expected


@given(st.integers(1, 20000), st.integers(1, 20000), st.sampled_from([128 * 128, SD1, 1024 * 1024]))
@settings(deadline=None)
def test_default_sizes_can_be_made(width: int, height: int, model_pixels: int) -> None:
    across, down = default_size(width, height, model_pixels)
    assert across % 8 == down % 8 == 0
    assert min(across, down) >= 64
    assert max(across, down) <= 8192
    assert across * down <= 4 * model_pixels
    if max(width, height) <= 4 * min(width, height) and min(across, down) > 64:
        # One scale, cut down to multiples of 8 on either side.
        assert max(across / width, down / height) <= min((across + 8) / width, (down + 8) / height)
        assert across * down > min(width * height, model_pixels) * 0.6


# Deliberate mistakes


MISTAKES: list[tuple[str, Any, Callable[[], None]]] = [
    ("_LANCZOS", PIL.Image.Resampling.BICUBIC, lambda: check_fit("crop")),
    ("_resized", lambda size, width, height, mode: (width, height), lambda: check_fit("fill")),
    ("_FILL_LAYERS", ((64, 1), (16, 2), (4, 4), (2, 2), (0, 1)), lambda: check_reach()),
    ("_FILL_LAYERS", ((256, 1), (64, 1), (16, 2), (4, 2), (2, 2), (0, 1)), check_filled),
    ("_FILL_LAYERS", ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2)), check_filled),
    ("inverted", lambda mask: mask, check_filled),
    ("inverted", lambda mask: mask, lambda: check_paste(None)),
    ("_blurred_rows", lambda mask, sigma: mask, lambda: check_blur(4, 4)),
    (
        "_mirrored",
        lambda length, reach: numpy.arange(-reach, length + reach).clip(0, length - 1),
        lambda: check_blur(4, 4),
    ),
    ("_widened", lambda start, stop, more, most: (start, stop), lambda: check_region()),
    (
        "_widened",
        lambda start, stop, more, most: (max(start - more // 2, 0), min(stop + more - more // 2, most)),
        lambda: check_region(),
    ),
]


def check_region() -> None:
    mask = hole()
    mask[12:30, 50:62] = 1
    assert region(mask, 0, 64, 512) == region_by_hand(mask, 0, 64, 512)
    assert region(mask, 2, 64, 64) == region_by_hand(mask, 2, 64, 64)


@pytest.mark.parametrize(("name", "wrong", "check"), MISTAKES)
def test_mistakes_are_seen(name: str, wrong: Any, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    monkeypatch.setattr(masking, name, wrong)
    with pytest.raises(AssertionError):
        check()
