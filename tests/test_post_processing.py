"""Stages on a crop, and its way into the frame."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
import pytest
from conftest import mouth
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from face_detection.api import LIP
from guided_diffusion.color_util import to_lab
from guided_diffusion.seam_util import box_contour, mask_contour, seam_ratio
from guided_diffusion.streams import Box, Face, Item
from guided_diffusion.tfg_data_util import create_gradient_mask, to_float
from post_processing import (
    LARGEST_OPENING,
    Alpha,
    LipAlpha,
    adaptive_mask_size,
    at_box,
    calculate_mouth_opening,
    color_stage,
    composite,
    create_lip_mask,
    denoise_stage,
    enhance_lip_detail,
    find_lips,
    generated_alpha,
    generated_skin,
    paste_crop,
    paste_stage,
    sharpen,
)


@pytest.fixture
def face() -> Face:
    return Face(3, (4, 24, 10, 28))


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def pasted(frame: np.ndarray, face: Face | None, crop: np.ndarray | None, alpha: Alpha | None = None) -> np.ndarray:
    """The picture of the paste's stage; the crop uint8 or float32."""
    if crop is not None and crop.dtype == np.uint8:
        crop = to_float(crop)
    (item,) = paste_stage(alpha)(iter([Item(frame, face, crop, None if crop is None else len(crop))]))
    assert item.picture is not None
    return item.picture


def test_a_crop_without_stages_keeps_every_level(face: Face) -> None:
    crop = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    levels = at_box(Item(np.zeros((40, 50, 3), np.uint8), replace(face, box=(0, 16, 0, 16)), to_float(crop)))
    np.testing.assert_array_equal(levels, crop)
    assert levels.dtype == np.uint8


@pytest.mark.parametrize(
    ("value", "level"), [(-0.5, 0), (1.7, 255), (100.4 / 255, 100), (100.6 / 255, 101), (254.9 / 255, 255)]
)
def test_the_last_stages_result_is_clipped_and_rounded(value: float, level: int, face: Face, frame: np.ndarray) -> None:
    assert (pasted(frame, face, np.full((2, 2, 3), value, np.float32))[4:24, 10:28] == level).all()


def test_a_frame_without_a_face_passes_through(frame: np.ndarray) -> None:
    assert pasted(frame, None, None) is frame


