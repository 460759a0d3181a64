"""The colours of a generated crop against those of its frame (METHODS: Colour).

Both show the same person in the same light, and most of what is below the mask's edge at the same place: the source's
own skin is what the generated one is matched to, and all but the mouth, softly, from part to part. (What the network
puts above its mask would tell nothing: it is not trained there, and 39 levels away from the picture that it was given,
rms.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

COLOR_MATCHES = ("none", "lab", "histogram")

MIN_PIXELS = 32
"""Of skin that tell a cast."""

LARGEST_SHIFT = 0.15
"""Of `light`: about 11 of a light skin's L, a or b. What is further off is no cast."""

GRID = (8, 16)
"""Rows and columns of the cells of which each lacks something of its own; square ones where half the face is hidden."""

LARGEST_LOCAL = 0.1
"""Of `light`, beyond the shift: about 7 of a light skin's L, a or b. What is further off shows something else, as a
mouth that is opened wider than the frame's."""

DOUBT = 0.2
"""Share of a cell. One of which that much is known gets half of what was found, of which all is, five sixths."""

LARGEST_CURVE = 5.0
"""In L, a or b: what the histogram may add to the shift for some of the skin."""

DARKEST = 1.0  # of `light`: below it is no skin

QUANTILES = np.linspace(0.05, 0.95, 10)


class Cast(NamedTuple):
    """What a crop's skin lacks to have its frame's colours. The mean of several is one again."""

    shift: np.ndarray
    """float32 [3], in L, a, b, for each unit of `light`."""
    local: np.ndarray
    """float32 [*GRID, 3], what the picture's parts lack besides."""
    levels: np.ndarray
    """float32 [Q, 3], quantiles of the skin's L, a, b with both; ascending. Without a histogram Q is 0."""
    curve: np.ndarray
    """float32 [Q, 3], what these quantiles still lack."""


def to_lab(picture: np.ndarray) -> np.ndarray:
    """RGB float32 [..., 3] in [0, 1] -> CIELAB (D65), float32: L 0..100, a, b."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2LAB))


def _from_lab(lab: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(lab), cv2.COLOR_LAB2RGB))


def light(lab: np.ndarray) -> np.ndarray:
    """By how much L, a and b change, in proportion, when the light is multiplied: float32 [..., 1].

    L + 16 is the cube root of the light, up to a factor; below L = 8 CIELAB is linear.
    """
    lightness = lab[..., :1]
    return np.minimum(lightness + 16, 3 * lightness)


def find_cast(
    generated: np.ndarray, true: np.ndarray, skin: np.ndarray, known: np.ndarray, with_histogram: bool
) -> Cast | None:
    """What a picture lacks; None where there is too little skin to tell.

    The shift is the median over the skin: what moved, and shows something else, does not count. A cast is a gain of
    the light, so the shift is one for each unit of `light`: what is dark, as the mouth within, hardly changes. (One
    amount for all, as in Reinhard et al. 2001, leaves 0.2 ΔE2000 more at the crop's border and puts colour into
    dark mouths; a ratio of deviations besides gave nothing more: docs/benchmarks.md.) What is left differs from part to
    part of a network's picture, and shows at its rim: `local` is its mean in each cell of GRID and around.

    :param generated: CIELAB float32 [h, w, 3]; `true` likewise.
    :param skin: bool [h, w].
    :param known: bool [h, w], what should look like `true`.
    """
    if skin.sum() < MIN_PIXELS:
        return None
    scale = np.maximum(light(generated), DARKEST)
    lacking = (true - generated) / scale
    shift = np.median(lacking[skin], axis=0).clip(-LARGEST_SHIFT, LARGEST_SHIFT)
    lacking -= shift
    local = _by_cell(lacking, known & (np.abs(lacking) < LARGEST_LOCAL).all(axis=2))
    quantiles = QUANTILES if with_histogram else ()
    matched = (generated + (shift + _enlarged(local, skin.shape)) * scale)[skin]
    levels = np.quantile(matched, quantiles, axis=0)
    curve = (np.quantile(true[skin], quantiles, axis=0) - levels).clip(-LARGEST_CURVE, LARGEST_CURVE)
    return Cast(*(part.astype(np.float32) for part in (shift, local, levels, curve)))


def _by_cell(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Means of the known ones float32 [h, w, C] within a cell or so, less the less is known: [*GRID, C]."""
    there = known[..., None].astype(np.float32)
    n_known, sums = (
        cv2.GaussianBlur(cv2.resize(part, GRID[::-1], interpolation=cv2.INTER_AREA), (0, 0), 1)
        for part in (there, values * there)
    )
    return np.asarray(sums / (n_known[..., None] + DOUBT))


