"""Which files are read, which of their tracks, and what the others are told."""

import os
import socket
from pathlib import Path

import av
import heif
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from test_video_util import HEIGHT, QUADRANTS, WIDTH, gray_frames, indices, make_video, one_line_about

from guided_diffusion.audio_util import read_audio
from guided_diffusion.errors import InputError
from guided_diffusion.media_util import _OPEN_OPTIONS, check_source, open_media
from guided_diffusion.video_util import count_frames, open_video


def colours(side: int = 256) -> np.ndarray:
    """RGB that says where in the picture a pixel is."""
    y, x = np.mgrid[:side, :side] * 255 // (side - 1)
    return np.stack([x, y, 255 - x], -1).astype(np.uint8)


# ---- files that are not read


def test_lists_of_files_are_not_followed(tmp_path: Path) -> None:
    """A video from the network must not name other files of this computer to be shown."""
    secret = make_video(tmp_path / "secret.mp4", 3)
    lists = {
        "concat.mp4": ("ffconcat version 1.0\nfile 'secret.mp4'\n", r"list of files \(ffconcat\)"),
        "playlist.m3u8": (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n", r"playlist \(M3U\)"
        ),
        "stream.sdp": ("v=0\nc=IN IP4 127.0.0.1\nm=video 1234 RTP/AVP 96\n", r"stream \(SDP\)"),
        "drawing.svg": ('<svg xmlns="http://www.w3.org/2000/svg"/>' * 9, "not a readable"),
        "text.txt": ("hello\n" * 300, "what it contains is not read"),
    }  # fmt: skip
    for name, (text, reason) in lists.items():
        (tmp_path / name).write_text(text)
        for read in (open_video, read_audio):
            with pytest.raises(InputError, match=reason) as info:
                read(str(tmp_path / name))
            assert one_line_about(tmp_path / name, info)


def test_pipes_folders_and_sockets_say_what_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        for name, reason in [
            ("pipe.mp4", "is a pipe, which cannot be read twice; save it as a file first"),
            ("socket", "is a device or socket"),
            ("", "is a folder; name a video"),
            ("x" * 300, "cannot be read: File name too long"),
        ]:
            for check in (check_source, open_video):
                with pytest.raises(InputError, match=reason) as info:
                    check(str(tmp_path / name))
                assert one_line_about(tmp_path / name if name else tmp_path, info)


# ---- tracks


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_default_track_is_shown(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"in.{suffix}")
    with av.open(path, "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, disposition in zip(streams, (Disposition(0), Disposition.default), strict=True):
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.disposition = disposition
        for i in range(3):
            for stream, picture in zip(streams, (QUADRANTS, gray_frames(3)[i]), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        for stream in streams:
            container.mux(stream.encode(None))
    assert indices(open_video(path).frames()) == [0, 1, 2]


# ---- still pictures whatever their name


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "gif", "webm", "avi", "avif"])
def test_a_file_with_one_frame_is_a_still_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"one.{suffix}"
    if suffix in ("gif", "avif"):
        Image.fromarray(QUADRANTS).save(path)
    else:
        make_video(path, 1, codec="libvpx" if suffix == "webm" else "libx264")
    for fps in (0, 25, 60):
        video = open_video(str(path), fps)
        assert (video.is_image, video.fps, count_frames(video)) == (True, fps or 25, 1)
        assert len(list(video.frames())) == 1
    assert not open_video(make_video(tmp_path / "two.mp4", 2)).is_image


@pytest.mark.parametrize("exif", [False, True])
def test_heic(tmp_path: Path, exif: bool) -> None:
    """Its own rotation counts; the one in EXIF, which phones add, is for readers that do not know HEIF."""
    orientation = Image.Exif()
    orientation[0x0112] = 6
    path = tmp_path / "p.heic"
    tile, configuration = heif.hevc(colours())
    path.write_bytes(
        heif.heif([tile], configuration, (256, 256), turns=3, exif=orientation.tobytes()[6:] if exif else None)
    )
    video = open_video(str(path))
    assert (video.is_image, video.width, video.height) == (True, 256, 256)
    assert np.abs(next(video.frames()).astype(int) - np.rot90(colours(), 3)).mean() < 3


@pytest.mark.parametrize("thumbnail", [False, True])
def test_heic_of_tiles_says_what_to_do(tmp_path: Path, thumbnail: bool) -> None:
    """One tile, or the thumbnail, would be a picture of the wrong size and part."""
    path = tmp_path / "phone.heic"
    tiles = [heif.hevc(np.ascontiguousarray(tile)) for tile in (colours()[:, :128], colours()[:, 128:])]
    coded = [tile for tile, _ in tiles]
    path.write_bytes(heif.heif(coded, tiles[0][1], (128, 256), 2, thumbnail=coded[0] if thumbnail else None))
    with pytest.raises(InputError, match=r"made of tiles.*convert it to JPEG") as info:
        open_video(str(path))
    assert one_line_about(path, info)


def test_avif_of_tiles_is_put_together(tmp_path: Path) -> None:
    path = tmp_path / "grid.avif"
    tiles = [heif.av1(np.ascontiguousarray(tile)) for tile in (colours()[:, :128], colours()[:, 128:])]
    path.write_bytes(heif.heif([tile for tile, _ in tiles], tiles[0][1], (128, 256), 2, turns=3))
    video = open_video(str(path))
    assert (video.is_image, video.width, video.height) == (True, 256, 256)
    assert np.abs(next(video.frames()).astype(int) - np.rot90(colours(), 3)).mean() < 3


@pytest.mark.parametrize("suffix", ["webp", "avif", "gif", "png"])
def test_moving_pictures_move(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"moving.{suffix}")
    first, *others = [Image.fromarray(frame) for frame in gray_frames(4)]
    first.save(path, save_all=True, append_images=others, duration=[40, 120, 40, 40], lossless=True)
    video = open_video(path)
    shown = indices(video.frames())
    assert (video.is_image, video.width, video.height) == (False, WIDTH, HEIGHT)
    assert shown[:5] == [0, 1, 1, 1, 2]
    assert indices(video.frames(3)) == shown[3:]


def test_a_damaged_moving_picture_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "moving.webp"
    first, *others = [Image.fromarray(frame) for frame in gray_frames(4)]
    first.save(path, save_all=True, append_images=others, duration=40)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError) as info:
        open_video(str(path))
    assert one_line_about(path, info)


def test_every_kind_of_file_that_tests_make_is_on_the_list(tmp_path: Path) -> None:
    """The list names demuxers: a name that FFmpeg does not know would close a kind of file without a word."""
    known = av.formats_available
    demuxers = {name for kind in known for name in kind.split(",")}
    assert set(_OPEN_OPTIONS["format_whitelist"].split(",")) <= demuxers
    for suffix in ("mov", "flv", "wmv", "mpg", "3gp", "m4v", "y4m"):
        codec = {"wmv": "wmv2", "mpg": "mpeg2video", "y4m": "wrapped_avframe", "m4v": "mpeg4"}.get(suffix, "libx264")
        with open_media(make_video(tmp_path / f"in.{suffix}", 3, codec=codec)) as container:
            assert container.streams.video
