"""Placements over time, and that every stage knows where a placed crop lies."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from conftest import mouth
from hypothesis import given, settings
from hypothesis import strategies as st

from face_detection.playback import Playback
from face_detection.stable_crop import SIGMA, face_roll, smoothed, stable_crops
from face_detection.tracks import FaceTrack
from guided_diffusion.faults import measure_lips
from guided_diffusion.lip_util import mouth_area
from guided_diffusion.sampling import SampleBatch, generate_crops
from guided_diffusion.streams import Face, Item
from guided_diffusion.tfg_data_util import crop_box, face_crop, to_float, to_tensor
from post_processing import LipAlpha, generated_alpha, generated_skin, paste_stage, sharpen
from temporal_consistency import flow_guide, smoothing_stage

SIZE = 120
SIDES = 50, 40
GENERATED = partial(generated_alpha, face_hide_percentage=0.5, blur_kernel_size=9)

degrees = st.floats(-40, 40)
scales = st.floats(0.9, 1.1)
places = st.tuples(st.floats(45, 75), st.floats(45, 75))


def smooth_picture(seed: int = 0) -> np.ndarray:
    """RGB uint8 [SIZE, SIZE, 3], blobs of about 10 px."""
    noise = np.random.default_rng(seed).normal(size=(SIZE, SIZE, 3)).astype(np.float32)
    blobs = cv2.GaussianBlur(noise, (0, 0), 5)
    return np.clip(128 + 25 * blobs / blobs.std(), 0, 255).astype(np.uint8)


def placed(
    x: float = 60.3, y: float = 59.6, turn: float = 20, scale: float = 1.03, sides: tuple[int, int] = SIDES
) -> Face:
    """A face whose crop's middle is at (x, y) of the frame."""
    height, width = sides
    to_frame = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -turn, scale)
    to_frame[:, 2] += x - (width - 1) / 2, y - (height - 1) / 2
    box = round(y - height / 2), round(y - height / 2) + height, round(x - width / 2), round(x - width / 2) + width
    return Face(0, box, placement=to_frame.astype(np.float32))


def pasted(frame: np.ndarray, face: Face, crop: np.ndarray) -> np.ndarray:
    (result,) = paste_stage(GENERATED)(iter([Item(frame, face, to_float(crop), crop_size=48)]))
    assert result.picture is not None
    return result.picture


# --- over time


def track_of(
    boxes: np.ndarray, landmarks: np.ndarray | None = None, cuts: Sequence[int] = (), missing: Sequence[int] = ()
) -> FaceTrack:
    n = len(boxes)
    nothing = np.zeros(n, bool)
    return FaceTrack(
        np.rint(boxes).astype(np.int64),
        landmarks,
        has_face=~np.isin(np.arange(n), missing),
        is_interpolated=nothing,
        is_cut=np.isin(np.arange(n), cuts),
    )


def faces_of(track: FaceTrack) -> list[Face]:
    faces = [track.face(frame, frame, bool(track.is_cut[frame])) for frame in np.flatnonzero(track.has_face)]
    return [face for face in faces if face is not None]


def middles(track: FaceTrack) -> np.ndarray:
    """[n, 2], where the middles of the crops lie in the frames, (x, y)."""
    halves = [((f.box[3] - f.box[2] - 1) / 2, (f.box[1] - f.box[0] - 1) / 2, 1) for f in faces_of(track)]
    return np.array([(f.crop_to_frame @ half)[:2] for f, half in zip(faces_of(track), halves, strict=True)])


def sizes(track: FaceTrack) -> np.ndarray:
    """[n, 2], how large the crops are in the frames, (width, height)."""
    return np.array(
        [
            np.linalg.norm(f.crop_to_frame[:2, :2], axis=0) * (f.box[3] - f.box[2], f.box[1] - f.box[0])
            for f in faces_of(track)
        ]
    )


@given(st.integers(1, 40), st.floats(-20, 20), st.floats(-100, 100))
def test_an_even_movement_stays_as_it_is_up_to_its_ends(n: int, speed: float, start: float) -> None:
    values = start + speed * np.arange(n)
    np.testing.assert_allclose(smoothed(np.stack([values, -values])), [values, -values], atol=1e-6)


def test_smoothing_looks_as_far_back_as_ahead() -> None:
    impulse = np.zeros(61)
    impulse[30] = 1
    answer = smoothed(impulse)
    np.testing.assert_allclose(answer, answer[::-1], atol=1e-12)
    assert answer.sum() == pytest.approx(1)
    assert (answer * (np.arange(61) - 30) ** 2).sum() == pytest.approx(SIGMA**2, rel=0.01)


