"""How far speech stands above noise: what counts as noise, and what does not."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio.blocks import in_blocks, resampled
from audio.noise_level import BANDS, HIGHEST_SNR, LOWEST_SNR, MIN_HOPS, PIECE, band_power, speech_to_noise
from audio.voice_activity import HOP, RATE

SPEECH = Path(__file__).parent.parent / "samples" / "speech.wav"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Whole hops of the sample's second sentence, 2.6 s without a pause."""
    sound, rate = soundfile.read(SPEECH, dtype="float32")
    heard = np.concatenate(list(resampled([sound], rate, RATE)))[81 * HOP :]
    return heard[: len(heard) // HOP * HOP]


def noise(n: int, power: float, seed: int = 0) -> np.ndarray:
    """White."""
    return np.random.default_rng(seed).normal(0, np.sqrt(power), n).astype(np.float32)


def snr(*spoken_and_pauses: np.ndarray) -> float | None:
    """Of sounds in a row; in every second one nobody speaks."""
    power = np.concatenate([band_power(sound) for sound in spoken_and_pauses])
    lengths = [len(sound) // HOP for sound in spoken_and_pauses]
    probability = np.repeat([1.0, 0.0] * len(lengths), lengths + [0] * len(lengths))
    return speech_to_noise(power, probability)


def test_the_bands_add_up_to_the_sound() -> None:
    """The last, broken hop would be half as loud: it is left out."""
    sound = noise(40 * HOP + HOP // 2, 0.01)
    power = band_power(sound)
    assert power.shape == (40, BANDS)
    assert power.sum(axis=1).mean() == pytest.approx(0.01, rel=0.05)
    blocks = np.concatenate([band_power(block) for block in in_blocks([sound], 7 * HOP)])
    np.testing.assert_allclose(blocks, power, rtol=1e-6)
    tone = np.sin(2 * np.pi * 1000 * np.arange(HOP) / RATE).astype(np.float32)
    assert band_power(tone)[0].max() > 0.49


@pytest.mark.parametrize("ratio", [0, 10, 20])
def test_no_pause_is_needed(ratio: int, speech: np.ndarray) -> None:
    """Stationary noise fills the gaps of the speech in each band."""
    added = noise(len(speech), np.mean(speech**2) / 10 ** (ratio / 10))
    assert snr(speech + added) == pytest.approx(ratio, abs=1.5)


def test_in_pauses_the_noise_is_exact(speech: np.ndarray) -> None:
    """The gaps alone would say some dB less; one click does not matter."""
    power = np.mean(speech**2)
    pause = noise(10 * HOP, power / 10**4, seed=1)
    pause[:HOP] = 0.5
    spoken = speech + noise(len(speech), power / 10**4)
    found = snr(spoken, pause)
    assert found == pytest.approx(40, abs=0.5)
    assert snr(spoken) < found - 1  # type: ignore[operator]


def test_a_pause_that_is_speech_is_not_believed(speech: np.ndarray) -> None:
    """Under music at its own level the beginning of speech was missed, and taken for noise."""
    power = np.mean(speech**2)
    spoken = speech + noise(len(speech), power / 10)
    assert snr(spoken[10 * HOP :], spoken[: 10 * HOP]) == pytest.approx(10, abs=3)


def test_noise_that_comes_and_goes_counts_where_somebody_speaks(speech: np.ndarray) -> None:
    """A quiet scene beside a noisy one: not the quietest moment of all is the noise's level."""
    power = np.mean(speech**2)
    long = np.resize(speech, 2 * PIECE * HOP)
    added = noise(len(long), power / 10)
    added[: len(added) // 2] *= 1e-3
    assert snr(long + added) == pytest.approx(13, abs=3)
    quiet, noisy = np.split(long + added, 2)
    part = len(quiet) // 8 // HOP * HOP  # there is little speech where it is quiet
    assert snr(quiet[:part], added[: len(quiet) - part], noisy) == pytest.approx(10.5, abs=1.5)


def test_digital_silence_is_no_pause_among_noise_but_clean_on_its_own(speech: np.ndarray) -> None:
    """A sound that begins with 0.3 s of nothing is as noisy as the rest of it says."""
    power = np.mean(speech**2)
    spoken, pause = speech + noise(len(speech), power / 10), noise(20 * HOP, power / 10, seed=1)
    nothing = np.zeros(10 * HOP, np.float32)
    assert snr(spoken, np.concatenate([nothing, pause])) == pytest.approx(10, abs=3)
    assert snr(spoken, nothing) == pytest.approx(10, abs=3)  # no other pause
    assert snr(speech, nothing) == HIGHEST_SNR


def test_an_offset_is_no_noise(speech: np.ndarray) -> None:
    pause, offset = noise(10 * HOP, np.mean(speech**2) / 10**4), np.float32(0.05)
    assert snr(speech + offset, pause + offset) == pytest.approx(snr(speech, pause), abs=0.1)


def test_noise_that_is_taken_for_speech_has_the_lowest_ratio() -> None:
    assert snr(noise(40 * HOP, 0.01)) == LOWEST_SNR


def test_what_cannot_be_told(speech: np.ndarray) -> None:
    power = band_power(speech)
    assert speech_to_noise(power, np.r_[np.ones(MIN_HOPS - 1), np.zeros(len(power))]) is None
    assert speech_to_noise(np.zeros((0, BANDS)), np.zeros(0)) is None
