"""The mel front end against numbers of the reference implementation."""

import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import librosa
import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audio import audio
from audio.hparams import DEFAULT, ENHANCED_AUDIO_CONFIG, PRESETS, analysis_for, front_end, model_options
from guided_diffusion.errors import InputError
from guided_diffusion.script_util import ModelConfig, create_model

GOLDEN = np.load(Path(__file__).parent / "data" / "audio.npz")


def test_mel_equals_the_reference() -> None:
    mel = audio.melspectrogram(GOLDEN["wav"])
    assert mel.dtype == np.float32
    np.testing.assert_allclose(mel, GOLDEN["mel"], atol=1e-3)


def test_windows_equal_the_reference() -> None:
    mel = GOLDEN["mel"]
    count = audio.count_windows(mel, 25)
    assert count == len(GOLDEN["windows"])
    windows = [audio.mel_window(mel, frame, 25) for frame in range(count)]
    np.testing.assert_array_equal(windows, GOLDEN["windows"])
    assert all(window.flags.c_contiguous for window in windows)


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
    for load in (audio.load_speech, audio.speech_mel):
        with pytest.raises(InputError, match=r"0\.10 s of sound.*0\.2 s or more"):
            load(str(path))


# --- in blocks, of a file


def plain_mel(samples: np.ndarray, rate: int) -> np.ndarray:
    """The front end without blocks, as it was."""
    wav = librosa.resample(samples, orig_sr=rate, target_sr=16000, res_type="soxr_hq")
    emphasised = scipy.signal.lfilter(np.array([1, -0.97], np.float32), [1], wav)
    magnitude = np.abs(librosa.stft(emphasised, n_fft=800, hop_length=200, pad_mode="constant"))
    basis = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600)
    db = 20 * np.log10(np.maximum(1e-5, basis @ magnitude)) - 20
    return np.clip((2 * (db + 100) / 100 - 1) * 4, -4, 4).astype(np.float32)


def save_noise(path: Path, seconds: float, rate: int) -> np.ndarray:
    """Noise in bursts, as float32 [n], in a file."""
    n = int(seconds * rate)
    bursts = np.sin(np.arange(n) / rate * 40) > 0
    noise = (np.random.default_rng(0).normal(0, 0.1, n) * bursts).astype(np.float32)
    soundfile.write(path, noise, rate, subtype="FLOAT")
    return noise


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
def test_mel_of_a_file_is_that_of_its_whole_sound_to_the_last_bit(tmp_path: Path, rate: int) -> None:
    noise = save_noise(tmp_path / "noise.wav", 7.77, rate)
    wav = librosa.resample(noise, orig_sr=rate, target_sr=16000, res_type="soxr_hq")
    mel, seconds = audio.speech_mel(str(tmp_path / "noise.wav"))
    assert np.array_equal(audio.load_speech(str(tmp_path / "noise.wav")), wav)
    assert np.array_equal(mel, plain_mel(noise, rate))
    assert mel.dtype == np.float32
    assert seconds == Fraction(len(noise), rate)


