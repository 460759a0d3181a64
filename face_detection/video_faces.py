"""Every face and every cut of a video, as they were detected."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from face_detection.api import Detection
from face_detection.array_files import check_arrays, load_arrays, save_arrays
from face_detection.cuts import CutDetector
from guided_diffusion.errors import InputError

Detect = Callable[[Sequence[np.ndarray]], list[list[Detection]]]


@dataclass(frozen=True)
class VideoFaces:
    """Every face of every frame of a video, or of its beginning, as detected.

    It depends on the video and the detector only, not on what is made of it: `tracks.build_track`.
    """

    faces: list[list[Detection]]
    """Of each frame, best score first."""
    is_cut: np.ndarray
    """bool [F], True on the first frame after a hard cut; frame 0 is False."""
    size: tuple[int, int]
    """Height and width of the frames in pixels; (0, 0) without any."""
    is_complete: bool
    """Whether the video is known to end here. False means that it goes on, or ends just at the last frame wanted."""

    def suffices(self, n_frames: int) -> bool:
        """Whether the first n_frames of the video are here, or all that it has."""
        return self.is_complete or len(self.faces) >= n_frames

    @property
    def next_start(self) -> int:
        """The index of the first frame that `find_faces` needs to continue: the last one again."""
        return max(0, len(self.faces) - 1)

    def save(self, path: str | Path) -> None:
        """Writes an .npz; the file appears complete or not at all."""
        detections = [face for faces in self.faces for face in faces]
        unknown = np.full((68, 2), np.nan, np.float32)
        landmarks = [unknown if face.landmarks is None else face.landmarks for face in detections]
        save_arrays(
            path,
            {
                "counts": np.array([len(faces) for faces in self.faces], np.int64),
                "corners": np.array([face.box for face in detections], np.float64).reshape(-1, 4),
                "scores": np.array([face.score for face in detections], np.float64),
                "landmarks": np.array(landmarks, np.float32).reshape(-1, 68, 2),
                "is_cut": self.is_cut,
                "size": np.array(self.size, np.int64),
                "is_complete": np.array(self.is_complete),
            },
        )

    @classmethod
    def stored(cls, path: Path) -> VideoFaces | None:
        """Reads what `save` wrote; None when there is none yet, or it was damaged: then it is to be found anew."""
        try:
            return cls.load(path) if path.is_file() else None
        except InputError:
            print(f"notice: {path} is damaged; the faces are looked for again", file=sys.stderr)
            return None

    @classmethod
    def load(cls, path: str | Path) -> VideoFaces:
        """Reads what `save` wrote.

        :raises InputError: the file is something else.
        :raises OSError: the file cannot be read.
        """
        return load_arrays(path, "the faces of a video", cls._from_arrays)

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> VideoFaces:
        """:raises KeyError, ValueError: these are not the arrays that `save` wrote."""
        frames, detections = (np.size(arrays[name]) for name in ("counts", "scores"))
        check_arrays(
            arrays,
            {
                "counts": (np.int64, (frames,)),
                "corners": (np.float64, (detections, 4)),
                "scores": (np.float64, (detections,)),
                "landmarks": (np.float32, (detections, 68, 2)),
                "is_cut": (np.bool_, (frames,)),
                "size": (np.int64, (2,)),
                "is_complete": (np.bool_, ()),
            },
        )
        if arrays["counts"].sum() != detections:
            raise ValueError(f"{arrays['counts'].sum()} faces are counted, {detections} are there")
        rest = iter(zip(arrays["corners"].tolist(), arrays["scores"].tolist(), arrays["landmarks"], strict=True))
        faces = [
            [
                Detection(tuple(box), score, None if np.isnan(landmarks).any() else landmarks)
                for box, score, landmarks in islice(rest, count)
            ]
            for count in arrays["counts"].tolist()
        ]
        height, width = arrays["size"].tolist()
        return cls(faces, arrays["is_cut"], (height, width), bool(arrays["is_complete"]))


def find_faces(
    frames: Iterable[np.ndarray],
    detect: Detect,
    batch_size: int,
    known: VideoFaces | None = None,
    *,
    n_frames: int | None = None,
    check: Callable[[VideoFaces], object] | None = None,
) -> VideoFaces:
    """Looks for faces and cuts in a video, or continues to.

    The frames are streamed: at most `batch_size` of them are held.

    :param frames: of the video, RGB uint8 [H, W, 3], all of one size. With `known` they start at `known.next_start`:
        the last frame again, which the cut detector compares with the next one.
    :param detect: faces of each image of a batch, best score first (`FaceAlignment.detect`).
    :param batch_size: frames per call of `detect`.
    :param known: what an earlier call found in the beginning of the same video.
    :param n_frames: the first so many frames of the video are wanted; None wants all.
    :param check: called once, with what there is by then, as soon as a batch shows a face: what it raises ends the
        search early (`tracks.check_face_index`).
    """
    known = known or VideoFaces([], np.zeros(0, bool), (0, 0), is_complete=False)
    faces, is_cut, size = list(known.faces), known.is_cut.tolist(), known.size

    def found(is_complete: bool) -> VideoFaces:
        return VideoFaces(list(faces), np.array(is_cut, dtype=bool), size, is_complete)

    rest = iter(frames)
    cuts = CutDetector()
    any(map(cuts.update, islice(rest, len(faces[-1:]))))  # the known frame, if there is one
    while True:
        if check and any(faces):
            check(found(is_complete=False))
            check = None
        wanted = batch_size if n_frames is None else min(batch_size, n_frames - len(faces))
        if wanted <= 0:
            return found(is_complete=False)
        # The batch is never bound to a name here: it would live on while the next one is read.
        observed = _observe(list(islice(rest, wanted)), detect, cuts)
        if observed is None:
            return found(is_complete=True)
        new_faces, new_cuts, size = observed
        faces += new_faces
        is_cut += new_cuts


def _observe(
    batch: list[np.ndarray], detect: Detect, cuts: CutDetector
) -> tuple[list[list[Detection]], list[bool], tuple[int, int]] | None:
    """Faces and cuts of a batch of frames, and their size; None for an empty batch."""
    if not batch:
        return None
    height, width = batch[0].shape[:2]
    return detect(batch), [cuts.update(frame) for frame in batch], (height, width)
