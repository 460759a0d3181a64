"""Casts of known size, found and taken out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from guided_diffusion.color_util import (
    GAINS,
    GRID,
    LARGEST_CURVE,
    LARGEST_LOCAL,
    LARGEST_SHIFT,
    LUMA,
    MIN_PIXELS,
    Cast,
    find_cast,
    light_gains,
    mean_cast,
    multiplied,
    to_lab,
    without_cast,
)

GAIN = np.array([1.08, 1, 0.94], np.float32)
ALL = np.ones((24, 20), bool)


def skin_tones(seed: int = 0) -> np.ndarray:
    """float32 [24, 20, 3]: one hue in light and shade, with some texture."""
    rng = np.random.default_rng(seed)
    light = np.linspace(0.5, 1, 20)[None, :, None] + rng.normal(0, 0.02, (24, 20, 1))
    return (light * np.array([0.75, 0.58, 0.5])).clip(0, 1).astype(np.float32)


def found(
    generated: np.ndarray, true: np.ndarray, skin: np.ndarray = ALL, with_histogram: bool = False,
    known: np.ndarray = ALL,
) -> Cast:  # fmt: skip
    cast = find_cast(to_lab(generated), to_lab(true), skin, known, with_histogram)
    assert cast is not None
    return cast


@given(arrays(np.float32, (8, 8, 3), elements=st.floats(0, 1, width=32)), st.floats(-LARGEST_SHIFT, LARGEST_SHIFT))
@settings(deadline=None)
def test_any_picture_keeps_shape_and_range_and_without_a_cast_every_bit(picture: np.ndarray, shift: float) -> None:
    before = picture.copy()
    nowhere, none = np.zeros((*GRID, 3), np.float32), np.zeros((0, 3), np.float32)
    for amount in (0.0, shift):
        cast = Cast(np.full(3, amount, np.float32), nowhere, none, none)
        result = without_cast(picture, cast, np.ones((8, 8), np.float32))
        assert (result.shape, result.dtype) == (picture.shape, np.float32)
        assert 0 <= result.min() <= result.max() <= 1
        assert amount or (result == picture).all()
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("with_histogram", [False, True])
def test_a_gain_of_the_colours_is_taken_out_in_light_and_shade(with_histogram: bool) -> None:
    true = skin_tones()
    result = without_cast(true * GAIN, found(true * GAIN, true, ALL, with_histogram), ALL.astype(np.float32))
    assert np.abs(true * GAIN - true).max() > 10 / 255
    np.testing.assert_allclose(result, true, atol=1.5 / 255)


def test_what_is_dark_hardly_changes() -> None:
    """The mouth within: one amount for all would make it green."""
    true = skin_tones()
    dark = np.full((24, 20, 3), 0.02, np.float32)
    result = without_cast(dark, found(true * GAIN, true), np.zeros((24, 20), np.float32))
    assert 0 < np.abs(result - dark).max() < 2 / 255


def test_a_third_of_the_skin_may_show_something_else() -> None:
    true, generated = skin_tones(), skin_tones() * GAIN
    moved = generated.copy()
    moved[:8] = (0.2, 0.1, 0.1)
    np.testing.assert_allclose(found(moved, true).shift, found(generated, true).shift, atol=0.01)


def test_what_is_no_cast_is_limited() -> None:
    cast = found(np.zeros((24, 20, 3), np.float32), np.ones((24, 20, 3), np.float32), ALL, with_histogram=True)
    assert np.abs(cast.shift).max() == np.float32(LARGEST_SHIFT)
    assert np.abs(cast.local).max() <= LARGEST_LOCAL
    assert np.abs(cast.curve).max() == np.float32(LARGEST_CURVE)


def test_too_little_skin_tells_nothing() -> None:
    skin = np.zeros((24, 20), bool)
    skin.flat[: MIN_PIXELS - 1] = True
    lab = to_lab(skin_tones())
    assert find_cast(lab, lab, skin, ALL, False) is None
    skin.flat[MIN_PIXELS] = True
    assert find_cast(lab, lab, skin, ALL, False) is not None


def test_the_histogram_changes_the_contrast_of_the_skin_alone() -> None:
    true = skin_tones()
    flat = true.mean(axis=(0, 1)) + (true - true.mean(axis=(0, 1))) * np.float32(0.75)
    skin = ALL.copy()
    skin[12:] = False
    result = without_cast(flat, found(flat, true, skin, with_histogram=True, known=~ALL), skin.astype(np.float32))
    shifted = without_cast(flat, found(flat, true, skin, known=~ALL), skin.astype(np.float32))
    assert result[:12, :, 0].std() == pytest.approx(true[:12, :, 0].std(), rel=0.05)
    assert shifted[:12, :, 0].std() < 0.85 * true[:12, :, 0].std()
    np.testing.assert_array_equal(result[12:], shifted[12:])


def test_what_differs_from_part_to_part_is_taken_out_where_it_is() -> None:
    """Redder to the left, less so to the right: the shift alone leaves both."""
    true = skin_tones()
    tint = np.linspace(0.04, -0.04, 20)[None, :, None] * np.array([1, 0, -1])
    generated = (true * (1 + tint)).astype(np.float32)
    cast = found(generated, true)
    result = without_cast(generated, cast, ALL.astype(np.float32))
    assert np.abs(result - true).mean() < 0.4 * np.abs(generated - true).mean()


def test_of_what_is_not_known_little_is_changed_and_nothing_of_it_counts() -> None:
    """The mouth says other words: its place must not take the source's colours, also where it is larger than known."""
    true, generated = skin_tones(), skin_tones()
    known = ALL.copy()
    known[6:18, 4:16] = False
    for other in ((0.2, 0.1, 0.1), 0.95 * true[6:18, 4:16]):  # one that no cast explains, and one that a cast would
        generated[6:18, 4:16] = other
        assert np.abs(found(generated, true, known, known=known).local).max() < 1e-6


