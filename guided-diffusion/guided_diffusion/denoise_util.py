"""Noise that sampling left in a picture: how much there is, and the picture without it."""

import cv2
import numpy as np

from .color_util import LUMA

NOISE_RADIUS = 1
"""px, of the windows of `without_noise`."""

WINDOW_NOISE = 1 - 1 / (2 * NOISE_RADIUS + 1) ** 2
"""Of a noise's variance, what is seen within such a window."""

# what is left of a picture when every straight slope is taken out (Immerkaer 1996); its norm is 6
NOISE_FILTER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)

GAUSSIAN = 1.4826
"""A normal distribution's standard deviation over its median absolute one."""


def noise_level(picture: np.ndarray) -> float:
    """The standard deviation of a picture's noise, from the median of its second differences: edges do not count.

    :param picture: float32 [h, w, 3].
    """
    filtered = cv2.filter2D(picture, cv2.CV_32F, NOISE_FILTER) / np.linalg.norm(NOISE_FILTER)
    return GAUSSIAN * float(np.median(np.abs(filtered)))


def without_noise(picture: np.ndarray, sigma: float) -> np.ndarray:
    """The picture without white noise of this standard deviation.

    A guided filter (He et al. 2013) of NOISE_RADIUS whose regularization is the noise itself (as in Lee 1980): in each
    small window the colours become the linear function of the luma that is nearest to those without the noise; flat
    where the luma varies no more than the noise does. Edges, and texture that the colours share, stay. The best of
    those compared in docs/benchmarks.md.

    :param picture: RGB float32 [h, w, 3].
    :return: the same shape and dtype.
    """
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    mean_luma, mean = _mean(luma), _mean(picture)
    variance = _mean(luma**2) - mean_luma**2
    covariance = _mean(luma * picture) - mean_luma * mean - WINDOW_NOISE * sigma**2 * LUMA
    is_structure = variance > WINDOW_NOISE * sigma**2 * (LUMA @ LUMA)
    slope = np.divide(covariance, variance, out=np.zeros_like(picture), where=is_structure)
    return _mean(slope) * luma + _mean(mean - slope * mean_luma)


def _mean(picture: np.ndarray) -> np.ndarray:
    """Over each pixel's window, [h, w, C]."""
    side = 2 * NOISE_RADIUS + 1
    return np.asarray(cv2.blur(picture, (side, side))).reshape(picture.shape)
