"""Tiny clips are made with PyAV itself; a frame's index is its brightness, so order and timing can be read back."""

import errno
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guided_diffusion import video_util
from guided_diffusion.audio_util import read_audio
from guided_diffusion.errors import InputError
from guided_diffusion.video_util import (
    X264_MAX_SIDE,
    X264_PRESETS,
    VideoSource,
    VideoWriter,
    _resample,
    _round_half_away,
    check_size,
    check_target,
    count_frames,
    estimate_frames,
    open_video,
    ordered_frames,
    source_index,
    timecode,
)

WIDTH, HEIGHT = 64, 48
STEP = 8  # brightness levels between consecutive frames
CLIPS = Path(__file__).parents[2] / "shared" / "clips"


def make_video(
    path: Path,
    n: int = 20,
    *,
    fps: int = 25,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts: Iterable[int] | None = None,
    setup: Callable[[av.VideoStream], object] = str,  # does nothing
    **options: str,
) -> str:
    """n gray frames with brightness 16 + STEP * index; `pts` in 1/1000 s."""
    color_range = 2 if pix_fmt.startswith("yuvj") else 1
    times, time_base = (range(n), Fraction(1, fps)) if pts is None else (list(pts), Fraction(1, 1000))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base
        setup(stream)
        for i, time in enumerate(times):
            picture = np.full((size[1], size[0], 3), 16 + STEP * (i % 28), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture).reformat(format=pix_fmt, dst_color_range=color_range)
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def make_sound(path: Path, samples: np.ndarray, rate: int, codec: str = "pcm_s16le", start: int = 0) -> str:
    """Write int16 [channels, n] with the times of its samples counted from `start`."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T).reshape(1, -1), "s16", layout)
        frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def speech_like(seconds: float, rate: int) -> np.ndarray:
    """Noise through a slow gate, int16 [n]: its position in time is unmistakable."""
    n = int(seconds * rate)
    noise = np.convolve(np.random.default_rng(0).normal(size=n), np.ones(8) / 8, "same")
    return (noise * (np.sin(np.arange(n) / rate * 40) > 0) * 12000).astype(np.int16)


def gray_frames(n: int) -> list[np.ndarray]:
    return [np.full((HEIGHT, WIDTH, 3), 16 + STEP * i, np.uint8) for i in range(n)]


def indices(frames: Iterable[np.ndarray]) -> list[int]:
    return [round((float(frame.mean()) - 16) / STEP) for frame in frames]


def smooth_picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Colours that vary slowly, so that halving the chroma costs little."""
    y, x = np.mgrid[:height, :width]
    channels = 40 + 2 * x, 60 + 2 * y, 128 + 60 * np.sin(x / 30) * np.cos(y / 30)
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float = 25, **options: object) -> str:
    frames = list(frames)
    height, width = frames[0].shape[:2]
    with VideoWriter(str(path), (width, height), fps, **options) as writer:  # type: ignore[arg-type]
        for frame in frames:
            writer.write(frame)
    return str(path)


# ---- rate


def fps_filter(path: str, fps: Fraction) -> list[int]:
    """Frame indices that ffmpeg's own fps filter delivers, with times counted from the first frame."""
    graph = av.filter.Graph()
    shown = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        source = graph.add_buffer(template=stream)
        rate, sink = graph.add("fps", f"fps={fps}:round=near"), graph.add("buffersink")
        source.link_to(rate)
        rate.link_to(sink)
        graph.configure()
        first = None

        def pull() -> Iterator[np.ndarray]:
            while True:
                try:
                    yield sink.pull().to_ndarray(format="rgb24")
                except (av.BlockingIOError, av.EOFError):
                    return

        for frame in container.decode(stream):
            first = frame.pts if first is None else first
            frame.pts -= first
            source.push(frame)
            shown += pull()
        source.push(None)
        shown += pull()
    return indices(shown)


VARIABLE = [0, 33, 70, 71, 72, 200, 240, 280, 500, 540, 541, 620]


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30), Fraction(60), Fraction(12), Fraction(30000, 1001)])
@pytest.mark.parametrize(
    "times", [None, VARIABLE, [t + 480 for t in VARIABLE], [0, 20, 60, 100, 140]], ids=["30", "vfr", "late", "ties"]
)
def test_rate_follows_ffmpegs_fps_filter(tmp_path: Path, times: list[int] | None, fps: Fraction) -> None:
    path = make_video(tmp_path / "in.mp4", fps=30, pts=times)
    video = open_video(path, float(fps))
    assert video.fps == fps
    assert indices(video.frames()) == fps_filter(path, fps)
    assert count_frames(video) == len(fps_filter(path, fps))


