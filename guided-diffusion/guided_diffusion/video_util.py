"""Reading and writing video with PyAV, streaming: memory does not grow with the length of a clip.

Frames are RGB uint8 [H, W, 3] at a constant rate.
"""

import contextlib
import gc
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain, dropwhile, islice
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

import av
import av.container
import av.filter
import numpy as np
import torch
from av.video.reformatter import ColorRange

from .audio_util import Soundtrack
from .errors import InputError
from .media_util import (
    decode,
    has_times,
    is_for_pillow,
    open_media,
    pillow_frames,
    seconds,
    url,
    video_decoder,
    video_stream,
)
from .picture_util import HDR_TRANSFERS, Orientation, deinterlaced, is_transparent, orientation, to_rgb
from .store import check_writable, replace_when_complete

Order = Literal["cut", "loop", "pingpong"]

CONTAINER_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
X264_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
)  # fmt: skip
X264_MAX_SIDE = 16384
_ORIGINAL = "the source's frames, by lip-sync with Diff2Lip"  # what such a file says of itself
BACKWARD_CHUNK = 16  # frames held at once while a clip runs backwards
_DURATION_TAG = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", re.ASCII)  # of a Matroska track

# see _EXACT in picture_util.py
_EXACT_FILTER = "bicubic+accurate_rnd+full_chroma_inp"
_PROGRAM_STREAM = "mpeg"
_SEEK_BACK_SECONDS = (0, 2, 8, 32, 128)  # containers without an index land late; then try from further back
_UNTAGGED = 2  # "unspecified" in the enumerations of ITU-T H.273


class ColourTags(NamedTuple):
    """What the numbers of a picture mean: codes of ITU-T H.273."""

    matrix: int
    primaries: int
    transfer: int


_BT709 = ColourTags(1, 1, 1)


