"""Pictures as cameras and phones write them come out upright, whole, opaque and in SDR."""

from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest
from PIL import Image, ImageOps
from test_video_util import HEIGHT, QUADRANTS, WIDTH, make_video, smooth_picture

from guided_diffusion.picture_util import deinterlaced, tone_map_table
from guided_diffusion.video_util import VideoWriter, count_frames, open_video, ordered_frames

# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "tiff"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    """PyAV has no name for FFmpeg's EXIF data, and refused the frame's display matrix together with it."""
    path = str(tmp_path / f"phone.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(QUADRANTS)
    stored.save(path, exif=exif, quality=95)
    stored.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(stored))
    video = open_video(path)
    assert (video.is_image, video.height, video.width) == (True, *upright.shape[:2])
    (frame,) = video.frames()
    assert np.abs(frame[4::8, 4::8].astype(int) - upright[4::8, 4::8]).max() < 12


def test_a_video_of_pictures_with_exif(tmp_path: Path) -> None:
    """Cameras store each frame of a motion JPEG as a photograph."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(QUADRANTS).save(tmp_path / "p.jpg", exif=exif, quality=95)
    path = str(tmp_path / "clip.mov")
    with av.open(path, "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for i in range(5):
            packet = av.Packet((tmp_path / "p.jpg").read_bytes())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    video = open_video(path)
    assert (video.height, video.width) == (WIDTH, HEIGHT)
    shown = [frame for _, frame in ordered_frames(video, 5, 9, "pingpong")]
    assert len(shown) == 9
    upright = np.rot90(QUADRANTS, -1)[4::8, 4::8].astype(int)
    assert all(np.abs(frame[4::8, 4::8] - upright).max() < 12 for frame in shown)


# ---- transparency


def half_transparent() -> np.ndarray:
    """RGBA: the left opaque, the right half hidden behind alpha 0."""
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:, WIDTH // 2 :] = 0
    return np.concatenate([smooth_picture(), alpha], -1)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "avif", "gif"])
def test_transparent_parts_of_pictures_are_black_and_said_once(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / f"p.{suffix}")
    Image.fromarray(half_transparent()).save(path, lossless=True, quality=95)
    (frame,) = open_video(path).frames()
    assert capsys.readouterr().err == f"notice: {path!r} has transparent parts: they are shown on black\n"
    assert frame[:, WIDTH // 2 + 4 :].max() <= 2
    difference = np.abs(frame[:, : WIDTH // 2 - 4].astype(int) - smooth_picture()[:, : WIDTH // 2 - 4])
    assert difference.max() <= {"png": 0, "tiff": 0, "webp": 0, "avif": 12, "gif": 20}[suffix]


def test_alpha_is_a_share(tmp_path: Path) -> None:
    alpha = np.full((HEIGHT, WIDTH, 1), 51, np.uint8)
    Image.fromarray(np.concatenate([smooth_picture(), alpha], -1)).save(tmp_path / "p.png")
    frame = next(open_video(str(tmp_path / "p.png")).frames())
    assert np.array_equal(frame, np.round(smooth_picture() * (51 / 255)).astype(np.uint8))


def test_opaque_pictures_with_alpha_are_as_those_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(smooth_picture()).convert("RGBA").save(tmp_path / "p.png")
    assert np.array_equal(next(open_video(str(tmp_path / "p.png")).frames()), smooth_picture())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("pix_fmt", ["yuva420p", "yuva422p", "yuva444p10le"])
def test_opaque_videos_with_alpha_are_as_they_are(
    tmp_path: Path, pix_fmt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without _EXACT, swscale makes 254 of an opaque 255 in yuva422p."""
    frame = next(open_video(make_video(tmp_path / "a.mkv", 2, codec="ffv1", pix_fmt=pix_fmt)).frames())
    plain = make_video(tmp_path / "b.mkv", 2, codec="ffv1", pix_fmt=pix_fmt.replace("a", "", 1))
    assert np.array_equal(frame, next(open_video(plain).frames()))
    assert capsys.readouterr().err == ""


