"""What is done to decoded pictures on their way to RGB: fields, high dynamic range, transparency, orientation."""

import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import chain, groupby, islice
from typing import Any, NamedTuple

import av
import av.filter
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter
from PIL import Image

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # codes of ITU-T H.273

# Without these flags swscale takes short cuts that darken a picture by one level in every round trip.
_EXACT = 0x2 | 0x40000 | 0x2000  # bilinear, accurate_rnd, full_chroma_int: PyAV has names for all since 18 only
_N_SIDE_DATA_KINDS = 64  # FFmpeg 8.1 has 34
_EXIF_ORIENTATION = 0x0112


class Orientation(NamedTuple):
    """How a stored picture becomes upright: transposed first, then flipped left-right, then flipped up-down."""

    transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False


_EXIF_ORIENTATIONS = {
    2: Orientation(False, True, False),
    3: Orientation(False, True, True),
    4: Orientation(False, False, True),
    5: Orientation(True, False, False),
    6: Orientation(True, True, False),
    7: Orientation(True, True, True),
    8: Orientation(True, False, True),
}


def orientation(frame: av.VideoFrame, path: str) -> Orientation:
    """How to turn the frames of a file upright, from the display matrix that FFmpeg makes of containers and of EXIF."""
    matrix = _display_matrix(frame)
    if matrix is not None:
        # x' = a x + c y, y' = b x + d y with y downwards (libavutil/display.h)
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
        transposed = abs(a) < abs(b)
        return Orientation(bool(transposed), bool((c if transposed else a) < 0), bool((b if transposed else d) < 0))
    return _tiff_orientation(path)


def _display_matrix(frame: av.VideoFrame) -> Any:
    try:
        return frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # FFmpeg attaches kinds that this PyAV has no name for (EXIF is one), and PyAV gives none at all
        kinds = range(len(SideDataType), _N_SIDE_DATA_KINDS)
        graph = _graph(frame, *(("sidedata", f"mode=delete:type={kind}") for kind in kinds))
        graph.vpush(frame)
        return graph.vpull().side_data.get("DISPLAYMATRIX")


def _tiff_orientation(path: str) -> Orientation:
    """The orientation of a TIFF file, which FFmpeg does not read."""
    with open(path, "rb") as file:
        if file.read(4) not in (b"II*\0", b"MM\0*"):
            return Orientation()
        try:
            with Image.open(file, formats=["TIFF"]) as image:
                return _EXIF_ORIENTATIONS.get(image.getexif().get(_EXIF_ORIENTATION, 1), Orientation())
        except (OSError, ValueError, SyntaxError):  # FFmpeg reads kinds of TIFF that Pillow does not
            return Orientation()


def to_rgb(
    frames: Iterable[av.VideoFrame], width: int, height: int, upright: Orientation
) -> Iterator[np.ndarray]:
    """Turn decoded frames into RGB uint8 [height, width, 3], SDR and upright; whatever their size, they are scaled.

    Transparent parts are composited on black.
    """
    reformatter = VideoReformatter()
    size = (height, width) if upright.transposed else (width, height)
    for frame in frames:
        shown = _tone_mapped(frame) if frame.color_trc in HDR_TRANSFERS else frame
        rgb: np.ndarray = reformatter.reformat(shown, *size, format="rgb24", interpolation=_EXACT).to_ndarray()
        if has_alpha(frame.format):
            # not the RGB of this: formats with and without alpha are converted by different code
            alpha = reformatter.reformat(frame, *size, format="rgba", interpolation=_EXACT).to_ndarray()[..., 3:]
            rgb = rgb if alpha.min() == 255 else ((rgb.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
        if upright.transposed:
            rgb = cv2.transpose(rgb)
        if upright.flip_x:
            rgb = cv2.flip(rgb, 1)
        if upright.flip_y:
            rgb = cv2.flip(rgb, 0)
        yield rgb


def has_alpha(pixel_format: av.VideoFormat) -> bool:
    return pixel_format.has_palette or any(component.is_alpha for component in pixel_format.components)


def is_transparent(frame: av.VideoFrame) -> bool:
    """Whether any pixel is not opaque."""
    return has_alpha(frame.format) and bool(frame.reformat(format="rgba").to_ndarray()[..., 3].min() < 255)


def deinterlaced(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Frames that are marked as interlaced made whole by FFmpeg's bwdif; progressive ones, and all times, are kept.

    A result depends on the frame's two neighbours: frames read from the middle of a file need one more in front.
    """
    for _, run in groupby(frames, key=lambda frame: (frame.width, frame.height, frame.format.name)):
        yield from _deinterlaced_run(run)


def _deinterlaced_run(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    previous: list[av.VideoFrame] = []
    for frame in frames:
        if frame.interlaced_frame:
            yield from islice(_bwdif(chain(previous, [frame], frames)), len(previous), None)
        else:
            yield frame
            previous = [frame]


def _bwdif(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    first = next(frames)
    graph = _graph(first, ("bwdif", "mode=send_frame:deint=interlaced"))
    for frame in chain([first], frames, [None]):
        graph.vpush(frame)
        while True:
            try:
                yield graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                break


def _tone_mapped(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame of high dynamic range as rgb24 in BT.709, by swscale's perceptual tone and gamut mapping."""
    with _tone_map_lock:
        graph = _tone_map_graph(frame.width, frame.height, frame.format.name)
        graph.vpush(frame)
        return graph.vpull()


_tone_map_lock = threading.Lock()


@lru_cache(maxsize=2)
def _tone_map_graph(width: int, height: int, pixel_format: str) -> av.filter.Graph:
    """Kept, as swscale needs seconds to compute its table."""
    options = "out_primaries=bt709:out_transfer=bt709:intent=perceptual"
    return _graph(av.VideoFrame(width, height, pixel_format), ("scale", options), ("format", "rgb24"))


def _graph(frame: av.VideoFrame, *filters: tuple[str, str]) -> av.filter.Graph:
    """A chain of filters for frames of the size, format and time base of `frame`."""
    graph = av.filter.Graph()
    time_base = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
    graph.link_nodes(source, *(graph.add(*each) for each in filters), graph.add("buffersink"))
    graph.configure()
    return graph
