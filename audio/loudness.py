"""Loudness as ITU-R BS.1770-4 and EBU R 128 define it, of sound in blocks."""

import math

import numpy as np
import scipy.signal

STEP = 0.1  # seconds between the gating blocks of 0.4 s
STEPS_PER_BLOCK = 4
QUIETEST = -70.0  # LUFS; what is below does not count
RELATIVE_GATE = -10.0  # LU below the mean of the rest


class LoudnessMeter:
    """Integrated loudness of mono sound that comes in blocks of any size; the same as of the whole.

    :param rate: Hz, 8000 or more.
    """

    def __init__(self, rate: int) -> None:
        self._filter = k_weighting(rate)
        self._state = np.zeros((len(self._filter), 2))
        self._step = round(STEP * rate)
        self._rest = np.zeros(0)
        self._powers: list[float] = []

    def update(self, block: np.ndarray) -> None:
        """:param block: float32 [n], full scale 1."""
        weighted, self._state = scipy.signal.sosfilt(self._filter, block, zi=self._state)
        weighted = np.concatenate([self._rest, weighted])
        whole = len(weighted) - len(weighted) % self._step
        steps = weighted[:whole].reshape(-1, self._step)
        self._powers += list(np.einsum("ij,ij->i", steps, steps) / self._step)
        self._rest = weighted[whole:]

    def integrated(self) -> float:
        """LUFS so far; minus infinity when nothing is louder than QUIETEST, or for less than 0.4 s."""
        if len(self._powers) < STEPS_PER_BLOCK:
            return -math.inf
        power = np.convolve(self._powers, np.full(STEPS_PER_BLOCK, 1 / STEPS_PER_BLOCK), "valid")
        power = power[power > _power(QUIETEST)]
        if not len(power):
            return -math.inf
        gate = power.mean() * 10 ** (RELATIVE_GATE / 10)
        return float(10 * np.log10(power[power > gate].mean()) - 0.691)


def _power(loudness: float) -> float:
    return 10 ** ((loudness + 0.691) / 10)


def k_weighting(rate: int) -> np.ndarray:
    """The two filters of BS.1770 as second-order sections, float64 [2, 6].

    The standard gives numbers for 48 kHz only; these are the analogue prototypes that they come from (a high shelf of
    4 dB at 1682 Hz, a high-pass at 38 Hz), by the bilinear transform.
    """
    k, q = math.tan(math.pi * 1681.974 / rate), 0.7071752
    high = 10 ** (3.999844 / 20)
    band = high**0.4996667741545416
    a0 = 1 + k / q + k * k
    shelf = [(high + band * k / q + k * k) / a0, 2 * (k * k - high) / a0, (high - band * k / q + k * k) / a0]
    shelf += [1, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]
    k, q = math.tan(math.pi * 38.13547 / rate), 0.5003270
    a0 = 1 + k / q + k * k
    return np.array([shelf, [1, -2, 1, 1, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]])