@dataclass(frozen=True)
class VideoSource:
    """A video (or still image) opened for reading at a constant rate.

    width, height: as displayed, that is after rotation and with square pixels.
    fps: rate the frames are delivered at.
    colour: tags of the source, for the writer. RGB sources, which have no matrix, and HDR count as BT.709.
    source_fps: average rate of the file itself, which times frames that carry no time.
    start_time: seconds, time of the first frame in the file; None when its frames carry no usable times.
    orientation: how decoded frames are turned upright.
    """

    path: str
    width: int
    height: int
    fps: Fraction
    is_image: bool
    colour: ColourTags
    source_fps: Fraction
    start_time: Fraction | None
    orientation: Orientation

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield the frames [start, stop) as RGB uint8 [H, W, 3], each its own array.

        Decodes from a keyframe near `start` where the file can be sought in, else from the beginning. Frames before
        `start` and frames the rate drops are not converted to RGB.
        """
        if start > 0:
            with _opened(self.path) as (container, stream):
                delivered = self._after_seek(container, stream, start)
                if delivered is not None:
                    yield from self._convert(delivered, start, stop)
                    return
        yield from self._convert(self._from_beginning(), start, stop)

    def near(self, index: int) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
        """Yield frames with their indices, from near `index` on: from a keyframe at or before it where the file can be
        sought in, else from the beginning.

        A frame is RGB uint8 [H, W, 3] when it is called for.
        """
        with _opened(self.path) as (container, stream):
            delivered = self._after_seek(container, stream, index) if index > 0 else None
            if delivered is not None:
                yield from ((i, partial(self._to_rgb, frame)) for i, frame in delivered)
                return
        yield from ((i, partial(self._to_rgb, frame)) for i, frame in self._from_beginning())

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        return next(to_rgb([frame], self.width, self.height, self.orientation))

    def _convert(
        self, delivered: Iterable[tuple[int, av.VideoFrame]], start: int, stop: int | None
    ) -> Iterator[np.ndarray]:
        return to_rgb(_between(delivered, start, stop), self.width, self.height, self.orientation)

    def _from_beginning(self) -> Iterator[tuple[int, av.VideoFrame]]:
        with _opened(self.path) as (container, stream):
            yield from self._deliver(_decode_all(container, stream, self.path))

    def _after_seek(
        self, container: av.container.InputContainer, stream: av.VideoStream | None, start: int
    ) -> Iterator[tuple[int, av.VideoFrame]] | None:
        """Frames with their output indices, the first of which is at most `start`; None where that takes no seek."""
        if self.start_time is None or self.is_image or stream is None:
            return None
        if container.format.name == _PROGRAM_STREAM:  # names few times; FFmpeg guesses others after a seek than before
            return None
        if stream.format.has_palette:  # the palette comes with the first picture only
            return None
        for seconds_back in _SEEK_BACK_SECONDS:
            time = start / self.fps - seconds_back
            if time <= 0:
                return None
            delivered = self._deliver(_decode_near(container, stream, time + self.start_time))
            first = next(delivered, None)
            if first is not None and first[0] <= start:
                return chain([first], delivered)
        return None

    def _deliver(self, decoded: Iterator[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Give decoded frames their output indices, repeating and dropping as the rate demands."""
        if self.is_image:
            return ((0, frame) for frame in islice(decoded, 1))
        return _resample(self._timed(decoded), self.fps)

    def _timed(self, decoded: Iterator[av.VideoFrame]) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Yield (seconds since the first frame, duration in seconds, frame)."""
        interval = 1 / self.source_fps
        time = -interval
        for frame in decoded:
            frame_time = seconds(frame)
            if self.start_time is None or frame_time is None:
                time += interval
            else:
                time = frame_time - self.start_time
            duration = frame.duration * frame.time_base if frame.duration and frame.time_base else interval
            yield time, duration, frame


def open_video(path: str, video_fps: float = 25) -> VideoSource:
    """Look at a video or still image and return it ready for reading.

    video_fps: constant rate to deliver, as ffmpeg's fps filter (round=near) would; 0 keeps the file's average rate.
    Damaged frames are skipped. A still image is a video of one frame. Raises InputError.
    """
    if not (video_fps == 0 or 1 <= video_fps <= 1000):
        raise InputError(f"video_fps {video_fps} is not usable: give 0 (the rate of the file) or 1 to 1000")
    with _opened(path) as (container, stream):
        frames = _decode_all(container, stream, path)
        frame, second = next(frames, None), next(frames, None)
        if frame is None:
            raise InputError(f"{path!r}: no frame of its video could be decoded; it is damaged or of an unknown codec")
        aspect = (stream and stream.sample_aspect_ratio) or Fraction(1)
        width, height = max(1, round(frame.width * aspect)), frame.height
        upright = Orientation() if stream is None else orientation(frame, path)
        if upright.transposed:
            width, height = height, width
        try:
            next(to_rgb([frame], width, height, upright))
        except (av.FFmpegError, MemoryError, ValueError):
            raise InputError(
                f"{path!r}: pictures of {width}x{height}, {frame.format.name}, colour matrix {frame.colorspace} "
                "cannot be converted to RGB; convert the file to an ordinary H.264 video first"
            ) from None
        is_timed = stream is None or has_times(container, stream)
        source_fps = (stream and (stream.average_rate or stream.guessed_rate)) or _rate_of(frame)
        is_one_picture = container.format.name == "image2" or container.format.name.endswith("_pipe")
        is_image = second is None or (stream is not None and is_one_picture)
    if is_transparent(frame):
        print(f"notice: {path!r} has transparent parts: they are shown on black", file=sys.stderr)
    if frame.color_trc in HDR_TRANSFERS:
        name = HDR_TRANSFERS[frame.color_trc]
        print(f"notice: {path!r} is HDR ({name}): it is tone-mapped to SDR (BT.709)", file=sys.stderr)
    if frame.format.is_rgb or frame.format.has_palette or frame.color_trc in HDR_TRANSFERS:
        colour = _BT709
    else:
        colour = ColourTags(frame.colorspace or _UNTAGGED, frame.color_primaries, frame.color_trc)
    return VideoSource(
        path=path,
        width=width,
        height=height,
        fps=Fraction(video_fps).limit_denominator(1001) or (Fraction(25) if is_image else source_fps),
        is_image=is_image,
        colour=colour,
        source_fps=source_fps,
        start_time=seconds(frame) if is_timed else None,
        orientation=upright,
    )


def count_frames(video: VideoSource, limit: int | None = None) -> int:
    """Number of frames `video.frames()` yields, counting no further than `limit`; decodes, but converts nothing."""
    return sum(1 for _ in islice(video._from_beginning(), limit))


def estimate_frames(video: VideoSource) -> int:
    """About how many frames `video.frames()` yields, as the file says; where it says nothing they are counted."""
    if video.is_image:
        return 1
    with _opened(video.path) as (container, stream):
        length = _picture_length(container, stream)
    return max(1, round(length * video.fps)) if length > 0 else count_frames(video)


def _picture_length(container: av.container.InputContainer, stream: av.VideoStream | None) -> Fraction:
    """Seconds, as the file says, of the picture alone; 0 where it says nothing of it."""
    if stream is not None and stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    tag = _DURATION_TAG.fullmatch(stream.metadata.get("DURATION", "")) if stream is not None else None
    if tag:
        hours, minutes, rest = map(Fraction, tag.groups())
        return 3600 * hours + 60 * minutes + rest
    if container.streams.audio:  # the file's length may be that of its sound
        return Fraction(0)
    return Fraction(container.duration or 0, av.time_base)


def source_index(i: int, n_source: int, mode: Order) -> int:
    """Index of the source frame shown as output frame i.

    cut: 0, 1, 2, ..; loop: 0..n-1, 0..n-1, ..; pingpong: 0..n-1, n-2..1, 0.. (both ends are shown once a turn).
    """
    period = _period(n_source, mode)
    phase = i % period
    return phase if phase < n_source else period - phase


def ordered_frames(
    video: VideoSource, n_source: int, n_output: int, mode: Order, start: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (source_index(i, n_source, mode), frame uint8 [H, W, 3]) for the output frames i in [start, n_output).

    Backward runs are read in chunks of BACKWARD_CHUNK frames and equal the same frames read forward. A still image
    repeats its frame in any mode. Raises ValueError if mode "cut" is to give more frames than n_source, or if the
    video turns out to have fewer than n_source.
    """
    if mode == "cut" and n_output > n_source and not video.is_image:
        raise ValueError(f"{n_output} frames cannot be cut from {n_source}")
    if video.is_image or n_source == 1:
        still = next(video.frames())
        yield from ((0, still.copy()) for _ in range(start, n_output))
        return
    period = _period(n_source, mode)
    i = start
    while i < n_output:
        phase = i % period
        run = range(phase, n_source) if phase < n_source else range(period - phase, 0, -1)
        run = run[: n_output - i]
        gc.collect()  # PyAV's containers and streams refer to each other: a decoder closed before still holds frames
        frames = video.frames(run.start, run.stop) if run.step > 0 else _backward(video, run)
        for index in run:
            frame = next(frames, None)
            if frame is None:
                raise ValueError(f"{video.path!r} ends before frame {index}, although {n_source} were announced")
            yield index, frame
        i += len(run)


