"""Flicker, warp error and head motion on a textured picture that sways as a head does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guided_diffusion.errors import InputError
from guided_diffusion.sampling import SampleBatch
from guided_diffusion.script_util import create_gaussian_diffusion, model_config
from guided_diffusion.streams import Box, Face, Item
from guided_diffusion.tfg_data_util import inside_frame, to_float
from post_processing import paste_stage
from temporal_consistency import (
    GUIDED_STEPS,
    FlickerMeter,
    FlickerScores,
    TemporalSmoother,
    WarpError,
    WarpErrorMeter,
    _trusted,
    flow_guide,
    guided_steps,
    head_motion,
    smoothing_stage,
)

SIZE = 160
BOX = (30, 130, 30, 130)
LANDMARKS = np.full((68, 2), 80, np.float32)
LANDMARKS[48:68] = [(80 + 18 * np.cos(a), 108 + 8 * np.sin(a)) for a in np.linspace(0, 6, 20)]
LOWER = slice(80, 130), slice(30, 130)
UPPER_CORNERS = np.array([[30, 30, 1], [129, 30, 1], [30, 79, 1], [129, 79, 1]])
N_FRAMES = 40

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""The lower face, float32, of one frame -> of the result."""


def texture(seed: int = 0) -> np.ndarray:
    """RGB uint8, blobs of a few px around a grey of 128."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(SIZE, SIZE)).astype(np.float32), (0, 0), 1.5)
    return np.repeat(np.clip(128 + 20 * noise / noise.std(), 0, 255)[..., None], 3, axis=2).astype(np.uint8)


def similarity(degrees: float, scale: float, x: float, y: float) -> np.ndarray:
    """Around the picture's centre, then moved."""
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, scale)
    matrix[:, 2] += x, y
    return matrix


