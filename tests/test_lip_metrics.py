"""How a mouth moves, on faces and sounds whose answers are known."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio.audio import load_speech, rms_envelope
from face_detection.api import FaceAlignment
from face_detection.lip_metrics import (
    BOXES,
    MAX_LAG,
    MIN_FRAMES,
    MIN_MOVEMENT,
    compare_openings,
    head_similarity,
    landmark_distance,
    mouth_opening,
    pose_distances,
    steady_landmarks,
    sync_correlation,
)
from guided_diffusion.errors import InputError
from guided_diffusion.streams import Box
from guided_diffusion.video_util import open_video

CLIPS = Path(__file__).parents[2] / "shared" / "clips"


def face(gap: float = 10) -> np.ndarray:
    """float32 [68, 2]: eyes 60 apart, lips whose inner sides are `gap` apart, the rest anywhere."""
    points = np.random.default_rng(0).uniform(0, 100, (68, 2))
    eye = np.array([(-9, 0), (-3, -3), (3, -3), (9, 0), (3, 3), (-3, 3)])
    points[36:42] = eye + np.array([20, 40])
    points[42:48] = eye + np.array([80, 40])
    points[61:64] = [(45, 80), (50, 80), (55, 80)]
    points[65:68] = [(55, 80 + gap), (50, 80 + gap), (45, 80 + gap)]
    return points.astype(np.float32)


def moved(points: np.ndarray, size: float, angle: float, x: float, y: float) -> np.ndarray:
    rotation = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    return (size * points @ rotation + (x, y)).astype(np.float32)


similarities = st.tuples(st.floats(0.2, 10), st.floats(-3.2, 3.2), st.floats(-2000, 2000), st.floats(-2000, 2000))


# --- landmarks


@pytest.mark.parametrize("gap", [0, 6, 30])
def test_opening_is_the_gap_over_the_distance_of_the_eyes(gap: float) -> None:
    assert mouth_opening(face(gap)) == pytest.approx(gap / 60, abs=1e-6)


@given(similarities)
def test_opening_does_not_depend_on_where_the_face_is(similarity: tuple[float, float, float, float]) -> None:
    assert mouth_opening(moved(face(), *similarity)) == pytest.approx(10 / 60, abs=1e-3)


def test_distance_of_a_mouth_that_is_moved_by_a_tenth_of_the_eyes_distance() -> None:
    other = face()
    other[48:68] += (0, 6)
    assert landmark_distance(face(), face()) == pytest.approx(0, abs=1e-6)
    assert landmark_distance(other, face()) == pytest.approx(0.1, abs=1e-6)


def test_distance_is_measured_at_the_lips_and_aligned_at_nose_and_eyes() -> None:
    """The jaw and the brows may do as they like; one lip point of 20 counts for a twentieth."""
    other = face()
    other[:27] += 40
    other[54] += (12, 0)
    assert landmark_distance(other, face()) == pytest.approx(12 / 60 / 20, abs=1e-6)


@given(similarities, similarities)
def test_distance_does_not_depend_on_where_either_face_is(
    one: tuple[float, float, float, float], two: tuple[float, float, float, float]
) -> None:
    distance = landmark_distance(face(30), face(0))
    assert distance == pytest.approx(3 / 20 * 30 / 60, abs=1e-6)
    assert landmark_distance(moved(face(30), *one), moved(face(0), *two)) == pytest.approx(distance, abs=2e-3)


@given(similarities)
def test_a_similarity_is_found_again(similarity: tuple[float, float, float, float]) -> None:
    points = face()
    matrix = head_similarity(points, moved(points, *similarity))
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], moved(points, *similarity), atol=0.01)


@given(similarities)
def test_heads_turned_alike_differ_in_nothing_and_those_turned_aside_by_their_noses(
    similarity: tuple[float, float, float, float],
) -> None:
    """Whatever the mouth does, and wherever they are."""
    aside = face(30)
    aside[27:36] += (12, 0)
    distances = pose_distances(np.stack([moved(face(30), *similarity), moved(aside, *similarity)]), face(0))
    np.testing.assert_allclose(distances, [0, distances[1]], atol=2e-3)
    assert 0.02 < distances[1] < 12 / 60


def test_alignment_is_the_best_in_the_least_squares_sense() -> None:
    """With noisy eyes and noses: no small turn, stretch or shift brings the aligned points nearer."""
    rng = np.random.default_rng(1)
    reference = face()
    other = reference + rng.normal(0, 3, (68, 2)).astype(np.float32)
    lips = other.copy()
    lips[48:68] = reference[48:68]  # seen through the alignment: its error at the lips is the distance
    design = np.zeros((42, 4))
    design[0::2] = np.stack([other[27:48, 0], -other[27:48, 1], np.ones(21), np.zeros(21)], 1)
    design[1::2] = np.stack([other[27:48, 1], other[27:48, 0], np.zeros(21), np.ones(21)], 1)
    a, b, x, y = np.linalg.lstsq(design, reference[27:48].ravel(), rcond=None)[0]
    aligned = reference[48:68] @ np.array([(a, b), (-b, a)]) + (x, y)
    expected = np.linalg.norm(aligned - reference[48:68], axis=1).mean() / 60
    assert landmark_distance(lips, reference) == pytest.approx(expected, rel=1e-4)


def test_unknown_landmarks_give_nan() -> None:
    unknown = np.full((68, 2), np.nan, np.float32)
    assert np.isnan(mouth_opening(unknown))
    assert np.isnan(landmark_distance(unknown, face()))
    assert np.isnan(landmark_distance(face(), unknown))


def test_landmarks_are_the_mean_over_boxes_around_the_face() -> None:
    """Whose noise differs, as dlib's does; the mean has a third of it, and stays where the landmarks are."""
    image, box, boxes = np.zeros((400, 400, 3), np.uint8), (100, 300, 150, 310), []
    rng = np.random.default_rng(2)

    def find(_image: np.ndarray, its_box: Box) -> np.ndarray:
        boxes.append(its_box)
        return face() + rng.normal(0, 1, (68, 2))

    found = steady_landmarks(find, image, box)
    assert found is not None
    assert 0.27 < (found - face()).std() < 0.39
    assert boxes[0] == box
    assert len(set(boxes)) == len(BOXES) == 9
    np.testing.assert_allclose(np.mean(boxes, axis=0), box, atol=0.5)
    assert max(abs(np.subtract(its_box, box)).max() for its_box in boxes) <= 0.045 * 200
    assert steady_landmarks(lambda _, its_box: None if its_box != box else face(), image, box) is None


