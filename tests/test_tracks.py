"""One person's track: gaps, boxes, smoothing, the head's movement. Detections are scripted, frames are tiny."""

import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scripted_faces import HEIGHT, NO_PADS, WIDTH, Frame, counting, face, faces_of, scripted, track_of

from face_detection.api import Detection
from face_detection.following import MAX_GAP
from face_detection.tracks import (
    FaceTrack,
    build_track,
    fixed_track,
    smooth_boxes,
    smooth_landmarks,
    voxceleb2_box,
    with_motion,
)
from face_detection.video_faces import find_faces
from guided_diffusion.errors import InputError
from temporal_consistency import head_motion

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared"


# --- smoothing


@pytest.mark.parametrize(("name", "smoothed"), [("boxes", "smoothed"), ("short", "short_smoothed")])
def test_smoothing_is_the_reference_implementations(name: str, smoothed: str) -> None:
    with np.load(DATA / "boxes.npz") as golden:
        np.testing.assert_array_equal(smooth_boxes(golden[name]), golden[smoothed])


some_boxes = arrays(np.int64, st.tuples(st.integers(0, 12), st.just(4)), elements=st.integers(0, 4000))


@given(some_boxes, st.integers(1, 7))
def test_smoothing_keeps_shape_type_range_and_its_argument(boxes: np.ndarray, window: int) -> None:
    before = boxes.copy()
    smoothed = smooth_boxes(boxes, window)
    np.testing.assert_array_equal(boxes, before)
    assert (smoothed.shape, smoothed.dtype) == (boxes.shape, boxes.dtype)
    if len(boxes):
        assert (smoothed >= boxes.min(axis=0)).all()
        assert (smoothed <= boxes.max(axis=0)).all()


@given(st.integers(0, 12), st.integers(1, 7), st.tuples(*[st.integers(0, 4000)] * 4))
def test_smoothing_leaves_constant_boxes(rows: int, window: int, box: tuple[int, int, int, int]) -> None:
    boxes = np.tile(np.array(box, dtype=np.int64), (rows, 1))
    np.testing.assert_array_equal(smooth_boxes(boxes, window), boxes)


@given(some_boxes)
def test_window_of_one_is_no_smoothing(boxes: np.ndarray) -> None:
    np.testing.assert_array_equal(smooth_boxes(boxes, 1), boxes)


def landmark_track(x: np.ndarray, cuts: Sequence[int] = (), missing: Sequence[int] = ()) -> FaceTrack:
    """All landmarks of frame n are at (x[n], -x[n])."""
    has_face, is_cut = np.ones(len(x), bool), np.zeros(len(x), bool)
    has_face[list(missing)] = False
    is_cut[list(cuts)] = True
    landmarks = np.repeat(np.stack([x, -x], axis=1)[:, None], 68, axis=1).astype(np.float32)
    landmarks[~has_face] = np.nan
    return FaceTrack(np.zeros((len(x), 4), np.int64), landmarks, has_face, np.zeros(len(x), bool), is_cut)


def smoothed_x(track: FaceTrack) -> np.ndarray:
    smoothed = smooth_landmarks(track).landmarks
    assert smoothed is not None
    assert smoothed.dtype == np.float32
    np.testing.assert_array_equal(smoothed[..., 0], -smoothed[..., 1])
    return smoothed[:, 0, 0]


@given(st.integers(1, 12), st.floats(-20, 20), st.floats(-100, 100))
def test_landmarks_of_an_even_movement_do_not_lag(frames: int, speed: float, start: float) -> None:
    x = start + speed * np.arange(frames)
    np.testing.assert_allclose(smoothed_x(landmark_track(x)), x, atol=1e-3)


def test_landmarks_shake_less_and_what_was_given_stays() -> None:
    track = landmark_track(np.random.default_rng(0).normal(0, 1, 500))
    assert track.landmarks is not None
    before = track.landmarks.copy()
    smoothed = smoothed_x(track)
    np.testing.assert_array_equal(track.landmarks, before)
    # the weights' squares sum to 70 / 256
    assert smoothed.std() == pytest.approx(np.sqrt(70 / 256) * before[:, 0, 0].std(), rel=0.1)


