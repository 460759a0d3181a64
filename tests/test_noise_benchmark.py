"""The sounds that the benchmark is made of."""

import numpy as np
import pytest
from noise_benchmark import RATE, at_loudness, mixed, noise
from test_loudness import loudness

from audio.voice_activity import hop_power


@pytest.mark.parametrize("kind", ["white", "pink", "hum", "music"])
def test_noise_has_its_power_and_its_kind(kind: str) -> None:
    made = noise(kind, 2 * RATE)
    assert np.mean(made**2) == pytest.approx(1)
    spectrum = np.abs(np.fft.rfft(made)) ** 2
    low = spectrum[: 2 * 1000].sum() / spectrum.sum()
    assert low == pytest.approx({"white": 0.125, "pink": 0.65, "hum": 1, "music": 0.95}[kind], abs=0.06)


def test_mixtures_have_their_ratio() -> None:
    speech = np.sin(np.arange(RATE)).astype(np.float32)
    for snr in (0, 10):
        added = mixed(speech, "white", snr) - speech
        assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(snr, abs=0.01)
    assert loudness(at_loudness(speech, -30), RATE) == pytest.approx(-30, abs=0.01)
    assert hop_power(speech).mean() == pytest.approx(0.5, abs=0.02)