def test_a_transparent_palette(tmp_path: Path) -> None:
    picture = Image.fromarray(QUADRANTS).quantize(8)
    hidden = picture.getpixel((WIDTH - 1, HEIGHT - 1))
    picture.save(tmp_path / "p.png", transparency=hidden)
    frame = next(open_video(str(tmp_path / "p.png")).frames())
    assert frame[HEIGHT // 2 :, WIDTH // 2 :].max() == 0
    assert np.abs(frame[: HEIGHT // 2].astype(int) - QUADRANTS[: HEIGHT // 2]).max() <= 2


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "deadline": "realtime", "cpu-used": "8"}),
        ("a.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
        ("a.mov", "prores_ks", "yuva444p10le", {}),
        ("a.mov", "qtrle", "argb", {}),
        ("a.mkv", "ffv1", "yuva420p", {}),
    ],
)
def test_transparent_parts_of_videos_are_black(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, options: dict[str, str]
) -> None:
    """FFmpeg's own VP8 and VP9 decoders do not give the alpha of WebM."""
    path = str(tmp_path / name)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        for _ in range(40):
            frame = av.VideoFrame.from_ndarray(half_transparent(), "rgba").reformat(format=pix_fmt)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    video = open_video(path)
    frames = list(video.frames())
    assert len(frames) == 40
    for frame in frames:
        assert frame[:, WIDTH // 2 + 8 :].max() <= 3
        assert np.abs(frame[:, : WIDTH // 2 - 8].astype(int) - smooth_picture()[:, : WIDTH // 2 - 8]).mean() < 8
    assert all(np.array_equal(a, b) for a, b in zip(video.frames(30), frames[30:], strict=True))


# ---- interlaced


def field_bar(time: int) -> np.ndarray:
    picture = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    picture[:, (2 * time) % 40 : (2 * time) % 40 + 20] = 220
    return picture


def interlaced_frame(i: int) -> np.ndarray:
    """A bar that has moved on between the two fields, the upper line first."""
    picture = field_bar(2 * i)
    picture[1::2] = field_bar(2 * i + 1)[1::2]
    return picture


def combing(frame: np.ndarray) -> float:
    """How much each line differs from the two around it; 0 for upright edges."""
    lines = frame.astype(int)
    return float(np.abs(2 * lines[1:-1] - lines[:-2] - lines[2:]).mean())


def make_interlaced(path: Path, n: int = 30, marked: bool = True, codec: str = "libx264") -> str:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=WIDTH, height=HEIGHT, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 25))
    order = graph.add("setfield", "tff" if marked else "prog")
    graph.link_nodes(source, order, graph.add("format", "yuv420p"), graph.add("buffersink"))
    graph.configure()
    options = {"g": "10", "b": "4000000", **({"flags": "+ilme+ildct"} if marked else {})}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(interlaced_frame(i))
            frame.pts, frame.time_base = i, Fraction(1, 25)
            graph.vpush(frame)
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode(None))
    return str(path)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.ts", "libx264"), ("a.ts", "mpeg2video"), ("a.h264", "libx264")]
)
def test_interlaced_frames_are_made_whole(tmp_path: Path, name: str, codec: str) -> None:
    video = open_video(make_interlaced(tmp_path / name, codec=codec))
    frames = list(video.frames())
    assert len(frames) == count_frames(video) == 30
    assert max(map(combing, frames)) < 12  # over 20 as stored
    for i, frame in enumerate(frames):  # the first field is the frame's time: the other lines follow it
        assert np.abs(frame.astype(int) - field_bar(2 * i)).mean() < 4
    for start in (1, 9, 10, 11, 25):
        assert all(np.array_equal(a, b) for a, b in zip(video.frames(start), frames[start:], strict=True))
    backwards = [frame for _, frame in ordered_frames(video, 30, 58, "pingpong", 30)]
    assert all(np.array_equal(a, b) for a, b in zip(backwards, frames[28:0:-1], strict=True))


def test_combed_frames_that_are_not_marked_stay(tmp_path: Path) -> None:
    frames = list(open_video(make_interlaced(tmp_path / "a.mp4", marked=False)).frames())
    assert min(map(combing, frames)) > 20