def _enlarged(local: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.asarray(cv2.resize(local, size[1::-1]))


def mean_cast(casts: Sequence[Cast], weights: Sequence[float]) -> Cast:
    """Their weighted mean."""
    return Cast(*(np.average(parts, axis=0, weights=weights).astype(np.float32) for parts in zip(*casts, strict=True)))


def without_cast(picture: np.ndarray, cast: Cast, skin: np.ndarray) -> np.ndarray:
    """The picture with what it lacks: shift and local everywhere, lips and teeth included, the curve on the skin only.

    :param picture: RGB float32 [h, w, 3] in [0, 1].
    :param skin: float32 [h, w] in [0, 1], how much of a pixel is skin.
    :return: the same shape, dtype and range.
    """
    lab = to_lab(picture)
    as_it_was = _from_lab(lab)  # OpenCV comes back a quarter of a level beside the picture: what is added is exact
    lab += (cast.shift + _enlarged(cast.local, lab.shape)) * light(lab)
    if len(cast.levels):
        for channel in range(3):
            values, levels, curve = lab[..., channel], cast.levels[:, channel], cast.curve[:, channel]
            values += skin * np.interp(values, levels, curve).astype(np.float32)
    return np.clip(picture + (_from_lab(lab) - as_it_was), 0, 1)


# -------------------------------------------------------------------------------------------------- white balance

MINKOWSKI = 6
"""The norm over the edges: the strong ones count most."""

GAINS = (0.7, 1.4)
"""What a white balance may multiply a colour by."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601's."""


BLACK = 24  # levels; bars are darker
BAR = 0.02  # of a row's or column's pixels: where no more are brighter, it is a bar's


def without_bars(frame: np.ndarray) -> np.ndarray:
    """The frame, uint8 [H, W, 3], without black bars at its sides; all of it where it is black."""
    is_shown = frame.max(axis=2) > BLACK
    rows, columns = (np.flatnonzero(is_shown.mean(axis=axis) > BAR) for axis in (1, 0))
    if not (len(rows) and len(columns)):
        return frame
    return frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def light_gains(frame: np.ndarray) -> np.ndarray:
    """What a frame's colours are to be multiplied by to look as in white light, float64 [3]; a grey keeps its luma.

    Grey edge (van de Weijer et al. 2007): edges are grey on average, whatever the areas between them are. On four clips
    in about white light it is off by 10 % at most; shades of grey by 16 %, grey world by 32 % (docs/benchmarks.md).
    Black bars, whose edges would be the strongest, do not count.

    :param frame: RGB uint8 [H, W, 3], the whole of it: of a face alone it would take the skin for the light.
    """
    halved = cv2.GaussianBlur(without_bars(frame)[::2, ::2].astype(np.float32), (0, 0), 1)
    edges = np.hypot(cv2.Sobel(halved, cv2.CV_32F, 1, 0), cv2.Sobel(halved, cv2.CV_32F, 0, 1))
    light = np.mean(edges.astype(np.float64) ** MINKOWSKI, axis=(0, 1)) ** (1 / MINKOWSKI)
    if not light.all():
        return np.ones(3)
    gains = (light.mean() / light).clip(*GAINS)
    return np.asarray(gains / (gains @ LUMA))


def multiplied(crop: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """A crop uint8 [h, w, 3] with its colours multiplied, rounded, clipped."""
    return np.rint(crop * gains).clip(0, 255).astype(np.uint8)