@pytest.mark.parametrize("hop_size", [200, 160])
@pytest.mark.parametrize("samples", [31 * 200, 32 * 200 - 1, 32 * 200, 33 * 200])
def test_last_block_of_steps(samples: int, hop_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At and around the end of a block of 32 steps."""
    wav = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    hparams = replace(DEFAULT, hop_size=hop_size)
    whole = audio.melspectrogram(wav, hparams)
    monkeypatch.setattr(audio, "BLOCK_STEPS", 32)
    np.testing.assert_allclose(audio.melspectrogram(wav, hparams), whole, atol=1e-5)


def test_memory_does_not_grow_with_the_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the mel: 3 MB for these 2 minutes, whose sound is 8 MB; held at once it took 25 MB a minute."""
    save_noise(tmp_path / "noise.wav", 120, 16000)
    monkeypatch.setattr(audio, "BLOCK_STEPS", 128)
    audio.melspectrogram(np.zeros(3200, np.float32))  # what is imported for the first one is no sound
    tracemalloc.start()
    mel, _ = audio.speech_mel(str(tmp_path / "noise.wav"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mel.nbytes == 80 * 4 * (1 + 120 * 80)
    assert peak < mel.nbytes * 9 / 8 + 4e6


# --- the end of the sound


@pytest.mark.parametrize("fps", [25, 30, Fraction(30000, 1001), 12, 60])
@pytest.mark.parametrize("n", [3200, 16000, 16001, 20000, 23456])
def test_padded_sound_has_a_window_for_every_frame_until_its_end(tmp_path: Path, n: int, fps: Fraction | int) -> None:
    soundfile.write(tmp_path / "in.wav", np.random.default_rng(0).normal(0, 0.1, n), 16000)
    mel, seconds = audio.speech_mel(str(tmp_path / "in.wav"))
    padded, same_seconds = audio.speech_mel(str(tmp_path / "in.wav"), pad_audio=True)
    frames = audio.frames_of_sound(seconds, fps)
    assert same_seconds == seconds == Fraction(n, 16000)
    assert (frames - 1) / Fraction(fps) < seconds <= frames / Fraction(fps)
    assert audio.count_windows(mel, fps) <= frames <= audio.count_windows(padded, fps)
    assert np.array_equal(padded[:, : n // 200 - 1], mel[:, : n // 200 - 1])
    assert (padded[:, n // 200 + 4 :] == -4).all()


def test_less_than_a_window_suffices_when_silence_follows(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", np.random.default_rng(0).normal(0, 0.1, 2000), 16000)
    with pytest.raises(InputError, match=r"0\.12 s of sound"):
        audio.speech_mel(str(tmp_path / "in.wav"))
    mel, seconds = audio.speech_mel(str(tmp_path / "in.wav"), pad_audio=True)
    assert audio.count_windows(mel, 25) >= audio.frames_of_sound(seconds, 25) == 4


def test_a_frame_more_is_for_a_rest_of_sound_only() -> None:
    assert audio.frames_of_sound(Fraction(2), 25) == 50
    assert audio.frames_of_sound(Fraction(88201, 44100), 25) == 51


# --- the checkpoint's front end


def test_front_end_of_the_papers_configuration_is_the_default() -> None:
    assert front_end(ModelConfig()) == DEFAULT


def test_front_end_comes_with_the_checkpoint(speech: Path) -> None:
    config = ModelConfig(audio_dim=128, sample_rate=22050, n_fft=1024, hop_size=256, syncnet_mel_step_size=18)
    hparams = front_end(config)
    mel, seconds = audio.speech_mel(str(speech), hparams)
    assert mel.shape == (128, 1 + 22050 // 256)
    assert seconds == 1
    assert hparams.mel_steps_per_sec == config.mel_steps_per_sec == 22050 / 256
    window = audio.mel_window(mel, 10, 25, hparams)
    assert np.array_equal(window, mel[:, int(9 * 22050 / 256 / 25) :][:, :18])
    assert len(create_model(replace(config, num_channels=64)).encode_audio(torch.from_numpy(window[None]))) == 1


@pytest.mark.parametrize(
    "options", [{"audio_dim": 1024}, {"n_fft": 100, "hop_size": 50}, {"sample_rate": 8000}, {"sample_rate": 1}]
)
def test_front_ends_with_empty_bands_are_refused(options: dict[str, int], recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(InputError, match="some would be empty") as info:
        front_end(ModelConfig(**options))
    assert "\n" not in str(info.value)
    assert not recwarn


# --- the enhanced analysis for a network of the standard front end


@pytest.mark.parametrize("name", ["astronaut.mp4", "speech.wav"])
def test_the_enhanced_analysis_is_heard_as_the_standard_one(name: str) -> None:
    """Powers in place of magnitudes, or steps that are 5 ms late, double the difference; whole steps cost half of it
    where sound sets in after digital silence, as in speech.wav."""
    sample = str(Path(__file__).parent.parent / "samples" / name)
    standard, seconds = audio.speech_mel(sample)
    mapped, same_seconds = audio.speech_mel(sample, analysis=ENHANCED_AUDIO_CONFIG)
    assert same_seconds == seconds
    assert mapped.dtype == np.float32
    assert np.abs(mapped).max() <= 4
    assert 0 < np.abs(mapped - standard).mean() < 0.05
    assert abs((mapped - standard).mean()) < 0.02


@pytest.mark.parametrize("pad_audio", [False, True])
@pytest.mark.parametrize("n", [3200, 16000, 16001, 20000, 23456])
def test_mapped_windows_are_as_many(tmp_path: Path, n: int, pad_audio: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK_STEPS", 32)
    soundfile.write(tmp_path / "in.wav", np.random.default_rng(0).normal(0, 0.1, n), 16000)
    standard, _ = audio.speech_mel(str(tmp_path / "in.wav"), DEFAULT, pad_audio)
    mapped, _ = audio.speech_mel(str(tmp_path / "in.wav"), DEFAULT, pad_audio, analysis=ENHANCED_AUDIO_CONFIG)
    assert mapped.shape == standard.shape
    if pad_audio:
        assert (mapped[:, n // 200 + 5 :] == -4).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(0.3, 3))
def test_steps_at_another_rate_lie_on_the_line(sizes: list[int], pace: float) -> None:
    """Of a ramp each step is its own place, whatever the blocks."""
    ramp = np.arange(sum(sizes), dtype=float)[None]
    blocks = np.split(ramp, np.cumsum(sizes)[:-1], axis=1)
    read = np.concatenate(list(audio._at_rate(blocks, pace)), axis=1)[0]
    np.testing.assert_allclose(read, np.arange(len(read)) * pace, atol=1e-9)
    assert len(read) == 1 + int((sum(sizes) - 1) / pace)


def test_memory_does_not_grow_with_the_sound_that_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_noise(tmp_path / "noise.wav", 120, 16000)
    monkeypatch.setattr(audio, "BLOCK_STEPS", 128)
    tracemalloc.start()
    mel, _ = audio.speech_mel(str(tmp_path / "noise.wav"), analysis=ENHANCED_AUDIO_CONFIG)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mel.nbytes * 9 / 8 + 4e6


def test_a_preset_is_the_checkpoints_own_or_mapped_to_it() -> None:
    other = replace(DEFAULT, num_mels=100)
    assert [analysis_for(hparams, "") for hparams in (DEFAULT, other)] == [DEFAULT, other]
    assert analysis_for(DEFAULT, "standard") == DEFAULT
    assert analysis_for(DEFAULT, "enhanced") == ENHANCED_AUDIO_CONFIG
    assert analysis_for(ENHANCED_AUDIO_CONFIG, "enhanced") == ENHANCED_AUDIO_CONFIG
    for hparams, preset in ((ENHANCED_AUDIO_CONFIG, "standard"), (other, "standard"), (other, "enhanced")):
        with pytest.raises(InputError, match=f"--audio_preset {preset}: .* {hparams.num_mels} mel bands.*drop"):
            analysis_for(hparams, preset)


def test_a_presets_model_options_make_its_front_end() -> None:
    for hparams in PRESETS.values():
        assert front_end(ModelConfig(**model_options(hparams))) == hparams


# --- another level


@settings(deadline=None, max_examples=20)
@given(st.floats(-20, 20))
def test_a_louder_mel_is_that_of_the_louder_sound(gain: float) -> None:
    mel = audio.melspectrogram(GOLDEN["wav"])
    before = mel.copy()
    shifted = audio.louder(mel, gain)
    expected = audio.melspectrogram((GOLDEN["wav"] * 10 ** (gain / 20)).astype(np.float32))
    heard = (mel > -4) & (mel < 4)
    np.testing.assert_allclose(shifted[heard], expected[heard], atol=1e-4)
    assert shifted.dtype == np.float32
    assert np.abs(shifted).max() <= 4
    assert np.array_equal(mel, before)


def test_silence_gets_no_louder() -> None:
    assert (audio.louder(np.full((80, 16), -4, np.float32), 20) == -4).all()
    mel = audio.melspectrogram(GOLDEN["wav"])
    assert np.array_equal(audio.louder(mel, 0), mel)


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
