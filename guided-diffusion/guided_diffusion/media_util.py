"""Opening media files with PyAV, and decoding what is damaged. The only modules that touch media files are this one,
video_util.py, picture_util.py and audio_util.py."""

import contextlib
import os
import stat
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import av.container
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps

from .errors import InputError

_NOT_A_PICTURE_TRACK = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent

# FFmpeg's names of what is read. Playlists and lists (hls, dash, concat, sdp) would open other files, scripts and texts
# (lavfi, svg, tty) are no recordings.
_VIDEO_FORMATS = (
    "mov matroska webm avi mpegts mpeg mpegvideo h261 h263 h264 hevc vvc m4v av1 obu ivf vc1 vc1test dirac dnxhd flv "
    "cavsvideo live_flv kux asf asf_o ogg mxf mxf_opatom gxf dv yuv4mpegpipe nut rm wtv nsv nuv mjpeg mjpeg_2000 swf "
    "smjpeg gif apng"
)
_SOUND_FORMATS = (
    "wav w64 mp3 aac latm loas ac3 ac4 eac3 dts dtshd truehd mlp flac aiff au caf amr amrnb amrwb ape mpc mpc8 tak tta "
    "wv voc iff ircam sox nistsphere oma dsf shn gsm qcp sbc aea act pvf avr wve xwma mmf rso"
)
_PICTURE_FORMATS = (
    "image2 ico jpegxl_anim bmp_pipe dds_pipe dpx_pipe exr_pipe gem_pipe hdr_pipe j2k_pipe jpeg_pipe jpegls_pipe "
    "jpegxl_pipe jpegxs_pipe pam_pipe pbm_pipe pcx_pipe pfm_pipe pgm_pipe pgmyuv_pipe pgx_pipe phm_pipe photocd_pipe "
    "pictor_pipe png_pipe ppm_pipe psd_pipe qdraw_pipe qoi_pipe sgi_pipe sunrast_pipe tiff_pipe vbn_pipe webp_pipe "
    "xbm_pipe xpm_pipe xwd_pipe"
)
_OPEN_OPTIONS = {
    "format_whitelist": ",".join(f"{_VIDEO_FORMATS} {_SOUND_FORMATS} {_PICTURE_FORMATS}".split()),
    "protocol_whitelist": "file",
    "pattern_type": "none",  # a name like "%d.png" is that file, not a numbered sequence
}
_NAMES_OF_LISTS = {
    b"#EXTM3U": "a playlist (M3U)",
    b"ffconcat": "a list of files (ffconcat)",
    b"v=0": "a description of a stream (SDP)",
    b"<?xml": "a text (XML)",
    b"<MPD": "a playlist (DASH)",
    b"<svg": "a drawing (SVG)",
}
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def check_source(path: str) -> None:
    """Raise InputError unless `path` is a file with something in it that may be read, more than once."""
    what = "name a video, picture or sound file"
    try:
        status = os.stat(path)
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise InputError(f"{path!r} {reason}; {what}") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path!r} is a folder; {what}")
    if not stat.S_ISREG(status.st_mode):
        kind = "pipe" if stat.S_ISFIFO(status.st_mode) else "device or socket"
        raise InputError(f"{path!r} is a {kind}, which cannot be read twice; save it as a file first")
    if status.st_size == 0:
        raise InputError(f"{path!r} is empty; {what}")


def open_media(path: str) -> av.container.InputContainer:
    """Open a file of one of the kinds listed above; nothing but the file itself is read. Raises InputError."""
    check_source(path)
    try:
        return av.open(url(path), container_options=_OPEN_OPTIONS, metadata_errors="replace")
    except av.ArgumentError:  # FFmpeg's word for a format that is not on the list
        reason = f"{_list_name(path) or 'what it contains'} is not read; give an ordinary file like MP4, JPEG or WAV"
    except (av.FFmpegError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
    raise InputError(f"{path!r} is not a readable video, picture or sound file: {reason}")


def _list_name(path: str) -> str | None:
    """What kind of list or text a file is, for those that one may take for a video."""
    with open(path, "rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((name for word, name in _NAMES_OF_LISTS.items() if start.startswith(word)), None)


def decode(packets: Iterator[av.Packet], decoder: Any = None) -> Iterator[Any]:
    """Decode packets; a damaged one costs its own frames only, and a file cut short ends there.

    decoder: in place of the stream's own.
    """
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        with contextlib.suppress(av.FFmpegError):
            yield from decoder.decode(packet) if decoder else packet.decode()


def url(path: str) -> str:
    """A name FFmpeg takes literally: no other protocol, however many colons the path has."""
    return "file:" + os.path.abspath(path)


def video_stream(container: av.container.InputContainer, path: str) -> av.VideoStream:
    """The default picture track, ready to decode. Raises InputError when there is none."""
    streams = container.streams.video
    tracks = [s for s in streams if s.codec_context is not None and not s.disposition & _NOT_A_PICTURE_TRACK]
    has_tiles = any(s.disposition & Disposition.dependent for s in streams)
    if has_tiles and not any(s.disposition & Disposition.default for s in tracks):  # the whole would be the default
        raise InputError(f"{path!r} is made of tiles, as HEIC of phones is, and is not read; convert it to JPEG")
    if not tracks:
        raise InputError(f"{path!r} has no pictures that can be decoded; name a video or picture file")
    best: Any = container.streams.best("video")
    stream = next((s for s in tracks if s.index == best.index), tracks[0])
    stream.thread_type = "AUTO"
    return stream


def video_decoder(stream: av.VideoStream) -> Any:
    """A decoder to use in place of the stream's own: FFmpeg's VP8 and VP9 show what is transparent in WebM."""
    if stream.metadata.get("alpha_mode") != "1" or stream.codec_context.name not in _ALPHA_DECODERS:
        return None
    return av.CodecContext.create(_ALPHA_DECODERS[stream.codec_context.name], "r")


def is_for_pillow(container: av.container.InputContainer, path: str) -> bool:
    """Whether FFmpeg gives only parts of the pictures: AVIF of tiles, transparent or moving, and moving WebP."""
    brands = container.metadata.get("major_brand", "") + container.metadata.get("compatible_brands", "")
    if "avif" in brands or "avis" in brands:
        return len(container.streams.video) > 1
    if container.format.name == "webp_pipe":
        with contextlib.suppress(OSError), Image.open(path, formats=["WEBP"]) as image:
            return bool(getattr(image, "is_animated", False))
    return False


def pillow_frames(path: str) -> Iterator[av.VideoFrame]:
    """The frames of a picture file, upright, rgb24 or rgba, with their times; damage ends them."""
    time = 0
    with contextlib.suppress(OSError, ValueError, SyntaxError, EOFError), Image.open(path) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            upright = ImageOps.exif_transpose(image)
            mode = "RGBA" if upright.has_transparency_data else "RGB"
            frame = av.VideoFrame.from_ndarray(np.asarray(upright.convert(mode)), "rgba" if mode == "RGBA" else "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            frame.duration = round(image.info.get("duration", 0))
            time += frame.duration
            yield frame


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