def test_openings_are_compared_where_both_are_known() -> None:
    before = 0.2 + 0.1 * np.sin(np.arange(40) / 3)
    after = 0.3 + 0.5 * (before - 0.2)
    after[3], before[7] = np.nan, np.nan
    assert compare_openings(after, before) == pytest.approx((1, 0.5))
    assert compare_openings(-after, before) == pytest.approx((-1, 0.5))
    r, _ = compare_openings(np.roll(after, 4), before)
    assert r < 0.6


def test_a_mouth_that_hardly_moves_is_not_compared() -> None:
    """There, r would be the landmarks' noise's."""
    before = np.random.default_rng(3).normal(0.02, MIN_MOVEMENT / 2, 40)
    assert np.isnan(compare_openings(before, before)).all()
    assert np.isnan(compare_openings(np.full(40, np.nan), 10 * before)).all()


# --- synchrony


def syllables(n: int, seed: int = 0) -> np.ndarray:
    """float [n] in [0, 1] that varies as speech does, over some 5 frames."""
    walk = np.convolve(np.random.default_rng(seed).normal(size=n + 4), np.hanning(7)[1:-1], "valid")
    return (walk - walk.min()) / np.ptp(walk)


def sound(loudness: np.ndarray, fps: float, delay: int = 0) -> np.ndarray:
    """Noise at 16 kHz as loud as said at each frame's centre, all of it `delay` frames later."""
    n = len(loudness)
    times = np.arange(int(n / fps * 16000)) / 16000
    level = np.interp(times, (np.arange(n) + 0.5 + delay) / fps, loudness)
    return (0.1 * level * np.random.default_rng(9).normal(size=len(times))).astype(np.float32)


@pytest.mark.parametrize("fps", [22.13, 25, 30])
@pytest.mark.parametrize("delay", [-12, -3, 0, 1, 8])
def test_a_shifted_soundtrack_is_found_within_one_frame(delay: int, fps: float) -> None:
    opening = syllables(150)
    score = sync_correlation(opening, rms_envelope(sound(opening, fps, delay), 16000, 150, fps), fps)
    assert abs(score.lag_frames - delay) <= 1
    assert score.lag_ms == pytest.approx(1000 * score.lag_frames / fps)
    assert score.peak_r > 0.9
    assert score.z > 4


