"""Following one person: choice, gaps, cuts, boxes. Detections are scripted, frames are tiny."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, permutations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from face_detection.api import Detection
from face_detection.tracks import (
    MAX_GAP,
    CutDetector,
    FaceTrack,
    Identify,
    VideoFaces,
    build_track,
    check_face_index,
    find_faces,
    fixed_track,
    smooth_boxes,
    smooth_landmarks,
    voxceleb2_box,
    with_motion,
)
from guided_diffusion.errors import InputError
from temporal_consistency import head_motion

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared"
NO_PADS = (0, 0, 0, 0)
HEIGHT, WIDTH = 100, 200


def face(x1: float, y1: float = 20, side: float = 40, score: float = 1.0, landmarks: bool = False) -> Detection:
    points = np.full((68, 2), (x1, y1), dtype=np.float32) if landmarks else None
    return Detection((x1, y1, x1 + side, y1 + side), score, points)


def plain(colour: int = 90) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), colour, dtype=np.uint8)


def video_of(script: Sequence[list[Detection]], cuts: Sequence[int] = (), start: int = 0) -> Iterator[np.ndarray]:
    """Frames from start on, with a hard cut (black, white) at the given ones."""
    return (plain(255 * (sum(cut <= frame for cut in cuts) % 2)) for frame in range(start, len(script)))


def scripted(script: Sequence[list[Detection]]) -> Callable[[Sequence[np.ndarray]], list[list[Detection]]]:
    """A detector that finds the next frames' faces."""
    rest = iter(script)
    return lambda batch: [next(rest) for _ in batch]


def faces_of(script: Sequence[list[Detection]], cuts: Sequence[int] = (), batch_size: int = 4) -> VideoFaces:
    return find_faces(video_of(script, cuts), scripted(script), batch_size)


def track_of(
    script: Sequence[list[Detection]],
    *,
    cuts: Sequence[int] = (),
    batch_size: int = 4,
    face_index: int = -1,
    pads: tuple[int, int, int, int] = NO_PADS,
    smooth_window: int = 1,
    identify: Identify | None = None,
) -> FaceTrack:
    """The track of a video whose frames show the scripted faces."""
    return build_track(
        faces_of(script, cuts, batch_size),
        len(script),
        pads=pads,
        face_index=face_index,
        smooth_window=smooth_window,
        identify=identify,
    )


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


# --- cuts