def test_landmarks_of_another_shot_or_beyond_a_gap_do_not_count() -> None:
    x = np.repeat([0.0, 100.0, 7.0], 4)
    np.testing.assert_allclose(smoothed_x(landmark_track(x, cuts=[4, 8])), x)
    x = np.array([0.0, 0, 0, 50, 9, 9, 9])
    np.testing.assert_allclose(np.delete(smoothed_x(landmark_track(x, missing=[3])), 3), np.delete(x, 3))


def test_a_track_without_landmarks_has_none_to_smooth() -> None:
    track = track_of([[face(10)]] * 3)
    assert smooth_landmarks(track) is track


# --- gaps and cuts


def test_short_gap_is_interpolated() -> None:
    missing: list[list[Detection]] = [[] for _ in range(MAX_GAP)]
    track = track_of([[face(10, landmarks=True)], *missing, [face(36, y1=33, landmarks=True)]])
    assert track.has_face.all()
    assert track.is_interpolated.tolist() == [False] + [True] * 12 + [False]
    assert track.boxes[:, 2].tolist() == list(range(10, 37, 2))
    assert track.boxes[:, 0].tolist() == list(range(20, 34))
    assert track.landmarks is not None
    assert track.landmarks.dtype == np.float32
    np.testing.assert_allclose(track.landmarks[:, 5, 0], np.arange(10, 37, 2), rtol=1e-6)
    assert track.summary() == "14 frames: 2 detected, 12 interpolated, 0 without a face, 0 cuts"


def test_long_gap_is_not_interpolated() -> None:
    missing: list[list[Detection]] = [[] for _ in range(MAX_GAP + 1)]
    track = track_of([[face(10, landmarks=True)], *missing, [face(36, landmarks=True)]])
    assert track.has_face.tolist() == [True] + [False] * 13 + [True]
    assert not track.boxes[1:-1].any()
    assert track.landmarks is not None
    assert np.isnan(track.landmarks[1:-1]).all()
    assert not track.is_interpolated.any()


@pytest.mark.parametrize(("gap", "found_again"), [(MAX_GAP, False), (MAX_GAP + 1, True)])
def test_face_elsewhere_is_taken_only_after_a_long_gap(gap: int, found_again: bool) -> None:
    track = track_of([[face(10)], *[[] for _ in range(gap)], [face(150)]])
    assert track.has_face.tolist() == [True, *[False] * gap, found_again]


def test_gaps_at_the_ends_have_no_face() -> None:
    track = track_of([[], [], [face(10)], [face(10)], []])
    assert track.has_face.tolist() == [False, False, True, True, False]
    assert track.landmarks is None


def test_cut_starts_anew() -> None:
    """The right face overlaps what was followed before the cut, the left one has the better score in the new shot."""
    old, new = [face(100)], [face(101, score=0.5), face(10, score=0.9)]
    track = track_of([old] * 3 + [new] * 3, cuts=[3])
    assert track.is_cut.tolist() == [False, False, False, True, False, False]
    assert track.boxes[:, 2].tolist() == [100] * 3 + [10] * 3
    assert track.summary() == "6 frames: 6 detected, 0 interpolated, 0 without a face, 1 cut"


def test_gap_across_a_cut_is_not_interpolated() -> None:
    track = track_of([[face(10)], [], [], [], [face(12)]], cuts=[2])
    assert track.has_face.tolist() == [True, False, False, False, True]


def test_smoothing_stops_at_cuts_and_gaps() -> None:
    gap: list[list[Detection]] = [[] for _ in range(MAX_GAP + 1)]
    script = [[face(10)]] * 6 + [[face(20)]] * 6 + gap + [[face(40)]] * 6
    track = track_of(script, cuts=[6], smooth_window=5)
    assert track.boxes[track.has_face][:, 2].tolist() == [10] * 6 + [20] * 6 + [40] * 6


def test_smoothing_comes_after_interpolation() -> None:
    track = track_of([[face(10)], [], [], [], [], [], [face(70 - 36)]], smooth_window=3)
    np.testing.assert_array_equal(track.boxes[:5, 2], [14, 18, 22, 26, 30])


# --- boxes


