"""Whom to follow through a video, among all faces that were detected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import pairwise

import numpy as np

from face_detection.api import SAME_PERSON, Detection

MAX_GAP = 12
"""Frames without the face that are bridged by interpolation: half a second at 25 fps."""

MIN_OVERLAP = 0.1
"""A face belongs to the one seen last when their boxes' intersection over union is at least this."""

Identify = Callable[[int, Detection], np.ndarray]
"""The index of a frame and a face in it -> the face's descriptor (`FaceIdentity.describe` of the frame, read again)."""

Chain = dict[int, Detection]
"""One face from frame to frame, by frame index in ascending order, with gaps of up to MAX_GAP frames."""


def follow(
    usable: Sequence[Sequence[Detection]], is_cut: np.ndarray, face_index: int, identify: Identify | None
) -> list[Detection | None]:
    """The followed person's detection in each frame, None where there is none; the rules are `tracks.build_track`'s."""
    followed: list[Detection | None] = [None] * len(usable)
    if face_index == -1:
        identify = None
    looks_the_same: Callable[[Chain], bool] | None = None
    for start, stop in pairwise([0, *np.flatnonzero(is_cut).tolist(), len(usable)]):
        chain: Chain = {}
        while start < stop:
            if looks_the_same:
                chain = _found_again(usable, start, stop, looks_the_same)
            elif chain and face_index != -1:
                chain = _found_again(usable, start, stop, partial(_is_at_place, chain))
            else:
                chain = _chosen(usable, start, stop, face_index)
            if not chain:
                break
            if identify and not looks_the_same:
                looks_the_same = _Appearance(chain, identify).is_same
            for frame, face in chain.items():
                followed[frame] = face
            start = max(chain) + MAX_GAP + 2
    return followed


def _chosen(usable: Sequence[Sequence[Detection]], start: int, stop: int, face_index: int) -> Chain:
    """The face with this index in the first frame that has it, followed."""
    for frame in range(start, stop):
        face = choose(usable[frame], face_index)
        if face is not None:
            return _chain(usable, frame, face, stop)
    return {}


def _found_again(
    usable: Sequence[Sequence[Detection]], start: int, stop: int, is_same: Callable[[Chain], bool]
) -> Chain:
    """The first chain in the frames from start to stop that is the person's. Each is asked for once."""
    others: set[int] = set()
    for frame in range(start, stop):
        for face in usable[frame]:
            if id(face) not in others:
                chain = _chain(usable, frame, face, stop)
                if is_same(chain):
                    return chain
                others.update(map(id, chain.values()))
    return {}


def _chain(usable: Sequence[Sequence[Detection]], frame: int, face: Detection, stop: int) -> Chain:
    """The face and the detections that follow on it, each the most overlapping with the one before."""
    chain = {frame: face}
    for later in range(frame + 1, stop):
        if later - frame > MAX_GAP + 1:
            break
        next_face = _most_overlapping(usable[later], face)
        if next_face is not None:
            chain[later] = face = next_face
            frame = later
    return chain


def _is_at_place(lost: Chain, found: Chain) -> bool:
    return _overlap(lost[max(lost)], found[min(found)]) >= MIN_OVERLAP


class _Appearance:
    """What the followed person looks like, and whether others look the same."""

    def __init__(self, person: Chain, identify: Identify) -> None:
        self._person = person
        self._identify = identify

    def is_same(self, chain: Chain) -> bool:
        return float(np.linalg.norm(self._describe(chain) - self._descriptor)) < SAME_PERSON

    @cached_property
    def _descriptor(self) -> np.ndarray:
        return self._describe(self._person)

    def _describe(self, chain: Chain) -> np.ndarray:
        return self._identify(*max(chain.items(), key=lambda item: item[1].score))


def choose(faces: Sequence[Detection], face_index: int) -> Detection | None:
    if not faces:
        return None
    if face_index == -1:
        return max(faces, key=lambda face: face.score)
    if not 0 <= face_index < len(faces):
        return None
    return sorted(faces, key=lambda face: face.box[0] + face.box[2])[face_index]


def _most_overlapping(faces: Sequence[Detection], last: Detection) -> Detection | None:
    nearest = max(faces, key=lambda face: _overlap(face, last), default=None)
    return nearest if nearest is not None and _overlap(nearest, last) >= MIN_OVERLAP else None


def _overlap(a: Detection, b: Detection) -> float:
    """Intersection over union of the boxes."""
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    common = max(width, 0) * max(height, 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a.box, b.box)]
    return common / (sum(areas) - common)