def test_rate_zero_keeps_the_exact_rate_and_every_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "in.mp4", gray_frames(15), 1350 / 61)
    video = open_video(path, 0)
    assert video.fps == Fraction(1350, 61)
    assert indices(video.frames()) == list(range(15))


@pytest.mark.parametrize("video_fps", [-1, 0.5, 1e9, float("nan")])
def test_impossible_rate(tmp_path: Path, video_fps: float) -> None:
    with pytest.raises(InputError, match="1 to 1000"):
        open_video(make_video(tmp_path / "in.mp4", 2), video_fps)


def test_frames_without_times_are_counted_at_the_average_rate(tmp_path: Path) -> None:
    """A raw H.264 stream has no times at all; FFmpeg assumes 25 fps for it."""
    video = open_video(make_video(tmp_path / "in.h264", 20, bf="0"), 50)
    assert video.start_time is None
    assert indices(video.frames()) == [i // 2 for i in range(40)]
    assert indices(frame for _, frame in ordered_frames(open_video(video.path), 20, 39, "pingpong")) == [
        *range(20), *range(18, -1, -1)
    ]


def test_last_frame_lasts_its_duration_and_one_frame_is_always_delivered() -> None:
    def resampled(*timed: tuple[float, float, str]) -> list[str]:
        exact = [(Fraction(t).limit_denominator(1000), Fraction(d).limit_denominator(1000), f) for t, d, f in timed]
        return [frame for _, frame in _resample(exact, Fraction(25))]  # type: ignore[type-var, arg-type]

    assert resampled((0, 0.04, "a"), (0.04, 0.2, "b")) == ["a", *"bbbbb"]
    assert resampled((0, 0.001, "a")) == ["a"]
    assert resampled() == []


@pytest.mark.parametrize(
    ("x", "rounded"), [("1/2", 1), ("3/2", 2), ("5/2", 3), ("-1/2", -1), ("-3/2", -2), ("49/100", 0)]
)
def test_rounding_is_half_away_from_zero(x: str, rounded: int) -> None:
    assert _round_half_away(Fraction(x)) == rounded


@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=30),
    st.sampled_from([Fraction(25), Fraction(60), Fraction(7)]),
    st.data(),
)
def test_rate_is_the_same_from_the_middle(gaps: list[int], fps: Fraction, data: st.DataObject) -> None:
    """After a seek the outputs must be those of the forward run: the mapping has no memory."""
    times = [Fraction(t, 1000) for t in np.cumsum([0, *gaps])]
    timed = [(time, Fraction(1, 30), i) for i, time in enumerate(times)]
    forward = dict(_resample(timed, fps))  # type: ignore[type-var, arg-type]
    middle = data.draw(st.integers(0, len(timed) - 1))
    from_middle = dict(_resample(timed[middle:], fps))  # type: ignore[type-var, arg-type]
    assert sorted(forward) == list(range(len(forward)))
    assert from_middle.items() <= forward.items()
    assert max(forward) in from_middle or not from_middle


# ---- reading


def test_frames_start_and_stop(tmp_path: Path) -> None:
    video = open_video(make_video(tmp_path / "in.mp4", 20))
    assert indices(video.frames(5, 9)) == [5, 6, 7, 8]
    assert indices(video.frames(18)) == [18, 19]
    assert indices(video.frames(0, 0)) == indices(video.frames(30)) == []
    assert count_frames(video, limit=7) == 7


def test_frames_are_separate_arrays(tmp_path: Path) -> None:
    """A repeated frame must not show what was drawn onto the one before."""
    video = open_video(make_video(tmp_path / "in.mp4", 3), 50)
    first, repeated = video.frames(0, 2)
    first[:] = 255
    assert indices([repeated]) == [0]