def test_pads_and_frame_limits() -> None:
    script = [[Detection((5.5, 30.9, 50.9, 96.2), 1.0, None)]]
    assert track_of(script).boxes.tolist() == [[30, 96, 5, 50]]
    assert track_of(script, pads=(1, 2, 3, 4)).boxes.tolist() == [[29, 98, 2, 54]]
    assert track_of(script, pads=(-1, -2, -3, -4)).boxes.tolist() == [[31, 94, 8, 46]]
    assert track_of(script, pads=(50, 10, 9, 200)).boxes.tolist() == [[0, HEIGHT, 0, WIDTH]]


@pytest.mark.parametrize(
    ("corners", "box", "padded"),
    [
        ((-5.5, 30.9, 50.9, 96.2), [30, 96, -6, 50], [29, 98, -6, 54]),
        ((20.9, -7.1, 60.2, 40.9), [-8, 40, 20, 60], [-8, 42, 17, 64]),
        ((150.9, 40.9, 215.9, 104.9), [40, 104, 150, 215], [39, 104, 147, 215]),
    ],
)
def test_box_beyond_the_frame_keeps_its_geometry(
    corners: tuple[float, float, float, float], box: list[int], padded: list[int]
) -> None:
    """It was clipped, and what was left was shown to the network as a whole face. Pads end at the frame."""
    script = [[Detection(corners, 1.0, None)]]
    assert track_of(script).boxes.tolist() == [box]
    assert track_of(script, pads=(1, 2, 3, 4)).boxes.tolist() == [padded]


def with_lips_at(face: Detection, x: float, y: float) -> Detection:
    """All lip landmarks at one point, the others where the mouth would be without them."""
    x1, y1, x2, y2 = face.box
    points = np.tile(np.array([(x1 + x2) / 2, y1 + 0.75 * (y2 - y1)], np.float32), (68, 1))
    points[48:] = x, y
    return Detection(face.box, face.score, points)


def test_face_that_sinks_out_of_the_frame_passes_through_without_its_mouth() -> None:
    """Its mouth was painted on nose and eyes. It sinks by 10 px a frame; in frame 2 the mouth leaves (70 + 30 px)."""
    script = [[face(30, y1=50 + 10 * n)] for n in range(4)]
    track = track_of(script)
    assert track.has_face.tolist() == [True, True, False, False]
    assert track.boxes.tolist() == [[50, 90, 30, 70], [60, 100, 30, 70], [0] * 4, [0] * 4]
    assert track.mouth_outside is not None
    assert track.mouth_outside.tolist() == [False, False, True, True]
    assert track.summary() == (
        "4 frames: 2 detected, 0 interpolated, 0 without a face, 2 with the mouth outside the frame, 0 cuts"
    )


@pytest.mark.parametrize("lips", [(50, 99), (50, 101), (-1, 50), (0, 0), (WIDTH, 50)])
@pytest.mark.parametrize("y1", [20, 75])
def test_landmarks_do_not_change_who_has_a_face(lips: tuple[float, float], y1: float) -> None:
    """A lip mask asks for them. With them in it, stored samples of a run without the mask did not fit any more."""
    seen = [[face(30, y1=50)], [], [face(30, y1=y1)], [], [face(30, y1=y1)]]
    with_landmarks = [[with_lips_at(found, *lips) for found in faces] for faces in seen]
    track, plain = track_of(with_landmarks), track_of(seen)
    np.testing.assert_array_equal(track.has_face, plain.has_face)
    np.testing.assert_array_equal(track.boxes, plain.boxes)
    assert plain.has_face[2] == (y1 == 20)


def test_a_box_that_leaves_the_frame_is_not_held_back() -> None:
    """Smoothing ended with the last frame that shows the mouth: the boxes before it stood still, the face moved on."""
    tops = list(range(30, 98, 4))
    track = track_of([[face(10, y1=top)] for top in tops], smooth_window=5)
    shown = np.flatnonzero(track.has_face)
    assert 0 < len(shown) < len(tops) - 5
    assert track.boxes[shown, 0].tolist() == [int(np.mean(tops[frame : frame + 5])) for frame in shown]
    assert not track.boxes[~track.has_face].any()


def test_mouth_that_is_never_in_the_frame() -> None:
    with pytest.raises(InputError, match=r"mouth is outside the picture in all of the 2 frames"):
        track_of([[face(30, y1=75)]] * 2)


def test_voxceleb2_box() -> None:
    assert voxceleb2_box(224, 224) == (0, 158, 50, 174)


