"""Where the mouth may rest, and how it eases there and back."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import assume, given
from hypothesis import strategies as st
from noise_benchmark import noise

from audio.audio import hushed, mel_window, melspectrogram, window_start
from audio.blocks import in_blocks, resampled
from audio.hparams import DEFAULT, ENHANCED_AUDIO_CONFIG, HParams
from audio.silence import EASE, END_EARLY, ONSET_LATE, SHORTEST_SILENCE, SpeechListener, rest_shares

SPEECH = Path(__file__).parent.parent / "samples" / "speech.wav"
RATE = 22050
FPS = 25
AROUND_REST = 0.2 + END_EARLY + ONSET_LATE + 2 * EASE  # seconds of silence for one frame at rest, its window included

spans = st.lists(st.floats(0, 10), max_size=8).map(lambda edges: np.sort(edges)[: len(edges) // 2 * 2].reshape(-1, 2))
rates = st.sampled_from([Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(60)])


@given(spans, rates, st.sampled_from([DEFAULT, ENHANCED_AUDIO_CONFIG]))
def test_a_frame_that_hears_speech_speaks(speech: np.ndarray, fps: Fraction, hparams: HParams) -> None:
    shares = rest_shares(speech, int(10 * fps), fps, hparams)
    assert shares.dtype == np.float32
    assert ((shares >= 0) & (shares <= 1)).all()
    for frame, share in enumerate(shares):
        start = window_start(frame, fps, hparams) / hparams.mel_steps_per_sec
        hears = any(a < start + 0.2 and start < b for a, b in speech if a < b)
        assert not (hears and share)


@given(st.floats(0.05, 4), st.floats(0, 0.1))
def test_long_silence_is_eased_into_and_out_of_and_a_pause_is_left_alone(length: float, offset: float) -> None:
    shares = rest_shares([(0, 2 + offset), (2 + offset + length, 9)], 9 * FPS, FPS)
    assume(abs(length - SHORTEST_SILENCE) > 1e-6)
    assert shares.any() <= (length > SHORTEST_SILENCE)
    assert np.abs(np.diff(shares)).max() < 0.5
    if length > AROUND_REST + 2 / FPS:
        rising, falling = np.diff(shares) > 0, np.diff(shares) < 0
        assert np.flatnonzero(rising).max() < np.flatnonzero(falling).min()
        assert (shares == 1).sum() == pytest.approx((length - AROUND_REST) * FPS, abs=1.1)
    if length > 0.7:
        assert shares.max() > 0.7


def test_it_is_at_rest_from_the_beginning_and_to_the_end_of_sound_that_begins_and_ends_silent() -> None:
    assert (rest_shares([], 50, FPS) == 1).all()
    shares = rest_shares([(2, 3)], 5 * FPS, FPS)
    assert shares[0] == shares[-1] == 1
    assert not shares[2 * FPS : 3 * FPS].any()


def sound(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts).astype(np.float32)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """A second and a half at RATE, no pause in it."""
    return soundfile.read(SPEECH, dtype="float32")[0][: int(1.5 * RATE)]


def listen(heard: np.ndarray) -> SpeechListener:
    """In what is heard at the speech's rate; it must go through as it is."""
    pytest.importorskip("silero_vad")
    listener = SpeechListener(resampled)
    through = np.concatenate(list(listener(in_blocks([heard], 9999), RATE, RATE)))
    assert np.array_equal(through, heard)
    return listener


def test_speech_is_found_at_its_place_whatever_the_rate(speech: np.ndarray) -> None:
    silence = np.zeros(RATE)
    ((start, end),) = listen(sound(silence, speech, silence)).spans
    assert 1 - END_EARLY < start < 1 + ONSET_LATE
    assert 2.5 - END_EARLY < end < 2.6


@pytest.mark.parametrize("kind", ["breath", "music", "hum"])
def test_breath_music_and_noise_without_speech_are_silence(kind: str, speech: np.ndarray) -> None:
    n = 2 * 16000
    swell = np.sin(np.linspace(0, 2 * np.pi, n)) ** 2
    made = noise("pink", n) * swell if kind == "breath" else noise(kind, n)
    other = next(resampled([(0.05 * made).astype(np.float32)], 16000, RATE))
    shares = rest_shares(listen(sound(speech, other, speech)).spans, 4 * FPS, FPS)
    assert shares[: int(1.4 * FPS)].max() == 0
    assert (shares[int(2.3 * FPS) : int(2.9 * FPS)] == 1).all()


def test_what_the_network_hears_eases_to_the_floor(speech: np.ndarray) -> None:
    window = mel_window(melspectrogram(next(resampled([speech], RATE, 16000))), 20, FPS)
    assert np.array_equal(hushed(window, 0), window)
    assert (hushed(window, 1) == -DEFAULT.max_abs_value).all()
    assert np.allclose(hushed(window, 0.5), (window - DEFAULT.max_abs_value) / 2)
    assert hushed(window, 0.5).dtype == np.float32