def test_reading_is_lazy() -> None:
    consumed = []
    endless = ((Fraction(i, 25), Fraction(1, 25), consumed.append(i) or i) for i in range(10**9))
    resampled = _resample(endless, Fraction(25))  # type: ignore[arg-type]
    assert [next(resampled)[0], next(resampled)[0]] == [0, 1]
    assert len(consumed) == 3


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "webm", "mov", "gif"])
def test_containers(tmp_path: Path, suffix: str) -> None:
    codec, pix_fmt = {"webm": ("libvpx", "yuv420p"), "gif": ("gif", "rgb8")}.get(suffix, ("libx264", "yuv420p"))
    video = open_video(make_video(tmp_path / f"in.{suffix}", 12, codec=codec, pix_fmt=pix_fmt))
    assert (video.width, video.height, video.fps, video.is_image) == (WIDTH, HEIGHT, 25, False)
    assert np.ptp([count_frames(video), 12]) <= (1 if suffix == "gif" else 0)
    if suffix != "gif":
        assert indices(video.frames()) == list(range(12))


@pytest.mark.parametrize(("size", "pix_fmt"), [((63, 47), "yuv444p"), ((64, 48), "yuv420p10le"), ((64, 48), "yuv422p")])
def test_odd_sizes_and_depths(tmp_path: Path, size: tuple[int, int], pix_fmt: str) -> None:
    video = open_video(make_video(tmp_path / "in.mp4", 5, size=size, pix_fmt=pix_fmt))
    frames = list(video.frames())
    assert frames[0].shape == (size[1], size[0], 3)
    assert frames[0].dtype == np.uint8
    assert indices(frames) == [0, 1, 2, 3, 4]


QUADRANTS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
QUADRANTS[: HEIGHT // 2, : WIDTH // 2] = 60
QUADRANTS[: HEIGHT // 2, WIDTH // 2 :] = 120
QUADRANTS[HEIGHT // 2 :, : WIDTH // 2] = 180
QUADRANTS[HEIGHT // 2 :, WIDTH // 2 :] = 240


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_display_rotation(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = str(tmp_path / "phone.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(QUADRANTS)))
        container.mux(stream.encode(None))
    upright = np.rot90(QUADRANTS, degrees // 90)  # both are counter-clockwise
    upright = upright[:, ::-1] if mirrored else upright
    video = open_video(path)
    assert (video.height, video.width) == upright.shape[:2]
    (frame,) = video.frames(0, 1)
    assert np.abs(frame[4::8, 4::8].astype(int) - upright[4::8, 4::8]).max() < 12


def test_non_square_pixels_are_made_square(tmp_path: Path) -> None:
    def wide(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    video = open_video(make_video(tmp_path / "anamorphic.mp4", 3, size=(60, 48), setup=wide))
    assert (video.width, video.height) == (80, 48)
    assert next(video.frames()).shape == (48, 80, 3)


def test_a_size_that_changes_is_scaled_to_the_first(tmp_path: Path) -> None:
    parts = [make_video(tmp_path / f"{i}.h264", 5, size=size) for i, size in enumerate([(64, 48), (96, 64)])]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(Path(part).read_bytes() for part in parts))
    frames = list(open_video(str(joined)).frames())
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 10
    assert indices(frames) == [0, 1, 2, 3, 4] * 2


def test_damage_in_the_middle_costs_only_frames(tmp_path: Path) -> None:
    path = Path(make_video(tmp_path / "in.avi", 30, codec="mjpeg", pix_fmt="yuvj420p"))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][10]
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    shown = indices(open_video(str(path)).frames())
    assert len(shown) == 30
    assert shown == [*range(10), 9, *range(11, 28), 0, 1]


def test_a_file_cut_short_ends_there(tmp_path: Path) -> None:
    path = Path(make_video(tmp_path / "in.mkv", 28, g="5", bf="0"))
    with av.open(str(path)) as container:
        middle = [packet.pos for packet in container.demux(video=0) if packet.size][14]
    path.write_bytes(path.read_bytes()[:middle])
    shown = indices(open_video(str(path)).frames())
    assert shown == list(range(len(shown)))
    assert len(shown) == 14


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.bmp", "p.webp", "100%d é.png", "p:q.png"])
def test_still_image(tmp_path: Path, name: str) -> None:
    image_module = pytest.importorskip("PIL.Image")
    path = str(tmp_path / name)
    image_module.fromarray(smooth_picture()).save(path, quality=98)
    image_module.fromarray(QUADRANTS).save(tmp_path / "1000 é.png")  # what the pattern "100%d é.png" would find
    video = open_video(path, 0)
    assert video == open_video(path)
    assert (video.is_image, video.fps, count_frames(video)) == (True, 25, 1)
    (frame,) = video.frames()
    assert np.abs(frame.astype(int) - smooth_picture()).max() <= (0 if name.endswith(("png", "bmp")) else 12)
    for mode in ("cut", "loop", "pingpong"):
        ordered = list(ordered_frames(video, 1, 5, mode, start=2))
        assert [index for index, _ in ordered] == [0, 0, 0]
        assert all(np.array_equal(shown, frame) for _, shown in ordered)
        assert ordered[0][1] is not ordered[1][1]


def test_a_relative_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frames = gray_frames(3)
    write_video(Path("http:clip.mp4"), frames)
    assert indices(open_video("http:clip.mp4").frames()) == [0, 1, 2]


def test_metadata_that_is_not_text_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(QUADRANTS)))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"\xff\xfe\xfa\xff\xfb"))
    assert open_video(str(path)).width == WIDTH


# ---- order


@given(st.integers(1, 12), st.integers(0, 80), st.sampled_from(["cut", "loop", "pingpong"]))
def test_source_index(n_source: int, i: int, mode: str) -> None:
    turn = [*range(n_source), *range(n_source - 2, 0, -1)] if mode == "pingpong" else range(n_source)
    assert source_index(i, n_source, mode) == turn[i % len(turn)]  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["mp4", "ts"])
def long_gop(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> VideoSource:
    """Moving noise, 5 fps, B-frames, open groups of 12 pictures: any wrong or half-decoded frame shows."""
    path = tmp_path_factory.mktemp("order") / f"clip.{request.param}"
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        options = {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0", "crf": "30"}
        stream = container.add_stream("libx264", rate=5, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, 3 * i, 1))))
        container.mux(stream.encode(None))
    return open_video(str(path), 5)


