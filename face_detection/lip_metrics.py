"""How a mouth moves: its opening, its distance from another mouth, its synchrony with sound. Needs no weights."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from guided_diffusion.errors import InputError
from guided_diffusion.lip_util import inter_ocular_distance, opening_correlation

from .api import LIP

MAX_LAG = 15
"""Frames by which sound and mouth are shifted against each other, either way (METHODS: Lip-sync metrics)."""

MIN_FRAMES = 3 * MAX_LAG
"""Fewer frames say nothing about synchrony: at the largest lag too few of them overlap."""

# What varies less than this is noise. Levels: full scale is 1, so 0.0001 is -80 dB.
MIN_LEVEL_RANGE = 1e-4
MIN_OPENING_RANGE = 1e-3

MAX_SHIFTS = 1000  # more circular shifts make the z-score of a long video slower, not better

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
    # as complex numbers, since there a similarity without reflection is a line: w = a z + b
    z, w = _complex(landmarks), _complex(reference)
    z, w = z - z[_NOSE_AND_EYES].mean(), w - w[_NOSE_AND_EYES].mean()
    a = np.vdot(z[_NOSE_AND_EYES], w[_NOSE_AND_EYES]) / np.vdot(z[_NOSE_AND_EYES], z[_NOSE_AND_EYES])
    return float(np.abs(a * z[LIP] - w[LIP]).mean()) / inter_ocular_distance(reference)


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
