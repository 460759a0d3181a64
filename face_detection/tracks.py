"""One person's face through a video: across which gaps, in which smoothed boxes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise
from pathlib import Path

import cv2
import numpy as np

from face_detection.api import MIN_FACE_SIDE, Corners, Detection
from face_detection.array_files import check_arrays, load_arrays, save_arrays
from face_detection.following import MAX_GAP, Identify, choose, follow
from face_detection.video_faces import VideoFaces
from guided_diffusion.errors import InputError
from guided_diffusion.streams import Box, Face
from guided_diffusion.tfg_data_util import visible_box

MOUTH_HEIGHT = 0.75
"""Where the mouth is in a detector's box, of its height."""

VOXCELEB2_SIZE = 224
"""px, the sides of the frames that `voxceleb2_box` is for."""

JUMP = 0.05
"""Landmarks of brows, nose and eyes jump when they are further, of the brows' width and on average, from where they are
in most frames around, with the head held still."""

JUMP_REACH = 3  # frames on either side: up to three wrong ones in a row are outvoted
RIGID = slice(17, 48)  # landmarks that move with the head: brows, nose, eyes

Pads = tuple[int, int, int, int]
HeadMotion = Callable[[np.ndarray, np.ndarray, Box], "np.ndarray | None"]


@dataclass(frozen=True)
class FaceTrack:
    """One person's face, per source frame."""

    boxes: np.ndarray
    """int64 [F, 4], (y1, y2, x1, x2), half open, in frame pixels; rows of zeros where there is no face. A face that
    the frame's edge cuts off keeps its whole box, which reaches beyond the frame: see `crop_box`, `visible_box`."""
    landmarks: np.ndarray | None
    """float32 [F, 68, 2], (x, y) in frame pixels, NaN where there is no face; None when they were not looked for."""
    has_face: np.ndarray
    """bool [F]. Of a face with its mouth outside the frame nothing can be changed: it counts as none."""
    is_interpolated: np.ndarray
    """bool [F], True where the face was not detected but lies between two detections."""
    is_cut: np.ndarray
    """bool [F], True on the first frame after a hard cut; frame 0 is False."""
    mouth_outside: np.ndarray | None = None
    """bool [F], True where the person is seen, but not the mouth; None: everywhere False."""
    others_only: np.ndarray | None = None
    """bool [F], True where there are faces, but none of the person's; None: everywhere False."""
    motion: np.ndarray | None = None
    """float32 [F, 2, 3], the head's movement, from pixels (x, y) of the frame before to this one's; NaN where unknown.
    None when it was not asked for: `with_motion`."""
    placements: np.ndarray | None = None
    """float32 [F, 2, 3], how the crops lie in the frames (`Face.placement`), NaN where there is no face. None when they
    are what the boxes show: `stable_crop.stable_crops`."""

    def face(self, source: int, index: int, is_cut: bool, last: int | None = None) -> Face | None:
        """The face in a source frame, shown as output frame `index`, with which a shot may begin.

        :param last: the source frame that was shown before; None for the first one.
        """
        if not self.has_face[source]:
            return None
        y1, y2, x1, x2 = (int(v) for v in self.boxes[source])
        landmarks = None if self.landmarks is None else self.landmarks[source]
        motion = None if last is None or is_cut else self.motion_between(last, source)
        placement = None if self.placements is None else self.placements[source]
        return Face(index, (y1, y2, x1, x2), landmarks, is_cut, motion, placement)

    @property
    def goes_on(self) -> np.ndarray:
        """bool [F], True where the frame before shows the face too, in the same shot."""
        return self.has_face & np.concatenate([[False], self.has_face[:-1]]) & ~self.is_cut

    def motion_between(self, before: int, after: int) -> np.ndarray | None:
        """The head's movement float32 [2, 3] from one source frame to the same or a neighbour; None where unknown."""
        if self.motion is None or abs(after - before) > 1 or not (self.has_face[before] and self.has_face[after]):
            return None
        if before == after:
            return np.eye(2, 3, dtype=np.float32)
        motion = self.motion[max(before, after)]
        if np.isnan(motion).any():
            return None
        return motion if before < after else cv2.invertAffineTransform(motion)

    def summary(self) -> str:
        """One line for the report: "125 frames: 120 detected, 5 interpolated, 0 without a face, 1 cut".

        Frames with the mouth outside, frames with others only and, where it was asked for, frames in which the head's
        movement could not be told are named apart, where there are any.
        """
        frames, faces = len(self.has_face), int(self.has_face.sum())
        interpolated, cuts = int(self.is_interpolated.sum()), int(self.is_cut.sum())
        outside, others = (0 if flags is None else int(flags.sum()) for flags in (self.mouth_outside, self.others_only))
        lost = 0 if self.motion is None else int((self.goes_on & np.isnan(self.motion).any(axis=(1, 2))).sum())
        parts = [
            f"{faces - interpolated} detected",
            f"{interpolated} interpolated",
            f"{frames - faces - outside - others} without a face",
            *([f"{outside} with the mouth outside the frame"] if outside else []),
            *([f"{others} with other people only"] if others else []),
            _count(cuts, "cut"),
            *([f"head not followed in {_count(lost, 'frame')}"] if lost else []),
        ]
        return f"{_count(frames, 'frame')}: {', '.join(parts)}"

    def save(self, path: str | Path) -> None:
        """Writes an .npz; the file appears complete or not at all."""
        save_arrays(path, {name: value for name, value in vars(self).items() if value is not None})

    @classmethod
    def load(cls, path: str | Path) -> FaceTrack:
        """Reads what `save` wrote.

        :raises InputError: the file is not a face track.
        :raises OSError: the file cannot be read.
        """
        return load_arrays(path, "a face track", lambda arrays: cls(**{"landmarks": None, **arrays}))

    def __post_init__(self) -> None:
        frames = len(self.boxes)
        expected = {
            "boxes": (np.int64, (frames, 4)),
            "landmarks": (np.float32, (frames, 68, 2)),
            "motion": (np.float32, (frames, 2, 3)),
            "placements": (np.float32, (frames, 2, 3)),
        }
        flags = (np.bool_, (frames,))
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        check_arrays(arrays, {name: expected.get(name, flags) for name in arrays})