@pytest.mark.parametrize("mode", ["loop", "pingpong"])
@pytest.mark.parametrize(("n_source", "n_output", "start"), [(60, 150, 0), (41, 130, 50), (2, 5, 0), (1, 3, 0)])
def test_ordered_frames(long_gop: VideoSource, mode: str, n_source: int, n_output: int, start: int) -> None:
    forward = list(long_gop.frames(0, n_source))
    ordered = list(ordered_frames(long_gop, n_source, n_output, mode, start))  # type: ignore[arg-type]
    expected = [source_index(i, n_source, mode) for i in range(start, n_output)]  # type: ignore[arg-type]
    assert [index for index, _ in ordered] == expected
    assert all(np.array_equal(frame, forward[index]) for index, frame in ordered)


def test_ordered_frames_cut(long_gop: VideoSource) -> None:
    assert [index for index, _ in ordered_frames(long_gop, 60, 7, "cut", 3)] == [3, 4, 5, 6]
    with pytest.raises(ValueError, match="61 frames cannot be cut from 60"):
        next(ordered_frames(long_gop, 60, 61, "cut"))
    with pytest.raises(ValueError, match="not one of"):
        next(ordered_frames(long_gop, 60, 61, "bounce"))  # type: ignore[arg-type]


def test_announcing_too_many_frames_is_an_error(long_gop: VideoSource) -> None:
    """Else a loop over a clip that is shorter than announced would slip out of step unseen."""
    with pytest.raises(ValueError, match="ends before frame 60"):
        list(ordered_frames(long_gop, 61, 61, "loop"))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv", "avi", "mpg", "mov", "gif"])
