"""How a mouth moves: its opening, its distance from another mouth, its synchrony with sound. Needs no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from guided_diffusion.errors import InputError
from guided_diffusion.lip_util import inter_ocular_distance, opening_correlation
from guided_diffusion.streams import Box

from .api import LIP

MAX_LAG = 15
"""Frames by which sound and mouth are shifted against each other, either way (METHODS: Lip-sync metrics)."""

MIN_FRAMES = 3 * MAX_LAG
"""Fewer frames say nothing about synchrony: at the largest lag too few of them overlap."""

# What varies less than this is noise. Levels: full scale is 1, so 0.0001 is -80 dB.
MIN_LEVEL_RANGE = 1e-4
MIN_OPENING_RANGE = 1e-3

MAX_SHIFTS = 1000  # more circular shifts make the z-score of a long video slower, not better

BOXES = (
    (0.00, 0.00, 1.00), (0.02, 0.02, 1.03), (-0.02, 0.02, 0.97), (0.02, -0.02, 0.97), (-0.02, -0.02, 1.03),
    (0.04, 0.00, 1.00), (-0.04, 0.00, 1.00), (0.00, 0.04, 1.00), (0.00, -0.04, 1.00),
)  # fmt: skip
"""Around a face, in which `steady_landmarks` looks: to the right and down, of its box's sides, and their factor."""

MIN_MOVEMENT = 0.015
"""Standard deviation of an opening above which two mouths are compared: with less, the landmarks' noise alone (0.002,
of `steady_landmarks`) takes r to 0.99."""

_NOSE_AND_EYES = slice(27, 48)
_INNER_UPPER_LIP = slice(61, 64)
_INNER_LOWER_LIP = slice(65, 68)


@dataclass(frozen=True)
class SyncScore:
    """How well a mouth's opening follows the loudness of the sound."""

    peak_r: float
    """The largest correlation (Pearson's r) over lags of up to MAX_LAG frames."""
    lag_frames: int
    """The lag at the peak. Positive: the sound comes later than the mouth's movement; negative: earlier.

    In natural speech the mouth moves first: -40 to +200 ms (METHODS: Lip-sync metrics).
    """
    lag_ms: float
    """The same in milliseconds."""
    r0: float
    """The correlation without a shift."""
    z: float
    """Standard deviations that peak_r lies above the mean correlation of wrong alignments (see sync_correlation)."""


def mouth_opening(landmarks: np.ndarray) -> float:
    """The gap between the inner lips over the inter-ocular distance.

    The gap lies between the means of three points of each lip, which carry less of the landmarks' noise than one.

    :param landmarks: float [68, 2], (x, y), iBUG order; NaN gives NaN.
    :return: 0 for a closed mouth, about 0.5 for a yawn; the same at any size, place and rotation.
    """
    gap = landmarks[_INNER_LOWER_LIP].mean(axis=0) - landmarks[_INNER_UPPER_LIP].mean(axis=0)
    return float(np.linalg.norm(gap)) / inter_ocular_distance(landmarks)


def steady_landmarks(
    find_landmarks: Callable[[np.ndarray, Box], np.ndarray | None], image: np.ndarray, box: Box
) -> np.ndarray | None:
    """The mean of the landmarks that are found from BOXES: with less noise than from one.

    dlib's are whole pixels, and differ from box to box. Measured with a level of noise in the generated crops: the
    opening changes by 0.002 in place of 0.006 (docs/benchmarks.md, "How a mouth's opening is read").

    :param find_landmarks: of an image's face in a box.
    :param image: RGB uint8 [H, W, 3].
    :return: float [68, 2], (x, y) in image pixels; None where one box gives none.
    """
    y1, y2, x1, x2 = box
    height, width = y2 - y1, x2 - x1
    found = []
    for right, down, size in BOXES:
        middle_x, middle_y = (x1 + x2) / 2 + right * width, (y1 + y2) / 2 + down * height
        top, bottom = (round(middle_y + side * size * height / 2) for side in (-1, 1))
        left, end = (round(middle_x + side * size * width / 2) for side in (-1, 1))
        landmarks = find_landmarks(image, (top, bottom, left, end))
        if landmarks is None:
            return None
        found.append(landmarks)
    return np.asarray(np.mean(found, axis=0))


