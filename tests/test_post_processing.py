"""Stages on a crop, its way into the frame, and the measures of the composite on known answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guided_diffusion.video_util import VideoWriter, open_video
from post_processing import (
    Face,
    Stages,
    apply_stages,
    box_contour,
    lip_sharpness,
    mask_contour,
    outside_difference,
    paste_crop,
    ring_delta_e,
    seam_ratio,
)


@pytest.fixture
def face() -> Face:
    frame = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Face(3, frame, (4, 24, 10, 28), None, False, np.zeros((16, 16, 3), np.uint8))


class Order:
    """Notes the parts that are measured, with "end" where each ends."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        self.parts.append(part)
        yield
        self.parts.append("end")


def test_without_stages_the_crop_comes_back_untouched(face: Face) -> None:
    crop = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    order = Order()
    assert apply_stages(crop, face, [], order.measure) is crop
    assert order.parts == []


def test_a_stage_that_does_nothing_keeps_every_level(face: Face) -> None:
    crop = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    result = apply_stages(crop, face, [("nothing", lambda picture, _face: picture)], Order().measure)
    np.testing.assert_array_equal(result, crop)
    assert result.dtype == np.uint8


@pytest.mark.parametrize(
    ("value", "level"), [(-0.5, 0), (1.7, 255), (100.4 / 255, 100), (100.6 / 255, 101), (254.9 / 255, 255)]
)
def test_the_last_stages_result_is_clipped_and_rounded(value: float, level: int, face: Face) -> None:
    stages: Stages = [("constant", lambda picture, _face: np.full_like(picture, value))]
    assert (apply_stages(np.zeros((2, 2, 3), np.uint8), face, stages, Order().measure) == level).all()


def test_stages_see_each_others_exact_result_and_are_timed_one_by_one(face: Face) -> None:
    """No clipping or rounding between two stages; the crop that was given stays as it is."""
    crop = np.full((2, 2, 3), 51, np.uint8)
    seen = []

    def brighten(picture: np.ndarray, its_face: Face) -> np.ndarray:
        seen.append((picture.dtype, float(picture[0, 0, 0]), its_face))
        return picture + 2

    def darken(picture: np.ndarray, its_face: Face) -> np.ndarray:
        seen.append((picture.dtype, float(picture[0, 0, 0]), its_face))
        return np.repeat(picture - 2, 2, axis=0)

    order = Order()
    result = apply_stages(crop, face, [("brighten", brighten), ("darken", darken)], order.measure)
    assert seen == [(np.float32, pytest.approx(0.2), face), (np.float32, pytest.approx(2.2), face)]
    assert order.parts == ["brighten", "end", "darken", "end"]
    assert result.shape == (4, 2, 3)
    assert (result == 51).all()
    assert (crop == 51).all()


def test_paste_of_the_boxs_own_size_is_exact(face: Face) -> None:
    crop = np.random.default_rng(1).integers(0, 256, (20, 18, 3), dtype=np.uint8)
    np.testing.assert_array_equal(paste_crop(face.frame, crop, face.box)[4:24, 10:28], crop)


@given(st.integers(0, 30), st.integers(1, 10), st.integers(0, 40), st.integers(1, 10), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_paste_touches_the_box_only(y: int, height: int, x: int, width: int, side: int) -> None:
    frame = np.random.default_rng(0).integers(0, 200, (40, 50, 3), dtype=np.uint8)
    crop = np.full((side, side, 3), 250, np.uint8)
    given_frame, given_crop = frame.copy(), crop.copy()
    result = paste_crop(frame, crop, (y, y + height, x, x + width))
    np.testing.assert_array_equal(frame, given_frame)
    np.testing.assert_array_equal(crop, given_crop)
    changed = (result != frame).any(axis=2)
    expected = np.zeros((40, 50), bool)
    expected[y : y + height, x : x + width] = True
    np.testing.assert_array_equal(changed, expected)


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