def test_seeking_is_exact(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resampled from 30 to 25 fps, in containers with good, coarse and no indices, forwards and backwards.

    Program streams name few times: FFmpeg guesses the others, and guesses otherwise after a seek. QuickTime has the
    palette (of gray pictures too) in the header, and FFmpeg gives it with the first picture only.
    """
    codecs = {"gif": ("gif", "rgb8"), "mpg": ("mpeg2video", "yuv420p"), "mov": ("qtrle", "gray")}
    codec, pix_fmt = codecs.get(suffix, ("libx264", "yuv420p"))
    may_seek = suffix not in ("avi", "mpg", "mov")  # AVI with B-frames stores no times
    length = 300 if may_seek else 105
    path = tmp_path / f"in.{suffix}"
    video = open_video(make_video(path, length, fps=30, codec=codec, pix_fmt=pix_fmt, g="10", bf="2"))
    n = count_frames(video)
    forward = [int(frame[0, 0, 0]) for frame in video.frames()]
    n_from_beginning = 0
    from_beginning = VideoSource._from_beginning

    def counted(video: VideoSource) -> Iterator[tuple[int, av.VideoFrame]]:
        nonlocal n_from_beginning
        n_from_beginning += 1
        return from_beginning(video)

    monkeypatch.setattr(VideoSource, "_from_beginning", counted)
    starts = (81, 82, 89, n // 2 + 31, n - 1, n, n + 5)
    for start in starts:
        assert [int(frame[0, 0, 0]) for frame in video.frames(start, start + 7)] == forward[start : start + 7]
    assert n_from_beginning == (0 if may_seek else len(starts))
    n_from_beginning = 0
    ordered = [(index, int(frame[0, 0, 0])) for index, frame in ordered_frames(video, n, 2 * n - 2, "pingpong")]
    assert [value for _, value in ordered] == [forward[index] for index, _ in ordered]
    assert not may_seek or n_from_beginning <= 1 + 3 * 25 // 16  # the forward run, and chunks near the beginning


def test_a_late_start_decodes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that samples the end of a video, and a run that is continued, read what they need."""
    video = open_video(make_video(tmp_path / "in.mp4", 300, g="25"))
    n_decoded = 0
    decode = video_util.decode

    def counted(*given: Any) -> Iterator[av.VideoFrame]:
        nonlocal n_decoded
        for frame in decode(*given):
            n_decoded += 1
            yield frame

    monkeypatch.setattr(video_util, "decode", counted)
    assert len(list(video.frames(290, 295))) == 5
    assert n_decoded < 60


# ---- colour


def tag_bt709(stream: av.VideoStream) -> None:
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = 1


def tag_smpte170m(stream: av.VideoStream) -> None:
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = 6


@pytest.mark.parametrize(
    ("pix_fmt", "tag", "tags"),
    [
        ("yuv420p", tag_bt709, (1, 1, 1)),
        ("yuv420p", tag_smpte170m, (6, 6, 6)),
        ("yuv420p", str, (2, 2, 2)),  # str: no tags
        ("yuvj420p", str, (2, 2, 2)),
    ],
    ids=["bt709", "smpte170m", "untagged", "full range"],
)
def test_colour_round_trip(
    tmp_path: Path, pix_fmt: str, tag: Callable[[av.VideoStream], object], tags: tuple[int, int, int]
) -> None:
    matrix = 1 if tags[0] == 1 else 5  # swscale's numbers of BT.709 and BT.601
    value_range = 2 if pix_fmt == "yuvj420p" else 1
    source_path, copy_path = str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4")
    picture = smooth_picture()
    with av.open(source_path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        tag(stream)
        stream.codec_context.color_range = value_range
        frame = av.VideoFrame.from_ndarray(picture).reformat(
            format=pix_fmt, dst_colorspace=matrix, dst_color_range=value_range
        )
        for _ in range(3):
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = open_video(source_path)
    assert tuple(source.colour) == tags
    decoded = next(source.frames())
    assert np.abs(decoded.astype(int) - picture).max() <= 6
    with VideoWriter(copy_path, source, source.fps, crf=0) as writer:
        for frame in source.frames():
            writer.write(frame)
    copy = open_video(copy_path)
    assert copy.colour == source.colour
    difference = next(copy.frames()).astype(int) - decoded
    assert np.abs(difference).max() <= 4
    assert np.abs(difference.mean((0, 1))).max() < 0.4  # no drift to darker or another hue


def test_rgb_sources_are_written_and_tagged_as_bt709(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image_module.fromarray(smooth_picture()).save(tmp_path / "p.png")
    still = open_video(str(tmp_path / "p.png"))
    with VideoWriter(str(tmp_path / "out.mp4"), still, 25, crf=0) as writer:
        writer.write(next(still.frames()))
    written = open_video(str(tmp_path / "out.mp4"))
    assert tuple(written.colour) == (1, 1, 1)
    assert np.abs(next(written.frames()).astype(int) - smooth_picture()).max() <= 4


# ---- writing


@pytest.mark.parametrize("suffix", [".mp4", ".MOV", ".mkv"])
def test_writer_keeps_every_frame_at_the_exact_rate(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new folder" / f"ein Gruß – 口型{suffix}"
    frames = gray_frames(10)
    with VideoWriter(str(path), (64, 48), Fraction(30000, 1001)) as writer:
        for frame in frames:
            writer.write(frame)
    assert os.listdir(path.parent) == [path.name]
    video = open_video(str(path), 0)
    assert indices(video.frames()) == list(range(10))
    assert video.fps == Fraction(30000, 1001) or suffix == ".mkv"  # Matroska counts in milliseconds
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.start_time) == ("h264", "yuv420p", 0)
    if suffix != ".mkv":
        data = path.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_are_padded_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = smooth_picture(47, 63)
    path = write_video(tmp_path / "out.mp4", [frame] * 3, crf=0)
    assert capsys.readouterr().err.count("padded from 63x47 to 64x48") == 1
    read = next(open_video(path).frames()).astype(int)
    assert read.shape == (48, 64, 3)
    assert np.abs(read[:47, :63] - frame).max() <= 5
    assert np.abs(read[47] - read[46]).max() <= 2
    assert np.abs(read[:, 63] - read[:, 62]).max() <= 2
    write_video(tmp_path / "even.mp4", [QUADRANTS])
    assert capsys.readouterr().err == ""


def test_crf_changes_the_size(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, HEIGHT, WIDTH, 3)).astype(np.uint8)
    sizes = [os.path.getsize(write_video(tmp_path / f"{crf}.mp4", noise, crf=crf)) for crf in (0, 18, 40)]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"an older result")
    sound = make_sound(tmp_path / "in.wav", speech_like(1, 16000)[None], 16000)
    with pytest.raises(error), VideoWriter(str(target), (WIDTH, HEIGHT), 25, audio_path=sound) as writer:  # noqa: PT012
        for _ in range(5):
            writer.write(QUADRANTS)
        assert len(list(tmp_path.glob(".*.part"))) == 1
        raise error
    assert sorted(os.listdir(tmp_path)) == ["in.wav", "out.mp4"]
    assert target.read_bytes() == b"an older result"


def test_no_frames_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frames"), VideoWriter(str(tmp_path / "out.mp4"), (64, 48), 25):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("frame", [QUADRANTS[1:], QUADRANTS[..., 0], QUADRANTS.astype(np.float32)])
def test_wrong_frames_are_refused(tmp_path: Path, frame: np.ndarray) -> None:
    with (
        pytest.raises(ValueError, match="not uint8"),
        VideoWriter(str(tmp_path / "out.mp4"), (WIDTH, HEIGHT), 25) as writer,
    ):
        writer.write(frame)
    assert os.listdir(tmp_path) == []


# ---- errors


def one_line_about(path: str | Path, info: pytest.ExceptionInfo[InputError]) -> bool:
    return repr(str(path)) in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize("read", [open_video, read_audio])
def test_unusable_files(tmp_path: Path, read: Callable[[str], object]) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text\nfile.mp4").write_text("this is no video " * 50)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    for name, reason in [
        ("missing.mp4", "does not exist"),
        ("", "is a folder"),
        ("empty.mp4", "is empty"),
        ("text\nfile.mp4", "not a readable"),
        ("noise.mp4", "not a readable"),
    ]:
        with pytest.raises(InputError, match=reason) as info:
            read(str(tmp_path / name))
        assert one_line_about(tmp_path / name if name else tmp_path, info)


