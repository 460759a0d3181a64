"""How far speech stands above noise: what counts as noise, and what does not."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audio import noise_level
from audio.blocks import in_blocks, resampled
from audio.noise_level import (
    BAND_EDGES,
    BANDS,
    HIGHEST_SNR,
    LOWEST_SNR,
    PIECE,
    band_power,
    shared_power,
    speech_to_noise,
)
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


def snr(*sounds: np.ndarray) -> float | None:
    """Of sounds in a row."""
    return speech_to_noise([band_power(np.concatenate(sounds))])


def test_the_bands_add_up_to_the_sound() -> None:
    """The last, broken hop would be half as loud: it is left out."""
    sound = noise(40 * HOP + HOP // 2, 0.01)
    power = band_power(sound)
    assert power.shape == (40, BANDS)
    assert power.sum(axis=1).mean() == pytest.approx(0.01, rel=0.05)
    blocks = np.concatenate([band_power(block) for block in in_blocks([sound], 7 * HOP)])
    np.testing.assert_allclose(blocks, power, rtol=1e-6)
    tone = np.sin(2 * np.pi * 1000 * np.arange(HOP) / RATE).astype(np.float32)
    assert band_power(tone)[0].max() > 0.4
    assert (np.diff(BAND_EDGES) > 0).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_speech_and_noise_share_what_there_is_while_somebody_speaks(seed: int) -> None:
    torch.manual_seed(seed)
    power, ratio, presence = torch.rand(2, 9), 2 * torch.randn(2, 9), 2 * torch.randn(2, 9)
    speech, added = shared_power(power, ratio, presence)
    torch.testing.assert_close(speech + added, (power * presence.sigmoid()).sum(1))
    assert (speech > 0).all()
    assert (added > 0).all()
    assert shared_power(power, ratio + 1, presence)[0].gt(speech).all()


@pytest.mark.parametrize("ratio", [0, 5, 10, 15, 20, 25])
def test_no_pause_is_needed(ratio: int, speech: np.ndarray) -> None:
    added = noise(len(speech), np.mean(speech**2) / 10 ** (ratio / 10))
    assert snr(speech + added) == pytest.approx(ratio, abs=2)


@pytest.mark.parametrize("ratio", [3, 10, 20])
def test_another_voice_is_noise(ratio: int, speech: np.ndarray) -> None:
    """The same sentence, backwards and a third higher: it leaves gaps as the speaker does."""
    other = np.resize(np.concatenate(list(resampled([speech[::-1]], 4, 3))), len(speech))
    added = other * np.sqrt(np.mean(speech**2) / np.mean(other**2) / 10 ** (ratio / 10))
    assert snr(speech + added.astype(np.float32)) == pytest.approx(ratio, abs=4)


def test_the_level_does_not_matter(speech: np.ndarray) -> None:
    noisy = speech + noise(len(speech), np.mean(speech**2) / 10)
    for gain in (1e-3, 30):
        assert snr(np.float32(gain) * noisy) == pytest.approx(snr(noisy), abs=0.01)


def test_noise_that_comes_and_goes_counts_where_somebody_speaks(speech: np.ndarray) -> None:
    power = np.mean(speech**2)
    long = np.resize(speech, 20 * RATE // HOP * HOP)
    added = noise(len(long), power / 10)
    added[: len(added) // 2] *= 1e-3
    assert snr(long + added) == pytest.approx(13, abs=2)
    only_noise = noise(20 * RATE // HOP * HOP, power / 10, seed=1)
    assert snr(long + 1e-3 * added, only_noise) > 25  # type: ignore[operator]


def test_digital_silence_is_no_pause_among_noise_but_clean_on_its_own(speech: np.ndarray) -> None:
    """A sound that begins with 0.3 s of nothing is as noisy as the rest of it says."""
    power = np.mean(speech**2)
    spoken, pause = speech + noise(len(speech), power / 10), noise(20 * HOP, power / 10, seed=1)
    nothing = np.zeros(10 * HOP, np.float32)
    assert snr(nothing, pause, spoken) == pytest.approx(10, abs=3)
    assert snr(spoken, nothing) == pytest.approx(10, abs=3)
    assert snr(speech, nothing) > 45  # type: ignore[operator]


def test_an_offset_is_no_noise(speech: np.ndarray) -> None:
    noisy = speech + noise(len(speech), np.mean(speech**2) / 10**2)
    assert snr(noisy + np.float32(0.05)) == pytest.approx(snr(noisy), abs=0.1)


def test_a_long_sound_is_heard_in_pieces_as_in_one(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    long = np.resize(speech, 900 * HOP)
    power = band_power(long + noise(len(long), np.mean(speech**2) / 30))
    whole = speech_to_noise([power])
    monkeypatch.setattr(noise_level, "_HEARD_AT_ONCE", 200)
    assert speech_to_noise([power[:77], power[77:]]) == pytest.approx(whole, abs=1e-3)


class Told:
    """A network that says the same of all hops, and that nobody speaks in those whose numbers are `pauses`."""

    reach = 0

    def __init__(self, ratio: float, pauses: slice = slice(0)) -> None:
        self.ratio, self.pauses = ratio, pauses

    def __call__(self, power: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        presence = torch.full(power.shape[:2], 9.0)
        presence[:, self.pauses] = -9.0
        return torch.full(power.shape[:2], self.ratio), presence


def test_the_ratio_has_limits(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    for ratio, limit in ((20.0, HIGHEST_SNR), (-20.0, LOWEST_SNR)):
        monkeypatch.setattr(noise_level, "load_noise_meter", partial(Told, ratio))
        assert snr(speech) == limit


def test_pauses_correct_what_is_told_of_the_noise_under_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the way in 8 hops, nearly all of it in 80; not where they are of another scene."""

    def found(hops: int, pause: float) -> float | None:
        monkeypatch.setattr(noise_level, "load_noise_meter", partial(Told, 0.0, slice(100, None)))
        power = np.full((100 + hops, BANDS), 1 / BANDS, np.float32)  # half of it noise, as is told
        power[100:] *= pause
        return speech_to_noise([power])

    assert found(0, 0.25) == pytest.approx(0, abs=0.01)
    assert found(8, 0.25) == pytest.approx(1.5, abs=0.02)
    assert found(80, 0.25) == pytest.approx(3 * 80 / 88, abs=0.02)
    assert found(80, 1) == pytest.approx(-3 * 80 / 88, abs=0.02)
    for other_scene in (0, 0.01, 20):
        assert found(80, other_scene) == pytest.approx(0, abs=0.02)


def test_pauses_count_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a loud scene say nothing of the quiet one 10 s before."""
    monkeypatch.setattr(noise_level, "load_noise_meter", partial(Told, 0.0, slice(2 * PIECE - 80, None)))
    power = np.ones((2 * PIECE, BANDS), np.float32)
    power[PIECE:] = 9
    power[-80:] = 18
    speech = np.array([PIECE, 9 * (PIECE - 80)]) / 2
    noise = speech * (1, (18 / 4.5) ** (80 / 88))
    assert speech_to_noise([power]) == pytest.approx(10 * np.log10(speech.sum() / noise.sum()), abs=0.02)


def test_what_cannot_be_told() -> None:
    """Noise alone, and nothing at all."""
    assert snr(noise(100 * HOP, 0.01)) is None
    assert snr(np.zeros(100 * HOP, np.float32)) is None
    assert speech_to_noise([]) is None
