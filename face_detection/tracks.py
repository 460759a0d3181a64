"""One person's face through a video: who is followed, across which gaps, in which smoothed boxes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise
from pathlib import Path

import cv2
import numpy as np

from face_detection.api import MIN_FACE_SIDE, Detection, integer_corners
from guided_diffusion.errors import InputError
from guided_diffusion.store import replace_when_complete

MAX_GAP = 12
"""Frames without the face that are bridged by interpolation: half a second at 25 fps."""

MIN_OVERLAP = 0.1
"""A face belongs to the one seen last when their boxes' intersection over union is at least this."""

VOXCELEB2_SIZE = 224
"""px, the side of VoxCeleb2's frames."""

Pads = tuple[int, int, int, int]
Detect = Callable[[Sequence[np.ndarray]], list[list[Detection]]]


@dataclass(frozen=True)
class FaceTrack:
    """One person's face, per source frame."""

    boxes: np.ndarray
    """int64 [F, 4], (y1, y2, x1, x2), half open, in frame pixels; rows of zeros where there is no face."""
    landmarks: np.ndarray | None
    """float32 [F, 68, 2], (x, y) in frame pixels, NaN where there is no face; None when they were not looked for."""
    has_face: np.ndarray
    """bool [F]."""
    is_interpolated: np.ndarray
    """bool [F], True where the face was not detected but lies between two detections."""
    is_cut: np.ndarray
    """bool [F], True on the first frame after a hard cut; frame 0 is False."""

    def summary(self) -> str:
        """One line for the report: "125 frames: 120 detected, 5 interpolated, 0 without a face, 1 cut"."""
        frames, faces = len(self.has_face), int(self.has_face.sum())
        interpolated, cuts = int(self.is_interpolated.sum()), int(self.is_cut.sum())
        return (
            f"{_count(frames, 'frame')}: {faces - interpolated} detected, {interpolated} interpolated, "
            f"{frames - faces} without a face, {_count(cuts, 'cut')}"
        )

    def save(self, path: str | Path) -> None:
        """Writes an .npz; the file appears complete or not at all."""
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        with replace_when_complete(Path(path)) as part, open(part, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> FaceTrack:
        """Reads what `save` wrote.

        :raises InputError: the file is not a face track.
        :raises OSError: the file cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(**{"landmarks": None, **stored})
        except (AttributeError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not a face track ({' '.join(str(error).split())}); delete the file") from error

    def __post_init__(self) -> None:
        frames = len(self.boxes)
        expected = {
            "boxes": (np.int64, (frames, 4)),
            "landmarks": (np.float32, (frames, 68, 2)),
            "has_face": (np.bool_, (frames,)),
            "is_interpolated": (np.bool_, (frames,)),
            "is_cut": (np.bool_, (frames,)),
        }
        for name, value in vars(self).items():
            if value is not None and (value.dtype, value.shape) != expected[name]:
                raise ValueError(f"{name} is {value.dtype} {list(value.shape)}")


def build_track(
    frames: Iterable[np.ndarray],
    detect: Detect,
    *,
    batch_size: int,
    pads: Pads,
    face_index: int = -1,
    smooth_window: int = 5,
) -> FaceTrack:
    """Follows one person through a video.

    The frames are streamed: at most `batch_size` of them are held, and only boxes and landmarks are kept.

    A shot starts at the video's first frame and at every hard cut. In the first frame of a shot with (enough) faces one
    is chosen, see `face_index`; from then on, the detection that overlaps most with the box seen last. When the face is
    missing for more than MAX_GAP frames, a face is chosen anew, as at a shot's start. Shorter gaps inside a shot are
    interpolated linearly, boxes and landmarks; frames in other gaps have no face.

    Box arithmetic (REFERENCE.md: video loop): corners clipped at 0 and truncated, grown by `pads`, limited to the
    frame, then `smooth_boxes` over each run of consecutive frames with a face in a shot. A detection whose box is then
    under MIN_FACE_SIDE px on a side does not count.

    :param frames: RGB uint8 [H, W, 3].
    :param detect: faces of each image of a batch, best score first (`FaceAlignment.detect`).
    :param batch_size: frames per call of `detect`.
    :param pads: pixels added at the top, bottom, left and right.
    :param face_index: -1 chooses the face with the best score, n the n-th from the left (0 is the leftmost).
    :param smooth_window: boxes averaged, 1 for no smoothing.
    :raises InputError: no face in the whole video; face_index out of range in its first frame with faces.
    """
    faces: list[Detection | None] = []
    is_cut: list[bool] = []
    sizes: list[tuple[int, int]] = []
    for face, scene in _follow(_observe(frames, detect, batch_size, pads), face_index):
        faces.append(face)
        is_cut.append(scene.is_cut)
        sizes.append(scene.size)

    detected = np.array([face is not None for face in faces], dtype=bool)
    if not detected.any():
        raise InputError(
            f"no face in any of the {_count(len(faces), 'frame')} of the video; "
            "give a video that shows a face, or try another --face_detector"
        )
    cuts = np.array(is_cut, dtype=bool)
    corners, landmarks = _arrays(faces)
    is_interpolated = _short_gaps(detected, cuts)
    has_face = detected | is_interpolated
    _interpolate(corners, detected, is_interpolated)
    if landmarks is not None:
        _interpolate(landmarks, detected, is_interpolated)

    boxes = np.zeros((len(faces), 4), dtype=np.int64)
    for frame in np.flatnonzero(has_face):
        boxes[frame] = _padded_box(corners[frame].tolist(), pads, sizes[frame])
    for run in _runs(has_face, cuts):
        boxes[run] = smooth_boxes(boxes[run], smooth_window)
    return FaceTrack(boxes, landmarks, has_face, is_interpolated, cuts)


def fixed_track(n_frames: int, box: tuple[int, int, int, int]) -> FaceTrack:
    """The track of a face that is known to stay in one box (y1, y2, x1, x2), as in cropped data sets."""
    nothing = np.zeros(n_frames, dtype=bool)
    return FaceTrack(
        boxes=np.tile(np.array(box, dtype=np.int64), (n_frames, 1)),
        landmarks=None,
        has_face=~nothing,
        is_interpolated=nothing,
        is_cut=nothing,
    )


def voxceleb2_box(height: int, width: int) -> tuple[int, int, int, int]:
    """The fixed crop (y1, y2, x1, x2) of a VoxCeleb2 frame (REFERENCE.md: Video loop)."""
    side = int(width * 1.8 / 8)
    return 0, height - int(height * 2.36 / 8), side, width - side


def smooth_boxes(boxes: np.ndarray, window: int = 5) -> np.ndarray:
    """Each box becomes the mean of itself and the following window - 1, truncated (REFERENCE.md: video loop).

    As upstream does it, quirks included: the last window - 1 rows average the last `window` rows, of which the earlier
    ones are smoothed by then; with fewer rows than `window`, every row averages the last (window - rows) rows, or all.

    :param boxes: integers [N, 4], N may be 0; not modified.
    :param window: boxes averaged, at least 1; 1 changes nothing.
    :return: [N, 4] of the same dtype.
    """
    smoothed = boxes.copy()
    for row in range(len(boxes)):
        start = min(row, len(boxes) - window)
        # A negative start counts from the end: that is what upstream's slice does with fewer rows than `window`.
        smoothed[row] = np.mean(smoothed[start:][:window], axis=0)
    return smoothed


LANDMARK_WINDOW = np.array([1, 4, 6, 4, 1]) / 16
"""A binomial approximation of a Gaussian of one frame's width."""


def smooth_landmarks(track: FaceTrack) -> FaceTrack:
    """The track with steadier landmarks, the rest as it is: each is the weighted mean of two frames on either side.

    The window is symmetric, so the landmarks do not lag; towards the ends of a run of frames of one shot it gets
    shorter on both sides. Movement at a constant speed stays as it is. Not upstream's, which has no use for landmarks.
    """
    if track.landmarks is None:
        return track
    landmarks = track.landmarks.copy()
    reach = len(LANDMARK_WINDOW) // 2
    for run in _runs(track.has_face, track.is_cut):
        for position, frame in enumerate(run):
            side = min(reach, position, len(run) - 1 - position)
            weights = LANDMARK_WINDOW[reach - side : reach + side + 1]
            window = track.landmarks[frame - side : frame + side + 1]
            landmarks[frame] = np.tensordot(weights / weights.sum(), window, axes=1)
    return replace(track, landmarks=landmarks)


class CutDetector:
    """Hard cuts: frames whose colours differ from the previous frame's, in another arrangement.

    Two tests on a thumbnail, both must agree. The distance of colour histograms knows nothing of places, so motion
    leaves it small; the correlation of the pictures knows nothing of brightness, so a flash leaves it high.
    Measured on four talking clips, as (histogram distance, 1 - correlation): neighbouring frames at most (.13, .02),
    6 frames apart (.15, .11), shifted by 10 % of the width (.13, .64), brightness x0.7, x1.3 and x1.6 (.81, .03);
    cuts between the clips and between still photographs at least (.56, .43).
    Cuts to the same scene from a similar camera position, dissolves and fades pass unnoticed, and so do some cuts in
    black-and-white video (.18 to .66).
    """

    SIDE = 32
    BINS = 8
    MAX_DISTANCE = 0.3
    MIN_CORRELATION = 0.85

    def __init__(self) -> None:
        self._previous: np.ndarray | None = None

    def update(self, frame: np.ndarray) -> bool:
        """Whether there is a cut between the previous frame and this one; False for the first.

        :param frame: RGB uint8 [H, W, 3].
        """
        previous = self._previous
        self._previous = cv2.resize(frame, (self.SIDE, self.SIDE), interpolation=cv2.INTER_AREA)
        if previous is None:
            return False
        return (
            cv2.compareHist(self._histogram(previous), self._histogram(self._previous), cv2.HISTCMP_BHATTACHARYYA)
            > self.MAX_DISTANCE
            and _correlation(previous, self._previous) < self.MIN_CORRELATION
        )

    def _histogram(self, thumbnail: np.ndarray) -> np.ndarray:
        return cv2.calcHist([thumbnail], [0, 1, 2], None, [self.BINS] * 3, [0, 256] * 3)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two thumbnails, each less its mean colour, in [-1, 1]; 0 when one of them has a single colour."""
    a, b = (image - image.mean(axis=(0, 1)) for image in (a, b))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.sum(a * b)) / norm if norm > 0 else 0.0


@dataclass(frozen=True)
class _Scene:
    """What is known of one frame once its pixels are let go."""

    faces: list[Detection]
    is_cut: bool
    size: tuple[int, int]
    """Height, width."""


def _observe(frames: Iterable[np.ndarray], detect: Detect, batch_size: int, pads: Pads) -> Iterator[_Scene]:
    rest = iter(frames)
    cuts = CutDetector()
    # The batch is never bound to a name here: it would live on while the next one is read.
    while scenes := _observe_batch(list(islice(rest, batch_size)), detect, cuts, pads):
        yield from scenes


def _observe_batch(batch: list[np.ndarray], detect: Detect, cuts: CutDetector, pads: Pads) -> list[_Scene]:
    if not batch:
        return []
    scenes = []
    for frame, faces in zip(batch, detect(batch), strict=True):
        height, width = frame.shape[:2]
        usable = [face for face in faces if _is_usable(_padded_box(face.box, pads, (height, width)))]
        scenes.append(_Scene(usable, cuts.update(frame), (height, width)))
    return scenes


def _follow(scenes: Iterable[_Scene], face_index: int) -> Iterator[tuple[Detection | None, _Scene]]:
    """The followed person's detection in each frame, None where there is none."""
    last: Detection | None = None
    missing = 0
    chosen_before = False
    for frame, scene in enumerate(scenes):
        if scene.is_cut or missing > MAX_GAP:
            last = None
        if last is not None:
            face = _most_overlapping(scene.faces, last)
        else:
            face = _choose(scene.faces, face_index)
            if scene.faces and face is None and not chosen_before:
                raise InputError(
                    f"--face_index {face_index}: the first frame with faces (frame {frame}) has "
                    f"{_count(len(scene.faces), 'face')}; give {_indices(len(scene.faces))}, or -1 for the best-scored"
                )
        chosen_before = chosen_before or face is not None
        missing = 0 if face is not None else missing + 1
        last = face or last
        yield face, scene


def _choose(faces: Sequence[Detection], face_index: int) -> Detection | None:
    if not faces:
        return None
    if face_index == -1:
        return max(faces, key=lambda face: face.score)
    if not 0 <= face_index < len(faces):
        return None
    return sorted(faces, key=lambda face: face.box[0] + face.box[2])[face_index]


def _most_overlapping(faces: Sequence[Detection], last: Detection) -> Detection | None:
    nearest = max(faces, key=lambda face: _overlap(face, last), default=None)
    return nearest if nearest is not None and _overlap(nearest, last) >= MIN_OVERLAP else None


def _overlap(a: Detection, b: Detection) -> float:
    """Intersection over union of the boxes."""
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    common = max(width, 0) * max(height, 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a.box, b.box)]
    return common / (sum(areas) - common)


