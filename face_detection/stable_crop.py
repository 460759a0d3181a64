"""Where the crops of a face lie, to fractions of a pixel and steady over time: a placement for each frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from face_detection.tracks import FaceTrack, runs

SIGMA = 1.5
"""Frames, the standard deviation of the Gaussian that boxes and roll are smoothed with: it averages about as many as
upstream's mean of five, but those before as well. With 3, quick heads leave their boxes behind."""

REACH = round(4 * SIGMA)

NATURAL_ROLL = np.radians(10)
"""Up to here networks have seen heads tilted in training; heads that are tilted further are turned back to here. Turned
upright all the way, heads came out worse that the network knew tilted (docs/benchmarks.md)."""

RIGHT_EYE, LEFT_EYE = slice(36, 42), slice(42, 48)
MOUTH_CORNERS = [48, 54]


def stable_crops(track: FaceTrack) -> FaceTrack:
    """The track with `placements`: of each frame the similarity by which the crop lies in the frame.

    Centre, logarithm of width and height, and roll of the face are smoothed in each run of frames of one shot, see
    `smoothed`. Width and height go apart, as a detector's box ends at the chin. What the roll has beyond NATURAL_ROLL
    turns the crop. The boxes are those before turning, rounded to whole pixels.

    :param track: whose boxes are not smoothed yet. Without landmarks nothing is turned.
    """
    boxes = track.boxes.copy()
    placements = np.full((len(boxes), 2, 3), np.nan, np.float32)
    for run in runs(track.has_face, track.is_cut):
        y1, y2, x1, x2 = track.boxes[run].T
        roll = np.zeros(len(run)) if track.landmarks is None else face_roll(track.landmarks[run])
        x, y, log_width, log_height, roll = smoothed(
            np.stack([(x1 + x2) / 2, (y1 + y2) / 2, np.log(x2 - x1), np.log(y2 - y1), roll])
        )
        turn = roll - roll.clip(-NATURAL_ROLL, NATURAL_ROLL)
        width, height = np.exp(log_width), np.exp(log_height)
        sides = np.rint([height, width])
        top, left = np.rint([y, x] - sides / 2)
        boxes[run] = np.stack([top, top + sides[0], left, left + sides[1]], axis=1)
        # the edges' middle is half a pixel before the pixels' with that number
        placements[run] = _placements(x - 0.5, y - 0.5, width / sides[1], height / sides[0], turn, sides)
    return replace(track, boxes=boxes, placements=placements)


def _placements(
    x: np.ndarray, y: np.ndarray, x_scale: np.ndarray, y_scale: np.ndarray, turn: np.ndarray, sides: np.ndarray
) -> np.ndarray:
    """[n, 2, 3]: from pixels of crops with these sides (heights, widths) [2, n] to the frame's, middle to (x, y)."""
    across = x_scale * np.array([np.cos(turn), np.sin(turn)])
    down = y_scale * np.array([-np.sin(turn), np.cos(turn)])
    height, width = sides
    corner = np.array([x, y]) - across * (width - 1) / 2 - down * (height - 1) / 2
    return np.stack([across, down, corner], axis=-1).swapaxes(0, 1)


def face_roll(landmarks: np.ndarray) -> np.ndarray:
    """By how much faces are tilted in the picture: radians [n], positive clockwise, without jumps of a full turn.

    The direction from eye to eye, and that from the eyes to the mouth a quarter turn on, summed: of a face seen from
    the side, whose eyes are close together, the latter counts (Karras et al. 2018 align faces by the same sum).

    :param landmarks: float [n, 68, 2]; where they are NaN the roll goes in a straight line between the frames around.
    """
    right, left = (landmarks[:, eye].mean(axis=1) for eye in (RIGHT_EYE, LEFT_EYE))
    down = landmarks[:, MOUTH_CORNERS].mean(axis=1) - (right + left) / 2
    x, y = (left - right + down @ np.array([[0, -1], [1, 0]])).T.astype(np.float64)
    frames, known = np.arange(len(x)), np.isfinite(x)
    if not known.any():
        return np.zeros(len(x))
    return np.interp(frames, frames[known], np.unwrap(np.arctan2(y[known], x[known])))


def smoothed(values: np.ndarray) -> np.ndarray:
    """Rows [..., n] over time, each smoothed by a Gaussian of SIGMA frames: lines through what is around each frame.

    Inside it is the Gaussian's mean, which does not lag. At the ends, where that looks to one side more than to the
    other and would hold a movement back, the line goes on (local linear regression, Cleveland 1979): an even movement
    stays as it is up to its ends.
    """
    distance = np.arange(-REACH, REACH + 1)
    weights = np.exp(-((distance / SIGMA) ** 2) / 2)

    def summed(row: np.ndarray, power: int) -> np.ndarray:
        """Of the frames around each: the sum of weight * distance^power * value."""
        return np.convolve(row, (weights * distance**power)[::-1])[REACH:-REACH]

    n = values.shape[-1]
    if n == 1:
        return values
    w0, w1, w2 = (summed(np.ones(n), power) for power in range(3))
    rows = [(w2 * summed(row, 0) - w1 * summed(row, 1)) / (w0 * w2 - w1**2) for row in values.reshape(-1, n)]
    return np.stack(rows).reshape(values.shape)
