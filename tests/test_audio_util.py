"""Sound is made with PyAV itself: noise through a slow gate, whose position in time is unmistakable."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from test_video_util import HEIGHT, QUADRANTS, WIDTH, make_sound, speech_like, write_video

from guided_diffusion.audio_util import read_audio
from guided_diffusion.video_util import VideoWriter, count_frames, open_video


@pytest.mark.parametrize(
    ("n_channels", "rate", "codec"),
    [
        (1, 16000, "pcm_s16le"),
        (2, 44100, "pcm_u8"),
        (2, 22050, "pcm_f32le"),
        (6, 48000, "pcm_s24le"),
        (2, 44100, "flac"),
    ],
)
def test_read_audio_averages_channels_at_the_files_own_rate(
    tmp_path: Path, n_channels: int, rate: int, codec: str
) -> None:
    samples = np.stack([speech_like(0.5, rate) // (c + 1) for c in range(n_channels)])
    suffix = "flac" if codec == "flac" else "wav"
    mono, read_rate = read_audio(make_sound(tmp_path / f"in.{suffix}", samples, rate, codec))
    assert (read_rate, mono.dtype, mono.shape) == (rate, np.float32, (samples.shape[1],))
    assert np.abs(mono - samples.mean(0) / 32768).max() < (0.01 if codec == "pcm_u8" else 1e-4)


def test_read_audio_of_channels_without_a_layout(tmp_path: Path) -> None:
    wave = pytest.importorskip("wave")
    samples = np.stack([speech_like(0.2, 16000) // (c + 1) for c in range(10)])
    with wave.open(str(tmp_path / "in.wav"), "wb") as file:
        file.setparams((10, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.ascontiguousarray(samples.T).tobytes())
    mono, _ = read_audio(str(tmp_path / "in.wav"))
    assert np.abs(mono - samples.mean(0) / 32768).max() < 1e-4
    path = write_video(tmp_path / "out.mp4", [QUADRANTS] * 4, audio_path=str(tmp_path / "in.wav"))
    assert len(read_audio(path)[0]) > 0


def lag_seconds(given: np.ndarray, heard: np.ndarray, rate: int) -> float:
    n = min(len(given), len(heard))
    spectrum = np.fft.rfft(heard[:n], 2 * n) * np.conj(np.fft.rfft(given[:n], 2 * n))
    lag = int(np.argmax(np.fft.irfft(spectrum)))
    return (lag if lag < n else lag - 2 * n) / rate


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    ("n_channels", "rate", "aac_rate"),
    [(1, 16000, 16000), (2, 44100, 44100), (6, 48000, 48000), (1, 8000, 8000), (2, 50000, 48000)],
)
def test_soundtrack(tmp_path: Path, suffix: str, n_channels: int, rate: int, aac_rate: int) -> None:
    """In step with the pictures, cut at their end, own rate and channels."""
    samples = np.stack([speech_like(3, rate)] * n_channels)
    sound = make_sound(tmp_path / "in.wav", samples, rate)
    path = write_video(tmp_path / f"out{suffix}", [QUADRANTS] * 50, audio_path=sound)
    with av.open(path) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.rate, stream.layout.nb_channels) == ("aac", aac_rate, n_channels)
        end = max(p.pts + p.duration for p in container.demux(stream) if p.pts is not None) * stream.time_base
        # Matroska times whole packets only.
        assert abs(end - 2) <= (Fraction(1024, rate) if suffix == ".mkv" else Fraction(1, 25))
    heard, heard_rate = read_audio(path)
    expected = np.interp(np.arange(2 * aac_rate) / aac_rate, np.arange(3 * rate) / rate, samples[0] / 32768)
    assert heard_rate == aac_rate
    assert abs(lag_seconds(expected, heard, aac_rate)) < 0.005
    assert np.corrcoef(expected[: len(heard)], heard[: len(expected)])[0, 1] > 0.9


def test_short_sound_stays_short_and_its_end_is_not_lost(tmp_path: Path) -> None:
    sound = make_sound(tmp_path / "in.wav", speech_like(1.9, 16000)[None], 16000)
    path = write_video(tmp_path / "out.mp4", [QUADRANTS] * 4, fps=1, audio_path=sound)
    assert 1.9 <= len(read_audio(path)[0]) / 16000 < 1.9 + 1024 / 16000
    assert count_frames(open_video(path, 1)) == 4


def test_sound_of_a_video_can_be_given(tmp_path: Path) -> None:
    sound = make_sound(tmp_path / "in.wav", speech_like(1, 16000)[None], 16000)
    first = write_video(tmp_path / "first.mp4", [QUADRANTS] * 20, audio_path=sound)
    again = write_video(tmp_path / "again.mkv", [QUADRANTS] * 20, audio_path=first)
    assert abs(lag_seconds(read_audio(sound)[0], read_audio(again)[0], 16000)) < 0.005


def test_sound_that_starts_late_in_its_file_is_read_from_its_first_sample(tmp_path: Path) -> None:
    samples = speech_like(1, 16000)
    sound = make_sound(tmp_path / "late.mkv", samples[None], 16000, start=5000)
    assert np.array_equal(read_audio(sound)[0], samples / np.float32(32768))
    path = write_video(tmp_path / "out.mp4", [QUADRANTS] * 20, audio_path=sound)
    assert abs(lag_seconds(samples / 32768, read_audio(path)[0], 16000)) < 0.005


def test_sound_is_encoded_as_the_pictures_come(tmp_path: Path) -> None:
    """Memory: of an hour of sound only what the pictures have reached may have been decoded."""
    sound = make_sound(tmp_path / "in.wav", speech_like(20, 16000)[None], 16000)
    with VideoWriter(str(tmp_path / "out.mp4"), (WIDTH, HEIGHT), 25, audio_path=sound) as writer:
        for _ in range(10):
            writer.write(QUADRANTS)
        assert writer._sound is not None
        decoded = writer._sound._decoded
        assert decoded.samples_read == round(10 / 25 * 16000)
        assert decoded.samples < 16000
