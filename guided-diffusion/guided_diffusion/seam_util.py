"""Seams of a composite: where it may have some, and how steep the picture is there."""

from typing import Literal, NamedTuple

import numpy as np

from .streams import Box


class Edge(NamedTuple):
    """A straight piece of a contour between two rows or columns of pixels: before the one with number `position`."""

    direction: Literal["horizontal", "vertical"]
    position: int
    """Row of the pixels below a horizontal edge, column of the pixels to the right of a vertical one."""
    start: int
    stop: int
    """The columns (rows of a vertical edge) that it passes, half open."""


def mask_contour(box: Box, face_hide_percentage: float = 0.5) -> list[Edge]:
    """Where what the network generated meets what it was given: the upper edge of the hidden part of the box.

    Enlarging a crop n times spreads a step there over n rows.
    """
    y1, y2, x1, x2 = box
    return [Edge("horizontal", y1 + int((1 - face_hide_percentage) * (y2 - y1)), x1, x2)]


def box_contour(box: Box) -> list[Edge]:
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
    :param contour: edges in frame pixels; what is on the frame's border or beyond has no other side and does not
        count.
    :return: about 1 without a seam; NaN when no edge counts.
    """
    inside = [edge for edge in contour if 0 < edge.position < _across(frame, edge).shape[0]]
    across = [_steps(frame, edge, 0) for edge in inside]
    beside = [_steps(frame, edge, distance) for edge in inside for distance in SEAM_DISTANCES]
    return (_mean(across) + ROUNDING_STEP) / (_mean(beside) + ROUNDING_STEP)


def _across(frame: np.ndarray, edge: Edge) -> np.ndarray:
    """The part of the frame that the edge passes, with the axis across the edge first."""
    along = slice(max(0, edge.start), max(0, edge.stop))
    return frame[:, along] if edge.direction == "horizontal" else frame[along].swapaxes(0, 1)


def _steps(frame: np.ndarray, edge: Edge, distance: int) -> np.ndarray:
    """Absolute differences, int16 [n, 3], across the edge moved by `distance` pixels; none outside the frame."""
    pixels = _across(frame, edge)
    after = edge.position + distance
    if not 0 < after < len(pixels):
        return np.empty((0, 3), np.int16)
    return np.abs(pixels[after].astype(np.int16) - pixels[after - 1])


def _mean(parts: list[np.ndarray]) -> float:
    """NaN without any."""
    return float(np.concatenate(parts).mean()) if sum(part.size for part in parts) else float("nan")