def compare_openings(opening: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """Whether a mouth moves as it did before something was done to it.

    :param opening: float [n], `mouth_opening` per frame, NaN where it is not known; `before` likewise.
    :return: Pearson's r of the two without a lag, and the standard deviation over that before; NaN when the mouth
        hardly moved before (see MIN_MOVEMENT), or in fewer than two frames both are known.
    """
    known = np.isfinite(opening) & np.isfinite(before)
    opening, before = opening[known], before[known]
    if known.sum() < 2 or before.std() < MIN_MOVEMENT:
        return np.nan, np.nan
    return opening_correlation(opening, before), float(opening.std() / before.std())


def landmark_distance(landmarks: np.ndarray, reference: np.ndarray) -> float:
    """LMD: the mean distance of the lip's landmarks from the reference's, over the reference's inter-ocular distance.

    Measured after the similarity (rotation, scale, translation) that best maps nose and eyes onto the reference's in
    the least-squares sense, so the head's place and size do not count (METHODS: Lip-sync metrics).

    :param landmarks: float [68, 2], (x, y), iBUG order; `reference` likewise, of another frame of any size. NaN in
        either gives NaN.
    :return: 0 for the same mouth.
    """
    if not (np.isfinite(landmarks).all() and np.isfinite(reference).all()):
        return float("nan")
    to_reference = head_similarity(landmarks, reference)
    lips = landmarks[LIP] @ to_reference[:, :2].T + to_reference[:, 2]
    return float(np.linalg.norm(lips - reference[LIP], axis=1).mean()) / inter_ocular_distance(reference)


def head_similarity(landmarks: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The similarity (rotation, scale, translation) that best maps nose and eyes onto the reference's in the
    least-squares sense: float64 [2, 3], from pixels (x, y) to pixels.

    :param landmarks: float [68, 2], (x, y), iBUG order, no NaN; `reference` likewise.
    """
    # as complex numbers, since there a similarity without reflection is a line: w = a z + b
    z, w = (_complex(points[_NOSE_AND_EYES]) for points in (landmarks, reference))
    a = np.vdot(z - z.mean(), w - w.mean()) / np.vdot(z - z.mean(), z - z.mean())
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def pose_distances(landmarks: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """How differently heads are turned: how far nose and eyes stay from the reference's after the best similarity, root
    of the mean square, over the distance of the eyes. About 0.01 for the same pose, more for another yaw or pitch.

    :param landmarks: float [n, 68, 2], (x, y), iBUG order, no NaN; `reference` [68, 2] likewise.
    :return: float64 [n], the same at any size, place and rotation in the picture.
    """
    z, w = (_complex(points[..., _NOSE_AND_EYES, :]) for points in (landmarks, reference))
    z, w = (points - points.mean(axis=-1, keepdims=True) for points in (z, w))
    a = (z.conj() * w).sum(axis=1) / (np.abs(z) ** 2).sum(axis=1)
    rest = np.abs(a[:, None] * z - w) ** 2
    return np.sqrt(rest.mean(axis=1)) / inter_ocular_distance(reference)


def sync_correlation(opening: np.ndarray, envelope: np.ndarray, fps: Fraction | float) -> SyncScore:
    """Normalised cross-correlation of a mouth's opening and the sound's loudness (METHODS: Lip-sync metrics).

    On short clips trust the lag more than z. Measured on four real clips of 5 to 10 s in sync, dlib's landmarks: lag
    within one frame of 0 on each, but peak_r only 0.18 to 0.38 and z 1.3 to 2.6; 20 pairings with another's speech
    gave peak_r up to 0.45 and z up to 4.1, at lags of anything.

    Wrong alignments, for the z-score, are the circular shifts by more than MAX_LAG frames, up to MAX_SHIFTS of them
    evenly spread.

    :param opening: float [n], `mouth_opening` per frame, NaN where there is no face: those frames are left out.
    :param envelope: float [n], `audio.rms_envelope` at the same frames, full scale 1.
    :param fps: frames per second.
    :raises InputError: fewer than MIN_FRAMES frames with a face, a mouth that never moves, or sound whose level never
        changes (silence): there is nothing to measure then.
    """
    faces = np.isfinite(opening)
    if faces.sum() < MIN_FRAMES:
        raise InputError(
            f"lip-sync: {faces.sum()} of {len(opening)} frames show a face; give a video with {MIN_FRAMES} or more"
        )
    if np.ptp(opening[faces]) < MIN_OPENING_RANGE:
        raise InputError("lip-sync: the mouth does not move in any frame; give a video of someone who speaks")
    if np.ptp(envelope) < MIN_LEVEL_RANGE:
        raise InputError("lip-sync: the sound is silent or its level never changes; give speech")

    n = len(opening)
    correlations = {
        lag: opening_correlation(opening[max(0, -lag) : n - max(0, lag)], envelope[max(0, lag) : n - max(0, -lag)])
        for lag in range(-MAX_LAG, MAX_LAG + 1)
    }
    lag, peak = max(correlations.items(), key=lambda item: item[1])
    wrong = np.arange(MAX_LAG + 1, n - MAX_LAG)
    wrong = wrong[:: -(-len(wrong) // MAX_SHIFTS)]
    chance = np.array([opening_correlation(opening, np.roll(envelope, shift)) for shift in wrong])
    return SyncScore(
        peak_r=peak,
        lag_frames=lag,
        lag_ms=float(1000 * lag / fps),
        r0=correlations[0],
        z=float((peak - chance.mean()) / chance.std()),
    )


def _complex(landmarks: np.ndarray) -> np.ndarray:
    return landmarks.astype(np.float64) @ np.array([1, 1j])