def test_a_still_box_is_its_own_placement() -> None:
    track = stable_crops(track_of(np.tile([20, 71, 30, 70], (9, 1))))
    for face in faces_of(track):
        assert face.box == (20, 71, 30, 70)
        assert face.placement is not None
        np.testing.assert_allclose(face.placement, [(1, 0, 30), (0, 1, 20)], atol=1e-4)


def test_a_crop_goes_evenly_where_its_box_goes_in_steps_and_is_framed_as_the_box() -> None:
    n = 80
    swing = np.sin(np.arange(n) / 15)
    true = np.stack([100 + 9 * swing, 160 + 12 * swing, 90 + 7 * swing, 140 + 9 * swing], axis=1)
    track = track_of(true + np.random.default_rng(0).normal(0, 0.5, true.shape))
    before = track.boxes.copy()
    stable = stable_crops(track)
    np.testing.assert_array_equal(track.boxes, before)
    jitter, was = (np.abs(np.diff(m, 2, axis=0)).mean() for m in (middles(stable), track.boxes[:, [2, 0]]))
    assert jitter < was / 5
    centre = np.stack([true[:, 2:].mean(axis=1), true[:, :2].mean(axis=1)], axis=1) - 0.5
    assert np.abs(middles(stable) - centre).mean() < 0.4
    extent = np.stack([true[:, 3] - true[:, 2], true[:, 1] - true[:, 0]], axis=1)
    assert np.abs(sizes(stable) / extent - 1).mean() < 0.01
    assert np.abs(stable.boxes - true).max() < 1.6


def test_what_is_beyond_a_cut_or_a_gap_does_not_count() -> None:
    boxes = np.repeat([(20, 60, 10, 60), (80, 140, 70, 110), (20, 60, 10, 60)], 5, axis=0)
    for places in ({"cuts": [5, 10]}, {"missing": [5], "cuts": [10]}):
        track = track_of(boxes, **places)  # type: ignore[arg-type]
        stable = stable_crops(track)
        np.testing.assert_array_equal(stable.boxes[track.has_face], boxes[track.has_face])
        assert stable.placements is not None
        assert np.isnan(stable.placements[~track.has_face]).all()


def tilted(rolls: Sequence[float], eyes: float = 30) -> np.ndarray:
    """Landmarks [n, 68, 2] of faces that are tilted by so many degrees, with so many pixels between the eyes."""
    landmarks = np.full((68, 2), (60, 65), np.float32)
    landmarks[36:42], landmarks[42:48] = (60 - eyes / 2, 50), (60 + eyes / 2, 50)
    landmarks[48], landmarks[54] = (50, 80), (70, 80)
    turned = [cv2.transform(landmarks[None], cv2.getRotationMatrix2D((60, 60), -roll, 1))[0] for roll in rolls]
    return np.array(turned, np.float32)


@pytest.mark.parametrize("eyes", [30, 3])
def test_the_roll_of_faces_also_of_those_seen_from_the_side(eyes: float) -> None:
    landmarks = tilted([-30, 0, 20, 170, 190], eyes)
    np.testing.assert_allclose(np.degrees(face_roll(landmarks)), [-30, 0, 20, 170, 190], atol=1e-3)
    landmarks[1] = np.nan
    np.testing.assert_allclose(np.degrees(face_roll(landmarks)), [-30, -5, 20, 170, 190], atol=1e-3)
    assert (face_roll(np.full((3, 68, 2), np.nan)) == 0).all()


@pytest.mark.parametrize(("roll", "turn"), [(0, 0), (9, 0), (-9, 0), (25, 15), (-40, -30)])
def test_a_head_that_is_tilted_far_is_turned_back(roll: float, turn: float) -> None:
    box = (35, 85, 40, 80)
    (face, *_) = faces_of(stable_crops(track_of(np.tile(box, (5, 1)), tilted([roll] * 5))))
    assert face.box == box
    assert np.degrees(np.arctan2(*face.crop_to_frame[1::-1, 0])) == pytest.approx(turn, abs=1e-3)
    np.testing.assert_allclose(face.crop_to_frame @ (19.5, 24.5, 1), (59.5, 59.5, 1), atol=1e-3)
    upright, left = face.crop_landmarks, tilted([roll - turn])[0]
    assert upright is not None
    np.testing.assert_allclose(upright[42] - upright[36], left[42] - left[36], atol=1e-3)