def timecode(frame: int, fps: Fraction | float) -> str:
    """A frame's time as editors name it, HH:MM:SS:FF, counted from 00:00:00:00; not drop-frame: 29.97 counts as 30."""
    per_second = max(1, round(fps))
    seconds, rest = divmod(frame, per_second)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}"


def check_target(path: str) -> None:
    """Raise InputError unless a video can be written to `path`. Creates nothing, so call it before the work starts."""
    if os.path.splitext(path)[1].lower() not in CONTAINER_FORMATS:
        raise InputError(f"{path!r} cannot be written: its name must end in {', '.join(CONTAINER_FORMATS)}")
    check_writable(path)


def is_original(path: str) -> bool:
    """Whether the file is one that VideoWriter wrote with `is_original`."""
    try:
        with open_media(path) as container:
            return _ORIGINAL in container.metadata.values()  # the key's case depends on the container
    except InputError:
        return False


def check_size(path: str, width: int, height: int) -> None:
    """Raise InputError, naming the file, unless x264 takes pictures of this size."""
    if max(width, height) > X264_MAX_SIDE:
        raise InputError(
            f"{path!r}: pictures of {width}x{height} cannot be written as H.264, which takes at most {X264_MAX_SIDE} a "
            "side; scale them down first"
        )


class VideoWriter:
    """Writes an H.264 video (yuv420p) at a constant rate, with the sound of `audio_path` cut at the video's length.

    A context manager. The file appears under its name only when complete (store.replace_when_complete), and not at all
    if an exception leaves the block. The sound keeps its rate and channels (AAC).

    source: the VideoSource whose size and colour tags to keep, or (width, height), which is tagged BT.709.
    fps: frames per second. crf: x264's quality, 0 (lossless but for the halved chroma) to 51.
    preset: one of X264_PRESETS, from fast and large to slow and small.
    is_original: the file says of itself that it shows the source's frames (see `is_original`).
    Raises InputError for a target that cannot be written, a size that H.264 cannot have, for unusable sound, or when no
    frame was written. Raises OSError naming `path` when the file cannot be written to its end, as on a full disk.
    """

    def __init__(
        self,
        path: str,
        source: VideoSource | tuple[int, int],
        fps: Fraction | float,
        crf: float = 18,
        audio_path: str | None = None,
        preset: str = "medium",
        is_original: bool = False,
    ) -> None:
        check_target(path)
        self.path = path
        self.n_frames = 0
        self._fps = Fraction(fps).limit_denominator(100_000)
        if isinstance(source, VideoSource):
            self._width, self._height, colour = source.width, source.height, source.colour
        else:
            (self._width, self._height), colour = source, _BT709
        check_size(path, self._width, self._height)
        container_format = CONTAINER_FORMATS[os.path.splitext(path)[1].lower()]
        options = {} if container_format == "matroska" else {"movflags": "+faststart"}
        with contextlib.ExitStack() as opened:
            try:
                part = str(opened.enter_context(replace_when_complete(Path(path))))
                self._container = av.open(url(part), "w", format=container_format, container_options=options)
                opened.callback(self._close)
                if is_original:
                    self._container.metadata["comment"] = _ORIGINAL
                self._video = self._add_video(crf, preset, colour)
                self._sound = Soundtrack(audio_path, self._container) if audio_path else None
                self._container.start_encoding()
            except (OSError, av.FFmpegError) as error:
                raise InputError(f"{path!r} cannot be written: {error.strerror}") from None
            self._to_yuv = _yuv_graph(self._video.width, self._video.height, colour.matrix)
            self._opened = opened.pop_all()
        if (self._width, self._height) != (self._video.width, self._video.height):
            print(
                f"{path}: padded from {self._width}x{self._height} to {self._video.width}x{self._video.height}, "
                "as H.264 needs even sizes",
                file=sys.stderr,
            )

    def write(self, frame: np.ndarray) -> None:
        """Append one frame, RGB uint8 [H, W, 3]. Raises ValueError for any other shape or dtype."""
        if frame.shape != (self._height, self._width, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"frame is {frame.dtype} {list(frame.shape)}, not uint8 {[self._height, self._width, 3]}"
            )
        padding = (0, self._video.height - self._height), (0, self._video.width - self._width), (0, 0)
        rgb = np.pad(frame, padding, mode="edge") if np.any(padding) else np.ascontiguousarray(frame)
        self._to_yuv.vpush(av.VideoFrame.from_numpy_buffer(rgb))
        picture = self._to_yuv.vpull()
        picture.pts, picture.time_base = self.n_frames, 1 / self._fps
        with self._writing():
            self._container.mux(self._video.encode(picture))
            self.n_frames += 1
            if self._sound:
                self._sound.advance(self.n_frames / self._fps)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._opened.__exit__(kind, error, trace)
            return
        with self._writing(), self._opened:
            if self.n_frames == 0:
                raise InputError(f"{self.path!r} was not written: there were no frames for it")
            self._container.mux(self._video.encode(None))
            if self._sound:
                self._sound.finish()
            self._container.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Name the target in errors of the disk and of FFmpeg."""
        try:
            yield
        except OSError as error:  # also most of FFmpeg's errors
            raise OSError(error.errno, error.strerror, self.path) from error

    def _close(self) -> None:
        with contextlib.suppress(av.FFmpegError):  # closing writes the end of the file: it fails when the disk is full
            self._container.close()

    def _add_video(self, crf: float, preset: str, colour: ColourTags) -> av.VideoStream:
        options = {"crf": str(crf), "preset": preset}
        if torch.backends.cpu.get_cpu_capability() == "AVX512":
            # x264's AVX-512 code gave another file in every other run of the same frames; AVX2 is as fast
            options["x264-params"] = "asm=avx2"
        stream = self._container.add_stream("libx264", rate=self._fps, options=options)
        stream.width, stream.height = self._width + self._width % 2, self._height + self._height % 2
        stream.pix_fmt = "yuv420p"
        stream.thread_type = "FRAME"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = colour
        context.color_range = ColorRange.MPEG
        return stream


def _yuv_graph(width: int, height: int, matrix: int) -> av.filter.Graph:
    """Filters that turn rgb24 frames into yuv420p, limited range, with the chroma where H.264 decoders expect it."""
    graph = av.filter.Graph()
    rgb = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 1000))
    options = f"out_color_matrix={matrix}:out_range=limited:out_chroma_loc=left:flags={_EXACT_FILTER}"
    graph.link_nodes(rgb, graph.add("scale", options), graph.add("format", "yuv420p"), graph.add("buffersink"))
    graph.configure()
    return graph


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream | None]]:
    """An open file and its picture track; None in place of the track when Pillow is to read the file."""
    with open_media(path) as container:
        yield container, None if is_for_pillow(container, path) else video_stream(container, path)


def _decode_all(
    container: av.container.InputContainer, stream: av.VideoStream | None, path: str
) -> Iterator[av.VideoFrame]:
    """Decode a file that was just opened."""
    if stream is None:
        return pillow_frames(path)
    return deinterlaced(decode(container.demux(stream), video_decoder(stream)))


def _decode_near(
    container: av.container.InputContainer, stream: av.VideoStream, time: Fraction
) -> Iterator[av.VideoFrame]:
    """Decode from a keyframe near `time` (seconds in the file); the caller checks that it is early enough."""
    assert stream.time_base is not None  # a demuxer sets it
    try:
        container.seek(int(time / stream.time_base), stream=stream)
    except av.FFmpegError:
        return
    packets = dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))
    frames = decode(packets, video_decoder(stream))
    first = next(frames, None)
    if first is not None and first.pts is not None:
        # the first of interlaced frames lacks the one before it
        yield from islice(deinterlaced(chain([first], frames)), int(first.interlaced_frame), None)


def _rate_of(frame: av.VideoFrame) -> Fraction:
    """The rate of a file that names none, from the duration of its first frame."""
    return 1 / (frame.duration * frame.time_base) if frame.duration and frame.time_base else Fraction(25)


def _round_half_away(x: Fraction) -> int:
    """FFmpeg's AV_ROUND_NEAR_INF."""
    return int(x + Fraction(1, 2)) if x >= 0 else -int(Fraction(1, 2) - x)


