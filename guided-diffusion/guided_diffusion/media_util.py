"""Opening media files with PyAV, and decoding what is damaged. The only modules that touch media files are this one,
video_util.py and audio_util.py."""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import av.container
from av.stream import Disposition

from .errors import InputError

_NOT_A_PICTURE_TRACK = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent


def open_media(path: str) -> av.container.InputContainer:
    if os.path.isdir(path):
        raise InputError(f"{path!r} is a folder; name a video, picture or sound file")
    if not os.path.exists(path):
        raise InputError(f"{path!r} does not exist; name a video, picture or sound file")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path!r} is empty; name a video, picture or sound file")
    try:
        # pattern_type: a name like "%d.png" is that file, not a numbered sequence
        return av.open(url(path), container_options={"pattern_type": "none"}, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path!r} is not a readable video, picture or sound file: {reason}") from None


def decode(packets: Iterator[av.Packet]) -> Iterator[Any]:
    """Decode packets; a damaged one costs its own frames only, and a file cut short ends there."""
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        with contextlib.suppress(av.FFmpegError):
            yield from packet.decode()


def url(path: str) -> str:
    """A name FFmpeg takes literally: no other protocol, however many colons the path has."""
    return "file:" + os.path.abspath(path)


def video_stream(container: av.container.InputContainer, path: str) -> av.VideoStream:
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & _NOT_A_PICTURE_TRACK:
            stream.thread_type = "AUTO"
            return stream
    raise InputError(f"{path!r} has no pictures that can be decoded; name a video or picture file")


def has_times(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """AVI stores no presentation times: FFmpeg reports those of decoding, wrong when B-frames are reordered."""
    return container.format.name != "avi" or not stream.codec_context.has_b_frames


def first_picture_time(path: str) -> Fraction | None:
    """Seconds in the file of the first picture that decodes; None for a file without pictures."""
    with open_media(path) as container:
        try:
            stream = video_stream(container, path)
        except InputError:
            return None
        frame = next(decode(container.demux(stream)), None)
        if frame is None or has_times(container, stream):
            return None if frame is None else seconds(frame)
        return Fraction(0)  # where every stream of an AVI starts


def seconds(frame: av.VideoFrame | av.AudioFrame) -> Fraction | None:
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