def moved(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(picture, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def swaying_head() -> Iterator[np.ndarray]:
    """At 25 fps: sways by 2 px and 1 degree at 0.5 Hz; exposure varies by 0.5 %, the sensor's noise is 2 levels."""
    rng = np.random.default_rng(1)
    picture = texture()
    for t in range(N_FRAMES):
        swing = np.sin(np.pi * t / 25)
        frame = moved(picture, similarity(swing, 1, 2 * swing, swing)).astype(np.float32)
        frame = frame * (1 + 0.005 * rng.normal()) + rng.normal(0, 2, frame.shape)
        yield np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def changed(frames: Iterator[np.ndarray], change: Change) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(2)
    for frame in frames:
        result = frame.copy()
        result[LOWER] = np.clip(np.rint(change(frame[LOWER].astype(np.float32), rng)), 0, 255)
        yield result


def same(face: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    return face


def gain_jitter(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return face * (1 + 0.01 * rng.normal())


def spatial_blur(face: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(face, (0, 0), 2)


def noise(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return face + rng.normal(0, 4, face.shape)


class RecursiveBlur:
    """Each frame keeps 0.6 of what was shown before."""

    def __init__(self) -> None:
        self.shown: np.ndarray | None = None

    def __call__(self, face: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
        self.shown = face if self.shown is None else 0.6 * self.shown + 0.4 * face
        return self.shown


class SlowDrift:
    """Brightness goes 5 % up and down at 0.5 Hz."""

    def __init__(self) -> None:
        self.frame = 0

    def __call__(self, face: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
        self.frame += 1
        return face * (1 + 0.05 * np.sin(np.pi * self.frame / 25))


def item(
    source: np.ndarray,
    result: np.ndarray,
    box: Box | None = BOX,
    landmarks: np.ndarray | None = LANDMARKS,
    is_cut: bool = False,
) -> Item:
    return Item(source, Face(0, box, landmarks, is_cut) if box else None, picture=result)


def measure(change: Change, n_frames: int = N_FRAMES) -> tuple[FlickerScores, WarpError]:
    flicker, warp = FlickerMeter(), WarpErrorMeter()
    results = changed(swaying_head(), change)
    for source, result in islice(zip(swaying_head(), results, strict=True), n_frames):
        flicker.update(item(source, result))
        warp.update(item(source, result))
    return flicker.scores(), warp.scores()


def test_a_video_against_itself_scores_exactly_1() -> None:
    flicker, warp = measure(same)
    assert (flicker.brightness, flicker.texture, warp.ratio) == (1, 1, 1)
    assert flicker.n_frames == N_FRAMES - 4
    assert warp.n_frames == N_FRAMES - 1
    assert np.isnan(flicker.brightness_series[[0, 1, -2, -1]]).all()
    assert np.isnan(warp.series[-1])
    assert len(flicker.texture_series) == len(warp.series) == N_FRAMES


def test_gain_jitter_is_brightness_flicker() -> None:
    """1 % against the source's own 0.5 %."""
    flicker, _ = measure(gain_jitter)
    assert 1.7 < flicker.brightness < 3
    assert flicker.texture == pytest.approx(1, abs=0.1)


def test_the_series_show_the_frame_that_flickers() -> None:
    """One frame brighter by 5 %: its S gets the filter's full weight, 6/16."""
    n = iter(range(N_FRAMES))
    flicker, _ = measure(lambda face, _rng: face * (1.05 if next(n) == 20 else 1))
    assert np.nanargmax(flicker.brightness_series) == 20
    assert flicker.brightness_series[20] == pytest.approx(0.05 * 128 * 6 / 16, abs=1)


def test_blur_within_each_frame_takes_texture_and_not_brightness() -> None:
    flicker, warp = measure(spatial_blur)
    assert flicker.texture < 0.5
    assert flicker.brightness == pytest.approx(1, abs=0.05)
    assert warp.ratio < 0.5


def test_noise_in_each_frame_adds_texture_and_warp_error_but_no_brightness() -> None:
    """sqrt(2^2 + 4^2) = 4.5 levels against 2: 2.2 times the texture, 5 times the squared error, less interpolation."""
    flicker, warp = measure(noise)
    assert 1.7 < flicker.texture < 2.3
    assert flicker.brightness == pytest.approx(1, abs=0.05)
    assert 3 < warp.ratio < 5


def test_recursive_blur_is_over_smoothed() -> None:
    """Theory: a gain of 0.4 / 1.6 = 0.25 at 12.5 Hz, 1 at 0 Hz."""
    flicker, warp = measure(RecursiveBlur())
    assert 0.2 < flicker.brightness < 0.5
    assert 0.25 < flicker.texture < 0.7
    assert warp.ratio < 0.5


def test_slow_drift_is_no_flicker() -> None:
    flicker, warp = measure(SlowDrift())
    assert flicker.brightness == pytest.approx(1, abs=0.05)
    assert flicker.texture == pytest.approx(1, abs=0.05)
    assert warp.ratio == pytest.approx(1, abs=0.15)


def test_the_upper_face_does_not_count() -> None:
    """A paste that makes all of the face flicker by 1 % flickers as one that only does so below."""
    meter = FlickerMeter()
    rng = np.random.default_rng(2)
    for frame in swaying_head():
        result = np.clip(np.rint(frame * (1 + 0.01 * rng.normal())), 0, 255).astype(np.uint8)
        meter.update(item(frame, result))
    below, _ = measure(gain_jitter)
    assert meter.scores().brightness == pytest.approx(below.brightness, abs=0.01)
    assert meter.scores().brightness > 1.7


def test_movement_is_registered_away() -> None:
    """A head that speeds up: unregistered, S has 5-9 levels of texture and the error reaches 760."""
    flicker, warp = FlickerMeter(), WarpErrorMeter()
    for t in range(7):
        frame = np.roll(texture(), (t * t // 2, t), axis=(0, 1))
        flicker.update(item(frame, frame))
        warp.update(item(frame, frame))
    assert np.nanmax(flicker.scores().texture_series) < 0.5
    assert np.nanmax(warp.scores().series) < 1


def test_flow_is_not_trusted_where_it_does_not_return_breaks_or_leaves() -> None:
    forward = np.full((20, 30, 2), 3, np.float32)
    backward = -forward
    assert _trusted(forward, backward).all()
    backward[5, 5] += 1  # |w + ŵ|^2 = 2 > 0.01 (18 + 8) + 0.5
    backward[9, 9] += 0.5  # 0.5 < 0.01 (18 + 12.5) + 0.5
    backward[7, 7] = np.nan
    forward[:, 20:] = backward[:, 20:] = 0  # a step: |∇u|^2 + |∇v|^2 = 2 * 1.5^2 on either side of it
    assert {tuple(at) for at in np.argwhere(~_trusted(forward, backward)).tolist()} == {(5, 5), (7, 7)} | {
        (row, column) for row in range(20) for column in (19, 20)
    }


def test_lips_do_not_count_as_flicker() -> None:
    """A mouth that opens and closes at 5 Hz to other words, up to 3 px outside the lips' outline."""
    n = iter(range(N_FRAMES))

    def speak(face: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
        result = face.copy()
        cv2.ellipse(result, (50, 28), (21, 11), 0, 0, 360, (60 * (next(n) % 5 > 2),) * 3, -1)
        return result

    flicker, _ = measure(speak)
    assert (flicker.brightness, flicker.texture) == (1, 1)


def test_large_faces_are_measured_small() -> None:
    """A face of 768 px scores as the same one at 256 px."""
    small, large = FlickerMeter(), FlickerMeter()
    box, big_box = (2, 258, 2, 258), (6, 774, 6, 774)
    for source, result in islice(zip(swaying_head(), changed(swaying_head(), gain_jitter), strict=True), 12):
        source, result = (cv2.resize(frame, (320, 320)) for frame in (source, result))
        small.update(item(source, result, box, LANDMARKS * 2))
        big = [cv2.resize(frame, (960, 960), interpolation=cv2.INTER_NEAREST) for frame in (source, result)]
        large.update(item(*big, big_box, LANDMARKS * 6))
    assert large.scores().n_frames == 8
    assert large.scores().brightness == pytest.approx(small.scores().brightness, rel=0.02)
    assert large.scores().texture == pytest.approx(small.scores().texture, rel=0.02)


@pytest.mark.parametrize("gap", ["cut", "no face"])
def test_nothing_is_measured_across_a_cut_or_a_frame_without_a_face(gap: str) -> None:
    flicker, warp = FlickerMeter(), WarpErrorMeter()
    for t, frame in enumerate(islice(swaying_head(), 16)):
        box = None if t == 8 and gap == "no face" else BOX
        this = item(frame, frame, box, is_cut=t == 8 and gap == "cut")
        flicker.update(this)
        warp.update(this)
    steps = np.flatnonzero(~np.isnan(warp.scores().series)).tolist()
    frames = np.flatnonzero(~np.isnan(flicker.scores().texture_series)).tolist()
    assert frames == ([2, 3, 4, 5, 10, 11, 12, 13] if gap == "cut" else [2, 3, 4, 5, 11, 12, 13])
    assert steps == [t for t in range(15) if t != 7 and not (t == 8 and gap == "no face")]


def test_an_unseen_cut_breaks_the_window() -> None:
    """Nobody said is_cut, but no head moves from one picture into another."""
    meter = FlickerMeter()
    for t, frame in enumerate(islice(swaying_head(), 12)):
        picture = frame if t < 6 else texture(seed=5)
        meter.update(item(picture, picture))
    assert np.flatnonzero(~np.isnan(meter.scores().texture_series)).tolist() == [2, 3, 8, 9]


def test_a_frame_without_landmarks_is_not_measured_but_serves_its_neighbours() -> None:
    meter = FlickerMeter()
    for t, frame in enumerate(islice(swaying_head(), 9)):
        meter.update(item(frame, frame, landmarks=None if t == 4 else LANDMARKS))
    assert np.flatnonzero(~np.isnan(meter.scores().texture_series)).tolist() == [2, 3, 5, 6]


def test_what_cannot_be_measured_is_nan() -> None:
    """No frames at all; a still picture, where nothing flickers; a face too small for optical flow."""
    assert np.isnan([FlickerMeter().scores().brightness, WarpErrorMeter().scores().ratio]).all()
    flicker, warp = FlickerMeter(), WarpErrorMeter()
    for _ in range(6):
        flicker.update(item(texture(), texture()))
        warp.update(item(texture()[:10, :10], texture()[:10, :10], (1, 9, 1, 9)))
    assert flicker.scores().n_frames == 2
    assert np.isnan([flicker.scores().brightness, flicker.scores().texture, warp.scores().ratio]).all()


def test_videos_of_different_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"160x160 \(source\) and 80x160 \(result\)"):
        FlickerMeter().update(item(texture(), texture()[:, :80]))
    with pytest.raises(InputError, match="equal size"):
        WarpErrorMeter().update(item(texture(), texture()[:, :80]))


@settings(max_examples=40, deadline=None)
@given(st.integers(-150, 200), st.integers(-150, 200), st.integers(1, 150), st.integers(1, 150))
def test_a_box_anywhere_is_measured_by_what_is_inside_the_frame(y: int, x: int, height: int, width: int) -> None:
    """Negative indices counted from the other side: a face at the upper or left edge was another place, or a crash."""
    flicker, warp = FlickerMeter(), WarpErrorMeter()
    box = (y, y + height, x, x + width)
    inside, _ = inside_frame(box, (SIZE, SIZE))
    rng = np.random.default_rng(0)
    for t in range(5):
        frame = np.roll(texture(), t, axis=1)
        noisy = np.clip(frame + rng.normal(0, 8, frame.shape), 0, 255).astype(np.uint8)
        result = noisy.copy()
        result[inside] = frame[inside]
        flicker.update(item(noisy, result, box))
        warp.update(item(noisy, result, box))
    assert np.isnan(flicker.scores().texture) or flicker.scores().texture < 0.8
    assert np.isnan(warp.scores().ratio) or warp.scores().ratio < 0.8


@pytest.mark.parametrize("place", [-40, 0, 90])
def test_a_face_half_outside_moves_and_is_measured(place: int) -> None:
    box = (30, 130, place, place + 100)
    meter, warp = FlickerMeter(), WarpErrorMeter()
    for frame in islice(swaying_head(), 8):
        meter.update(item(frame, frame, box))
        warp.update(item(frame, frame, box))
    assert head_motion(texture(), moved(texture(), similarity(0, 1, 2, 1)), box) is not None
    assert (meter.scores().n_frames, warp.scores().n_frames) == (4, 7)


@settings(max_examples=25, deadline=None)
@given(st.floats(-3, 3), st.floats(0.97, 1.03), st.floats(-4, 4), st.floats(-4, 4), st.integers(0, 40))
def test_head_motion_finds_a_similarity(degrees: float, scale: float, x: float, y: float, offset: int) -> None:
    """Within 0.1 px everywhere on the upper face, wherever the face is in the frame."""
    motion = similarity(degrees, scale, x, y)
    frames = [np.pad(frame, ((offset, 0), (0, offset), (0, 0))) for frame in (texture(), moved(texture(), motion))]
    found = head_motion(*frames, (30 + offset, 130 + offset, 30, 130))
    assert found is not None
    assert found.shape == (2, 3)
    assert found.dtype == np.float32
    in_frame = UPPER_CORNERS + np.array([0, offset, 0])
    np.testing.assert_allclose(in_frame @ found.T, UPPER_CORNERS @ motion.T + np.array([0, offset]), atol=0.1)


def test_head_motion_ignores_the_mouth() -> None:
    after = moved(texture(), similarity(0, 1, 2, 1))
    after[LOWER] = moved(texture(), similarity(0, 1, -3, 0))[LOWER]
    found = head_motion(texture(), after, BOX)
    assert found is not None
    np.testing.assert_allclose(UPPER_CORNERS @ found.T, UPPER_CORNERS[:, :2] + np.array([2, 1]), atol=0.1)


def test_head_motion_says_none_when_it_cannot_know() -> None:
    """Flat, unrelated pictures and noise; boxes with no room for corners; frames of different size."""
    flat = np.full((SIZE, SIZE, 3), 90, np.uint8)
    rng = np.random.default_rng(3)
    assert head_motion(flat, flat, BOX) is None
    assert head_motion(texture(0), texture(1), BOX) is None
    for _ in range(20):
        noise_a, noise_b = rng.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
        assert head_motion(noise_a, noise_b, BOX) is None
    for box in [(5, 5, 5, 5), (5, 6, 5, 6), (0, 4, 0, 4), (200, 220, 200, 220)]:
        assert head_motion(texture(), texture(), box) is None
    assert head_motion(texture(), texture()[:, :80], BOX) is None


def test_head_motion_of_a_large_face_is_in_its_frames_pixels() -> None:
    """It is looked at smaller than it is."""
    picture = cv2.resize(texture(), (960, 960), interpolation=cv2.INTER_CUBIC)
    expected = cv2.getRotationMatrix2D((480, 480), 2, 1.01)
    expected[:, 2] += 14, -9
    frame = cv2.warpAffine(picture, expected, (960, 960), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    motion = head_motion(picture, frame, (180, 780, 180, 780))
    assert motion is not None
    corners = np.array([[180, 180, 1], [779, 180, 1], [180, 479, 1], [779, 479, 1]]).T
    np.testing.assert_allclose(motion @ corners, expected @ corners, atol=0.3)


# --- smoothing

CROP = 64
HeadPath = Callable[[int], np.ndarray]


def generated(path: HeadPath, n_frames: int = 16, change: Change = same) -> tuple[list[Item], list[Item]]:
    """Frames of a head on its way with crops, of another size than their boxes: as they should be, and changed."""
    rng = np.random.default_rng(3)
    truth, result = [], []
    for t in range(n_frames):
        matrix = path(t)
        frame = moved(texture(), matrix)
        x, y = np.rint(matrix @ (80, 80, 1)).astype(int)
        box = int(y) - 48, int(y) + 48 + t % 3, int(x) - 48 - t % 2, int(x) + 48  # which jitters
        last = truth[-1] if truth else None
        motion = head_motion(last.frame, frame, last.face.box) if last and last.face else None
        landmarks = LANDMARKS + (matrix @ (80, 80, 1) - 80).astype(np.float32)
        crop = cv2.resize(frame[box[0] : box[1], box[2] : box[3]], (CROP, CROP), interpolation=cv2.INTER_AREA)
        face = Face(t, box, landmarks, t == 0, motion)
        truth.append(Item(frame, face, to_float(crop)))
        changed_crop = to_float(crop)
        changed_crop[CROP // 2 :] = (change(crop[CROP // 2 :].astype(np.float32), rng) / 255).clip(0, 1)
        result.append(Item(frame, face, changed_crop.astype(np.float32)))
    assert all(item.face is not None and item.face.motion is not None for item in truth[1:])
    return truth, result


def slow(t: int) -> np.ndarray:
    swing = np.sin(np.pi * t / 25)
    return similarity(swing, 1, 2 * swing, swing)


def fast(t: int) -> np.ndarray:
    """8 px and 2 degrees a frame, to and fro."""
    place = abs(t % 4 - 2) - 1
    return similarity(2 * place, 1, 8 * place, 0)


def jitter_and_noise(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return face * (1 + 0.02 * rng.normal()) + rng.normal(0, 4, (*face.shape[:2], 1))


def smoothed(items: Sequence[Item], smoothing_factor: float = 0.5) -> list[Item]:
    before = [item.crop.copy() for item in items if item.crop is not None]
    result = list(smoothing_stage(smoothing_factor, 0.5)(iter(items)))
    for item, new, crop in zip(items, result, before, strict=True):
        assert item.crop is not None
        assert new.crop is not None
        assert (new.crop.dtype, new.crop.shape) == (np.float32, crop.shape)
        np.testing.assert_array_equal(item.crop, crop)  # not modified
        np.testing.assert_array_equal(new.crop[: CROP // 2], crop[: CROP // 2])  # nor what was not generated
    return result


def excess(truth: Sequence[Item], result: Sequence[Item]) -> np.ndarray:
    """Flicker of brightness and texture beyond the truth's."""
    meter = FlickerMeter()
    for true, made in zip(paste_stage()(iter(truth)), paste_stage()(iter(result)), strict=True):
        assert true.picture is not None
        meter.update(replace(made, frame=true.picture))
    scores = meter.scores()
    return np.array([scores.brightness, scores.texture]) - 1


def error(truth: Sequence[Item], result: Sequence[Item]) -> np.ndarray:
    """In levels, [F, h, w, 3] of the crops' generated part."""
    return np.stack([255 * (made.crop - true.crop)[CROP // 2 :] for true, made in zip(truth, result, strict=True)])


@pytest.mark.parametrize("path", [slow, fast])
def test_smoothing_removes_gain_jitter_and_noise(path: HeadPath) -> None:
    """At least 60 % of the flicker, and the picture is nearer to the truth than without."""
    truth, flickering = generated(path, change=jitter_and_noise)
    steady = smoothed(flickering)
    assert (excess(truth, steady) < 0.4 * excess(truth, flickering)).all()
    before, after = error(truth, flickering), error(truth, steady)
    assert after.mean(axis=(1, 2, 3)).std() < 0.5 * before.mean(axis=(1, 2, 3)).std()
    assert (np.sqrt((after**2).mean(axis=(1, 2, 3))) < np.sqrt((before**2).mean(axis=(1, 2, 3))))[1:-1].all()


def test_a_head_that_moves_fast_leaves_no_ghost() -> None:
    """Of a true picture with a contrast of 20 levels. What is not aligned has changed too much to be blended."""
    truth, _ = generated(fast)
    lost = [replace(item, face=replace(item.face, motion=np.eye(2, 3))) for item in truth if item.face]
    for items in (truth, lost):
        assert np.sqrt((error(truth, smoothed(items)) ** 2).mean()) < 1


@pytest.mark.parametrize("gap", ["cut", "motion unknown", "without a crop", "frame missing"])
def test_nothing_crosses_a_cut_or_an_unknown_movement(gap: str) -> None:
    dark, bright = (np.full((CROP, CROP, 3), level, np.float32) for level in (0.4, 0.42))
    frame = texture()
    items = [Item(frame, Face(t, BOX, None, t == 0, np.eye(2, 3)), dark if t < 4 else bright) for t in range(8)]
    there = items[4].face
    assert there is not None
    if gap == "without a crop":
        items.insert(4, Item(frame))
    elif gap == "frame missing":
        items[4:] = [replace(item, face=replace(item.face, index=item.face.index + 1)) for item in items[4:]]
    else:
        items[4] = replace(items[4], face=replace(there, is_cut=gap == "cut", motion=None))
    shown = [item.crop for item in smoothing_stage(0.5, 0.5)(iter(items)) if item.crop is not None]
    for crop, level in zip(shown, [dark] * 4 + [bright] * 4, strict=True):
        np.testing.assert_allclose(crop, level, atol=1e-6)


def test_a_mouth_goes_on_moving() -> None:
    """A dark gap that opens and closes at 5 Hz, in a face that flickers: 97 % of its movement, without a lag."""
    _, items = generated(slow, 30, jitter_and_noise)
    opening = 4 + 4 * np.sin(2 * np.pi * 5 * np.arange(30) / 25)
    for item, gap in zip(items, opening, strict=True):
        assert item.crop is not None
        middle = (CROP // 2 * 16, 46 * 16)
        cv2.ellipse(item.crop, middle, (10 * 16, round(16 * gap)), 0, 0, 360, (0.1,) * 3, -1, cv2.LINE_AA, 4)
    seen = [np.array([(item.crop < 0.25).sum() for item in shown]) for shown in (items, smoothed(items))]
    assert seen[1].std() > 0.97 * seen[0].std()
    assert np.corrcoef(seen)[0, 1] > 0.99


def test_a_still_picture_and_a_single_frame_stay() -> None:
    crop = to_float(texture()[:CROP, :CROP])
    items = [Item(texture(), Face(t, BOX, None, t == 0, np.eye(2, 3)), crop) for t in range(5)]
    for item in smoothed(items):
        np.testing.assert_allclose(item.crop, crop, atol=1e-6)
    assert smoothed(items[:1])[0] is items[0]


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.9), st.integers(0, 99), st.floats(0, 1))
def test_the_recursive_smoother_stays_in_range_and_in_its_mask(factor: float, seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.uniform(0, 1, (3, 12, 10, 3)).astype(np.float32) * np.float32(level)
    mask = np.zeros((12, 10), np.float32)
    mask[6:] = 1
    smoother = TemporalSmoother(factor)
    for frame in frames:
        before = frame.copy()
        shown = smoother.smooth_transition(frame, mask)
        assert (shown.dtype, shown.shape) == (np.float32, frame.shape)
        assert 0 <= shown.min() <= shown.max() <= 1
        np.testing.assert_array_equal(shown[:6], frame[:6])
        np.testing.assert_array_equal(frame, before)
        if factor == 0:
            np.testing.assert_allclose(shown, frame, atol=1e-6)


def test_the_recursive_smoother_keeps_its_share_of_the_last_frame() -> None:
    """Of small changes; a large one comes at once, and a frame of another size begins anew."""
    mask = np.ones((16, 16), np.float32)
    smoother = TemporalSmoother(0.3)
    grey = np.full((16, 16, 3), 0.5, np.float32)
    np.testing.assert_array_equal(smoother.smooth_transition(grey, mask), grey)
    noise = np.random.default_rng(0).normal(0, 1e-3, grey.shape).astype(np.float32)
    np.testing.assert_allclose(smoother.smooth_transition(grey + noise, mask) - grey, 0.7 * noise, atol=2e-4)
    other = np.random.default_rng(1).uniform(0, 1, grey.shape).astype(np.float32)
    np.testing.assert_allclose(smoother.smooth_transition(other, mask), other, atol=0.02)
    small = other[:8]
    np.testing.assert_array_equal(smoother.smooth_transition(small, mask[:8]), small)


# ------------------------------------------------------------------------------------------ guidance by the flow


SIDE = 64
GENERATED = torch.cat([torch.zeros(SIDE // 2, SIDE), torch.ones(SIDE // 2, SIDE)])


def skin_at(face: Face) -> np.ndarray:
    """What a smooth picture in the first frame's pixels shows in a face's crop: float32 [1, SIDE, SIDE]."""
    y1, y2, x1, x2 = face.box
    places = (np.arange(SIDE) + 0.5) / SIDE
    x, y = np.meshgrid(x1 + places * (x2 - x1) - 0.5, y1 + places * (y2 - y1) - 0.5)
    if face.motion is not None:
        back = cv2.invertAffineTransform(face.motion)
        x, y = (back[row, 0] * x + back[row, 1] * y + back[row, 2] for row in range(2))
    return np.float32(0.1 * np.sin(x / 9) * np.cos(y / 11))[None]


MOVED = similarity(4, 1.03, 5, -3).astype(np.float32)
FIRST, SECOND = Face(0, BOX), Face(1, (26, 128, 37, 143), motion=MOVED)


def plain_crop(level: float) -> np.ndarray:
    return np.full((1, SIDE, SIDE), level, np.float32)


def guided(
    faces: list[Face], pictures: list[np.ndarray], sources: list[np.ndarray] | None = None, weight: float = 1
) -> np.ndarray:
    """float32 [N, 3, SIDE, SIDE], the pictures once they were drawn to each other."""
    n = len(faces)
    image = torch.from_numpy(np.stack(sources or [plain_crop(0)] * n)).expand(-1, 3, -1, -1)
    mels = np.zeros((n, 80, 16), np.float32)
    guide = flow_guide(SampleBatch(0, faces, [], [], mels), image, GENERATED.expand(n, 1, -1, -1), [5], weight)
    x_0 = torch.from_numpy(np.stack(pictures)).expand(-1, 3, -1, -1)
    before = x_0.clone()
    result = guide(5, x_0)
    assert torch.equal(x_0, before)
    assert torch.equal(guide(4, x_0), x_0)
    return result.numpy()


STILL = Face(1, BOX, motion=np.eye(2, 3, dtype=np.float32))
CHEEK = slice(None), slice(40, 58), slice(4, 10)


def test_the_frame_before_comes_to_where_the_head_has_moved() -> None:
    """Boxes, and so scales, differ; texture and brightness of the second frame were changed a little."""
    true = skin_at(SECOND)
    stripes = np.float32(0.004 * np.cos(np.arange(SIDE)))[:, None]
    shown = guided([FIRST, SECOND], [skin_at(FIRST), true + 0.02 + stripes])
    np.testing.assert_array_equal(shown[0], np.repeat(skin_at(FIRST), 3, axis=0))
    np.testing.assert_array_equal(shown[1, :, :32], np.repeat((true + 0.02 + stripes)[:, :32], 3, axis=0))
    np.testing.assert_allclose(shown[1][CHEEK], np.repeat(true, 3, axis=0)[CHEEK], atol=1.5e-3)


@given(st.floats(0, 1))
def test_the_weight_is_the_share_of_the_frame_before(weight: float) -> None:
    """In all that is generated: the lips flicker with the skin."""
    shown = guided([FIRST, STILL], [plain_crop(0), plain_crop(0.1)], weight=weight)
    np.testing.assert_allclose(shown[1, :, 32:], 0.1 * (1 - weight), atol=1e-6)
    np.testing.assert_array_equal(shown[1, :, :32], np.float32(0.1))


def test_light_that_changes_in_the_source_is_no_flicker() -> None:
    shown = guided([FIRST, STILL], [plain_crop(0), plain_crop(0.3)], [plain_crop(0), plain_crop(0.2)])
    np.testing.assert_allclose(shown[1, :, 32:], 0.2, atol=1e-6)


@pytest.mark.parametrize("landmarks", [None, LANDMARKS])
def test_the_mouth_is_its_own(landmarks: np.ndarray | None) -> None:
    """Also where the one of the frame before was: of texture nothing comes there."""
    faces = [Face(0, BOX, landmarks), Face(1, BOX, landmarks, motion=np.float32([[1, 0, 0], [0, 1, 12]]))]
    texture = np.float32(0.002 * np.random.default_rng(0).normal(size=(1, SIDE, SIDE)))
    shown = guided(faces, [plain_crop(0), texture])[1, 0] - texture[0]
    shown -= shown[50, 32]  # the brightness
    mouth = round((108 - 30) * 0.64)  # the lips' middle, in a crop of 64 px
    assert np.abs(shown[mouth - 5 : mouth + 5, 22:42]).max() < 1e-7
    assert np.abs(shown[mouth + 8 : mouth + 12, 22:42]).max() < 1e-7
    assert np.abs(shown[44:58, 4:10]).min() > 0


def test_what_moves_is_left() -> None:
    """A lit half of the chin that the frame before does not show."""
    before, now = plain_crop(0), plain_crop(0)
    now[:, 40:, :5] = 0.5
    shown = guided([FIRST, STILL], [before, now])
    change = shown[1, 0, 32:, :10] - now[0, 32:, :10]
    assert np.ptp(change) < 0.02


def test_nothing_comes_from_where_the_movement_is_unknown() -> None:
    """A cut, a gap, a head that was not followed: and never from the last row to the first."""
    faces = [STILL, Face(4, BOX, is_cut=True), Face(6, BOX), Face(7, BOX, motion=STILL.motion)]
    pictures = [plain_crop(0.01 * k) for k in range(4)]
    shown = guided(faces, pictures, pictures[::-1])
    np.testing.assert_array_equal(shown[:3], np.repeat(pictures[:3], 3, axis=1))
    assert (shown[3][CHEEK] != np.float32(0.03)).all()


@pytest.mark.parametrize("n_steps", [1, 2, 7, 10, 25])
def test_the_last_steps_are_guided(n_steps: int, small_config: dict) -> None:
    diffusion = create_gaussian_diffusion(model_config(small_config, "test"), f"ddim{n_steps}")
    steps = guided_steps(diffusion)
    assert list(steps) == list(range(n_steps))[-GUIDED_STEPS:]
