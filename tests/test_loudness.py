"""Loudness against what ITU-R BS.1770 says of tones."""

import math

import numpy as np
import pytest

from audio.blocks import in_blocks
from audio.loudness import LoudnessMeter


def loudness(sound: np.ndarray, rate: int, block: int = 1000) -> float:
    meter = LoudnessMeter(rate)
    for piece in in_blocks([sound], block):
        meter.update(piece)
    return meter.integrated()


def tone(rate: int, seconds: float = 3, frequency: float = 997, gain: float = 1.0) -> np.ndarray:
    return (gain * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000, 192000])
def test_a_full_tone_of_997_hz_has_minus_3_01(rate: int) -> None:
    assert loudness(tone(rate), rate) == pytest.approx(-3.01, abs=0.05)
    assert loudness(tone(rate, gain=0.1), rate) == pytest.approx(-23.01, abs=0.05)


def test_low_tones_count_less_and_high_ones_more() -> None:
    """-3 + 4 dB of the shelf; the high-pass is 15 dB down at 20 Hz."""
    assert loudness(tone(48000, frequency=10000), 48000) == pytest.approx(0.3, abs=0.2)
    assert -20 < loudness(tone(48000, frequency=20), 48000) < -14


def test_pauses_do_not_count() -> None:
    spoken = tone(16000, gain=0.1)
    faint = tone(16000, seconds=20, gain=0.002)
    assert loudness(np.concatenate([spoken, np.zeros(160000, np.float32), faint]), 16000) == pytest.approx(
        loudness(spoken, 16000), abs=0.3
    )


def test_how_the_sound_is_cut_does_not_matter() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 40000).astype(np.float32)
    assert loudness(noise, 16000, 77) == pytest.approx(loudness(noise, 16000, 40000), abs=1e-9)


def test_silence_and_less_than_a_block_have_none() -> None:
    assert loudness(np.zeros(16000, np.float32), 16000) == -math.inf
    assert loudness(tone(16000, seconds=0.3), 16000) == -math.inf