def test_no_pictures_and_no_sound(tmp_path: Path) -> None:
    sound = make_sound(tmp_path / "sound.wav", speech_like(0.1, 16000)[None], 16000)
    video = make_video(tmp_path / "video.mp4", 3)
    with pytest.raises(InputError, match="has no pictures") as info:
        open_video(sound)
    assert one_line_about(sound, info)
    with pytest.raises(InputError, match="has no sound") as info:
        read_audio(video)
    assert one_line_about(video, info)
    with pytest.raises(InputError, match="has no sound"):
        VideoWriter(str(tmp_path / "out.mp4"), (WIDTH, HEIGHT), 25, audio_path=video)
    assert sorted(os.listdir(tmp_path)) == ["sound.wav", "video.mp4"]


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    path = str(tmp_path / "song.mp4")
    with av.open(path, "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(speech_like(0.2, 16000)[None], "s16", "mono")
        frame.rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        for packets in (cover.encode(av.VideoFrame.from_ndarray(QUADRANTS)), cover.encode(None)):
            container.mux(packets)
        for packets in (sound.encode(frame), sound.encode(None)):
            container.mux(packets)
    assert read_audio(path)[1] == 16000
    with pytest.raises(InputError, match="has no pictures"):
        open_video(path)


def test_nothing_decodable(tmp_path: Path) -> None:
    path = Path(make_video(tmp_path / "in.mp4", 5))
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start) if data.index(b"moov") < start else data)
    moov = data.index(b"moov") - 4
    path.write_bytes(data[:start] + bytes(moov - start) + data[moov:])
    with pytest.raises(InputError, match="no frame of its video could be decoded") as info:
        open_video(str(path))
    assert one_line_about(path, info)


