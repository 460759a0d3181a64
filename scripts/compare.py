"""Videos of the same clip side by side, with a zoom on the mouth: `python scripts/compare.py A.mp4 B.mp4 --out ab.mp4`.

The face is looked for in the first video, and the zoom shows the same place in all. Videos of other sizes are scaled to
the first one's height; the comparison ends with the shortest. The sound is the first video's that has any.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import _path  # noqa: F401
from face_detection.api import DETECTORS, LIP, FaceAlignment
from face_detection.tracks import FaceTrack, build_track, mouth_places
from face_detection.video_faces import find_faces
from guided_diffusion.audio_util import open_sound
from guided_diffusion.errors import InputError
from guided_diffusion.store import replace_when_complete
from guided_diffusion.video_util import VideoSource, VideoWriter, count_frames, open_video

MAX_HEIGHT = 540
ZOOM_PER_MOUTH = 1.6
LABEL_HEIGHT = 28


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--labels", nargs="+", help="one per video; by default the files' names")
    parser.add_argument("--out", help="side-by-side video to write")
    parser.add_argument("--sheet", help="PNG with a row of still frames per video to write")
    parser.add_argument("--frames", type=int, default=6, help="stills in the sheet")
    parser.add_argument("--face_detector", default="dlib", choices=DETECTORS)
    arguments = parser.parse_args(argv)
    labels = arguments.labels or [Path(path).stem for path in arguments.videos]
    try:
        if len(labels) != len(arguments.videos):
            raise InputError(f"--labels: {len(labels)} for {len(arguments.videos)} videos; give one each")
        if not (arguments.out or arguments.sheet):
            raise InputError("nothing to write: give --out for a video, --sheet for stills, or both")
        if arguments.frames < 1:
            raise InputError(f"--frames {arguments.frames}: give 1 or more")
        compare(arguments.videos, labels, arguments.out, arguments.sheet, arguments.frames, arguments.face_detector)
    except InputError as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(
    paths: Sequence[str], labels: Sequence[str], out: str | None, sheet: str | None, n_stills: int, face_detector: str
) -> None:
    """Write the side-by-side video `out` and the PNG `sheet`, where given. :raises InputError: with the reason."""
    first = open_video(paths[0], 0)
    videos = [first, *(open_video(path, float(first.fps)) for path in paths[1:])]
    lengths = [count_frames(video) for video in videos]
    n_frames = min(lengths)
    if max(lengths) > n_frames:
        print(f"notice: the videos have {', '.join(map(str, lengths))} frames; {n_frames} are used", file=sys.stderr)
    mouths = mouth_boxes(first, n_frames, face_detector)
    columns = zip(
        *(columns_of(v, label, mouths, first, n_frames) for v, label in zip(videos, labels, strict=True)), strict=True
    )
    stills = set(np.linspace(0, n_frames - 1, n_stills + 2).astype(int)[1:-1])
    rows: list[np.ndarray] = []
    pictures = (np.hstack(column) for column in columns)
    if out is None:
        rows = [picture for index, picture in enumerate(pictures) if index in stills]
    else:
        rows = write_video(out, pictures, first.fps, next((p for p in paths if has_sound(p)), None), stills)
    if sheet:
        with replace_when_complete(Path(sheet)) as part:
            Image.fromarray(np.vstack(rows)).save(part, format="PNG")


def write_video(
    out: str, pictures: Iterator[np.ndarray], fps: Fraction, audio_path: str | None, stills: set[int]
) -> list[np.ndarray]:
    """Write the pictures, and return those whose numbers are in `stills`."""
    kept = []
    first = next(pictures)
    with VideoWriter(out, source=(first.shape[1], first.shape[0]), fps=fps, audio_path=audio_path) as writer:
        for index, picture in enumerate(chain([first], pictures)):
            writer.write(picture)
            if index in stills:
                kept.append(picture)
    return kept


def has_sound(path: str) -> bool:
    try:
        next(open_sound(path)[0])
    except InputError:
        return False
    return True


def mouth_boxes(video: VideoSource, n_frames: int, face_detector: str) -> np.ndarray | None:
    """Per frame: the mouth's middle x, y and the zoom's shorter side, as shares of width, height, height: float [F, 3].

    None, and a notice, without a face.
    """
    detector = FaceAlignment(face_detector)
    try:
        faces = find_faces(video.frames(stop=n_frames), detector.detect, batch_size=8)
        track = build_track(faces, n_frames, pads=(0, 0, 0, 0))
    except InputError as error:
        print(f"notice: no zoom on the mouth ({error})", file=sys.stderr)
        return None
    centres, mouth_width = _lips(track)
    side = np.full(n_frames, ZOOM_PER_MOUTH * mouth_width / video.height)
    return np.column_stack([centres / (video.width, video.height), side])


def _lips(track: FaceTrack) -> tuple[np.ndarray, float]:
    """Middle of the mouth, float [F, 2], held where there is no face; the mouth's median width in pixels."""
    if track.landmarks is not None:
        lips = track.landmarks[:, LIP]
        centres = lips.mean(axis=1)
        widths = np.ptp(lips[..., 0], axis=1)
    else:  # a mouth takes two fifths of a detector's box's width
        centres = mouth_places(track.boxes)
        widths = 0.4 * (track.boxes[:, 3] - track.boxes[:, 2])
    known = np.flatnonzero(track.has_face)
    held = known[np.clip(np.searchsorted(known, np.arange(len(track.has_face)), side="right") - 1, 0, None)]
    return centres[held], float(np.median(widths[known]))


def columns_of(
    video: VideoSource, label: str, mouths: np.ndarray | None, first: VideoSource, n_frames: int
) -> Iterator[np.ndarray]:
    """The video's first frames with its label above and the mouth zoomed below, all as high as the others' columns."""
    height = min(first.height, MAX_HEIGHT) // 4 * 4
    width = round(height * video.width / video.height) // 2 * 2
    title = _label(label, width)
    for index, frame in enumerate(video.frames(stop=n_frames)):
        parts = [title, cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)]
        if mouths is not None:
            parts.append(_zoom(frame, mouths[index], width, height // 2))
        yield np.vstack(parts)


def _zoom(frame: np.ndarray, mouth: np.ndarray, width: int, height: int) -> np.ndarray:
    """The mouth's surroundings, [height, width, 3]; `mouth` is (x, y, side of the zoom's shorter edge) in shares."""
    side = mouth[2] * frame.shape[0]
    scale = side / min(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    centre = (float(mouth[0] * frame.shape[1]), float(mouth[1] * frame.shape[0]))
    return cv2.resize(cv2.getRectSubPix(frame, size, centre), (width, height), interpolation=cv2.INTER_CUBIC)


@cache
def _font() -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 15)


def _label(text: str, width: int) -> np.ndarray:
    picture = Image.new("RGB", (width, LABEL_HEIGHT), (24, 24, 24))
    ImageDraw.Draw(picture).text((8, 4), text, fill=(240, 240, 240), font=_font())
    return np.asarray(picture)


if __name__ == "__main__":
    sys.exit(main())