def build_track(
    faces: VideoFaces,
    n_frames: int,
    *,
    pads: Pads,
    face_index: int = -1,
    smooth_window: int = 5,
    identify: Identify | None = None,
    detection_size: int | None = None,
    motion: np.ndarray | None = None,
) -> FaceTrack:
    """Follows one person through the first frames of a video.

    A shot starts at the video's first frame and at every hard cut. In its first frame with (enough) faces one is
    chosen, see `face_index`; from then on, the detection that overlaps most with the box seen last. The face is lost
    when it is missing for more than MAX_GAP frames. Shorter gaps inside a shot are interpolated linearly, boxes and
    landmarks; frames in other gaps have no face.

    Who is taken after a face was lost, and in the next shot:

    - with face_index -1 whoever has the best score then;
    - with another one only the person that was chosen in the beginning: a face that looks the same. `identify` is asked
      once for each face that comes up, in the frame where its score is best. Without `identify` it is a face at the
      place where the person was lost, and the n-th from the left in the next shot.

    Box arithmetic (REFERENCE.md: video loop): corners rounded down, grown by `pads` up to the frame's edges, then
    `smooth_boxes` over each run of consecutive frames with a face in a shot. Unlike upstream's, a detection that
    reaches beyond the frame is not clipped: what the network gets is framed as a face always is. A detection of which
    the frame shows less than MIN_FACE_SIDE px on a side does not count, and where the mouth is outside the frame there
    is no face to change.

    :param faces: what `find_faces` found. When it has fewer frames than wanted, the track ends with it.
    :param n_frames: frames of the track.
    :param pads: pixels added at the top, bottom, left and right.
    :param face_index: -1 chooses the face with the best score, n the n-th from the left (0 is the leftmost).
    :param smooth_window: boxes averaged, 1 for no smoothing.
    :param identify: tells what a face looks like.
    :param detection_size: the long side at which faces were searched, for the advice when there are none; None when the
        user cannot choose it.
    :param motion: of a track made without it (`with_motion`): the face then goes the head's way across gaps, not a
        straight line, and across frames whose landmarks jump (see JUMP).
    :raises InputError: no face in the whole video, or none with its mouth in the frame; face_index out of range in its
        first frame with faces. And what `identify` raises.
    """
    usable = _usable(faces, n_frames, pads)
    cuts = faces.is_cut[:n_frames]
    _check_index(usable, face_index)
    followed = follow(usable, cuts, face_index, identify)
    detected = np.array([face is not None for face in followed], dtype=bool)
    if not detected.any():
        raise InputError(_no_face(len(usable), faces.size, detection_size))

    corners, landmarks = _arrays(followed)
    between = _short_gaps(detected, cuts)
    shown = detected | between
    trusted, filled = detected, np.zeros_like(detected)
    if motion is not None:
        if landmarks is not None:
            trusted = detected & ~_jumps(landmarks, shown, cuts, motion)
        filled = _carry(corners, landmarks, trusted, shown, cuts, motion)
    straight = shown & ~trusted & ~filled
    _interpolate(corners, trusted, straight)
    if landmarks is not None:
        _interpolate(landmarks, trusted, straight)

    # by the box, also where there are landmarks: a lip mask, which asks for them, must not change who has a face
    has_face = shown & _is_inside(mouth_places(corners[:, [1, 3, 0, 2]]), faces.size)
    if not has_face.any():
        raise InputError(
            f"the face's mouth is outside the picture in all of the {_count(len(usable), 'frame')} of the video; "
            "give a video that shows it"
        )
    if landmarks is not None:
        landmarks[~has_face] = np.nan
    boxes = np.zeros((len(usable), 4), dtype=np.int64)
    for frame in np.flatnonzero(shown):
        boxes[frame] = _padded_box(corners[frame].tolist(), pads, faces.size)
    for run in runs(shown, cuts):
        # with the frames whose mouth is outside: ending before them, the smoothing would hold a moving box back
        boxes[run] = smooth_boxes(boxes[run], smooth_window)
    boxes[~has_face] = 0
    return FaceTrack(
        boxes,
        landmarks,
        has_face,
        is_interpolated=between & has_face,
        is_cut=cuts,
        mouth_outside=shown & ~has_face,
        others_only=np.array([bool(seen) for seen in usable]) & ~shown,
        motion=motion,
    )