def pictures() -> dict[str, np.ndarray]:
    skimage_data = pytest.importorskip("skimage.data")
    return {name: getattr(skimage_data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")}


def is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    detector = CutDetector()
    assert not detector.update(before)
    return detector.update(after)


def test_another_picture_is_a_cut() -> None:
    for before, after in permutations(pictures().values(), 2):
        assert is_cut(before, after)


@pytest.mark.parametrize("gain", [0.7, 1.3])
def test_flash_is_no_cut(gain: float) -> None:
    for image in pictures().values():
        flashed = np.clip(image * gain, 0, 255).astype(np.uint8)
        assert not is_cut(image, flashed)
        assert not is_cut(flashed, image)


def test_fast_motion_is_no_cut() -> None:
    for image in pictures().values():
        assert not is_cut(image, np.roll(image, image.shape[1] // 5, axis=1))


def test_plain_frames_are_no_cut_and_black_to_picture_is() -> None:
    assert not is_cut(plain(0), plain(0))
    assert is_cut(plain(0), pictures()["astronaut"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_joins_of_real_clips_are_the_only_cuts() -> None:
    av = pytest.importorskip("av")

    def clip(path: Path) -> list[np.ndarray]:
        frames = []
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                frames.append(cv2.resize(frame.to_ndarray(format="rgb24"), (160, 160)))
                if len(frames) == 20:
                    break
        return frames

    joined = [clip(path) for path in sorted((SHARED / "clips").glob("*.mp4"))]
    assert len(joined) == 4
    detector = CutDetector()
    found = [detector.update(frame) for frames in joined for frame in frames]
    assert np.flatnonzero(found).tolist() == [20, 40, 60]


# --- following


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(1, 7))
def test_two_people_are_not_mixed_up(swapped: list[bool], batch_size: int) -> None:
    """The detections' order, and whose score is the best, change from frame to frame."""
    left = [face(10 + n, score=0.9) for n in range(6)]
    right = [face(120 - n, score=0.8 + 0.1 * n) for n in range(6)]
    script = [[b, a] if swap else [a, b] for a, b, swap in zip(left, right, swapped, strict=True)]
    for face_index, first in ((0, 10), (1, 120), (-1, 10)):
        track = track_of(script, batch_size=batch_size, face_index=face_index)
        step = 1 if first == 10 else -1
        assert track.boxes[:, 2].tolist() == [first + step * n for n in range(6)]
        assert track.has_face.all()


def test_another_person_does_not_replace_a_missing_one() -> None:
    """The bystander is only seen while the followed person is not."""
    track = track_of([[face(10)]] * 3 + [[face(120)]] * 3 + [[face(16)]])
    assert track.boxes[:, 2].tolist() == [10, 10, 10, 11, 13, 14, 16]
    assert track.is_interpolated.tolist() == [False] * 3 + [True] * 3 + [False]


def test_face_index_out_of_range() -> None:
    script: list[list[Detection]] = [[], [], [face(10)], [face(10)]]
    with pytest.raises(InputError, match=r"--face_index 3: the first frame with faces \(frame 2\) has 1 face; give 0"):
        track_of(script, face_index=3)
    with pytest.raises(InputError, match=r"--face_index -2.*has 2 faces; give 0 to 1, or -1"):
        track_of([[face(10), face(100)]], face_index=-2)


def test_bad_face_index_is_found_without_reading_the_whole_video() -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from [plain()] * 4
        pytest.fail("read on")

    check = partial(check_face_index, pads=NO_PADS, face_index=1)
    with pytest.raises(InputError, match=r"--face_index 1: the first frame with faces \(frame 0\) has 1 face; give 0"):
        find_faces(frames(), lambda batch: [[face(10)]] * len(batch), 2, check=check)


def test_later_shot_with_too_few_faces_passes_through() -> None:
    track = track_of([[face(10), face(100)]] * 3 + [[face(10)]] * 3, cuts=[3], face_index=1)
    assert track.has_face.tolist() == [True] * 3 + [False] * 3
    assert not track.boxes[3:].any()


# --- one person only: --face_index


class Looks:
    """Descriptors of the scripted people, who are told by the height at which their faces are; counts what it is asked.

    The first of 128 numbers is 1 for each 10 px of y1: people 10 px apart in height do not look the same.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def __call__(self, frame: int, face: Detection) -> np.ndarray:
        self.asked.append((frame, face.box[0]))
        return np.eye(128)[0] * face.box[1] / 10


def her(x1: float, score: float = 1.0) -> Detection:
    return face(x1, y1=20, score=score)


def him(x1: float, score: float = 1.0) -> Detection:
    return face(x1, y1=30, score=score)


GONE: list[list[Detection]] = [[] for _ in range(MAX_GAP + 1)]


@pytest.mark.parametrize("identify", [None, Looks()])
def test_who_stays_does_not_get_the_text_of_who_leaves(identify: Identify | None) -> None:
    """--face_index 0 and she leaves: the man spoke her text to the end."""
    script = [[her(10), him(120)]] * 3 + [[him(120)]] * (MAX_GAP + 10)
    track = track_of(script, face_index=0, identify=identify)
    assert track.has_face.tolist() == [True] * 3 + [False] * (MAX_GAP + 10)
    assert track.summary().endswith("3 detected, 0 interpolated, 0 without a face, 22 with other people only, 0 cuts")


def test_she_is_waited_for_at_the_place_where_she_was_lost() -> None:
    """Without a look at faces, one that comes up elsewhere is not hers."""
    script = [[her(10)], *GONE, [him(120)], [him(120)], [her(14), him(120)], [her(14), him(120)]]
    track = track_of(script, face_index=0)
    assert np.flatnonzero(track.has_face).tolist() == [0, 16, 17]
    assert track.boxes[16:, 2].tolist() == [14, 14]


def test_she_is_known_again_wherever_she_comes_back() -> None:
    script = [[her(10)], *GONE, [him(10)], [him(10)], [him(10), her(150)], [her(150)]]
    track = track_of(script, face_index=0, identify=Looks())
    assert np.flatnonzero(track.has_face).tolist() == [0, 16, 17]
    assert track.boxes[16:, 2].tolist() == [150, 150]


def test_after_a_cut_the_same_person_is_followed() -> None:
    """Not the one at the place of before, not the n-th from the left, not the best-scored: she."""
    first, second = [him(60, score=2), her(120)], [her(10), him(120, score=2)]
    track = track_of([first] * 3 + [second] * 3, cuts=[3], face_index=1, identify=Looks())
    assert track.boxes[:, 2].tolist() == [120] * 3 + [10] * 3
    assert track.has_face.all()


def test_a_shot_without_her_passes_through() -> None:
    script = [[her(10)]] * 3 + [[him(10)]] * 4 + [[her(90)]] * 2
    track = track_of(script, cuts=[3, 7], face_index=0, identify=Looks())
    assert track.has_face.tolist() == [True] * 3 + [False] * 4 + [True] * 2
    assert track.others_only is not None
    assert track.others_only.tolist() == [False] * 3 + [True] * 4 + [False] * 2
    assert "4 with other people only, 2 cuts" in track.summary()


def test_without_a_look_the_nth_from_the_left_is_followed_after_a_cut() -> None:
    track = track_of([[her(10), him(120)]] * 3 + [[him(30)], [him(30), her(140)]], cuts=[3], face_index=1)
    assert track.boxes[track.has_face][:, 2].tolist() == [120] * 3 + [140]


def test_each_face_that_comes_up_is_looked_at_once_at_its_best() -> None:
    looks = Looks()
    script = [[her(10, 0.5)], [her(11, 0.9)], [her(12, 0.7)]] + [[him(10 + n, n)] for n in range(9)] + [[her(90)]] * 3
    track_of(script, cuts=[3, 12], face_index=0, identify=looks)
    assert looks.asked == [(11, 18), (1, 11), (12, 90)]


@pytest.mark.parametrize("face_index", [-1, 0])
def test_nobody_is_looked_at_without_need(face_index: int) -> None:
    """It costs a network's weights and a seek in the video. -1 follows whoever is the best, as ever."""
    cuts = [3] if face_index == -1 else []
    looks = Looks()
    track = track_of([[her(10)]] * 3 + [[him(20)]] * 3, cuts=cuts, face_index=face_index, identify=looks)
    assert track.has_face.all()
    assert not looks.asked


# --- nothing to follow


def test_no_face_at_all() -> None:
    with pytest.raises(InputError, match=r"7 frames.*--face_detector"):
        track_of([[] for _ in range(7)])


@pytest.mark.parametrize(
    ("detection_size", "advice"),
    [(None, "a face, or try"), (WIDTH, "a face, or try"), (150, "--detection_size 200, else"), (60, "size 120, else")],
)
def test_no_face_in_shrunk_frames_names_the_flag_that_helps(detection_size: int | None, advice: str) -> None:
    """1080p with a face of 60 px: nothing is found at 720, and the error did not say that 1440 would."""
    with pytest.raises(InputError, match=advice) as caught:
        build_track(faces_of([[], []]), 2, pads=NO_PADS, detection_size=detection_size)
    assert "--face_detector" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_frames_at_all() -> None:
    with pytest.raises(InputError, match="0 frames"):
        track_of([])


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


# --- streaming and files


SOME_FACES = [[face(10, score=0.3)], [], [face(12, landmarks=True), face(90)], [face(13)], [], [face(99)], []]


def assert_equal_faces(a: VideoFaces, b: VideoFaces) -> None:
    assert [len(faces) for faces in a.faces] == [len(faces) for faces in b.faces]
    for one, other in zip(chain(*a.faces), chain(*b.faces), strict=True):
        assert (one.box, one.score) == (other.box, other.score)
        np.testing.assert_array_equal(one.landmarks, other.landmarks)  # None too
    np.testing.assert_array_equal(a.is_cut, b.is_cut)
    assert (a.size, a.is_complete) == (b.size, b.is_complete)


@pytest.mark.parametrize("first", range(8))
def test_continued_search_finds_what_one_search_finds(first: int) -> None:
    """Also a cut that is the first frame of the second part."""
    cuts = [2, 5]
    whole = faces_of(SOME_FACES, cuts)
    assert whole.is_complete
    assert whole.size == (HEIGHT, WIDTH)
    assert np.flatnonzero(whole.is_cut).tolist() == cuts
    begun = find_faces(video_of(SOME_FACES, cuts), scripted(SOME_FACES), 2, n_frames=first)
    assert len(begun.faces) == first
    assert not begun.is_complete
    rest = video_of(SOME_FACES, cuts, start=begun.next_start)
    assert_equal_faces(find_faces(rest, scripted(SOME_FACES[first:]), 3, begun), whole)
    assert len(begun.faces) == first  # what was known is not changed


def test_search_for_some_frames_reads_no_more() -> None:
    frames = video_of(SOME_FACES)
    found = find_faces(frames, scripted(SOME_FACES), 2, n_frames=3)
    assert len(list(frames)) == len(SOME_FACES) - 3
    assert found.suffices(3)
    assert not found.suffices(4)
    ended = find_faces(video_of(SOME_FACES), scripted(SOME_FACES), 2, n_frames=8)
    assert len(ended.faces) == 7
    assert ended.suffices(1000)


def test_what_is_known_is_checked_before_anything_is_read() -> None:
    def fail(_batch: Sequence[np.ndarray]) -> list[list[Detection]]:
        pytest.fail("detected")

    known = find_faces(video_of(SOME_FACES), scripted(SOME_FACES), 2, n_frames=4)
    check = partial(check_face_index, pads=NO_PADS, face_index=1)
    with pytest.raises(InputError, match="--face_index 1"):
        find_faces(video_of(SOME_FACES, start=3), fail, 2, known, check=check)


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


def counting(frames: int, alive: "weakref.WeakSet[Frame]", most: list[int]) -> Iterator[np.ndarray]:
    for _ in range(frames):
        frame = Frame((HEIGHT, WIDTH, 3), dtype=np.uint8)
        frame[:] = 0
        alive.add(frame)
        most.append(len(alive))
        yield frame
        del frame


class Frame(np.ndarray):
    """An array that can be counted while it lives."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other


def test_only_one_batch_is_held() -> None:
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    most: list[int] = []
    sizes: list[int] = []

    def detect(batch: Sequence[np.ndarray]) -> list[list[Detection]]:
        sizes.append(len(batch))
        return [[face(10)] for _ in batch]

    known = find_faces(counting(10, alive, most), detect, batch_size=4)
    assert sizes == [4, 4, 2]
    find_faces(counting(9, alive, most), detect, 4, known)
    assert sizes[3:] == [4, 4]
    assert max(most) == 4


@pytest.mark.parametrize("script", [SOME_FACES, [[]], []])
def test_faces_file_round_trip(tmp_path: Path, script: list[list[Detection]]) -> None:
    faces = faces_of(script)
    faces.save(tmp_path / "Gesichter für später.faces")
    assert_equal_faces(VideoFaces.load(tmp_path / "Gesichter für später.faces"), faces)
    begun = find_faces(video_of(script), scripted(script), 2, n_frames=1)
    begun.save(tmp_path / "begun")
    assert_equal_faces(VideoFaces.load(tmp_path / "begun"), begun)


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


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage")


def empty(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    track_of([[face(10)]]).save(path)
    path.write_bytes(path.read_bytes()[:-100])


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, boxes=np.array([{}], dtype=object))


def other_names(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, boxes=np.zeros((1, 4), dtype=np.int64))


def other_shape(path: Path) -> None:
    flags = np.zeros(2, dtype=bool)
    with path.open("wb") as file:
        np.savez(file, boxes=np.zeros((2, 3), dtype=np.int64), has_face=flags, is_interpolated=flags, is_cut=flags)


def single_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def unknown_compression(path: Path) -> None:
    track_of([[face(10)]]).save(path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # in the list of contents, where zipfile looks
    content[entry + 10 : entry + 12] = (77).to_bytes(2, "little")
    path.write_bytes(content)


SPOILT = [garbage, empty, truncated, pickled, other_names, other_shape, single_array, unknown_compression]


@pytest.mark.parametrize("spoil", SPOILT)
def test_file_that_is_no_track(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "track.npz"
    spoil(path)
    with pytest.raises(InputError, match=r"track\.npz: not a face track") as caught:
        FaceTrack.load(path)
    assert "\n" not in str(caught.value)


def more_counts(path: Path) -> None:
    """Arrays of the right shapes, but more faces are counted than there are."""
    faces_of(SOME_FACES).save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["counts"][1] += 2
    with path.open("wb") as file:
        np.savez(file, **arrays)


def negative_count(path: Path) -> None:
    more_counts(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["counts"][3] -= 2
    with path.open("wb") as file:
        np.savez(file, **arrays)


def a_track(path: Path) -> None:
    track_of([[face(10)]]).save(path)


@pytest.mark.parametrize("spoil", [*SPOILT, more_counts, negative_count, a_track])
def test_file_that_is_no_videos_faces(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "faces.npz"
    spoil(path)
    with pytest.raises(InputError, match=r"faces\.npz: not the faces of a video") as caught:
        VideoFaces.load(path)
    assert "\n" not in str(caught.value)


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_args: object, **_kwargs: object) -> None:
        raise OSError("disk full")

    path = tmp_path / "track.npz"
    path.write_bytes(b"old")
    monkeypatch.setattr("numpy.savez", full_disk)
    with pytest.raises(OSError, match="disk full"):
        track_of([[face(10)]]).save(path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
