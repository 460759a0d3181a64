"""What is done to decoded pictures on their way to RGB: fields, high dynamic range, transparency, orientation."""

import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
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
HDR_PEAK = 1000.0  # cd/m2: what most films and all phones are made for
SDR_WHITE = 203.0  # cd/m2 of white paper or a white caption in HDR (ITU-R BT.2408)

_TABLE_SIZE = 33
_PQ_M1, _PQ_M2 = 2610 / 16384, 2523 / 32
_PQ_C1, _PQ_C2, _PQ_C3 = 3424 / 4096, 2413 / 128, 2392 / 128
_BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])

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
    tone_maps: dict[Any, av.filter.Graph] = {}
    size = (height, width) if upright.transposed else (width, height)
    for frame in frames:
        shown = frame
        if frame.color_trc in HDR_TRANSFERS:
            kind = frame.width, frame.height, frame.format.name, frame.color_trc
            tone_map = tone_maps[kind] = tone_maps.get(kind) or _tone_map_graph(frame)
            tone_map.vpush(frame)
            shown = tone_map.vpull()
        rgb: np.ndarray = reformatter.reformat(shown, *size, format="rgb24", interpolation=_EXACT).to_ndarray()
        alpha = _alpha(reformatter, frame, size)
        if alpha is not None:
            rgb = ((rgb.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
        if upright.transposed:
            rgb = cv2.transpose(rgb)
        if upright.flip_x:
            rgb = cv2.flip(rgb, 1)
        if upright.flip_y:
            rgb = cv2.flip(rgb, 0)
        yield rgb


def is_transparent(frame: av.VideoFrame) -> bool:
    """Whether any pixel is not opaque."""
    return _alpha(VideoReformatter(), frame, (frame.width, frame.height)) is not None


def _alpha(reformatter: VideoReformatter, frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray | None:
    """Opacity uint8 [H, W, 1] of a frame scaled to `size` (width, height); None when all of it is opaque."""
    if not (frame.format.has_palette or any(component.is_alpha for component in frame.format.components)):
        return None
    rgba: np.ndarray = reformatter.reformat(frame, *size, format="rgba", interpolation=_EXACT).to_ndarray()
    return None if rgba[..., 3].min() == 255 else rgba[..., 3:]


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


def _tone_map_graph(frame: av.VideoFrame) -> av.filter.Graph:
    """Filters that turn frames like this one, of high dynamic range, into rgb24 as BT.709 screens show it."""
    with tempfile.NamedTemporaryFile("w", suffix=".cube") as file:
        file.write(f"LUT_3D_SIZE {_TABLE_SIZE}\n")
        np.savetxt(file, tone_map_table(frame.color_trc), "%.5f")
        file.flush()
        scale = "scale", "flags=bilinear+accurate_rnd+full_chroma_int"
        return _graph(frame, scale, ("format", "gbrp16"), ("lut3d", f"file={file.name}"), ("format", "rgb24"))


@cache
def tone_map_table(transfer: int) -> np.ndarray:
    """Table from HDR to SDR: RGB float [n * n * n, 3] in [0, 1], the first channel of the input changing fastest.

    Input: BT.2020 primaries, transfer PQ (16) or HLG (18), both per ITU-R BT.2100. The largest channel is rolled off
    from HDR_PEAK to SDR_WHITE (ITU-R BT.2390, section 5.4.1: below 93 cd/m2 nothing changes), the others in
    proportion; BT.709 primaries (ITU-R BT.2087), colours outside are clipped; display gamma 2.4 (ITU-R BT.1886).
    """
    steps = np.linspace(0, 1, _TABLE_SIZE)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    signal = np.stack([red, green, blue], -1).reshape(-1, 3)
    nits = _pq_light(signal) if transfer == 16 else _hlg_light(signal)
    largest = nits.max(-1, keepdims=True)
    nits = nits * _rolled_off(largest) / np.maximum(largest, 1e-6)
    return ((nits / SDR_WHITE) @ _BT2020_TO_BT709.T).clip(0, 1) ** (1 / 2.4)


def _pq_light(signal: np.ndarray) -> np.ndarray:
    """cd/m2 of a PQ signal in [0, 1]."""
    root = signal ** (1 / _PQ_M2)
    return 10000 * (np.maximum(root - _PQ_C1, 0) / (_PQ_C2 - _PQ_C3 * root)) ** (1 / _PQ_M1)


def _pq_signal(nits: np.ndarray | float) -> np.ndarray:
    power = (np.asarray(nits) / 10000) ** _PQ_M1
    return ((_PQ_C1 + _PQ_C2 * power) / (1 + _PQ_C3 * power)) ** _PQ_M2


def _hlg_light(signal: np.ndarray) -> np.ndarray:
    """cd/m2 of an HLG signal in [0, 1] on a screen of HDR_PEAK, for which the system gamma is 1.2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = scene @ np.array([[0.2627], [0.6780], [0.0593]])
    return HDR_PEAK * luminance**0.2 * scene


def _rolled_off(nits: np.ndarray) -> np.ndarray:
    """BT.2390's EETF from [0, HDR_PEAK] to [0, SDR_WHITE], in cd/m2."""
    peak = _pq_signal(HDR_PEAK)
    level, white = np.minimum(_pq_signal(nits) / peak, 1), _pq_signal(SDR_WHITE) / peak
    knee = 1.5 * white - 0.5
    t = np.maximum(level - knee, 0) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    return _pq_light(np.where(level < knee, level, spline) * peak)


def _graph(frame: av.VideoFrame, *filters: tuple[str, str]) -> av.filter.Graph:
    """A chain of filters for frames of the size, format and time base of `frame`."""
    graph = av.filter.Graph()
    time_base = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
    graph.link_nodes(source, *(graph.add(*each) for each in filters), graph.add("buffersink"))
    graph.configure()
    return graph