def fixed_track(n_frames: int, box: Box) -> FaceTrack:
    """The track of a face that is known to stay in one box, as in cropped data sets."""
    nothing = np.zeros(n_frames, dtype=bool)
    return FaceTrack(
        boxes=np.tile(np.array(box, dtype=np.int64), (n_frames, 1)),
        landmarks=None,
        has_face=~nothing,
        is_interpolated=nothing,
        is_cut=nothing,
    )


def voxceleb2_box(height: int, width: int) -> Box:
    """The fixed crop of a VoxCeleb2 frame (REFERENCE.md: video loop). Of frames of another size it warns."""
    if (width, height) != (VOXCELEB2_SIZE, VOXCELEB2_SIZE):
        print(
            f"warning: --is_voxceleb2 True takes a fixed crop of 224 x 224 frames, this video is {width} x {height}; "
            "give --is_voxceleb2 False to detect faces",
            file=sys.stderr,
        )
    side = int(width * 1.8 / 8)
    return 0, height - int(height * 2.36 / 8), side, width - side


def with_motion(track: FaceTrack, frames: Iterable[np.ndarray], head_motion: HeadMotion) -> FaceTrack:
    """The track with `motion` between neighbouring frames of a shot with a face.

    :param frames: of the video from its first on, RGB uint8 [H, W, 3], streamed: two are held. Those beyond the track
        are not read.
    :param head_motion: `temporal_consistency.head_motion`.
    """
    motion = np.full((len(track.boxes), 2, 3), np.nan, dtype=np.float32)
    for index, (before, frame) in enumerate(pairwise(islice(frames, len(motion))), 1):
        if track.goes_on[index]:
            found = head_motion(before, frame, visible_box(track.boxes[index - 1], before.shape[:2]))
            if found is not None:
                motion[index] = found
    return replace(track, motion=motion)


