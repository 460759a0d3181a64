"""Following one person: choice, gaps, cuts, boxes. Detections are scripted, frames are tiny."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from face_detection.api import Detection
from face_detection.tracks import MAX_GAP, CutDetector, FaceTrack, build_track, smooth_boxes, smooth_landmarks
from guided_diffusion.errors import InputError

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared"
NO_PADS = (0, 0, 0, 0)
HEIGHT, WIDTH = 100, 200


def face(x1: float, y1: float = 20, side: float = 40, score: float = 1.0, landmarks: bool = False) -> Detection:
    points = np.full((68, 2), (x1, y1), dtype=np.float32) if landmarks else None
    return Detection((x1, y1, x1 + side, y1 + side), score, points)


def plain(colour: int = 90) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), colour, dtype=np.uint8)


def track_of(
    script: Sequence[list[Detection]],
    *,
    cuts: Sequence[int] = (),
    batch_size: int = 4,
    face_index: int = -1,
    pads: tuple[int, int, int, int] = NO_PADS,
    smooth_window: int = 1,
) -> FaceTrack:
    """The track of a video whose frames show the scripted faces, with a hard cut (black, white) at the given frames."""
    colours = [255 * (sum(cut <= frame for cut in cuts) % 2) for frame in range(len(script))]
    rest = iter(script)
    return build_track(
        map(plain, colours),
        lambda batch: [next(rest) for _ in batch],
        batch_size=batch_size,
        pads=pads,
        face_index=face_index,
        smooth_window=smooth_window,
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

    with pytest.raises(InputError):
        build_track(frames(), lambda batch: [[face(10)]] * len(batch), batch_size=2, pads=NO_PADS, face_index=1)


def test_later_shot_with_too_few_faces_passes_through() -> None:
    track = track_of([[face(10), face(100)]] * 3 + [[face(10)]] * 3, cuts=[3], face_index=1)
    assert track.has_face.tolist() == [True] * 3 + [False] * 3
    assert not track.boxes[3:].any()


def test_no_face_at_all() -> None:
    with pytest.raises(InputError, match=r"7 frames.*--face_detector"):
        track_of([[] for _ in range(7)])


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
    script = [[Detection((-5.5, 30.9, 50.9, 96.2), 1.0, None)]]
    assert track_of(script).boxes.tolist() == [[30, 96, 0, 50]]
    assert track_of(script, pads=(1, 2, 3, 4)).boxes.tolist() == [[29, 98, 0, 54]]
    assert track_of(script, pads=(50, 10, 9, 200)).boxes.tolist() == [[0, HEIGHT, 0, WIDTH]]


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
    rest = iter(detected)
    track = build_track(
        iter(frames),
        lambda batch: [[Detection(tuple(map(float, next(rest))), 1.0, None)] for _ in batch],
        batch_size=5,
        pads=NO_PADS,
    )
    for frame, result, (y1, y2, x1, x2) in zip(frames, output, track.boxes, strict=True):
        rows, columns = np.nonzero((frame != result).any(axis=2))
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (y1, y2, x1, x2)


# --- streaming and files


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

    build_track(counting(10, alive, most), detect, batch_size=4, pads=NO_PADS)
    assert sizes == [4, 4, 2]
    assert max(most) == 4


@pytest.mark.parametrize("landmarks", [False, True])
def test_file_round_trip(tmp_path: Path, landmarks: bool) -> None:
    path = tmp_path / "Spur für später.track"
    path.write_bytes(b"an older file")
    track = track_of([[face(10, landmarks=landmarks)], [], [face(14, landmarks=landmarks)]], cuts=[])
    track.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    loaded = FaceTrack.load(path)
    for name, value in vars(track).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    assert (loaded.landmarks is None) == (not landmarks)


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


@pytest.mark.parametrize("spoil", [garbage, empty, truncated, pickled, other_names, other_shape, single_array])
def test_file_that_is_no_track(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "track.npz"
    spoil(path)
    with pytest.raises(InputError, match=r"track\.npz: not a face track") as caught:
        FaceTrack.load(path)
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