def test_progressive_frames_among_interlaced_ones_are_kept(tmp_path: Path) -> None:
    """Bit for bit, with all times, across a change of size."""
    parts = [
        Path(make_video(tmp_path / "a.h264", 5)),
        Path(make_interlaced(tmp_path / "b.h264", 6)),
        Path(make_video(tmp_path / "c.h264", 5)),
        Path(make_video(tmp_path / "d.h264", 4, size=(96, 64))),
    ]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with av.open(str(joined)) as container:
        decoded = list(container.decode(video=0))
    result = list(deinterlaced(iter(decoded)))
    assert [frame.interlaced_frame for frame in decoded] == [False] * 5 + [True] * 6 + [False] * 9
    assert [frame.width for frame in result] == [frame.width for frame in decoded]
    for before, after in zip(decoded, result, strict=True):
        same = np.array_equal(before.to_ndarray(), after.to_ndarray())
        assert same != before.interlaced_frame


# ---- high dynamic range


def pq(nits: np.ndarray) -> np.ndarray:
    """The inverse of SMPTE ST 2084's transfer function, [0, 1]."""
    y = (nits / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def hlg(light: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100's HLG transfer function of scene light in [0, 1]."""
    above = 0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.55991073
    return np.where(light <= 1 / 12, np.sqrt(3 * light), above)


BT709_TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def make_hdr(path: Path, picture: np.ndarray, transfer: int, pix_fmt: str = "yuv420p10le") -> str:
    """An SDR picture as HDR encoders write it: white at 203 cd/m2 (ITU-R BT.2408), BT.2020 primaries."""
    nits = 203 * ((picture / 255) ** 2.4 @ BT709_TO_BT2020.T).clip(0, 1)
    luminance = (nits / 1000) @ np.array([[0.2627], [0.6780], [0.0593]])
    signal = pq(nits) if transfer == 16 else hlg(luminance ** (1 / 1.2 - 1) * nits / 1000)
    height, width = picture.shape[:2]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb48le"), time_base=Fraction(1, 25))
    to_yuv = graph.add("scale", "out_color_matrix=bt2020nc:out_range=limited")
    graph.link_nodes(source, to_yuv, graph.add("format", pix_fmt), graph.add("buffersink"))
    graph.configure()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, transfer, 1
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(np.round(signal * 65535).astype(np.uint16), "rgb48le")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            graph.vpush(frame)
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode(None))
    return str(path)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_becomes_sdr_and_is_said(
    tmp_path: Path, transfer: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read as if it were SDR, a PQ picture is gray: its contrast and its colours are a fraction of the true ones."""
    picture = smooth_picture()  # nothing in it is as bright as the roll-off begins
    path = make_hdr(tmp_path / "hdr.mkv", picture, transfer)
    video = open_video(path)
    assert capsys.readouterr().err == f"notice: {path!r} is HDR ({name}): it is tone-mapped to SDR (BT.709)\n"
    assert tuple(video.colour) == (1, 1, 1)
    frames = list(video.frames())
    assert len(frames) == 3
    for frame in frames:
        assert np.abs(frame[4:-4, 4:-4].astype(int) - picture[4:-4, 4:-4]).max() <= 10
        assert np.abs(frame[4:-4, 4:-4].astype(int) - picture[4:-4, 4:-4]).mean() < 2
    assert np.array_equal(next(video.frames(2)), frames[2])
    with VideoWriter(str(tmp_path / "out.mp4"), video, 25) as writer:
        writer.write(frames[0])
    assert tuple(open_video(str(tmp_path / "out.mp4")).colour) == (1, 1, 1)


@pytest.mark.parametrize("transfer", [16, 18])
def test_tone_map_keeps_order_grays_and_black(transfer: int) -> None:
    table = tone_map_table(transfer)
    n = round(len(table) ** (1 / 3))
    grays = table.reshape(n, n, n, 3)[np.arange(n), np.arange(n), np.arange(n)]
    assert np.ptp(grays, axis=-1).max() < 0.01
    n_used = int(pq(np.array(1000)) * n) if transfer == 16 else n - 1
    assert np.all(np.diff(grays[:n_used].mean(-1)) > 1e-4)  # highlights stay apart, up to the peak
    assert (grays[0].max(), grays[-1].min()) == (0, pytest.approx(1, abs=1e-3))
    red = table.reshape(n, n, n, 3)[0, 0]  # the first channel changes fastest
    assert red[n // 2, 0] > 2 * red[n // 2, 1:].max()
