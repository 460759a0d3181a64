"""Sound is made with PyAV itself: noise through a slow gate, whose position in time is unmistakable."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from test_video_util import HEIGHT, QUADRANTS, WIDTH, make_sound, speech_like, write_video

from guided_diffusion.audio_util import MOST_CHANNELS, open_sound, read_audio
from guided_diffusion.errors import InputError
from guided_diffusion.video_util import VideoWriter, count_frames, open_video


@pytest.mark.parametrize(
    ("n_channels", "rate", "codec"),
    [
        (1, 16000, "pcm_s16le"),
        (2, 44100, "pcm_u8"),
        (2, 22050, "pcm_f32le"),
        (2, 48000, "pcm_s24le"),
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


def test_more_channels_than_can_be_mixed_are_refused_by_name(tmp_path: Path) -> None:
    """126 ended in FFmpeg's own error, which named neither the file nor what to do."""
    path = tmp_path / "many.wav"
    for n_channels in (MOST_CHANNELS, 126):
        soundfile.write(path, np.zeros((800, n_channels), np.float32), 16000)
        if n_channels == MOST_CHANNELS:
            assert len(read_audio(str(path))[0]) == 800
    with pytest.raises(InputError, match=r"many.wav.* 126 channels.* mono or stereo"):
        read_audio(str(path))


@pytest.mark.parametrize("n_channels", [9, 10, 11, 16])
def test_channels_without_a_layout_are_averaged(tmp_path: Path, n_channels: int) -> None:
    """FFmpeg cannot mix 9 or 11 of them: that was a traceback when the soundtrack began."""
    samples = np.stack([speech_like(0.5, 16000) // (c + 1) for c in range(n_channels)])
    soundfile.write(tmp_path / "in.wav", samples.T, 16000)
    mono, _ = read_audio(str(tmp_path / "in.wav"))
    assert np.abs(mono - samples.mean(0) / 32768).max() < 1e-4
    path = write_video(tmp_path / "out.mp4", [QUADRANTS] * 20, audio_path=str(tmp_path / "in.wav"))
    heard = read_audio(path)[0][: len(mono)]
    assert np.corrcoef(heard, mono)[0, 1] > 0.9


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


# ---- times


def make_clip(
    path: Path,
    pieces: list[tuple[float, np.ndarray]],
    pictures_start: float | None = None,
    codec: str = "pcm_s16le",
    lost: range = range(0),
    b_frames: int = 0,
) -> str:
    """Sound of (start in seconds, int16 [n] at 16 kHz), in packets of 1/8 s if PCM, and 2 s of pictures.

    lost: packets of sound that are left out.
    """
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec, rate=16000, layout="mono")
        packets = []
        if pictures_start is not None:
            video = container.add_stream("libx264", rate=25, options={"g": "25", "bf": str(b_frames)})
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            video.codec_context.time_base = Fraction(1, 1000)
            for i in range(50):
                picture = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 16 + 4 * i, np.uint8))
                picture.pts, picture.time_base = round(1000 * pictures_start) + 40 * i, Fraction(1, 1000)
                packets += video.encode(picture)
            packets += video.encode(None)
        heard = []
        for start, samples in pieces:
            for i in range(0, len(samples), 2000):
                frame = av.AudioFrame.from_ndarray(samples[None, i : i + 2000], "s16", "mono")
                frame.rate, frame.pts, frame.time_base = 16000, round(start * 16000) + i, Fraction(1, 16000)
                heard += sound.encode(frame)
        heard += sound.encode(None)
        packets += [packet for i, packet in enumerate(heard) if i not in lost]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return str(path)