def _arrays(faces: Sequence[Detection | None]) -> tuple[np.ndarray, np.ndarray | None]:
    """float64 [F, 4] (x1, y1, x2, y2) and, if the detector gives any, float32 [F, 68, 2]; NaN without a face."""
    corners = np.full((len(faces), 4), np.nan)
    landmarks = np.full((len(faces), 68, 2), np.nan, dtype=np.float32)
    for frame, face in enumerate(faces):
        if face is not None:
            corners[frame] = face.box
            if face.landmarks is not None:
                landmarks[frame] = face.landmarks
    return corners, None if np.isnan(landmarks).all() else landmarks


def _short_gaps(detected: np.ndarray, is_cut: np.ndarray) -> np.ndarray:
    """bool [F]: the frames of gaps of up to MAX_GAP frames between two detections of one shot."""
    inside = np.zeros_like(detected)
    frames = np.flatnonzero(detected)
    for before, after in pairwise(frames):
        if after - before - 1 <= MAX_GAP and not is_cut[before + 1 : after + 1].any():
            inside[before + 1 : after] = True
    return inside


def _interpolate(values: np.ndarray, detected: np.ndarray, wanted: np.ndarray) -> None:
    """Fills the wanted rows of values, float [F, ...], linearly from the detected rows around them, in place."""
    frames = np.arange(len(values))
    columns = values.reshape(len(values), -1)  # a view
    for column in columns.T:
        column[wanted] = np.interp(frames[wanted], frames[detected], column[detected])


def _padded_box(corners: Sequence[float], pads: Pads, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(y1, y2, x1, x2) of a detected box, grown by the pads and limited to the frame (REFERENCE.md: video loop)."""
    x1, y1, x2, y2 = integer_corners(corners)
    top, bottom, left, right = pads
    height, width = size
    return max(0, y1 - top), min(height, y2 + bottom), max(0, x1 - left), min(width, x2 + right)


def _is_usable(box: tuple[int, int, int, int]) -> bool:
    y1, y2, x1, x2 = box
    return min(y2 - y1, x2 - x1) >= MIN_FACE_SIDE


def _runs(has_face: np.ndarray, is_cut: np.ndarray) -> Iterator[list[int]]:
    """The frames of each run of consecutive frames with a face in one shot."""
    run = np.cumsum(is_cut | ~has_face)
    for _, frames in groupby(np.flatnonzero(has_face).tolist(), key=lambda frame: run[frame]):
        yield list(frames)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _indices(number: int) -> str:
    return "0" if number == 1 else f"0 to {number - 1}"
