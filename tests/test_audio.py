"""The mel front end against numbers of the reference implementation."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audio import audio
from guided_diffusion.errors import InputError

GOLDEN = np.load(Path(__file__).parent / "data" / "audio.npz")


def test_mel_equals_the_reference() -> None:
    mel = audio.melspectrogram(GOLDEN["wav"])
    assert mel.dtype == np.float32
    np.testing.assert_allclose(mel, GOLDEN["mel"], atol=1e-3)


def test_windows_equal_the_reference() -> None:
    mel = GOLDEN["mel"]
    count = audio.count_windows(mel, 25)
    assert count == len(GOLDEN["windows"])
    np.testing.assert_array_equal(audio.mel_windows(mel, 0, count, 25), GOLDEN["windows"])


def test_mel_in_blocks_equals_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = audio.melspectrogram(GOLDEN["wav"])
    monkeypatch.setattr(audio, "BLOCK_STEPS", 7)
    np.testing.assert_allclose(audio.melspectrogram(GOLDEN["wav"]), whole, atol=1e-5)


@given(st.integers(0, 500), st.fractions(min_value=5, max_value=121, max_denominator=1001))
def test_windows_stop_at_the_first_incomplete_one(steps: int, fps: Fraction) -> None:
    count = audio.count_windows(np.zeros((80, steps), np.float32), fps)
    complete = [audio.window_start(f, fps) + 16 <= steps for f in range(count + 3)]
    assert complete == [True] * count + [False] * 3


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3000))
def test_mel_range_and_length(n: int) -> None:
    wav = np.random.default_rng(n).uniform(-1, 1, n).astype(np.float32)
    mel = audio.melspectrogram(wav)
    assert mel.shape == (80, 1 + n // 200)
    assert np.abs(mel).max() <= 4


def test_loading_averages_channels_and_resamples(tmp_path: Path) -> None:
    t = np.arange(44100) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    path = tmp_path / "two channels.wav"
    soundfile.write(path, np.stack([tone, np.zeros_like(tone)], 1), 44100, subtype="FLOAT")
    wav = audio.load_speech(str(path))
    assert len(wav) == 16000
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(wav[500:-500], expected[500:-500], atol=1e-3)


def test_less_than_one_window_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    soundfile.write(path, np.zeros(1600), 16000)
    with pytest.raises(InputError, match=r"0\.10 s of sound.*0\.2 s or more"):
        audio.load_speech(str(path))


# --- loudness at the video's frames


def band_noise(seconds: float, rate: int = 16000) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, int(seconds * rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize(("frequency", "level"), [(1700, 0.5 / np.sqrt(2)), (150, 0), (6000, 0)])
def test_envelope_is_the_rms_of_its_band(frequency: float, level: float, rate: int) -> None:
    tone = (0.5 * np.sin(2 * np.pi * frequency * np.arange(2 * rate) / rate)).astype(np.float32)
    envelope = audio.rms_envelope(tone, rate, 50, 25)
    assert envelope.dtype == np.float32
    assert envelope.shape == (50,)
    np.testing.assert_allclose(envelope[2:-2], level, atol=0.01)


@pytest.mark.parametrize("fps", [25, Fraction(30000, 1001), Fraction(1350, 61)])
def test_envelope_is_sampled_at_frame_centres_without_delay(fps: Fraction | float) -> None:
    """A wave of loudness of 3 Hz comes out as it is at (n + 0.5) / fps; half a frame later it would differ by 0.1."""
    t = np.arange(4 * 16000) / 16000
    loudness = 0.3 + 0.2 * np.sin(2 * np.pi * 3 * t)
    wav = (loudness * np.sqrt(2) * np.sin(2 * np.pi * 2000 * t)).astype(np.float32)
    frames = int(4 * fps)
    centres = (np.arange(frames) + 0.5) / float(fps)
    expected = 0.3 + 0.2 * np.sin(2 * np.pi * 3 * centres)
    np.testing.assert_allclose(audio.rms_envelope(wav, 16000, frames, fps)[2:-2], expected[2:-2], atol=0.004)


def test_envelope_passes_what_mouths_do_and_stops_what_is_faster() -> None:
    """Of a wave of loudness of 3 Hz all is left, of one of 20 Hz less than a hundredth (1 / 257)."""
    t = np.arange(4 * 16000) / 16000
    swing = {}
    for speed in (3, 20):
        wav = (0.3 + 0.2 * np.sin(2 * np.pi * speed * t)) * np.sin(2 * np.pi * 2000 * t)
        swing[speed] = np.ptp(audio.rms_envelope(wav.astype(np.float32), 16000, 400, 100)[20:-20])
    assert swing[3] == pytest.approx(0.4 / np.sqrt(2), rel=0.03)
    assert swing[20] < 0.01 * swing[3]


def test_envelope_follows_the_sound_when_it_moves() -> None:
    wav = band_noise(2)
    wav[: 16000 // 2] = 0
    later = np.concatenate([np.zeros(5 * 640, np.float32), wav])  # 640 samples are a frame
    envelope = audio.rms_envelope(wav, 16000, 50, 25)
    np.testing.assert_allclose(audio.rms_envelope(later, 16000, 55, 25)[7:-2], envelope[2:-2], atol=1e-3)


def test_envelope_is_silent_after_the_end_of_the_sound() -> None:
    envelope = audio.rms_envelope(band_noise(1), 16000, 60, 25)
    assert envelope[:24].min() > 0.01
    assert envelope[28:].max() < 1e-3


@given(st.integers(0, 3000), st.integers(1, 20), st.sampled_from([8000, 16000, 44100]), st.floats(5, 60))
@settings(deadline=None, max_examples=40)
def test_envelope_has_a_level_per_frame_for_sound_of_any_length(n: int, frames: int, rate: int, fps: float) -> None:
    envelope = audio.rms_envelope(band_noise(1)[:n], rate, frames, fps)
    assert envelope.shape == (frames,)
    assert np.isfinite(envelope).all()
    assert envelope.min() >= 0