def assert_in_time(path: str, expected: np.ndarray) -> None:
    """float32 [n] at 16 kHz from time 0, for the network and in a soundtrack."""
    heard, rate = read_audio(path)
    written = read_audio(write_video(Path(path).with_name("out.mkv"), [QUADRANTS] * 75, audio_path=path))[0]
    for found in (heard, written):
        n = min(len(found), len(expected))
        assert rate == 16000
        assert n > 16000
        assert abs(lag_seconds(expected, found, 16000)) < 0.003
        assert np.corrcoef(found[:n], expected[:n])[0, 1] > 0.9
        silent = np.convolve(expected == 0, np.ones(2049), "same")[:n] == 2049  # an AAC frame from any sound
        assert np.abs(found[:n][silent]).max(initial=0) < 0.02


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "pcm_s16le"), ("mp4", "aac"), ("mkv", "aac"), ("ts", "aac")])
@pytest.mark.parametrize(("sound_start", "pictures_start"), [(0.4, 0), (0, 0.3), (0.5, 0.5)])
def test_sound_keeps_its_time_against_the_pictures(
    tmp_path: Path, suffix: str, codec: str, sound_start: float, pictures_start: float
) -> None:
    """It began with its own first sample, wherever the pictures were: 0.4 s early, 0.3 s late."""
    speech = speech_like(2, 16000)
    path = make_clip(tmp_path / f"clip.{suffix}", [(sound_start, speech)], pictures_start, codec)
    late = round((sound_start - pictures_start) * 16000)
    expected = np.concatenate([np.zeros(max(0, late)), speech[max(0, -late) :]]) / 32768
    assert_in_time(path, expected)
    if codec == "pcm_s16le":
        assert np.array_equal(read_audio(path)[0], expected.astype(np.float32))


def test_a_millisecond_is_no_offset(tmp_path: Path) -> None:
    speech = speech_like(2, 16000)
    path = make_clip(tmp_path / "clip.mkv", [(0.1006, speech)], 0.1)  # which counts in milliseconds
    assert np.array_equal(read_audio(path)[0], speech / np.float32(32768))


def test_sound_of_an_avi_with_reordered_pictures_starts_with_them(tmp_path: Path) -> None:
    """It stores no times: the first picture seems to come two frames late."""
    speech = speech_like(2, 16000)
    path = make_clip(tmp_path / "clip.avi", [(0, speech)], 0, b_frames=2)
    assert np.array_equal(read_audio(path)[0], speech / np.float32(32768))


def test_sound_of_a_stream_cut_between_keyframes_begins_with_its_first_picture(tmp_path: Path) -> None:
    speech = speech_like(2, 16000)
    whole = Path(make_clip(tmp_path / "whole.ts", [(0, speech)], 0, "aac")).read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole[len(whole) // 188 // 5 * 188 :])
    first = round((float(next(open_video(str(cut), 0).frames()).mean()) - 16) / 4)
    assert first == 25  # the keyframe
    heard = read_audio(str(cut))[0]
    assert abs(lag_seconds(speech[16000:] / 32768, heard, 16000)) < 0.003


def test_sound_without_pictures_begins_with_its_first_sample(tmp_path: Path) -> None:
    speech = speech_like(1, 16000)
    path = make_clip(tmp_path / "late.mka", [(3, speech)])
    assert np.array_equal(read_audio(path)[0], speech / np.float32(32768))


def test_sound_that_ends_before_the_pictures_is_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mkv", [(0, speech_like(1, 16000))], 1.5)
    with pytest.raises(InputError, match="ends before the first picture"):
        read_audio(path)


def test_holes_are_silence_and_overlaps_are_dropped(tmp_path: Path) -> None:
    a, b, c = np.split(speech_like(3, 16000), 3)
    path = make_clip(tmp_path / "clip.mkv", [(0, a), (1.5, b), (2.4, c)], 0)
    expected = np.concatenate([a, np.zeros(8000), b, c[1600:]]) / 32768
    assert np.array_equal(read_audio(path)[0], expected.astype(np.float32))
    assert_in_time(path, expected)


def test_lost_packets_leave_silence(tmp_path: Path) -> None:
    speech = speech_like(2, 16000)
    path = make_clip(tmp_path / "clip.mkv", [(0, speech)], 0, "aac", lost=range(10, 15))  # of 64 ms
    expected = speech / 32768
    expected[10 * 1024 - 1024 : 14 * 1024] = 0  # the first packet is priming
    assert_in_time(path, expected)


def test_times_that_are_rounded_leave_the_samples_as_they_are(tmp_path: Path) -> None:
    speech = speech_like(2, 16000)
    jitter = np.random.default_rng(0).uniform(-0.009, 0.009, 16)
    pieces = [(0.02 + i / 8 + jitter[i], piece) for i, piece in enumerate(np.split(speech, 16))]
    path = make_clip(tmp_path / "sound.mka", pieces)
    assert np.array_equal(read_audio(path)[0], speech / np.float32(32768))


def test_a_clock_that_starts_anew_is_no_hole(tmp_path: Path) -> None:
    """Two transport streams, one behind the other: the second begins at 0 again, or a day later."""
    speech = speech_like(2, 16000)
    first = Path(make_clip(tmp_path / "a.ts", [(2, speech)], codec="aac"))
    second = Path(make_clip(tmp_path / "b.ts", [(0, speech)], codec="aac"))
    (tmp_path / "ab.ts").write_bytes(first.read_bytes() + second.read_bytes())
    alone = sum(len(read_audio(str(path))[0]) for path in (first, second))
    assert len(read_audio(str(tmp_path / "ab.ts"))[0]) == pytest.approx(alone, abs=2048)
    path = make_clip(tmp_path / "day.mka", [(0, speech), (86400, speech)])
    assert len(read_audio(path)[0]) == 2 * len(speech)


def test_silence_comes_in_blocks(tmp_path: Path) -> None:
    speech = speech_like(0.5, 16000)
    path = make_clip(tmp_path / "sound.mka", [(0, speech), (3000, speech)])
    blocks, _ = open_sound(path)
    lengths = [len(block) for block in blocks]
    assert sum(lengths) == 3000.5 * 16000
    assert max(lengths) <= 3 * 16000


# ---- tracks and channels


def make_tracks(path: Path, tracks: list[np.ndarray], default: int) -> str:
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in tracks]
        for i, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if i == default else av.stream.Disposition(0)
        for stream, samples in zip(streams, tracks, strict=True):
            frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
            frame.rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            container.mux(stream.encode(frame))
    return str(path)