def test_late_sound_has_a_positive_lag_to_the_frame() -> None:
    opening = syllables(150)
    for delay in range(-MAX_LAG, MAX_LAG + 1):
        score = sync_correlation(opening, np.roll(opening, delay), 25)
        assert score.lag_frames == delay
        assert score.lag_ms == 40 * delay
        assert score.peak_r == pytest.approx(1)
        assert score.r0 == pytest.approx(np.corrcoef(opening, np.roll(opening, delay))[0, 1])


def test_z_is_the_distance_from_the_shifts_that_are_too_large_to_be_lags() -> None:
    opening, envelope = syllables(100), syllables(100) + syllables(100, seed=5)
    wrong = [np.corrcoef(opening, np.roll(envelope, shift))[0, 1] for shift in range(16, 85)]
    score = sync_correlation(opening, envelope, 25)
    assert score.z == pytest.approx((score.peak_r - np.mean(wrong)) / np.std(wrong))


def test_unrelated_sound_is_told_from_the_right_one() -> None:
    """Over 40 other voices z stays below what the right one reaches: chance gives about 2."""
    opening = syllables(250)
    right = sync_correlation(opening, opening + syllables(250, seed=99), 25)
    others = [sync_correlation(opening, syllables(250, seed=seed), 25).z for seed in range(1, 41)]
    assert np.median(others) < 3
    assert right.z > max(others)


def test_frames_without_a_face_are_left_out() -> None:
    opening = syllables(150)
    gaps = opening.copy()
    gaps[40:60] = np.nan
    gaps[::7] = np.nan
    score = sync_correlation(gaps, np.roll(opening, 4), 25)
    assert (score.lag_frames, score.peak_r) == (4, pytest.approx(1))


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 10), st.floats(-0.2, 0.2), st.floats(0.01, 1))
def test_score_does_not_depend_on_size_offset_and_volume(size: float, offset: float, volume: float) -> None:
    opening, envelope = syllables(80), syllables(80) + syllables(80, seed=3)
    score = sync_correlation(opening, envelope, 25)
    same = sync_correlation(size * opening + offset, volume * envelope, 25)
    assert same.lag_frames == score.lag_frames
    assert (same.peak_r, same.r0, same.z) == pytest.approx((score.peak_r, score.r0, score.z))


def test_an_hour_is_measured_in_seconds() -> None:
    """Shifts are counted in thousands at most: all of an hour's would take minutes."""
    opening = syllables(90_000)
    assert sync_correlation(opening, np.roll(opening, -2), 25).lag_frames == -2


def test_what_cannot_be_measured_is_said() -> None:
    moving = syllables(100)
    faceless = moving.copy()
    faceless[MIN_FRAMES - 1 :] = np.nan
    for opening, envelope, message in [
        (faceless, moving, f"{MIN_FRAMES - 1} of 100 frames show a face; give a video with {MIN_FRAMES} or more"),
        (np.full(100, 0.2), moving, "the mouth does not move"),
        (moving, np.zeros(100), "the sound is silent or its level never changes"),
        (moving, np.full(100, 0.3), "the sound is silent or its level never changes"),
    ]:
        with pytest.raises(InputError, match=message):
            sync_correlation(opening, envelope, 25)


def test_the_shortest_video_that_is_measured() -> None:
    opening = syllables(MIN_FRAMES)
    score = sync_correlation(opening, np.roll(opening, 2), 25)
    assert score.lag_frames == 2
    assert np.isfinite(score.z)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs ../shared/clips")
def test_a_clip_is_in_sync_with_its_own_speech() -> None:
    pytest.importorskip("dlib")
    path = str(CLIPS / "woman_590_25fps.mp4")
    video = open_video(path, 0)
    faces = FaceAlignment("dlib").detect(list(video.frames()))
    opening = np.array([mouth_opening(found[0].landmarks) for found in faces if found[0].landmarks is not None])
    score = sync_correlation(opening, rms_envelope(load_speech(path), 16000, len(opening), video.fps), video.fps)
    assert -40 <= score.lag_ms <= 200
    assert score.peak_r > 0.1
