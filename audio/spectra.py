"""Sound as spectra and back, in blocks."""

import numpy as np


class Spectra:
    """Sound as spectra of frames that overlap by half, and as sound again, one hop late."""

    def __init__(self, hop: int) -> None:
        self._hop = hop
        self._window = np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop))
        self._before, self._overlap = np.zeros(hop), np.zeros(hop)

    def of(self, samples: np.ndarray) -> np.ndarray:
        """Complex [k, hop + 1] of the next [k * hop]."""
        padded = np.concatenate([self._before, samples])
        self._before = padded[-self._hop :]
        frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * self._hop)[:: self._hop]
        return np.fft.rfft(frames * self._window)

    def sound(self, spectra: np.ndarray) -> np.ndarray:
        """Float32 [k * hop] of the next [k, hop + 1]."""
        frames = np.fft.irfft(spectra) * self._window
        halves = np.concatenate([self._overlap[None], frames[:, self._hop :]])
        self._overlap = halves[-1]
        return (frames[:, : self._hop] + halves[:-1]).astype(np.float32).ravel()