def _resample(
    timed: Iterable[tuple[Fraction, Fraction, av.VideoFrame]], fps: Fraction
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Give (time, duration, frame) output indices at a constant rate, as ffmpeg's fps filter (round=near) does.

    A frame belongs to index round(time * fps); output n is the last frame that belongs to n or before. An output
    depends on its source frame and the next only, so this may start anywhere: the first index is the first frame's.
    """
    index, held = 0, None
    for time, duration, frame in timed:
        belongs_to = _round_half_away(time * fps)
        if held is None:
            index = belongs_to
        while held is not None and index < belongs_to:
            yield index, held
            index += 1
        held, end = frame, max(1, _round_half_away((time + duration) * fps))
    while held is not None and index < end:
        yield index, held
        index += 1


def _between(delivered: Iterable[tuple[int, av.VideoFrame]], start: int, stop: int | None) -> Iterator[av.VideoFrame]:
    """The frames with indices in [start, stop); asks for nothing after them."""
    if stop is not None and stop <= start:
        return
    for index, frame in delivered:
        if index >= start:
            yield frame
        if stop is not None and index + 1 >= stop:
            return


def _period(n_source: int, mode: Order) -> int:
    """Number of output frames after which the order repeats."""
    if mode not in ("cut", "loop", "pingpong"):
        raise ValueError(f"mode {mode!r} is not one of cut, loop, pingpong")
    return max(1, 2 * (n_source - 1)) if mode == "pingpong" else n_source


def _backward(video: VideoSource, run: range) -> Iterator[np.ndarray]:
    """The frames of a falling range of indices, read in rising chunks that end with the next ones to show."""
    with _opened(video.path) as (container, stream):
        for stop in range(run.start + 1, run.stop + 1, -BACKWARD_CHUNK):
            start = max(run.stop + 1, stop - BACKWARD_CHUNK)
            delivered = video._after_seek(container, stream, start)
            if delivered is None:
                gc.collect()
                delivered = video._from_beginning()
            yield from reversed(list(video._convert(delivered, start, stop)))
