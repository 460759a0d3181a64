"""Measures of a composite with known answers, and the meter that takes them over a clip."""

import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import mouth
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from test_post_processing import WARM, coloured_items, face_landmarks

from face_detection.api import LIP
from face_detection.lip_metrics import landmark_distance, mouth_opening
from guided_diffusion.quality import (
    FRAME_MEASURES,
    METRICS,
    REFERENCE_METRICS,
    QualityMeter,
    QualityScores,
    compared_regions,
    lip_sharpness,
    measure_frame,
    outside_difference,
    psnr,
    ring_delta_e,
    skin_difference,
)
from guided_diffusion.seam_util import box_contour, mask_contour, seam_ratio
from guided_diffusion.streams import Box, Face, Item
from guided_diffusion.video_util import VideoWriter, open_video
from temporal_consistency import FlickerMeter, WarpErrorMeter

# --- measures of a composite

BOX = (30, 71, 20, 70)


def ramp(step: int = 2, size: int = 100) -> np.ndarray:
    """Uint8 [size, size, 3] that differs by `step` levels from row to row, up to 40 levels; it grows at 50 and 98."""
    rows = step * np.abs((np.arange(size) + 20) % 40 - 20)
    return np.broadcast_to(rows[:, None, None], (size, size, 3)).astype(np.uint8)


def noise(size: int = 100) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 100, (size, size, 3), dtype=np.uint8)


def brightened(frame: np.ndarray, area: tuple[int, int, int, int], levels: int) -> np.ndarray:
    y1, y2, x1, x2 = area
    result = frame.copy()
    result[y1:y2, x1:x2] += np.uint8(levels)
    return result


def test_a_step_on_the_masks_edge_raises_the_seam_ratio_by_its_height_over_the_slope() -> None:
    """Slope 2 everywhere and a step of 20 on the edge: (20 + 2 + 1/3) / (2 + 1/3). The edge is at 30 + int(41 / 2)."""
    edge, frame = 50, ramp()
    stepped = brightened(frame, (edge, 71, 0, 100), 20)
    assert seam_ratio(frame, mask_contour(BOX)) == pytest.approx(1)
    assert seam_ratio(stepped, mask_contour(BOX)) == pytest.approx(22.333 / 2.333, rel=1e-3)
    hidden_less = brightened(frame, (54, 71, 0, 100), 20)  # 30 + int(0.6 * 41)
    assert seam_ratio(hidden_less, mask_contour(BOX, 0.4)) == pytest.approx(22.333 / 2.333, rel=1e-3)
    for miss in (-1, 1):
        y1, y2, x1, x2 = BOX
        assert seam_ratio(stepped, mask_contour((y1 + miss, y2 + miss, x1, x2))) == pytest.approx(1)


@pytest.mark.parametrize("side", [(30, 71, 0, 20), (30, 71, 70, 100), (71, 100, 20, 70)])
def test_the_boxs_contour_counts_each_of_its_three_hard_sides(side: tuple[int, int, int, int]) -> None:
    """A step of 20 beside one side of a flat picture raises J_0 by 20 times that side's share of the contour."""
    flat = np.full((100, 100, 3), 90, np.uint8)
    share = (50 if side[0] == 71 else 41) / (41 + 41 + 50)
    assert seam_ratio(flat, box_contour(BOX)) == 1
    assert seam_ratio(brightened(flat, side, 20), box_contour(BOX)) == pytest.approx(1 + 3 * 20 * share)
    assert seam_ratio(brightened(flat, (0, 30, 0, 100), 20), box_contour(BOX)) == pytest.approx(1)


def test_a_pasted_brighter_box_has_a_seam_of_a_stated_size() -> None:
    """Noise of 0..39 levels differs by 13.3 between neighbours, by 21.9 across a step of 20."""
    frame = noise()
    ratio = seam_ratio(brightened(frame, BOX, 20), box_contour(BOX)) / seam_ratio(frame, box_contour(BOX))
    assert ratio == pytest.approx(21.9 / 13.3, abs=0.1)
    blended = cv2.GaussianBlur(brightened(np.zeros_like(frame), BOX, 20), (0, 0), 4) + frame
    assert seam_ratio(blended, box_contour(BOX)) / seam_ratio(frame, box_contour(BOX)) < 1.05


