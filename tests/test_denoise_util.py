"""Noise of a known level, found and taken out."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from guided_diffusion.denoise_util import noise_level, without_noise


def textured(size: int = 64) -> np.ndarray:
    """float32 [size, size, 3]: soft shades and one hard edge, without noise."""
    shades = np.random.default_rng(0).uniform(0.3, 0.7, (size, size, 3)).astype(np.float32)
    picture = np.asarray(cv2.GaussianBlur(shades, (0, 0), 6))
    picture[:, size // 2 :] += 0.3
    return picture


def noise(sigma: float, size: int = 64) -> np.ndarray:
    return np.random.default_rng(1).normal(0, sigma, (size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("sigma", [2 / 255, 6 / 255, 12 / 255])
def test_the_level_of_the_noise_is_found_beside_an_edge(sigma: float) -> None:
    assert noise_level(textured()) < 0.5 / 255
    assert noise_level(textured() + noise(sigma)) == pytest.approx(sigma, rel=0.1)


def test_noise_goes_and_the_edge_stays() -> None:
    clean, sigma = textured(), 6 / 255
    result = without_noise(clean + noise(sigma), sigma)
    assert np.sqrt(((result - clean) ** 2).mean()) < 0.4 * sigma
    step = result[:, 32].mean() - result[:, 31].mean()
    assert step > 0.95 * (clean[:, 32].mean() - clean[:, 31].mean())


@given(arrays(np.float32, (9, 7, 3), elements=st.floats(0, 1, width=32)), st.floats(0.001, 0.2))
@settings(deadline=None)
def test_any_picture_keeps_its_shape_and_stays_a_picture(picture: np.ndarray, sigma: float) -> None:
    before = picture.copy()
    result = without_noise(picture, sigma)
    assert (result.shape, result.dtype) == (picture.shape, np.float32)
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_allclose(without_noise(np.full_like(picture, 0.3), sigma), 0.3, atol=1e-5)