@pytest.mark.parametrize("name", ["out.avi", "out", ""])
def test_targets_with_other_endings(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.mp4, \.mov, \.mkv"):
        check_target(str(tmp_path / name))


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch(mode=0o777)
    for target, reason in [
        (tmp_path / "folder.mp4", "it is a folder"),
        (tmp_path / "file" / "deeper" / "out.mp4", "not a folder that you may write to"),
        (Path("/proc/out.mp4"), "/proc"),
    ]:
        if target.parts[1] == "proc" and not sys.platform.startswith("linux"):
            continue
        with pytest.raises(InputError, match=reason) as info:
            VideoWriter(str(target), (WIDTH, HEIGHT), 25)
        assert one_line_about(target, info)
    os.mkfifo(tmp_path / "pipe.mp4")
    for target, reason in [
        (tmp_path / "pipe.mp4", "pipe or device"),
        (tmp_path / f"{'é' * 126}.mp4", "has 256 bytes; give at most 255"),
        (tmp_path / ("f" * 256) / "out.mp4", "has 256 bytes; give at most 255"),
    ]:
        with pytest.raises(InputError, match=reason) as info:
            check_target(str(target))
        assert one_line_about(target, info)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4", "pipe.mp4"]


def test_the_longest_name_works(tmp_path: Path) -> None:
    name = f"{'x' * 251}.mp4"
    write_video(tmp_path / name, [QUADRANTS])
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_writes_its_target(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "real").mkdir(exist_ok=True)
    target, link = tmp_path / "real" / "out.mp4", tmp_path / "link.mp4"
    if exists:
        target.write_bytes(b"an older result")
    link.symlink_to("real/out.mp4")
    write_video(link, gray_frames(2))
    assert link.is_symlink()
    assert indices(open_video(str(target)).frames()) == [0, 1]
    assert sorted(os.listdir(tmp_path)) == ["link.mp4", "real"]
    assert os.listdir(target.parent) == ["out.mp4"]


def test_a_link_to_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link.mp4").symlink_to("file/out.mp4")
    with pytest.raises(InputError, match=f"{str(tmp_path / 'file')!r} is not a folder that you may write to"):
        check_target(str(tmp_path / "link.mp4"))


def test_pictures_larger_than_h264_takes(tmp_path: Path) -> None:
    check_size("in.png", X264_MAX_SIDE, 2)
    for width, height in [(X264_MAX_SIDE + 2, 64), (64, X264_MAX_SIDE + 2)]:
        for refuse in (partial(check_size, "in.png"), lambda *size: VideoWriter(str(tmp_path / "out.mp4"), size, 25)):
            with pytest.raises(InputError, match=f"pictures of {width}x{height} .* at most 16384 a side"):
                refuse(width, height)
    assert os.listdir(tmp_path) == []


def test_the_largest_and_the_smallest_picture(tmp_path: Path) -> None:
    for height, width in [(2, X264_MAX_SIDE), (X264_MAX_SIDE, 2), (1, 1)]:
        path = write_video(tmp_path / f"{height}.mp4", [np.zeros((height, width, 3), np.uint8)])
        assert open_video(path).is_image


@pytest.mark.parametrize("n_bytes", [100, 3000, 40000])
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path: Path, n_bytes: int) -> None:
    """The limit on the size of files stands for the disk: at the header, on the way, and at the end."""
    path = str(tmp_path / "out.mp4")
    noise = np.random.default_rng(0).integers(0, 256, (60, HEIGHT, WIDTH, 3)).astype(np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as info:
            write_video(Path(path), noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (info.value.errno, info.value.filename) == (errno.EFBIG, path)
    assert str(info.value) == f"[Errno 27] File too large: {path!r}"
    assert os.listdir(tmp_path) == []


def test_presets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [np.roll(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8), i, 1) for i in range(8)]
    written = {p: Path(write_video(tmp_path / f"{p}.mp4", frames, preset=p)).read_bytes() for p in X264_PRESETS}
    assert len(set(written.values())) == len(X264_PRESETS)
    assert Path(write_video(tmp_path / "default.mp4", frames)).read_bytes() == written["medium"]


def test_check_target_creates_nothing(tmp_path: Path) -> None:
    check_target(str(tmp_path / "new" / "out.mp4"))
    check_target("out.mp4")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs ../shared/clips")
def test_real_clip_backwards() -> None:
    video = open_video(str(CLIPS / "man_700_22fps.mp4"))
    n = count_frames(video)
    assert n == 153
    forward = {i: frame[::16, ::16] for i, frame in enumerate(video.frames())}
    for index, frame in ordered_frames(video, n, 2 * n - 2, "pingpong", n):
        assert np.array_equal(frame[::16, ::16], forward[index])


def live_frames() -> int:
    # the exact type: isinstance would wake other libraries' dead weak references
    return sum(type(thing) is av.VideoFrame for thing in gc.get_objects())


def test_frames_are_let_go(long_gop: VideoSource) -> None:
    """PyAV frames whose side data were read are in a cycle: hundreds of megabytes waited for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        before = live_frames()
        frames = long_gop.frames()
        for _ in range(20):
            next(frames)
        alive = live_frames() - before
    finally:
        gc.enable()
    assert alive < 6


def test_frames_near_a_place_are_those_that_are_read_in_order(tmp_path: Path) -> None:
    """A plan looks here and there: from a keyframe before the place, and never after it."""
    path = make_video(tmp_path / "v.mp4", 28, g="8", bf="0")
    for place in (0, 3, 8, 20, 27):
        near = [(index, picture()) for index, picture in open_video(path).near(place)]
        assert near[0][0] == place // 8 * 8
        assert [index for index, _ in near] == indices(picture for _, picture in near) == [*range(near[0][0], 28)]
    unsought = make_video(tmp_path / "v.avi", 20)  # B-frames without times
    assert [index for index, _ in open_video(unsought).near(15)] == [*range(20)]


@pytest.mark.parametrize(("name", "fps"), [("v.mp4", 25), ("v.mkv", 25), ("v.mp4", 50), ("v.h264", 25)])
def test_frames_are_estimated_from_what_the_file_says(name: str, fps: int, tmp_path: Path) -> None:
    video = open_video(make_video(tmp_path / name, 40), fps)
    assert abs(estimate_frames(video) - count_frames(video)) <= 1


@pytest.mark.parametrize("has_tag", [True, False])
def test_the_sounds_length_is_not_taken_for_the_pictures(has_tag: bool, tmp_path: Path) -> None:
    """Matroska names one length, that of the longest track: a plan spoke of three times the frames."""
    picture = make_video(tmp_path / "v.mp4", 20)
    sound = make_sound(tmp_path / "a.wav", speech_like(2.4, 16000)[None], 16000)
    path = tmp_path / "both.mkv"
    with av.open(picture) as one, av.open(sound) as other, av.open(str(path), "w") as both:
        tracks = [(source, both.add_stream_from_template(source.streams[0])) for source in (one, other)]
        for source, track in tracks:
            for packet in source.demux(source.streams[0]):
                if packet.dts is not None:
                    packet.stream = track
                    both.mux(packet)
    if not has_tag:
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"duration"))
    assert estimate_frames(open_video(str(path))) == 20


def test_a_time_code_names_the_frame() -> None:
    assert timecode(0, 25) == "00:00:00:00"
    assert timecode(25 * 3723 + 7, 25) == "01:02:03:07"
    assert timecode(61, Fraction(30000, 1001)) == "00:00:02:01"
