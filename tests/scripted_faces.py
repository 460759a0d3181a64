"""Videos of flat frames whose faces are told, not detected."""

import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from face_detection.api import Detection
from face_detection.following import Identify
from face_detection.tracks import FaceTrack, build_track
from face_detection.video_faces import VideoFaces, find_faces

NO_PADS = (0, 0, 0, 0)
HEIGHT, WIDTH = 100, 200


def face(x1: float, y1: float = 20, side: float = 40, score: float = 1.0, landmarks: bool = False) -> Detection:
    points = np.full((68, 2), (x1, y1), dtype=np.float32) if landmarks else None
    return Detection((x1, y1, x1 + side, y1 + side), score, points)


def plain(colour: int = 90) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), colour, dtype=np.uint8)


def video_of(script: Sequence[list[Detection]], cuts: Sequence[int] = (), start: int = 0) -> Iterator[np.ndarray]:
    """Frames from start on, with a hard cut (black, white) at the given ones."""
    return (plain(255 * (sum(cut <= frame for cut in cuts) % 2)) for frame in range(start, len(script)))


def scripted(script: Sequence[list[Detection]]) -> Callable[[Sequence[np.ndarray]], list[list[Detection]]]:
    """A detector that finds the next frames' faces."""
    rest = iter(script)
    return lambda batch: [next(rest) for _ in batch]


def faces_of(script: Sequence[list[Detection]], cuts: Sequence[int] = (), batch_size: int = 4) -> VideoFaces:
    return find_faces(video_of(script, cuts), scripted(script), batch_size)


def track_of(
    script: Sequence[list[Detection]],
    *,
    cuts: Sequence[int] = (),
    batch_size: int = 4,
    face_index: int = -1,
    pads: tuple[int, int, int, int] = NO_PADS,
    smooth_window: int = 1,
    identify: Identify | None = None,
) -> FaceTrack:
    """The track of a video whose frames show the scripted faces."""
    return build_track(
        faces_of(script, cuts, batch_size),
        len(script),
        pads=pads,
        face_index=face_index,
        smooth_window=smooth_window,
        identify=identify,
    )


SOME_FACES = [[face(10, score=0.3)], [], [face(12, landmarks=True), face(90)], [face(13)], [], [face(99)], []]


def counting(frames: int, alive: "weakref.WeakSet[Frame]", most: list[int]) -> Iterator[np.ndarray]:
    for _ in range(frames):
        frame = Frame((HEIGHT, WIDTH, 3), dtype=np.uint8)
        frame[:] = 0
        alive.add(frame)
        most.append(len(alive))
        yield frame
        del frame


class Frame(np.ndarray):
    """An array that can be counted while it lives."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other
