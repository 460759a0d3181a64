"""A source's frames with their faces, in the order in which a result shows them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from face_detection.tracks import FaceTrack
from guided_diffusion.streams import Item
from guided_diffusion.tfg_data_util import face_crop
from guided_diffusion.video_util import Order, VideoSource, ordered_frames, source_index


class Playback:
    """Which source frame is shown when, and who is in it.

    :param track: of the source's frames.
    :param n_windows: frames that the sound suffices for. The result has so many where the source can give them: in
        another order than "cut", or as a still picture.
    :param is_frozen: the first frame with the face is shown all the time (REFERENCE.md: `sampling_input_type`).
    """

    def __init__(
        self, video: VideoSource, track: FaceTrack, n_windows: int, order: Order = "cut", is_frozen: bool = False
    ) -> None:
        self.video = video
        self.track = track
        self.order = order
        self.is_frozen = is_frozen
        self.n_source = len(track.boxes)
        outlasts = order != "cut" or video.is_image
        self.n_output = n_windows if outlasts else self.n_source

    def source(self, index: int) -> int:
        """The source frame that is shown as output frame `index`."""
        return self._with_face(0) if self.is_frozen else source_index(index, self.n_source, self.order)

    @cached_property
    def shot_starts(self) -> list[int]:
        """The output frames that a shot begins with, but for the first: played backwards, a source's cut comes a frame
        later, and the jump of a loop is one."""
        if self.is_frozen:
            return []
        shown = [self.source(i) for i in range(self.n_output)]
        return [i for i in range(1, self.n_output) if self._is_cut(*sorted(shown[i - 1 : i + 1]))]

    def _is_cut(self, low: int, high: int) -> bool:
        return high - low > 1 or bool(self.track.is_cut[low + 1 : high + 1].any())

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Output frames [start, stop), those that have the face with it."""
        starts = set(self.shot_starts)
        last = self.source(start - 1) if start > 0 else None
        for index, (source, frame) in zip(range(start, stop), self._frames(start, stop), strict=True):
            yield Item(frame, self.track.face(source, index, index in starts, last))
            last = source

    def reference(self, kind: str, seed: int | None) -> np.ndarray | None:
        """The one reference crop of all frames, uint8 [h, w, 3], or None when each frame is its own.

        Parameters as of `reference_source`.
        """
        source = self.reference_source(kind, seed)
        if source is None:
            return None
        face = self.track.face(source, index=0, is_cut=False)
        assert face is not None
        return face_crop(self.source_frame(source), face)

    def reference_source(self, kind: str, seed: int | None) -> int | None:
        """The source frame that the reference crop is from.

        :param kind: "gt", "first_frame" or "random" (REFERENCE.md: `sampling_ref_type`).
        :param seed: of "random".
        """
        if kind == "gt":
            return None
        index = 0
        if kind == "random":  # the seed arrives as a string upstream
            index = random.Random(str(seed)).randint(0, self.n_source - 1)
        return self._with_face(index)

    def shot_start(self, source: int) -> int:
        """The first frame of a source frame's shot."""
        return int(np.flatnonzero(self.track.is_cut[: source + 1]).max(initial=0))

    def _frames(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        if not self.is_frozen:
            return ordered_frames(self.video, self.n_source, stop, self.order, start=start)
        source = self.source(start)
        frame = self.source_frame(source)
        return ((source, frame) for _ in range(start, stop))

    def _with_face(self, source: int) -> int:
        """`source`, or the nearest later (else the nearest earlier) frame that has the face."""
        with_face = np.flatnonzero(self.track.has_face)
        later = with_face[with_face >= source]
        return int(later[0] if len(later) else with_face[-1])

    def source_frame(self, source: int) -> np.ndarray:
        """RGB uint8 [H, W, 3], read anew."""
        return next(iter(self.video.frames(start=source, stop=source + 1)))