def test_the_mean_of_casts_counts_by_weight() -> None:
    one, other = found(skin_tones() * GAIN, skin_tones()), found(skin_tones(), skin_tones())
    np.testing.assert_allclose(mean_cast([one, other], [3, 1]).shift, 0.75 * one.shift, atol=1e-7)
    assert all((a == b).all() for a, b in zip(mean_cast([one, one], [0.3, 0.7]), one, strict=True))


# --- white balance


def grey_edges(height: int = 64) -> np.ndarray:
    """uint8 [height, 64, 3]: edges between greys; between them an area that is all but grey."""
    levels = np.random.default_rng(0).uniform(40, 120, (height // 8, 8, 1)).repeat(3, axis=2)
    frame = levels.repeat(8, axis=0).repeat(8, axis=1)
    ramp = np.linspace(0, 1, 32)[:, None] * np.array([110, 60, 0])
    frame[:, 32:] += np.concatenate([ramp[:16], ramp[15::-1]])[None]
    return np.rint(frame).astype(np.uint8)


def test_the_light_is_seen_at_the_edges() -> None:
    plain = light_gains(grey_edges())
    np.testing.assert_allclose(plain, 1, atol=0.06)
    warm = np.array([1.2, 1, 0.8])
    gains = light_gains(multiplied(grey_edges(), warm))
    np.testing.assert_allclose(gains * warm / (gains * warm).mean(), plain / plain.mean(), atol=0.02)
    assert gains @ LUMA == pytest.approx(1)


def test_gains_are_limited_and_a_flat_frame_has_none() -> None:
    blue = light_gains(multiplied(grey_edges(), np.array([0.1, 0.1, 2])))
    assert blue.max() / blue.min() <= GAINS[1] / GAINS[0] + 1e-9
    np.testing.assert_allclose(light_gains(np.full((20, 20, 3), 90, np.uint8)), 1)
    np.testing.assert_allclose(light_gains(np.zeros((1, 1, 3), np.uint8)), 1)


def test_black_bars_do_not_tell_the_light() -> None:
    """Their edges are the strongest of all, and of the colour of what happens to lie there."""
    frame = (np.random.default_rng(0).uniform(30, 200, (96, 128, 3)) * (1, 0.9, 0.8)).astype(np.uint8)
    plain = light_gains(frame)
    for bars in (((16, 16), (0, 0), (0, 0)), ((0, 0), (20, 20), (0, 0))):
        np.testing.assert_array_equal(light_gains(np.pad(frame, bars)), plain)
    assert np.array_equal(light_gains(np.zeros((8, 8, 3), np.uint8)), np.ones(3))
