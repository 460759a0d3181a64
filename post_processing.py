"""What happens to a generated crop on its way into the frame, and how well the composite fits into it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import skimage.color

from guided_diffusion.tfg_data_util import resize_crop


@dataclass(frozen=True)
class Face:
    """The record of the followed face in one output frame.

    :param index: output frame.
    :param frame: the source frame, RGB uint8 [H, W, 3].
    :param box: (y1, y2, x1, x2), half open, in frame pixels.
    :param landmarks: float32 [68, 2], (x, y) in frame pixels, or None when the detector gives none.
    :param is_cut: the first frame after a hard cut: stages forget what they remember.
    :param network_crop: the source's crop as the network saw it, RGB uint8 [h, w, 3].
    """

    index: int
    frame: np.ndarray
    box: tuple[int, int, int, int]
    landmarks: np.ndarray | None
    is_cut: bool
    network_crop: np.ndarray


Stage = Callable[[np.ndarray, Face], np.ndarray]
"""A crop RGB float32 [h, w, 3] in [0, 1] and its face -> a new crop, perhaps of another size."""

Stages = list[tuple[str, Stage]]
"""The enhancements of a run, by name and in order."""


def apply_stages(
    crop: np.ndarray, face: Face, stages: Stages, measure: Callable[[str], AbstractContextManager[None]]
) -> np.ndarray:
    """Run a generated crop uint8 [h, w, 3] through the stages; without stages it comes back as it is.

    :param measure: takes a stage's name and times what runs inside.
    """
    if not stages:
        return crop
    picture = crop.astype(np.float32) / 255
    for name, stage in stages:
        with measure(name):
            picture = stage(picture, face)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def paste_crop(frame: np.ndarray, crop: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """A copy of `frame` uint8 [H, W, 3] whose whole box (y1, y2, x1, x2) shows `crop` uint8 [h, w, 3] (as upstream)."""
    y1, y2, x1, x2 = box
    result = frame.copy()
    result[y1:y2, x1:x2] = resize_crop(crop, y2 - y1, x2 - x1)
    return result


class Edge(NamedTuple):
    """A straight piece of a contour between two rows or columns of pixels: before the one with number `position`."""

    direction: Literal["horizontal", "vertical"]
    position: int
    """Row of the pixels below a horizontal edge, column of the pixels to the right of a vertical one."""
    start: int
    stop: int
    """The columns (rows of a vertical edge) that it passes, half open."""


def mask_contour(box: tuple[int, int, int, int]) -> list[Edge]:
    """Where what the network generated meets what it was given: the upper edge of the lower half of the box.

    For the default face_hide_percentage of 0.5. Enlarging a crop n times spreads a step there over n rows.
    """
    y1, y2, x1, x2 = box
    return [Edge("horizontal", y1 + int(0.5 * (y2 - y1)), x1, x2)]


def box_contour(box: tuple[int, int, int, int]) -> list[Edge]:
    """The left, right and bottom sides of the box, which a plain paste leaves hard."""
    y1, y2, x1, x2 = box
    return [Edge("vertical", x1, y1, y2), Edge("vertical", x2, y1, y2), Edge("horizontal", y2, x1, x2)]


# METHODS: Seams and blending. The steps next to the contour (1 and 2) belong to neither: chroma subsampling and the
# enlarging of the crop smear a seam over them.
SEAM_DISTANCES = (-6, -5, -4, -3, 3, 4, 5, 6)

ROUNDING_STEP = 1 / 3
"""Mean difference of two neighbours that rounding to whole levels alone makes."""


def seam_ratio(frame: np.ndarray, contour: list[Edge]) -> float:
    """How much steeper the picture is across a contour than beside it (METHODS: Seams and blending).

    With J_d the mean absolute difference of the two pixels on either side of the contour moved by d pixels:
    (J_0 + e) / (mean of J_3..6 and J_-3..-6 + e). e, ROUNDING_STEP, keeps it defined in flat pictures, where it is 1.
    A picture's own structure counts too: divide by the same on the source frame.

    :param frame: RGB uint8 [H, W, 3].
    :param contour: edges in frame pixels; those on the frame's border have no other side and do not count.
    :return: about 1 without a seam; NaN when no edge counts.
    """
    inside = [edge for edge in contour if 0 < edge.position < _across(frame, edge).shape[0]]
    if not inside:
        return float("nan")
    across = [_steps(frame, edge, 0) for edge in inside]
    beside = [_steps(frame, edge, distance) for edge in inside for distance in SEAM_DISTANCES]
    return (_mean(across) + ROUNDING_STEP) / (_mean(beside) + ROUNDING_STEP)


def _across(frame: np.ndarray, edge: Edge) -> np.ndarray:
    """The part of the frame that the edge passes, with the axis across the edge first."""
    if edge.direction == "horizontal":
        return frame[:, edge.start : edge.stop]
    return frame[edge.start : edge.stop].swapaxes(0, 1)


def _steps(frame: np.ndarray, edge: Edge, distance: int) -> np.ndarray:
    """Absolute differences, int16 [n, 3], across the edge moved by `distance` pixels; none outside the frame."""
    pixels = _across(frame, edge)
    after = edge.position + distance
    if not 0 < after < len(pixels):
        return np.empty((0, 3), np.int16)
    return np.abs(pixels[after].astype(np.int16) - pixels[after - 1])


def _mean(parts: list[np.ndarray]) -> float:
    return float(np.concatenate(parts).mean())


def ring_delta_e(frame: np.ndarray, box: tuple[int, int, int, int]) -> float:
    """Difference of colour between two rings, 4 to 8 pixels inside and outside the box's contour.

    The CIEDE2000 difference of the rings' mean Lab colours (METHODS: Seams and blending). A face differs from what is
    around it: what the paste adds is the excess over the same on the source frame. A cast that makes the two more
    alike lowers it, so judge by the excess's size and its deviation over time.

    :param frame: RGB uint8 [H, W, 3].
    :param box: (y1, y2, x1, x2), half open, in frame pixels.
    :return: 0 for equal colours, about 1 where a difference becomes visible; NaN when a ring has no pixel: the box
        is under 10 pixels wide or high, or everything around it is outside the frame.
    """
    inner = _filled(frame, box, -4) & ~_filled(frame, box, -8)
    outer = _filled(frame, box, 8) & ~_filled(frame, box, 4)
    if not inner.any() or not outer.any():
        return float("nan")
    means = (skimage.color.rgb2lab(frame[ring]).mean(axis=0) for ring in (inner, outer))
    return float(skimage.color.deltaE_ciede2000(*means))


def _filled(frame: np.ndarray, box: tuple[int, int, int, int], growth: int) -> np.ndarray:
    """bool [H, W], True in the box grown by that many pixels on each side."""
    y1, y2, x1, x2 = box
    filled = np.zeros(frame.shape[:2], dtype=bool)
    filled[max(0, y1 - growth) : max(0, y2 + growth), max(0, x1 - growth) : max(0, x2 + growth)] = True
    return filled


def lip_sharpness(frame: np.ndarray, lip_landmarks: np.ndarray) -> float:
    """Sharpness of the lips: the variance of the luma's Laplacian in their bounding box (Pech-Pacheco et al., 2000).

    It grows with contrast, noise and the size of the picture: divide by the same on the source frame.

    :param frame: RGB uint8 [H, W, 3].
    :param lip_landmarks: float [20, 2], (x, y) in frame pixels.
    :return: squared levels; NaN when the lips are outside the frame, or not known (NaN).
    """
    if not np.isfinite(lip_landmarks).all():
        return float("nan")
    x1, y1 = np.maximum(np.floor(lip_landmarks.min(axis=0)).astype(int), 0)
    x2, y2 = np.maximum(np.floor(lip_landmarks.max(axis=0)).astype(int) + 1, 0)
    luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(luma, cv2.CV_32F)[y1:y2, x1:x2]
    return float(laplacian.var()) if laplacian.size else float("nan")


CHROMA_MARGIN = 5
"""Pixels around a changed area that change too when the chroma's resolution is halved and restored (measured)."""


def outside_difference(source: np.ndarray, result: np.ndarray, box: tuple[int, int, int, int]) -> int:
    """The largest difference, in levels of any channel, outside the box grown by CHROMA_MARGIN.

    0 when nothing but the box was touched and nothing was encoded, or nothing lies outside. Encoding at a crf above 0
    adds differences of its own everywhere.

    :param source: RGB uint8 [H, W, 3]; `result` likewise, of the same size.
    :param box: (y1, y2, x1, x2), half open, in frame pixels.
    """
    difference = cv2.absdiff(source, result)
    difference[_filled(source, box, CHROMA_MARGIN)] = 0
    return int(difference.max())
