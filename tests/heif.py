"""HEIF pictures (HEIC, AVIF), written box by box (ISO/IEC 23008-12): nothing installed writes tiles or HEIC."""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from PIL import Image


def box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def full_box(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def hevc(picture: np.ndarray) -> tuple[bytes, bytes]:
    """A picture coded with HEVC, and its configuration box."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"x265-params": "log-level=none:bframes=0", "crf": "5"}
        stream = container.add_stream("libx265", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
        frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return _coded(file, b"hvcC")


def av1(picture: np.ndarray) -> tuple[bytes, bytes]:
    """A picture coded with AV1, and its configuration box."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "AVIF", quality=95)
    return _coded(file, b"av1C")


def _coded(file: io.BytesIO, configuration: bytes) -> tuple[bytes, bytes]:
    data = file.getvalue()
    start = data.index(configuration) - 4
    (size,) = struct.unpack(">I", data[start : start + 4])
    file.seek(0)
    with av.open(file) as container:
        packet = next(packet for packet in container.demux(video=0) if packet.size)
        return bytes(packet), data[start : start + size]


def heif(
    tiles: Sequence[bytes],
    configuration: bytes,
    size: tuple[int, int],
    columns: int = 1,
    turns: int = 0,
    exif: bytes | None = None,
    thumbnail: bytes | None = None,
) -> bytes:
    """A HEIF file: one picture, or a grid of equal tiles.

    size: (width, height) of a tile. turns: quarter turns counter-clockwise for display. exif: a TIFF structure.
    thumbnail: coded like a tile; shown to be a picture of its own.
    """
    (width, height), rows = size, len(tiles) // columns
    kind, brand = (b"hvc1", b"heic") if configuration[4:8] == b"hvcC" else (b"av01", b"avif")
    is_grid = len(tiles) > 1
    items = [(kind, tile) for tile in tiles]
    if is_grid:
        grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, columns * width, rows * height)
        items.append((b"grid", grid))
    primary = len(items)
    references = []
    if is_grid:
        tile_ids = struct.pack(f">{len(tiles)}H", *range(1, len(tiles) + 1))
        references.append(box(b"dimg", struct.pack(">HH", primary, len(tiles)), tile_ids))
    n_pictures = len(tiles)
    if thumbnail:
        items.append((kind, thumbnail))
        references.append(box(b"thmb", struct.pack(">HHH", len(items), 1, primary)))
    if exif:
        items.append((b"Exif", b"\0\0\0\6Exif\0\0" + exif))
        references.append(box(b"cdsc", struct.pack(">HHH", len(items), 1, primary)))

    properties = [
        configuration,
        full_box(b"ispe", struct.pack(">II", width, height)),
        full_box(b"ispe", struct.pack(">II", columns * width, rows * height)),
        box(b"irot", bytes([turns])),
        full_box(b"pixi", bytes([3, 8, 8, 8])),
    ]
    of_item = {i: [0x81, 2, 5] for i in (*range(1, n_pictures + 1), *([primary + 1] if thumbnail else []))}
    of_item[primary] = [3, 5, 0x84] if is_grid else [0x81, 2, 5, 0x84]
    associations = [struct.pack(">HB", i, len(indices)) + bytes(indices) for i, indices in sorted(of_item.items())]
    entries = [
        full_box(b"infe", struct.pack(">HH4s", i, 0, item_kind), b"\0", version=2, flags=int(is_grid and i < primary))
        for i, (item_kind, _) in enumerate(items, 1)
    ]
    start = box(b"ftyp", brand, bytes(4), b"mif1", brand)

    def meta(offset: int) -> bytes:
        places = []
        for i, (_, data) in enumerate(items, 1):
            places.append(struct.pack(">HHHII", i, 0, 1, offset, len(data)))
            offset += len(data)
        return full_box(
            b"meta",
            full_box(b"hdlr", struct.pack(">I4s12s", 0, b"pict", b""), b"\0"),
            full_box(b"pitm", struct.pack(">H", primary)),
            full_box(b"iloc", struct.pack(">BBH", 0x44, 0, len(items)), *places),
            full_box(b"iinf", struct.pack(">H", len(items)), *entries),
            full_box(b"iref", *references),
            box(b"iprp", box(b"ipco", *properties),
                full_box(b"ipma", struct.pack(">I", len(associations)), *associations)),
        )  # fmt: skip

    return start + meta(len(start) + len(meta(0)) + 8) + box(b"mdat", *(data for _, data in items))