# --------------------------------------------------------------------------------------------- steadier, over time


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
    for run in runs(track.has_face, track.is_cut):
        for position, frame in enumerate(run):
            side = min(reach, position, len(run) - 1 - position)
            weights = LANDMARK_WINDOW[reach - side : reach + side + 1]
            window = track.landmarks[frame - side : frame + side + 1]
            landmarks[frame] = np.tensordot(weights / weights.sum(), window, axes=1)
    return replace(track, landmarks=landmarks)


def check_face_index(faces: VideoFaces, *, pads: Pads, face_index: int) -> None:
    """:raises InputError: the first frame with faces has not enough for `face_index` (see `build_track`)."""
    _check_index(_usable(faces, len(faces.faces), pads), face_index)


def _usable(faces: VideoFaces, n_frames: int, pads: Pads) -> list[list[Detection]]:
    """The faces of each of the first frames that are large enough."""

    def is_usable(face: Detection) -> bool:
        y1, y2, x1, x2 = visible_box(_padded_box(face.box, pads, faces.size), faces.size)
        return min(y2 - y1, x2 - x1) >= MIN_FACE_SIDE

    return [[face for face in seen if is_usable(face)] for seen in faces.faces[:n_frames]]


def _check_index(usable: Sequence[Sequence[Detection]], face_index: int) -> None:
    for frame, faces in enumerate(usable):
        if faces:
            if choose(faces, face_index) is None:
                raise InputError(
                    f"--face_index {face_index}: the first frame with faces (frame {frame}) has "
                    f"{_count(len(faces), 'face')}; give {_indices(len(faces))}, or -1 for the best-scored"
                )
            return


def _no_face(n_frames: int, size: tuple[int, int], detection_size: int | None) -> str:
    problem = f"no face in any of the {_count(n_frames, 'frame')} of the video"
    side = max(size)
    if detection_size is None or side <= detection_size:
        return f"{problem}; give a video that shows a face, or try another --face_detector"
    return (
        f"{problem}, searched at {detection_size} px of their {side}; for a small face give --detection_size "
        f"{min(side, 2 * detection_size)}, else a video that shows one or another --face_detector"
    )


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


def _carry(
    corners: np.ndarray,
    landmarks: np.ndarray | None,
    trusted: np.ndarray,
    shown: np.ndarray,
    is_cut: np.ndarray,
    motion: np.ndarray,
) -> np.ndarray:
    """Fills the rows that are shown but not trusted from the trusted ones around them, in place: with the head held
    still it is linear interpolation, at the ends the nearest row's values. So the head's movement gives the way, and
    what its errors add up to ends at the next trusted row.

    :return: bool [F], the rows that were filled: the movement is known from a trusted row on.
    """
    filled = np.zeros_like(trusted)
    for run in runs(shown, is_cut | _is_unknown(motion)):
        known = trusted[run]
        wanted = [frame for frame in run if not trusted[frame]]
        if not known.any() or not wanted:
            continue
        poses = _poses(motion[run])
        scales = np.sqrt(np.linalg.det(poses[:, :, :2]))[:, None]
        centres, sizes = (corners[run, :2] + corners[run, 2:]) / 2, (corners[run, 2:] - corners[run, :2]) / scales
        points = centres[:, None] if landmarks is None else np.concatenate([centres[:, None], landmarks[run]], axis=1)
        points = _in_head(points, poses)
        _interpolate(points, known, ~known)
        _interpolate(sizes, known, ~known)
        points = points @ poses[:, :, :2].transpose(0, 2, 1) + poses[:, None, :, 2]
        corners[wanted] = np.hstack([points[:, 0] - sizes * scales / 2, points[:, 0] + sizes * scales / 2])[~known]
        if landmarks is not None:
            landmarks[wanted] = points[~known, 1:]
        filled[wanted] = True
    return filled