# --- to the network and back


def test_without_a_placement_a_crop_is_what_the_box_shows() -> None:
    frame = smooth_picture()
    for box in ((10, 60, 20, 70), (-10, 40, 90, 130)):
        np.testing.assert_array_equal(face_crop(frame, Face(0, box)), crop_box(frame, box))
        whole = Face(0, box, placement=np.array([(1, 0, box[2]), (0, 1, box[0])], np.float32))
        np.testing.assert_array_equal(face_crop(frame, whole), crop_box(frame, box))


@given(places, degrees, scales, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_crop_that_is_pasted_where_it_was_taken_gives_the_frame_back(
    place: tuple[float, float], turn: float, scale: float, seed: int
) -> None:
    frame = smooth_picture(seed)
    before = frame.copy()
    face = placed(*place, turn, scale)
    crop = face_crop(frame, face)
    assert crop.shape == (*SIDES, 3)
    assert np.abs(pasted(frame, face, crop).astype(int) - frame).max() <= 2
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("size", [(10, 10), (25, 40), (50, 8)])
def test_a_crop_of_the_networks_size_lies_where_it_was_taken(size: tuple[int, int]) -> None:
    """A ramp stays one when it is reduced and enlarged: half a pixel of the crop beside would be two levels or more."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    frame = np.stack([2 * columns, 2 * rows, columns + rows], axis=2).astype(np.uint8)
    face = placed()
    crop = cv2.resize(face_crop(frame, face), size[::-1], interpolation=cv2.INTER_AREA)
    result = pasted(frame // 2, face, crop)
    x, y = np.rint(face.crop_to_frame @ (19.5, 37, 1))[:2].astype(int)
    around = slice(y - 3, y + 4), slice(x - 3, x + 4)
    assert np.abs(result[around].astype(int) - frame[around]).max() <= 1


@given(places, degrees, scales)
@settings(max_examples=60, deadline=None)
def test_beside_what_was_generated_no_bit_changes(place: tuple[float, float], turn: float, scale: float) -> None:
    frame = smooth_picture()
    face = placed(*place, turn, scale)
    changed = (pasted(frame, face, np.full((*SIDES, 3), 255, np.uint8)) != frame).any(axis=2)
    assert changed.any()
    to_crop = np.linalg.inv(face.crop_to_frame)
    rows, columns = np.nonzero(changed)
    x, y, _ = to_crop @ [columns, rows, np.ones_like(rows)]
    assert y.min() > SIDES[0] / 2 - 1.1
    assert -1 < x.min() < x.max() < SIDES[1]
    assert y.max() < SIDES[0]


@pytest.mark.parametrize("place", [(2, 60), (118, 118), (60, 130), (-300, 60)])
def test_of_a_crop_that_reaches_beyond_the_frame_the_part_inside_is_pasted(place: tuple[float, float]) -> None:
    frame, padded = smooth_picture(), np.pad(smooth_picture(), ((99, 99), (99, 99), (0, 0)))
    crop = np.full((*SIDES, 3), 255, np.uint8)
    expected = pasted(padded, placed(place[0] + 99, place[1] + 99), crop)[99:-99, 99:-99]
    assert np.abs(pasted(frame, placed(*place), crop).astype(int) - expected).max() <= 1


def test_the_sampler_sees_the_crop_as_placed_and_so_is_the_reference() -> None:
    frame = smooth_picture()
    face = placed()
    seen = []

    def sampler(batch: SampleBatch):
        seen.extend(batch.crops)
        return lambda: np.zeros((1, 8, 8, 3), np.uint8)

    list(generate_crops(iter([Item(frame, face)]), [range(1)], sampler, lambda _: np.zeros((80, 16)), None))
    np.testing.assert_array_equal(seen[0], face_crop(frame, face))

    class Video:
        is_image = False

        def frames(self, **_: int) -> Iterator[np.ndarray]:
            return iter([frame])

    assert face.placement is not None
    track = replace(track_of(np.array([face.box])), placements=face.placement[None])
    reference = Playback(Video(), track, 1).reference("first_frame", None)  # type: ignore[arg-type]
    assert reference is not None
    np.testing.assert_array_equal(reference, face_crop(frame, face))


# --- stages


def test_the_lips_are_covered_where_they_are_in_the_frame() -> None:
    """The source's landmarks are in the frame, the generated ones in the crop: both are the same turned mouth."""
    lips = mouth(SIDES[1] / 2, 38, width=16)
    in_crop = np.zeros((68, 2), np.float32)
    in_crop[48:] = lips
    face = placed(turn=30)
    in_frame = (in_crop @ face.crop_to_frame[:2, :2].T + face.crop_to_frame[:2, 2]).astype(np.float32)
    upright = Face(0, (0, SIDES[0], 0, SIDES[1]), in_crop)
    crop = np.zeros((*SIDES, 3), np.float32)
    masks = [
        LipAlpha(1.3, False, GENERATED)(Item(smooth_picture(), f, crop, crop_size=48, lips=lips), SIDES)
        for f in (replace(face, landmarks=in_frame), upright)
    ]
    np.testing.assert_allclose(*masks, atol=0.02)
    assert masks[1].max() == 1


def still_head(n: int = 7) -> list[Item]:
    """A picture that stands still, seen in crops that lie now here, now there."""
    rng = np.random.default_rng(3)
    picture = smooth_picture()
    items = []
    for index in range(n):
        face = placed(*rng.uniform(56, 64, 2), rng.uniform(-15, 15), rng.uniform(0.97, 1.03), (48, 48))
        face = replace(face, index=index, motion=np.eye(2, 3, dtype=np.float32) if index else None)
        items.append(Item(picture, face, to_float(face_crop(picture, face)), crop_size=48))
    return items


def misplaced(items: Sequence[Item]) -> list[Item]:
    return [replace(item, face=replace(item.face, placement=None)) for item in items]  # type: ignore[type-var]


def test_smoothing_finds_the_same_skin_in_crops_that_lie_elsewhere() -> None:
    items = still_head()

    def change(given: Sequence[Item]) -> float:
        made = smoothing_stage(0.5, 0.5)(iter(given))
        return max(float(np.abs(a.crop - b.crop).max()) for a, b in zip(made, given, strict=True))  # type: ignore[operator]

    assert change(items) < 2 / 255
    assert change(misplaced(items)) > 6 / 255


def test_guidance_finds_the_same_skin_in_crops_that_lie_elsewhere() -> None:
    items = still_head()

    def change(given: Sequence[Item]) -> float:
        crops = [np.rint(255 * item.crop).astype(np.uint8) for item in given]  # type: ignore[operator]
        faces = [item.face for item in given if item.face is not None]
        image = to_tensor(crops)
        mask = torch.zeros(len(crops), 1, 48, 48)
        mask[:, :, 24:] = 1
        batch = SampleBatch(0, faces, crops, crops, np.zeros((len(crops), 80, 16), np.float32))
        return float((flow_guide(batch, image, mask, {0}, 1.0)(0, image) - image).abs().max())

    assert change(items) < 3 / 127.5
    assert change(misplaced(items)) > 8 / 127.5


def test_sharpening_leaves_the_crop_at_its_boxs_size() -> None:
    face = placed()
    assert sharpen(np.zeros((64, 64, 3), np.float32), face, 1, 0.5).shape == (*SIDES, 3)


def test_skin_and_mouth_are_looked_for_in_the_crop_as_placed() -> None:
    """By colours, faults and the picture at rest, of landmarks that are turned with the head."""
    upright = replace(placed(turn=0, scale=1), placement=None)
    turned = placed(turn=30)
    y1, _, x1, _ = upright.box
    landmarks = np.random.default_rng(0).uniform((8, 20), (32, 46), (68, 2)).astype(np.float32)
    to_frame = turned.crop_to_frame
    faces = [
        replace(upright, landmarks=landmarks + np.float32((x1, y1))),
        replace(turned, landmarks=(landmarks @ to_frame[:2, :2].T + to_frame[:2, 2]).astype(np.float32)),
    ]
    skin, mouths = ([f(face) for face in faces] for f in (lambda face: generated_skin(face, 64, 64, 0.5), mouth_64))
    assert skin[0].any()
    assert (skin[0] != skin[1]).mean() < 0.01
    assert (mouths[0] != mouths[1]).mean() < 0.01
    lips = landmarks[48:]
    upright_lips, turned_lips = (measure_lips(lips, face) for face in faces)
    assert upright_lips == pytest.approx(turned_lips, abs=0.05)


def mouth_64(face: Face) -> np.ndarray:
    return mouth_area(face, 64, 64)
