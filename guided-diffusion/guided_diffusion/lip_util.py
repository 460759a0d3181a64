"""The geometry of a mouth, from its landmarks."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from .streams import Face

LIP = slice(48, 68)
"""The lip's points among the 68 (iBUG order)."""

LipLandmarks = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray | None]]
"""Face crops RGB uint8 [h, w, 3] -> the lip landmarks of each, float32 [20, 2] in its pixels, or None."""

MOUTH_REGION = np.array([(0.25, 0.62), (0.75, 0.62), (0.75, 0.92), (0.25, 0.92)])
"""Corners (x, y), in a box of 1 x 1, of where lips may be that nobody has looked for."""

LIP_MARGIN = 0.05  # of the box's height, around the lips' hull


def mouth_width(lip_landmarks: np.ndarray) -> float:
    """The distance of the mouth's corners (48 and 54 of 68), the largest of several mouths float [..., 20, 2]."""
    return float(np.linalg.norm(lip_landmarks[..., 6, :] - lip_landmarks[..., 0, :], axis=-1).max())


def calculate_mouth_opening(lip_landmarks: np.ndarray) -> float:
    """The gap between the inner lips over the mouth's width, clamped to [0, 1].

    `face_detection.lip_metrics.mouth_opening` is over the distance of the eyes: steadier, but not known from lips.

    :param lip_landmarks: float [20, 2], (x, y), iBUG 48:68.
    :return: 0 for a closed mouth (or one without any width), about 0.5 for an open one.
    """
    gap = float(np.linalg.norm(lip_landmarks[17:20].mean(axis=0) - lip_landmarks[13:16].mean(axis=0)))
    width = mouth_width(lip_landmarks)
    return min(gap / width, 1.0) if width > 0 else 0.0


def inter_ocular_distance(landmarks: np.ndarray) -> float:
    """Between the means of the eyes' points, of landmarks float [68, 2]."""
    return float(np.linalg.norm(landmarks[42:48].mean(axis=0) - landmarks[36:42].mean(axis=0)))


def near_lips(lips: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool [height, width]: the hull of lips int32 [20, 2] and LIP_MARGIN around it."""
    mouth = np.zeros((height, width), dtype=np.uint8)
    cv2.fillConvexPoly(mouth, cv2.convexHull(lips), 1)
    reach = round(LIP_MARGIN * height)
    return cv2.dilate(mouth, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))) > 0


def mouth_area(face: Face, height: int, width: int) -> np.ndarray:
    """bool [height, width], of the face's crop at this size: around the source's lips, or where they may be where its
    landmarks are not known."""
    y1, y2, x1, x2 = face.box
    landmarks = face.crop_landmarks
    lips = MOUTH_REGION
    if landmarks is not None and np.isfinite(landmarks[LIP]).all():
        lips = landmarks[LIP] / (x2 - x1, y2 - y1)
    return near_lips(np.rint(lips * (width, height)).astype(np.int32), height, width)


def opening_correlation(opening: np.ndarray, envelope: np.ndarray) -> float:
    """Pearson's r of a mouth's opening and the sound's level over the frames with a face (where the opening is not
    NaN), 0 where one of the two is constant."""
    faces = np.isfinite(opening)
    a, b = (values[faces] - values[faces].mean() for values in (opening, envelope))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else 0.0