def test_paste_of_the_boxs_own_size_is_exact(face: Face, frame: np.ndarray) -> None:
    crop = np.random.default_rng(1).integers(0, 256, (20, 18, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pasted(frame, face, crop)[4:24, 10:28], crop)


BEYOND = [(-10, 20, 5, 35), (25, 55, 10, 40), (5, 35, -20, 10), (10, 40, 30, 60), (-5, 45, -5, 55)]


@pytest.mark.parametrize("box", BEYOND)
def test_of_a_box_that_reaches_beyond_the_frame_the_part_inside_is_pasted(box: Box, frame: np.ndarray) -> None:
    """Its crop keeps the box's geometry. The clipped box was resized: a mouth came to lie on nose and eyes."""
    y1, y2, x1, x2 = box
    rng = np.random.default_rng(1)
    crop = rng.integers(0, 256, (y2 - y1, x2 - x1, 3), dtype=np.uint8)
    padded = np.pad(frame, ((100, 100), (100, 100), (0, 0)))
    moved = y1 + 100, y2 + 100, x1 + 100, x2 + 100
    inside = slice(100, 140), slice(100, 150)
    np.testing.assert_array_equal(pasted(frame, Face(0, box), crop), paste_crop(padded, crop, moved)[inside])
    alpha = rng.uniform(0, 1, crop.shape[:2]).astype(np.float32)
    expected = composite(padded, crop, moved, alpha)[inside]
    np.testing.assert_array_equal(pasted(frame, Face(0, box), crop, lambda *_: alpha), expected)


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


# --- blending


@given(st.integers(0, 20), st.integers(0, 30), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
@settings(deadline=None)
def test_composite_mixes_rounds_and_touches_no_pixel_without_alpha(
    y: int, x: int, height: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    crop = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    alpha = rng.choice([0, 0, 0.25, 0.6, 1], (height, width)).astype(np.float32)
    given_frame, given_crop, given_alpha = frame.copy(), crop.copy(), alpha.copy()
    box = (y, y + height, x, x + width)
    result = composite(frame, crop, box, alpha)
    for value, before in ((frame, given_frame), (crop, given_crop), (alpha, given_alpha)):
        np.testing.assert_array_equal(value, before)
    expected = frame.astype(np.float64)
    expected[y : y + height, x : x + width] += alpha[..., None] * (crop - expected[y : y + height, x : x + width])
    assert result.dtype == np.uint8
    assert np.abs(result - expected).max() <= 0.5 + 1e-4
    through = np.zeros((40, 50), bool)
    through[y : y + height, x : x + width] = alpha > 0
    np.testing.assert_array_equal(result[~through], frame[~through])
    through[y : y + height, x : x + width] = alpha == 1
    np.testing.assert_array_equal(result[through], crop[alpha == 1])


BLEND = {"face_hide_percentage": 0.5}


def with_box(box: Box, landmarks: np.ndarray | None = None, index: int = 0) -> Face:
    return Face(index, box, landmarks)


def test_blending_shows_the_generated_part_with_a_kernel_scaled_to_the_box() -> None:
    """The kernel of 5 px at 64 px is one of 11 rows and 7 columns in a box of 140 x 100: odd, and from 10.9 and 7.8."""
    frame, crop = np.full((200, 200, 3), 50, np.uint8), np.full((64, 64, 3), 250, np.uint8)
    result = pasted(frame, with_box((20, 160, 30, 130)), crop, partial(generated_alpha, **BLEND, blur_kernel_size=5))
    alpha = create_gradient_mask(1, 140, 100, 0.5, (11, 7))[0, 0].numpy()
    np.testing.assert_allclose(result[20:160, 30:130, 1], 50 + 200 * alpha, atol=0.51)
    assert (result[:90] == 50).all()
    assert (result[102:148, 37:122] == 250).all()


def test_blending_counts_the_pixels_of_the_network_whatever_the_crop_became_since() -> None:
    """One size for a whole run was another network's in every second shot of two."""
    frame, face = np.full((200, 200, 3), 50, np.uint8), with_box((20, 160, 30, 130))
    for size, kernels in ((64, (21, 15)), (256, (5, 3))):
        item = Item(frame, face, np.zeros((140, 100, 3), np.float32), crop_size=size)
        alpha = generated_alpha(item, (140, 100), 0.5, blur_kernel_size=10)
        np.testing.assert_array_equal(alpha, create_gradient_mask(1, 140, 100, 0.5, kernels)[0, 0].numpy())


def test_blending_removes_the_seams_of_a_paste() -> None:
    rng = np.random.default_rng(0)
    frame = cv2.GaussianBlur(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8), (0, 0), 2)
    face = with_box((20, 180, 30, 170))
    crop = cv2.resize(frame[20:180, 30:170], (64, 64))
    crop[32:] = np.minimum(crop[32:], 225) + 30
    for contour in (mask_contour(face.box), box_contour(face.box)):
        source = seam_ratio(frame, contour)
        plain = seam_ratio(paste_crop(frame, crop, face.box), contour) / source
        blended = pasted(frame, face, crop, partial(generated_alpha, **BLEND, blur_kernel_size=15))
        assert abs(seam_ratio(blended, contour) / source - 1) < 0.4 * abs(plain - 1)


# --- lip masks


def hull_distance(lips: np.ndarray, height: int, width: int) -> np.ndarray:
    """Distance of each pixel from the lips' hull, 0 inside."""
    hull = cv2.convexHull(lips.reshape(-1, 2))
    return np.array([[max(0, -cv2.pointPolygonTest(hull, (x, y), True)) for x in range(width)] for y in range(height)])


@given(
    st.floats(-60, 160), st.floats(-60, 160), st.floats(2, 60), st.floats(0, 1), st.floats(1.01, 3),
    st.integers(1, 100), st.integers(1, 100),
)  # fmt: skip
@settings(deadline=None)
def test_lip_mask_of_any_mouth(
    x: float, y: float, size: float, opening: float, expansion: float, height: int, width: int
) -> None:
    """Outside the picture, too: a mouth there is no error."""
    lips = mouth(x, y, size, opening)
    before = lips.copy()
    mask = create_lip_mask((height, width, 3), lips, expansion)
    np.testing.assert_array_equal(lips, before)
    assert (mask.shape, mask.dtype) == ((height, width), np.float32)
    assert 0 <= mask.min() <= mask.max() <= 1


@pytest.mark.parametrize("expansion", [1.1, 1.2, 2.0])
def test_lip_mask_is_1_on_the_lips_and_0_beyond_the_margin(expansion: float) -> None:
    lips = mouth()
    mask, distance = create_lip_mask((100, 100), lips, expansion), hull_distance(lips, 100, 100)
    margin = (expansion - 1) * 30
    assert (mask[distance == 0] == 1).all()
    assert (mask[distance > margin + 1] == 0).all()
    assert mask[distance > 0.8 * margin + 1].max() < 0.5
    assert (mask[distance < 0.8 * margin - 1] > 0).all()
    steps = max(np.abs(np.diff(mask, axis=axis)).max() for axis in (0, 1))
    assert steps < 2.2 * 1.5 / margin + 0.05


def test_lip_mask_covers_several_mouths_with_all_between_them() -> None:
    both = np.stack([mouth(y=40, opening=0), mouth(y=60, opening=0.6)])
    mask = create_lip_mask((100, 100), both, 1.2)
    assert (mask[hull_distance(both, 100, 100) == 0] == 1).all()
    np.testing.assert_array_equal(mask, create_lip_mask((100, 100), both[::-1], 1.2))


def test_opening_is_the_inner_gap_over_the_mouths_width() -> None:
    """At any size and place. The sketch in the plan took one point for the lower lip, and pixels for a ratio."""
    for opening in (0, 0.1, 0.5, 1):
        for size in (5, 80):
            assert calculate_mouth_opening(mouth(7, -3, size, opening)) == pytest.approx(opening, abs=1e-4)
    assert calculate_mouth_opening(mouth(opening=3)) == 1
    assert calculate_mouth_opening(np.zeros((20, 2), np.float32)) == 0


@given(st.floats(1.01, 3), st.floats(0, 1), st.floats(0, 1))
def test_mask_size_grows_from_the_base_with_the_opening(base: float, one: float, other: float) -> None:
    assert adaptive_mask_size(base, 0) == pytest.approx(base)
    less, more = sorted((one, other))
    assert base <= adaptive_mask_size(base, less) + 1e-9
    assert adaptive_mask_size(base, less) <= adaptive_mask_size(base, more)


BOX_OF_LIPS = (40, 140, 60, 160)


class LipAlphas:
    """A `LipAlpha` that may show the lower half, fed with these generated lips, one after the other."""

    def __init__(self, *generated: np.ndarray | None, adaptive: bool = False) -> None:
        self.generated = iter(generated)
        self.alpha = LipAlpha(1.2, adaptive, partial(generated_alpha, **BLEND, blur_kernel_size=0))

    def __call__(self, face: Face) -> np.ndarray:
        crop = np.zeros((64, 64, 3), np.float32)
        item = Item(np.zeros((200, 200, 3), np.uint8), face, crop, crop_size=64, lips=next(self.generated))
        return self.alpha(item, (100, 100))


def face_with(lips: np.ndarray, index: int = 0, is_cut: bool = False) -> Face:
    """Its lips are given in the box's pixels."""
    landmarks = np.zeros((68, 2), np.float32)
    landmarks[LIP] = lips + np.array([BOX_OF_LIPS[2], BOX_OF_LIPS[0]])
    return replace(with_box(BOX_OF_LIPS, landmarks, index), is_cut=is_cut)


CLOSED, OPEN = mouth(y=70, opening=0.02), mouth(y=75, opening=0.5)


def test_lip_alpha_covers_the_old_lips_and_the_new_ones() -> None:
    for source, generated in ((CLOSED, OPEN), (OPEN, CLOSED)):
        alpha = LipAlphas(generated)(face_with(source))
        covered = hull_distance(np.stack([source, generated]), 100, 100) == 0
        assert (alpha[covered] == 1).all()
        np.testing.assert_array_equal(alpha, create_lip_mask((100, 100), np.stack([source, generated]), 1.2))


def test_lip_alpha_shows_nothing_that_was_not_generated() -> None:
    high = mouth(y=52, opening=0.2)
    alpha = LipAlphas(high)(face_with(high))
    assert create_lip_mask((100, 100), high, 1.2)[:50].max() == 1
    assert (alpha[:50] == 0).all()
    assert alpha[50:].max() == 1


def test_lip_alpha_grows_at_once_and_settles_after_two_frames() -> None:
    of_lips = LipAlphas(CLOSED, OPEN, CLOSED, CLOSED, CLOSED)
    sizes = [of_lips(face_with(CLOSED, index)).sum() for index in range(5)]
    assert sizes[0] < sizes[1] == sizes[2] == sizes[3] > sizes[4] == sizes[0]


def test_lip_alpha_adapts_at_once_and_lets_go_slowly() -> None:
    of_lips = LipAlphas(CLOSED, OPEN, *[CLOSED] * 40, adaptive=True)
    sizes = [of_lips(face_with(CLOSED, index)).sum() for index in range(42)]
    fixed = LipAlphas(CLOSED, OPEN)
    assert sizes[0] == pytest.approx(fixed(face_with(CLOSED)).sum(), rel=0.03)
    assert sizes[1] > 1.2 * fixed(face_with(CLOSED, 1)).sum()
    assert all(before >= after for before, after in pairwise(sizes[1:]))
    assert sizes[4] > sizes[5] > sizes[6] > sizes[0]
    assert sizes[-1] == pytest.approx(sizes[0], rel=0.01)


@pytest.mark.parametrize(("index", "is_cut"), [(1, True), (3, False)])
def test_lip_alpha_forgets_at_cuts_and_gaps(index: int, is_cut: bool) -> None:
    for adaptive in (False, True):
        of_lips = LipAlphas(OPEN, CLOSED, adaptive=adaptive)
        of_lips(face_with(OPEN))
        new = of_lips(face_with(CLOSED, index, is_cut))
        np.testing.assert_allclose(new, LipAlphas(CLOSED, adaptive=adaptive)(face_with(CLOSED)), atol=1e-6)


@pytest.mark.parametrize("found", [None, mouth(20, 20), mouth(y=70, width=90), np.zeros((20, 2), np.float32)])
def test_lips_that_are_not_found_may_be_anywhere_a_mouth_opens(found: np.ndarray | None) -> None:
    alpha = LipAlphas(found)(face_with(CLOSED))
    np.testing.assert_array_equal(alpha, LipAlphas(None)(face_with(CLOSED)))
    widest = mouth(y=70 + 15 * (LARGEST_OPENING - 0.02), opening=LARGEST_OPENING)
    assert (alpha[hull_distance(np.stack([CLOSED, widest]), 100, 100) == 0] == 1).all()


def test_generated_lips_are_looked_for_in_all_crops_at_their_boxes_size() -> None:
    """One call for a batch; with 2D-FAN it was one crop at a time."""
    boxes = [(0, 30, 0, 40), (10, 60, 5, 45)]
    frame = np.zeros((80, 80, 3), np.uint8)
    items = [Item(frame, Face(k, box), np.full((64, 64, 3), k / 10, np.float32)) for k, box in enumerate(boxes)]
    calls = []

    def lip_landmarks(crops: list[np.ndarray]) -> list[np.ndarray | None]:
        calls.append([(crop.shape, crop.dtype, round(float(crop.mean()))) for crop in crops])
        return [CLOSED, None]

    found = find_lips(items, lip_landmarks)
    assert calls == [[((30, 40, 3), np.uint8, 0), ((50, 40, 3), np.uint8, 26)]]
    assert found[0].lips is CLOSED
    assert found[1].lips is None
    assert all(after.crop is before.crop for after, before in zip(found, items, strict=True))


def test_a_mouth_without_any_width_has_a_mask() -> None:
    """It divided by zero."""
    with np.errstate(all="raise"):
        mask = create_lip_mask((50, 50), np.full((20, 2), 20.0, np.float32), 1.2)
    assert mask[20, 20] == 1
    assert mask.sum() < 5


# --- colour


def coloured_items(
    casts: list[tuple[float, float, float]], landmarks: np.ndarray | None = None, cut_at: int = 0
) -> list[Item]:
    """Frames of one textured face, and crops of 64 px like them but for a gain on the generated half."""
    rng = np.random.default_rng(0)
    tones = cv2.GaussianBlur(rng.uniform(0, 1, (130, 140, 1)).astype(np.float32), (0, 0), 4)
    frame = np.full((200, 200, 3), 90, np.uint8)
    frame[20:150, 30:170] = np.rint((0.8 + 0.4 * tones[..., None]) * np.array([190, 140, 120]))
    items = []
    for index, cast in enumerate(casts):
        face = Face(index, (20, 150, 30, 170), landmarks, index == cut_at)
        crop = to_float(cv2.resize(frame[20:150, 30:170], (64, 64)))
        crop[32:] *= np.array(cast, np.float32)
        items.append(Item(frame, face, crop, crop_size=64))
    return items


def face_landmarks() -> np.ndarray:
    """A jaw from ear to ear through the chin, and lips, of the box of `coloured_items`."""
    landmarks = np.zeros((68, 2), np.float32)
    angle = np.linspace(0, np.pi, 17)
    landmarks[:17] = np.stack([100 - 60 * np.cos(angle), 80 + 65 * np.sin(angle)], axis=1)
    landmarks[LIP] = mouth(100, 120, width=40)
    return landmarks


WARM, COLD = (1.08, 1, 0.94), (0.93, 1, 1.05)


def matched(items: list[Item], mode: str = "lab") -> list[Item]:
    return list(color_stage(mode, 0.5)(iter(items)))


@pytest.mark.parametrize("mode", ["lab", "histogram"])
@pytest.mark.parametrize("landmarks", [None, face_landmarks()], ids=["no landmarks", "landmarks"])
def test_a_cast_is_taken_from_the_generated_part(mode: str, landmarks: np.ndarray | None) -> None:
    items, clean = coloured_items([WARM] * 3, landmarks), coloured_items([(1, 1, 1)] * 3, landmarks)
    before = items[1].crop.copy()  # type: ignore[union-attr]
    for item, result, true in zip(items, matched(items, mode), clean, strict=True):
        np.testing.assert_array_equal(result.crop[:32], item.crop[:32])  # type: ignore[index]
        np.testing.assert_allclose(result.crop, true.crop, atol=1.5 / 255)  # type: ignore[arg-type]
        assert result.crop.dtype == np.float32  # type: ignore[union-attr]
    np.testing.assert_array_equal(items[1].crop, before)


def test_a_mouth_that_differs_does_not_colour_the_skin() -> None:
    """Painted green within the lips' surroundings, it leaves what is found of the skin as it is."""
    items, painted = coloured_items([WARM], face_landmarks()), coloured_items([WARM], face_landmarks())
    x, y = (int(v) for v in ((100 - 30) * 64 / 140, (120 - 20) * 64 / 130))
    painted[0].crop[y - 5 : y + 6, x - 9 : x + 10] = (0, 1, 0)  # type: ignore[index]
    (plain,), (other,) = matched(items), matched(painted)
    np.testing.assert_array_equal(plain.cast.shift, other.cast.shift)  # type: ignore[union-attr]


def test_skin_is_within_the_jaw_and_not_near_the_lips() -> None:
    skin = generated_skin(Face(0, (20, 150, 30, 170), face_landmarks()), 64, 64, 0.5)
    assert not skin[:32].any()
    assert not skin[34:, :4].any()  # beside the jaw
    x, y = (face_landmarks()[LIP] - (30, 20)).T * np.array([[64 / 140], [64 / 130]])
    assert not skin[y.astype(int), x.astype(int)].any()
    assert skin[[36, 36, 59], [20, 44, 32]].all()
    assert generated_skin(Face(0, (20, 150, 30, 170)), 64, 64, 0.5)[34:, 2].all()


def test_colours_are_matched_within_a_shot() -> None:
    """Next to a cut nothing of the other shot's cast is seen."""
    both = matched(coloured_items([WARM] * 3 + [COLD] * 3, cut_at=3))
    alone = matched(coloured_items([WARM] * 3)) + matched(coloured_items([COLD] * 3))
    for one, other in zip(both, alone, strict=True):
        np.testing.assert_array_equal(one.crop, other.crop)


def test_colours_do_not_pump() -> None:
    """A cast that is found too strong in one frame is shared with its neighbours, a steady one is taken out whole."""
    items = coloured_items([(1, 1, 1)] * 4 + [WARM] + [(1, 1, 1)] * 4)
    change = changes(items)
    assert change[4] < 0.3 * changes(coloured_items([WARM]))[0]
    assert change[3] > 0.5 * change[4]
    assert change[0] < 0.2 * change[4]


def changes(items: list[Item]) -> list[float]:
    """By how much, in L, a and b, the stage changes each frame."""
    pairs = zip(matched(items), items, strict=True)
    return [float(np.abs(to_lab(new.crop) - to_lab(old.crop)).mean()) for new, old in pairs]  # type: ignore[arg-type]


def test_a_frame_whose_skin_is_hidden_gets_its_neighbours_cast() -> None:
    nowhere = face_landmarks()
    nowhere[:17] = 0
    items = coloured_items([WARM] * 3, face_landmarks())
    hidden = replace(items[1], face=replace(items[1].face, landmarks=nowhere))
    result = matched([items[0], hidden, items[2]])[1]
    assert result.cast is None
    np.testing.assert_allclose(result.crop, matched(items)[1].crop, atol=0.5 / 255)  # type: ignore[arg-type]
    (alone,) = matched([replace(hidden, face=replace(hidden.face, is_cut=True))])
    assert alone.crop is hidden.crop


# --- noise


def noisy_item(sigma: float) -> Item:
    """A frame without noise, and a crop with some, in levels, in its generated half."""
    (item,) = coloured_items([(1, 1, 1)])
    assert item.crop is not None
    crop = item.crop.copy()
    crop[32:] += np.random.default_rng(1).normal(0, sigma / 255, crop[32:].shape)
    return replace(item, crop=crop.clip(0, 1))


def test_noise_that_the_frame_does_not_have_is_taken_from_the_generated_part() -> None:
    clean, noisy = noisy_item(0), noisy_item(6)
    before = noisy.crop.copy()  # type: ignore[union-attr]
    errors = []
    for strength in (0.5, 1.0):
        (result,) = denoise_stage(strength, 0.5)(iter([noisy]))
        np.testing.assert_array_equal(result.crop[:32], before[:32])  # type: ignore[index]
        errors.append(float(np.std(result.crop[32:] - clean.crop[32:])))  # type: ignore[index]
    assert errors[1] < 0.6 * 6 / 255
    assert errors[1] < errors[0] < 0.8 * 6 / 255
    np.testing.assert_array_equal(noisy.crop, before)


def test_grain_that_the_frame_has_too_stays() -> None:
    (item,) = denoise_stage(1.0, 0.5)(iter([noisy_item(0)]))
    np.testing.assert_array_equal(item.crop, noisy_item(0).crop)
    noisy = noisy_item(6)
    grain = np.random.default_rng(2).normal(0, 40, noisy.frame.shape)
    grainy = replace(noisy, frame=np.rint(noisy.frame + grain).clip(0, 255).astype(np.uint8))
    (result,) = denoise_stage(1.0, 0.5)(iter([grainy]))
    assert result.crop is grainy.crop


# --- sharpening

pictures_in_range = arrays(np.float32, (24, 20, 3), elements=st.floats(0, 1, width=32))


@given(pictures_in_range, st.floats(0, 1))
@settings(deadline=None)
def test_sharpening_keeps_range_shape_and_its_argument(picture: np.ndarray, strength: float) -> None:
    before = picture.copy()
    result = enhance_lip_detail(picture, strength)
    np.testing.assert_array_equal(picture, before)
    assert (result.shape, result.dtype) == (picture.shape, np.float32)
    assert 0 <= result.min() <= result.max() <= 1
    np.testing.assert_array_equal(enhance_lip_detail(picture, 0), picture)


def edge(blur: float, size: int = 260) -> np.ndarray:
    """A step from 0.3 to 0.7, blurred."""
    picture = np.full((size, size, 3), 0.3, np.float32)
    picture[:, size // 2 :] = 0.7
    return cv2.GaussianBlur(picture, (0, 0), blur) if blur else picture


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("blur", [0, 2, 4])
def test_sharpening_steepens_an_edge_without_a_halo(blur: float, strength: float) -> None:
    """At full strength, unlimited, the overshoot would be 0.1 to 0.4."""
    before, after = edge(blur), enhance_lip_detail(edge(blur), strength)
    assert 0.3 - after.min() <= 0.02 * strength + 1e-6
    assert after.max() - 0.7 <= 0.02 * strength + 1e-6
    steepness = [float(np.diff(picture[130, :, 0]).max()) for picture in (before, after)]
    assert steepness[1] > (1 + 0.15 * strength) * steepness[0] or blur == 0


def test_sharpening_leaves_the_noise_of_flat_regions() -> None:
    flat = (0.5 + np.random.default_rng(0).normal(0, 1.2 / 255, (200, 200, 3))).astype(np.float32)
    assert enhance_lip_detail(flat, 1.0).std() < 1.05 * flat.std()


def test_sharpening_radius_goes_with_the_face() -> None:
    """Enlarged twice, the same picture is sharpened to the same values."""
    small = edge(2)
    large = cv2.resize(small, (520, 520))
    np.testing.assert_allclose(
        cv2.resize(enhance_lip_detail(large, 0.5), (260, 260)), enhance_lip_detail(small, 0.5), atol=0.01
    )


def test_the_stage_sharpens_the_generated_part_at_the_boxs_size() -> None:
    face = with_box((20, 150, 30, 170))
    crop = cv2.resize(edge(1, 64), (64, 64))
    before = crop.copy()
    result = sharpen(crop, face, 0.5, 0.5)
    enlarged = cv2.resize(crop, (140, 130))
    np.testing.assert_array_equal(crop, before)
    np.testing.assert_array_equal(result[:65], enlarged[:65])
    np.testing.assert_array_equal(result[65:], enhance_lip_detail(enlarged[65:], 0.5))
    assert np.abs(result[65:] - enlarged[65:]).max() > 0.005
    np.testing.assert_array_equal(sharpen(enlarged, face, 0.0, 0.5), enlarged)