def test_sides_on_the_frames_border_have_no_seam() -> None:
    """A box in the frame's corner: only its one inner side, 100 rows and a step of 20, is left."""
    flat = np.full((100, 100, 3), 90, np.uint8)
    box = (0, 100, 0, 60)
    assert seam_ratio(brightened(flat, box, 20), box_contour(box)) == pytest.approx(1 + 3 * 20)
    assert np.isnan(seam_ratio(flat, box_contour((0, 100, 0, 100))))


def test_an_edge_beside_the_border_is_compared_with_the_side_that_it_has() -> None:
    frame = brightened(ramp(), (98, 100, 0, 100), 20)
    box = (60, 98, 0, 100)
    assert seam_ratio(frame, box_contour(box)) == pytest.approx(22.333 / 2.333, rel=1e-3)


def test_the_rings_colours_differ_by_a_known_delta_e() -> None:
    """For two greys CIEDE2000 is dL / S_L, S_L = 1 + 0.015 (mean L - 50)^2 / sqrt(20 + (mean L - 50)^2).

    L = 116 Y^(1/3) - 16 of the greys 119 and 143 is 50.03 and 59.40.
    """
    frame = np.full((100, 100, 3), 119, np.uint8)
    offset = (54.715 - 50) ** 2
    expected = 9.37 / (1 + 0.015 * offset / np.sqrt(20 + offset))
    assert ring_delta_e(frame, BOX) == pytest.approx(0, abs=1e-6)
    assert ring_delta_e(brightened(frame, BOX, 143 - 119), BOX) == pytest.approx(expected, abs=0.02)


def test_a_colour_cast_counts_only_within_the_rings() -> None:
    frame = noise()
    cast = frame.copy()
    cast[30:71, 20:70, 0] += 30  # RGB of about (80, 80, 80) to (110, 80, 80)
    assert ring_delta_e(frame, BOX) < 1
    assert ring_delta_e(cast, BOX) == pytest.approx(13.3, abs=0.5)
    between = frame.copy()
    between[26:75, 16:74] = 255  # the nearest 4 pixels outside and the box
    between[34:67, 24:66] = frame[34:67, 24:66]  # but those inside that are more than 4 away from its contour
    between[38:63, 28:62] = 255  # and its middle
    assert ring_delta_e(between, BOX) == ring_delta_e(frame, BOX)


def test_rings_need_pixels() -> None:
    frame = noise()
    assert np.isnan(ring_delta_e(frame, (0, 100, 0, 100)))
    assert np.isnan(ring_delta_e(frame, (30, 38, 20, 60)))
    assert np.isfinite(ring_delta_e(frame, (0, 100, 0, 60)))


