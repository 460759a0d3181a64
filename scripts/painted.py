"""What generate.py paints in a benchmark, and how far open the mouth is in it."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

import _path  # noqa: F401
import generate
from face_detection.api import FaceAlignment, integer_corners
from face_detection.lip_metrics import mouth_opening
from guided_diffusion.errors import InputError
from guided_diffusion.streams import Box
from guided_diffusion.video_util import open_video, source_index

LONGER: Literal["pingpong"] = "pingpong"  # where the sound is longer than the video


def pictures(video: str, audio: str, out: str, flags: Sequence[str]) -> np.ndarray:
    """The result's frames, uint8 [n, H, W, 3], as they were before encoding but for the halved colour resolution.

    :param out: where the result is written.
    :param flags: generate.py's further ones.
    """
    told = [
        "--video_path", video, "--audio_path", audio, "--out_path", out, "--crf", "0", "--save_orig", "False",
        "--is_voxceleb2", "False", "--face_detector", "dlib", "--audio_longer", LONGER,
    ]  # fmt: skip
    if generate.main([*told, *flags]):
        raise InputError("generate.py failed")
    return np.stack(list(open_video(out).frames()))


def face_boxes(video: str) -> list[Box | None]:
    """Where dlib finds the first face, per frame."""
    detector = FaceAlignment("dlib")
    boxes: list[Box | None] = []
    for frame in open_video(video).frames():
        (faces,) = detector.detect([frame])
        x1, y1, x2, y2 = integer_corners(faces[0].box) if faces else (0, 0, 0, 0)
        boxes.append((y1, y2, x1, x2) if faces else None)
    return boxes


def openings(frames: np.ndarray, boxes: Sequence[Box | None]) -> np.ndarray:
    """Float64 [n], NaN where the source shows no face.

    :param boxes: the source's `face_boxes`. Landmarks are looked for where its face is: in the box that dlib finds on
        the result they fail in single frames (0.17 on a closed mouth was seen).
    """
    detector = FaceAlignment("dlib")
    found = []
    for index, frame in enumerate(frames):
        box = boxes[source_index(index, len(boxes), LONGER)]
        marks = None if box is None else detector.get_landmarks_from_image(frame, box)
        found.append(np.nan if marks is None else mouth_opening(marks))
    return np.array(found)