def _jumps(landmarks: np.ndarray, shown: np.ndarray, is_cut: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """bool [F]: the frames whose landmarks jump, see JUMP."""
    jumps = np.zeros_like(shown)
    for run in runs(shown, is_cut | _is_unknown(motion)):
        points = _in_head(landmarks[run, RIGID], _poses(motion[run]))
        found = ~np.isnan(points).any(axis=(1, 2))
        for position in np.flatnonzero(found):
            around = slice(max(0, position - JUMP_REACH), position + JUMP_REACH + 1)
            usual = np.median(points[around][found[around]], axis=0)
            distance = np.linalg.norm(points[position] - usual, axis=1).mean()
            jumps[run[position]] = distance > JUMP * np.ptp(usual[:, 0])
    return jumps


def _poses(motion: np.ndarray) -> np.ndarray:
    """The head's way through frames in a row, from the first of them to each: float64 [n, 2, 3] from their motion."""
    pose = np.eye(3)
    poses = [pose]
    for step in motion[1:]:
        pose = np.vstack([step, [0, 0, 1]]) @ pose
        poses.append(pose)
    return np.stack(poses)[:, :2]


def _in_head(points: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Points [n, P, 2] of frames in a row where they are with the head held as in the first of them."""
    return (points - poses[:, None, :, 2]) @ np.linalg.inv(poses[:, :, :2]).transpose(0, 2, 1)


def _is_unknown(motion: np.ndarray) -> np.ndarray:
    return np.asarray(np.isnan(motion).any(axis=(1, 2)))


def mouth_places(boxes: np.ndarray) -> np.ndarray:
    """Where the mouths of boxes float [F, 4] (y1, y2, x1, x2) are, as far as boxes tell: float [F, 2], (x, y)."""
    y1, y2, x1, x2 = boxes.T
    return np.stack([(x1 + x2) / 2, y1 + MOUTH_HEIGHT * (y2 - y1)], axis=1)


def _is_inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [F]: whether points (x, y), float [F, 2], are inside a frame of this height and width; False for NaN."""
    return np.all((points >= 0) & (points < size[::-1]), axis=1)


def _padded_box(corners: Corners, pads: Pads, size: tuple[int, int]) -> Box:
    """A detected box x1, y1, x2, y2 with its corners rounded down, grown by the pads.

    For a box inside the frame it is upstream's arithmetic (REFERENCE.md: video loop). Beyond the frame nothing grows,
    but what was detected there stays.
    """
    x1, y1, x2, y2 = (math.floor(v) for v in corners)
    top, bottom, left, right = pads
    height, width = size
    return (
        max(y1 - top, min(y1, 0)),
        min(y2 + bottom, max(y2, height)),
        max(x1 - left, min(x1, 0)),
        min(x2 + right, max(x2, width)),
    )


def runs(has_face: np.ndarray, is_cut: np.ndarray) -> Iterator[list[int]]:
    """The frames of each run of consecutive frames with a face in one shot."""
    run = np.cumsum(is_cut | ~has_face)
    for _, frames in groupby(np.flatnonzero(has_face).tolist(), key=lambda frame: run[frame]):
        yield list(frames)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _indices(number: int) -> str:
    return "0" if number == 1 else f"0 to {number - 1}"