def lips(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    corners = np.array([(x1, y1), (x2, y2)], np.float32)
    return np.concatenate([corners, np.tile(corners.mean(axis=0), (18, 1))])


def test_a_gaussian_blur_lowers_the_sharpness_by_a_known_factor() -> None:
    """It multiplies a wave of length w by exp(-2 (pi sigma / w)^2), and the variance by its square."""
    wave = 128 + 100 * np.sin(2 * np.pi * np.arange(128) / 8)
    frame = np.rint(np.broadcast_to(wave[None, :, None], (128, 128, 3))).astype(np.uint8)
    blurred = cv2.GaussianBlur(frame, (0, 0), 1.5)
    mouth = lips(40, 60, 87.5, 80)
    ratio = lip_sharpness(blurred, mouth) / lip_sharpness(frame, mouth)
    assert ratio == pytest.approx(np.exp(-4 * (np.pi * 1.5 / 8) ** 2), rel=0.05)


def test_sharpness_is_that_of_the_lips_only() -> None:
    frame = np.full((100, 100, 3), 90, np.uint8)
    frame[40:61, 30:71] = noise()[40:61, 30:71]
    assert lip_sharpness(frame, lips(0, 0, 28, 99)) == 0
    assert lip_sharpness(frame, lips(30, 40, 70, 60)) > 100
    assert lip_sharpness(frame, lips(-20, -20, 28, 20)) == 0
    for unknown in (lips(110, 20, 130, 30), lips(-30, 20, -10, 30), np.full((20, 2), np.nan, np.float32)):
        assert np.isnan(lip_sharpness(frame, unknown))


def test_the_difference_outside_the_box_is_found_and_has_no_wrap_around() -> None:
    source = noise()
    inside = brightened(source, BOX, 90)
    assert outside_difference(source, source, BOX) == 0
    assert outside_difference(source, inside, BOX) == 0
    for pixel, levels in [((0, 0, 2), 200), ((99, 99, 0), 0), ((30 - 6, 40, 1), 255), ((50, 70 + 5, 1), 255)]:
        result = inside.copy()
        result[pixel] = levels
        expected = abs(int(source[pixel]) - levels)
        assert outside_difference(source, result, BOX) == outside_difference(result, source, BOX) == expected
    assert outside_difference(source, inside, (0, 100, 0, 100)) == 0


@pytest.mark.parametrize("box", [(40, 90, 50, 110), (41, 91, 51, 111)])
def test_the_margin_covers_what_chroma_subsampling_spreads(box: tuple[int, int, int, int], tmp_path: Path) -> None:
    y1, y2, x1, x2 = box
    rng = np.random.default_rng(0)
    source = cv2.GaussianBlur(rng.integers(0, 256, (128, 160, 3), dtype=np.uint8), (0, 0), 1.5)
    result = source.copy()
    result[y1:y2, x1:x2] = rng.integers(0, 256, (y2 - y1, x2 - x1, 3))
    decoded = []
    for frame in (source, result):
        with VideoWriter(str(tmp_path / "one.mp4"), (160, 128), Fraction(25), crf=0) as writer:
            writer.write(frame)
        decoded.append(next(open_video(str(tmp_path / "one.mp4")).frames()))
    assert outside_difference(*decoded, box) == 0
    assert outside_difference(*decoded, (y1 + 3, y2 - 3, x1 + 3, x2 - 3)) > 0


# --- the meter


def landmarks_of(frame: np.ndarray, box: Box) -> np.ndarray:
    """float32 [68, 2]: a face in the box, whose mouth is the further open the brighter the frame's first pixel is."""
    y1, y2, x1, x2 = box
    points = np.random.default_rng(0).uniform(0.1, 0.9, (68, 2))
    points[LIP] = mouth(0.5, 0.75, 0.4, opening=float(frame[0, 0, 0]) / 255)
    return (points * (x2 - x1, y2 - y1) + (x1, y1)).astype(np.float32)


def filmed(n_frames: int = 6) -> tuple[list[Item], list[np.ndarray]]:
    """Items with source, face and result, and references, 100 x 110 px: all three differ more from frame to frame."""
    rng = np.random.default_rng(1)
    picture = cv2.GaussianBlur(rng.normal(size=(120, 130)).astype(np.float32), (0, 0), 1.5)
    items, references = [], []
    for t in range(n_frames):
        moved = 128 + 25 * picture[t // 2 : t // 2 + 100, t : t + 110, None] / picture.std()
        source, reference, result = (
            np.clip(moved + rng.normal(0, level, (100, 110, 3)), 0, 255).astype(np.uint8) for level in (1, 2, 3 + t)
        )
        result[52:90, 15:95] = np.clip(result[52:90, 15:95] * np.float32(1.1 + 0.05 * (t % 2)), 0, 255)
        for frame, brightness in ((source, 40), (reference, 90), (result, 120 + 10 * t)):
            frame[0, 0] = brightness
        items.append(Item(source, Face(t, (10 + t % 2, 90, 15, 95)), picture=result))
        references.append(reference)
    return items, references


def scores_of(items: list[Item], references: list[np.ndarray] | None = None, hidden: float = 0.5) -> QualityScores:
    meter = QualityMeter(landmarks_of, hidden)
    for item, reference in zip(items, references or [None] * len(items), strict=True):
        meter.update(item, reference)
    return meter.scores()


@pytest.mark.parametrize("hidden", [0.5, 0.3])
def test_the_meter_has_each_measure_under_its_name(hidden: float) -> None:
    items, references = filmed()
    scores = scores_of(items, references, hidden)
    expected: dict[str, list[float]] = {}
    ratios: dict[str, list[tuple[float, float]]] = {}
    for item, reference in zip(items, references, strict=True):
        (y1, y2, x1, x2), source, result = item.face.box, item.frame, item.picture  # type: ignore[union-attr]
        box, middle = (y1, y2, x1, x2), (y1 + y2) // 2
        whole, lower = (slice(y1, y2), slice(x1, x2)), (slice(middle, y2), slice(x1, x2))
        lips = landmarks_of(source, box)[LIP]
        mouth = compared_regions(Face(0, box, landmarks_of(source, box)), source.shape)["lips"]
        for name, value in {
            "delta_e_excess": ring_delta_e(result, box) - ring_delta_e(source, box),
            "outside_difference": outside_difference(source, result, box),
            "mouth_opening": mouth_opening(landmarks_of(result, box)),
            "lmd": landmark_distance(landmarks_of(result, box), landmarks_of(reference, box)),
            "ssim_face": structural_similarity(result[whole], reference[whole], channel_axis=2),
            "ssim_lower": structural_similarity(result[lower], reference[lower], channel_axis=2),
            "psnr_face": cv2.PSNR(result[whole], reference[whole]),
            "psnr_lower": cv2.PSNR(result[lower], reference[lower]),
            "ssim_lips": structural_similarity(result[mouth], reference[mouth], channel_axis=2),
            "psnr_lips": cv2.PSNR(result[mouth], reference[mouth]),
        }.items():
            expected.setdefault(name, []).append(value)
        for name, pair in {
            "seam_mask": [seam_ratio(frame, mask_contour(box, hidden)) for frame in (result, source)],
            "seam_box": [seam_ratio(frame, box_contour(box)) for frame in (result, source)],
            "lip_sharpness": [lip_sharpness(frame, lips) for frame in (result, source)],
        }.items():
            ratios.setdefault(name, []).append((pair[0], pair[1]))
    for name, values in expected.items():
        np.testing.assert_allclose(scores.series[name], values, rtol=1e-5, err_msg=name)
    for name, pairs in ratios.items():
        np.testing.assert_allclose(scores.series[name], [one / other for one, other in pairs], err_msg=name)
        assert scores.metrics[name] == pytest.approx(np.divide(*np.mean(pairs, axis=0)))
    for name in ("delta_e_excess", "ssim_face", "ssim_lower", "ssim_lips", "lmd"):
        assert scores.metrics[name] == pytest.approx(np.mean(expected[name]))
    assert scores.metrics["delta_e_deviation"] == pytest.approx(np.std(expected["delta_e_excess"]))
    assert scores.metrics["outside_difference"] == max(expected["outside_difference"])
    for name in ("psnr_face", "psnr_lower", "psnr_lips"):  # of the mean square error over all frames
        errors = [10 ** (-value / 10) for value in expected[name]]
        assert scores.metrics[name] == pytest.approx(-10 * np.log10(np.mean(errors)), rel=1e-5)


def test_the_skins_colours_are_compared_by_their_means_and_their_spread() -> None:
    (item,) = coloured_items([WARM], face_landmarks())
    source, face = item.frame, item.face
    assert face is not None
    assert set(skin_difference(source, source, face, 0.5).values()) == {0}
    cast = np.rint(source * np.array(WARM)).clip(0, 255).astype(np.uint8)
    measured = skin_difference(source, cast, face, 0.5)
    assert 3 < measured["skin_delta_e"] < 7
    assert measured["skin_a"] > 2
    assert measured["skin_b"] > 2
    assert measured["skin_histogram"] == pytest.approx(
        np.mean([abs(measured[name]) for name in ("skin_l", "skin_a", "skin_b")]), abs=0.2
    )
    mean = source[85:150, 30:170].mean(axis=(0, 1))
    harder = np.rint(mean + 3 * (source - mean)).clip(0, 255).astype(np.uint8)
    measured = skin_difference(source, harder, face, 0.5)
    assert measured["skin_histogram"] > 1.5 * measured["skin_delta_e"]
    mouth_only = source.copy()
    mouth_only[115:126, 85:116] = 0
    assert set(skin_difference(source, mouth_only, face, 0.5).values()) == {0}
    assert skin_difference(source, source, replace(face, box=(300, 400, 30, 170)), 0.5) == {}


def test_drift_is_seen_over_time_only() -> None:
    """A steady cast has none; in result and source alike it does not count."""
    items = coloured_items([(1, 1, 1)] * 6, face_landmarks())
    gains = np.linspace(1, 1.1, 6)
    warmed = [
        np.rint(item.frame * np.array([gain, 1, 1])).clip(0, 255).astype(np.uint8)
        for item, gain in zip(items, gains, strict=True)
    ]
    steady = scores_of([replace(item, picture=warmed[-1]) for item in items]).metrics
    drifting = scores_of([replace(item, picture=picture) for item, picture in zip(items, warmed, strict=True)]).metrics
    both = scores_of(
        [replace(item, frame=picture, picture=picture) for item, picture in zip(items, warmed, strict=True)]
    ).metrics
    assert drifting["skin_drift"] > 1
    assert steady["skin_drift"] < 0.05
    assert both["skin_drift"] == both["skin_delta_e"] == 0


def test_the_meter_measures_all_that_needs_no_sound() -> None:
    items, references = filmed()
    added = ("lpips_", "ms_ssim_", "sync_", "truth_", "opening_", "lse_")
    names = {metric.name for metric in METRICS if not metric.name.startswith(added)}
    scores = scores_of(items, references)
    assert scores.metrics.keys() == names
    assert scores.series.keys() == names - {"delta_e_deviation", "skin_drift"} | {"mouth_opening"}
    assert all(len(series) == len(items) for series in scores.series.values())
    flicker, warp = FlickerMeter(), WarpErrorMeter()
    for item in items:
        assert item.face is not None
        known = replace(item, face=replace(item.face, landmarks=landmarks_of(item.frame, item.face.box)))
        flicker.update(known)
        warp.update(known)
    assert scores.metrics["flicker_brightness"] == flicker.scores().brightness > 1.5
    assert scores.metrics["flicker_texture"] == flicker.scores().texture > 1.5
    assert scores.metrics["warp_error"] == warp.scores().ratio > 5
    np.testing.assert_array_equal(scores.series["flicker_brightness"], flicker.scores().brightness_series)
    np.testing.assert_array_equal(scores.series["flicker_texture"], flicker.scores().texture_series)
    np.testing.assert_array_equal(scores.series["warp_error"], warp.scores().series)
    alone = scores_of(items)
    assert alone.metrics.keys() == names - set(REFERENCE_METRICS)
    assert not alone.not_measured
    assert all(alone.metrics[name] == scores.metrics[name] for name in alone.metrics)


def test_the_lips_region_is_their_box_with_a_quarter_of_its_width_around() -> None:
    landmarks = np.full((68, 2), 50, np.float32)
    landmarks[LIP] = lips(30, 40, 70, 60)
    found = compared_regions(Face(0, (0, 100, 10, 90), landmarks), (100, 75, 3))
    assert found == {
        "face": (slice(0, 100), slice(10, 75)), "lower": (slice(50, 100), slice(10, 75)),
        "lips": (slice(30, 70), slice(20, 75)),
    }  # fmt: skip
    for unknown in (None, np.full((68, 2), np.nan, np.float32)):
        assert compared_regions(Face(0, (0, 100, 10, 90), unknown), (100, 75, 3)).keys() == {"face", "lower"}


def test_frames_are_measured_by_name() -> None:
    items, references = filmed(1)
    landmarks = landmarks_of(items[0].frame, (10, 90, 15, 95))
    item = replace(items[0], face=Face(0, (10, 90, 15, 95), landmarks))
    assert measure_frame(item, references[0], landmarks_of, 0.5).keys() == set(FRAME_MEASURES)


def test_a_result_equal_to_its_source_is_ideal() -> None:
    items = [replace(item, picture=item.frame) for item in filmed()[0]]
    scores = scores_of(items, [item.frame for item in items])
    zero = (
        "delta_e_excess",
        "delta_e_deviation",
        "skin_delta_e",
        "skin_drift",
        "skin_histogram",
        "outside_difference",
        "lmd",
    )
    for name in zero:
        assert scores.metrics.pop(name) == pytest.approx(0, abs=1e-6)
    for name in ("psnr_face", "psnr_lower", "psnr_lips"):
        assert scores.metrics.pop(name) == 100
    assert list(scores.metrics.values()) == pytest.approx([1] * 9)


def test_frames_without_a_face_and_unknown_landmarks_leave_gaps() -> None:
    """Where there was no face the series of PSNR said 100 dB."""
    items, references = filmed()
    items[2] = replace(items[2], face=None)
    items[4] = replace(items[4], face=Face(4, (200, 260, 15, 95)))  # all of it outside
    scores = scores_of(items, references)
    for name in ("psnr_face", "seam_box", "mouth_opening", "outside_difference"):
        assert np.isnan(scores.series[name]).tolist() == [t in (2, 4) for t in range(6)]
    assert "flicker is measured in 0 of 6 frames" in scores.notes[0]
    assert "no five frames" in scores.not_measured["flicker_texture"]
    nothing = scores_of([replace(item, face=None) for item in items])
    assert not nothing.metrics
    assert nothing.not_measured["seam_mask"] == "no frame of it could be measured"
    blind = QualityMeter(lambda _frame, _box: None)
    for item, reference in zip(items, references, strict=True):
        blind.update(item, reference)
    said = blind.scores()
    assert {"lip_sharpness", "lmd"} <= said.not_measured.keys()
    assert "seam_box" in said.metrics
    assert np.isnan(said.series["mouth_opening"]).all()


def test_landmarks_that_an_item_has_are_not_looked_for_again() -> None:
    items, _ = filmed(1)
    box = (10, 90, 15, 95)
    elsewhere = landmarks_of(items[0].frame, box) - 20
    meter = QualityMeter(landmarks_of)
    meter.update(replace(items[0], face=Face(0, box, elsewhere)))
    picture = items[0].picture
    assert picture is not None
    expected = lip_sharpness(picture, elsewhere[LIP]) / lip_sharpness(items[0].frame, elsewhere[LIP])
    assert meter.scores().metrics["lip_sharpness"] == pytest.approx(expected)


def test_the_meter_keeps_no_more_than_five_frames() -> None:
    meter = QualityMeter(landmarks_of)
    kept = []
    items, references = filmed(12)
    while items:
        item = items.pop()
        kept += [weakref.ref(item.frame), weakref.ref(item.picture)]
        meter.update(item, references.pop())
        del item
    assert sum(ref() is not None for ref in kept) <= 2 * 5


def test_psnr_of_known_errors() -> None:
    np.testing.assert_allclose(psnr(np.array([0, 255**2, 65.025, np.nan])), [100, 0, 30, np.nan])


@settings(max_examples=60, deadline=None)
@given(st.integers(-60, 130), st.integers(-60, 130), st.integers(1, 90), st.integers(1, 90))
def test_a_box_anywhere_is_measured_or_nan(y: int, x: int, height: int, width: int) -> None:
    """Boxes may reach beyond the frame; negative rows counted from below, and an empty region was an exception."""
    items, references = filmed(2)
    box = (y, y + height, x, x + width)
    items = [replace(item, face=Face(t, box)) for t, item in enumerate(items)]
    scores = scores_of(items, references)
    assert all(np.isfinite(value) for value in scores.metrics.values())
    is_visible = y < 100 and x < 110 and y + height > 0 and x + width > 0
    assert ("psnr_face" in scores.metrics) == is_visible


def test_of_a_box_beyond_the_frame_the_sides_inside_have_seams() -> None:
    flat = np.full((100, 100, 3), 90, np.uint8)
    for box in ((-30, 60, -20, 70), (-300, 60, -200, 70)):
        assert seam_ratio(brightened(flat, (0, 60, 0, 70), 20), box_contour(box)) == pytest.approx(1 + 3 * 20)
    assert np.isnan(seam_ratio(flat, box_contour((120, 150, 20, 60))))
    assert np.isnan(seam_ratio(flat, box_contour((20, 60, -90, -10))))