@pytest.mark.parametrize("default", [0, 1, 2])
@pytest.mark.parametrize("suffix", ["mkv", "mov"])
def test_the_default_track_is_heard(tmp_path: Path, suffix: str, default: int) -> None:
    """The first one was: a commentary, or a description of the pictures."""
    tracks = [np.roll(speech_like(0.5, 16000), 1000 * i) for i in range(3)]
    path = make_tracks(tmp_path / f"in.{suffix}", tracks, default)
    assert np.array_equal(read_audio(path)[0], tracks[default] / np.float32(32768))


@pytest.mark.parametrize(
    ("left", "right", "expected"), [(1.0, -1.0, 0), (0.5, -0.6, 1), (1, -0.4, None), (0, 1, None), (0.5, 0.5, None)]
)
def test_of_channels_that_cancel_the_louder_one_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: float, right: float, expected: int | None
) -> None:
    """The network heard silence, and nothing was said."""
    samples = np.stack([speech_like(1, 16000) * gain for gain in (left, right)]).astype(np.int16)
    path = make_sound(tmp_path / "in.wav", samples, 16000)
    heard = read_audio(path)[0]
    mix = samples.astype(np.float32).mean(0) if expected is None else samples[expected]
    np.testing.assert_allclose(heard, mix / 32768, atol=1e-6)
    notice = capsys.readouterr().err
    assert notice.count("\n") == notice.count("cancel each other") == (expected is not None)
    assert expected is None or ("left", "right")[expected] in notice


def test_silence_in_two_channels_is_no_cancelling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_sound(tmp_path / "in.wav", np.zeros((2, 16000), np.int16), 16000)
    assert not read_audio(path)[0].any()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize(
    ("speaks", "level"), [((2,), 1), ((0, 1), 1), ((0,), 0.5), ((3,), 0), ((4,), 0.354), ((0, 1, 2), 2)]
)
def test_speech_in_the_centre_keeps_its_level(
    tmp_path: Path, speaks: tuple[int, ...], level: float, is_named: bool
) -> None:
    """The average of six channels has it 15.6 dB down."""
    speech = speech_like(0.5, 16000) // 4
    samples = np.stack([speech * (c in speaks) for c in range(6)])
    if is_named:
        make_sound(tmp_path / "in.wav", samples, 16000)
    else:
        soundfile.write(tmp_path / "in.wav", samples.T, 16000)
    heard = read_audio(str(tmp_path / "in.wav"))[0]
    np.testing.assert_allclose(heard, level * speech / 32768, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("subtype", "n_channels"), [("FLOAT", 1), ("DOUBLE", 2)])
def test_samples_that_are_not_numbers(tmp_path: Path, value: float, subtype: str, n_channels: int) -> None:
    samples = np.zeros((16000, n_channels))
    samples[8000] = value
    soundfile.write(tmp_path / "in.wav", samples, 16000, subtype=subtype)
    with pytest.raises(InputError, match="has samples that are not numbers") as info:
        read_audio(str(tmp_path / "in.wav"))
    assert "\n" not in str(info.value)
    assert repr(str(tmp_path / "in.wav")) in str(info.value)