@pytest.mark.parametrize("box", [(193, 20, 230, 60), (20, -40, 60, 7.9), (300, 20, 340, 60), (50, 50, 40, 40)])
def test_degenerate_boxes_do_not_count(box: tuple[float, float, float, float]) -> None:
    bad = Detection(box, 2.0, None)
    track = track_of([[bad], [bad, face(10)]])
    assert track.has_face.tolist() == [False, True]
    assert track.boxes[1].tolist() == [20, 60, 10, 50]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_boxes_of_the_reference_loop() -> None:
    """The reference pastes whole boxes: its output differs from its input in just these, but for a few equal pixels."""
    with np.load(SHARED / "golden" / "loop.npz") as golden:
        frames, detected, output = golden["frames"], golden["boxes"], golden["out_gt"]
    script = [[Detection(tuple(map(float, box)), 1.0, None)] for box in detected]
    track = build_track(find_faces(iter(frames), scripted(script), 5), len(frames), pads=NO_PADS)
    for frame, result, (y1, y2, x1, x2) in zip(frames, output, track.boxes, strict=True):
        rows, columns = np.nonzero((frame != result).any(axis=2))
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (y1, y2, x1, x2)


# --- the head's movement


def moving_video(shifts: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """A textured picture, moved by so many pixels (x, y) since the first frame."""
    coarse = np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return [np.roll(picture, (y, x), axis=(0, 1)) for x, y in shifts]


def test_motion_is_from_the_frame_before() -> None:
    """The box reaches beyond the frame on the left, in all frames; frame 3 begins a shot, frame 5 has no face."""
    frames = moving_video([(0, 0), (3, 0), (3, -2), (3, -2), (4, -2), (4, -2), (4, -2), (5, -1)])
    track = fixed_track(len(frames), (10, 90, -30, 90))
    track.is_cut[3] = True
    track.has_face[5] = False
    assert track.motion is None
    motion = with_motion(track, iter(frames), head_motion).motion
    assert motion is not None
    assert (motion.dtype, motion.shape) == (np.float32, (8, 2, 3))
    followed = with_motion(track, iter([frames[0], np.zeros_like(frames[0]), *frames[2:]]), head_motion)
    assert followed.summary().endswith("1 cut, head not followed in 2 frames")
    known = ~np.isnan(motion).any(axis=(1, 2))
    assert known.tolist() == [False, True, True, False, True, False, False, True]
    np.testing.assert_allclose(motion[known][:, :, 2], [(3, 0), (0, -2), (1, 0), (1, 1)], atol=0.1)
    np.testing.assert_allclose(motion[known][:, :, :2], np.tile(np.eye(2), (4, 1, 1)), atol=0.01)


def test_motion_reads_the_tracks_frames_only_and_holds_two() -> None:
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    most: list[int] = []
    rest = counting(9, alive, most)
    motion = with_motion(fixed_track(5, (20, 80, 20, 80)), rest, head_motion).motion
    assert motion is not None
    assert np.isnan(motion).all()  # a black picture does not tell
    assert len(most) == 5
    assert max(most) <= 3  # the two, and the one that is just made


def nodding_head(n_frames: int) -> tuple[list[np.ndarray], list[Detection]]:
    """A textured head that swings by 24 px to and fro and turns by 6 degrees, and its true detections."""
    coarse = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    picture = cv2.GaussianBlur(cv2.resize(coarse, (300, 250), interpolation=cv2.INTER_CUBIC), (0, 0), 1)
    points = np.random.default_rng(1).uniform((110, 85), (190, 165), (68, 2))
    frames, faces = [], []
    for t in range(n_frames):
        swing = np.sin(2 * np.pi * t / 20)
        pose = cv2.getRotationMatrix2D((150, 125), 6 * swing, 1 + 0.05 * swing)
        pose[:, 2] += 24 * swing, 10 * (1 - swing**2)
        frames.append(cv2.warpAffine(picture, pose, (300, 250), borderMode=cv2.BORDER_REFLECT))
        x, y = pose @ (150, 125, 1)
        side = 100 * (1 + 0.05 * swing)
        box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        faces.append(Detection(box, 1.0, (points @ pose[:, :2].T + pose[:, 2]).astype(np.float32)))
    return frames, faces


def error_of(track: FaceTrack, truth: Sequence[Detection], frames: Sequence[int]) -> tuple[float, float]:
    """Mean distance of landmarks, and of the boxes' sides, from the truth."""
    assert track.landmarks is not None
    points = np.linalg.norm(np.stack([track.landmarks[k] - truth[k].landmarks for k in frames]), axis=2)
    true_boxes = np.array([truth[k].box for k in frames])[:, [1, 3, 0, 2]]
    return float(points.mean()), float(np.abs(track.boxes[frames] - true_boxes).mean())


JUMPED = {9: (30, 0), 10: (30, 0), 11: (-25, 12)}  # by so many px
LOST = {"a gap": range(6, 14), "a long gap": range(5, 5 + MAX_GAP), "jumps": list(JUMPED), "both": [*JUMPED, 15, 16]}


@pytest.mark.parametrize("where", LOST)
def test_the_way_across_a_gap_or_a_jump_is_the_heads(where: str) -> None:
    frames, truth = nodding_head(24)
    script = [[] if k in LOST[where] else [face] for k, face in enumerate(truth)]
    if where in ("jumps", "both"):
        for k, (x, y) in JUMPED.items():
            box = tuple(np.add(truth[k].box, (x, y, x, y)))
            script[k] = [Detection(box, 1.0, truth[k].landmarks + np.float32([x, y]))]
    build = partial(build_track, find_faces(frames, scripted(script), 4), 24, pads=NO_PADS, smooth_window=1)
    track = build()
    followed = build(motion=with_motion(track, frames, head_motion).motion)
    np.testing.assert_array_equal(followed.has_face, track.has_face)
    np.testing.assert_array_equal(followed.is_interpolated, track.is_interpolated)
    (points, sides), plain = (error_of(t, truth, LOST[where]) for t in (followed, track))
    assert points < 0.1 * plain[0]
    assert sides < 0.2 * plain[1]  # of whole pixels
    others = [k for k in range(24) if k not in LOST[where]]
    np.testing.assert_array_equal(followed.boxes[others], track.boxes[others])
    np.testing.assert_array_equal(followed.landmarks[others], track.landmarks[others])


def test_a_side_from_which_the_movement_is_unknown_does_not_count() -> None:
    """In the middle of the gap it is lost: each half goes on from its own end; lost everywhere, the way is straight."""
    frames, truth = nodding_head(24)
    gap = range(6, 14)
    script = [[] if k in gap else [face] for k, face in enumerate(truth)]
    build = partial(build_track, find_faces(frames, scripted(script), 4), 24, pads=NO_PADS, smooth_window=1)
    track = build()
    motion = with_motion(track, frames, head_motion).motion
    assert motion is not None
    motion[10] = np.nan
    assert error_of(build(motion=motion), truth, gap)[0] < 0.1 * error_of(track, truth, gap)[0]
    unknown = np.full_like(motion, np.nan)
    straight = build(motion=unknown)
    np.testing.assert_array_equal(straight.landmarks, track.landmarks)
    np.testing.assert_array_equal(straight.boxes, track.boxes)


# --- files and lengths


def test_track_of_the_first_frames_is_that_of_a_shorter_video() -> None:
    """What comes later does not shine through: upstream's smoothing treats a track's tail apart."""
    script = [[face(10 + n * n / 8, landmarks=True)] for n in range(20)]
    script[13] = []
    faces = faces_of(script, cuts=[4])
    for length in (3, 9, 14, 20, 99):
        track = build_track(faces, length, pads=NO_PADS)
        alone = build_track(faces_of(script[:length], cuts=[4]), length, pads=NO_PADS)
        for name, value in vars(alone).items():
            np.testing.assert_array_equal(getattr(track, name), value)


@pytest.mark.parametrize("landmarks", [False, True])
@pytest.mark.parametrize("motion", [False, True])
def test_file_round_trip(tmp_path: Path, landmarks: bool, motion: bool) -> None:
    path = tmp_path / "Spur für später.track"
    path.write_bytes(b"an older file")
    track = track_of([[face(10, landmarks=landmarks)], [], [face(14, landmarks=landmarks)]], cuts=[])
    if motion:
        track = with_motion(track, moving_video([(0, 0), (1, 0), (2, 0)]), head_motion)
    track.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    loaded = FaceTrack.load(path)
    for name, value in vars(track).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    assert (loaded.landmarks is None) == (not landmarks)
    assert (loaded.motion is None) == (not motion)
