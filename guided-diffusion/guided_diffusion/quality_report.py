"""`--quality_report F.html`: is this shot fit to be used? A page and a JSON file beside it, made as the run goes.

Nothing is decoded twice: `QualityReport` is a meter that sees each finished frame. It keeps some numbers per frame, and
a bounded number of small pictures. Nothing that goes wrong in it costs the result: it is said, and the run goes on.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from audio.audio import load_speech, rms_envelope
from audio.hparams import DEFAULT
from face_detection.api import FaceAlignment
from face_detection.lip_metrics import sync_correlation

from .errors import InputError
from .faults import Fault, FaultMeter
from .jobs import Job, report_path
from .logger import peak_memory, versions
from .options import Options
from .report_page import Assessment, Picture, page
from .store import replace_when_complete
from .streams import Item
from .tfg_data_util import crop_box, inside_frame
from .video_util import VideoSource, timecode

ALMOST = 0.7  # of the threshold, which what comes after may still lower
LOOK_EVERY = 48  # frames: then the worst of those that have neighbours on both sides are kept
NEIGHBOURS = 16  # frames on either side with which a frame is compared
TAIL = 2000  # last frames that are scored on the way: scoring all each time would take ever longer
MOST_WORST, MOST_CLOSEUPS = 12, 6  # pictures
PICTURE_WIDTH, JPEG_QUALITY = 320, 85  # px, of each of a pair
FACE = (-0.1, 1.15, -0.15, 1.15)  # top, bottom, left, right of what a picture shows, in boxes
MOUTH = (0.55, 1.05, 0.15, 0.85)


class Meter(Protocol):
    """What looks for faults: `faults.FaultMeter`."""

    def update(self, item: Item, /) -> None: ...
    def scores(self, last: int | None = None, /) -> dict[str, np.ndarray]: ...
    def faults(self) -> list[Fault]: ...
    @property
    def openings(self) -> np.ndarray: ...


class QualityReport:
    """The meter of one result. `update` takes each finished frame, in order; `write` says what was found.

    :param path: of the page, *.html.
    :param n_frames: that the result will have.
    :param make_meter: from the sound's level at each frame, float [n_frames] or None, to what looks for faults.
    """

    def __init__(
        self, path: Path, job: Job, options: Options, video: VideoSource, n_frames: int,
        make_meter: Callable[[np.ndarray | None], Meter],
    ) -> None:  # fmt: skip
        self.path, self.job, self.options, self.video, self.n_frames = path, job, options, video, n_frames
        self._make_meter = make_meter
        self._envelope: np.ndarray | None = None
        self._meter: Meter | None = None
        self._has_failed = False
        self._count = self._n_faces = 0
        self._recent: dict[int, bytes] = {}
        self._worst: list[Picture] = []
        self._closeups: list[Picture] = []
        self._changed: list[tuple[float, bool]] = []  # share of the pixels; whether any outside of the box

    def update(self, item: Item) -> None:
        self._guarded(lambda: self._update(item))

    def write(self, said: Mapping[str, Any], checkpoint: str) -> None:
        """Write the page, and the JSON file beside it.

        :param said: what --stats says of the job: faces, ms_per_frame, seconds, sound.
        :param checkpoint: the SHA-256 of the network's file.
        """
        self._guarded(lambda: self._write(said, checkpoint))

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            work()
        except Exception as error:
            self._has_failed = True
            print(f"notice: there will be no quality report: {type(error).__name__}: {error}", file=sys.stderr)

    def _update(self, item: Item) -> None:
        if self._meter is None:
            self._envelope = sound_level(self.job.audio_path, self.n_frames, self.video.fps)
            self._meter = self._make_meter(self._envelope)
        self._meter.update(item)
        if item.face is not None and item.crop is not None:
            self._n_faces += 1
            self._recent[self._count] = pair(item, FACE)
            is_due = self._count * MOST_CLOSEUPS >= len(self._closeups) * self.n_frames
            if is_due and len(self._closeups) < MOST_CLOSEUPS:
                self._closeups.append(Picture(self._count, pair(item, MOUTH)))
                self._changed.append(changed(item))
        self._count += 1
        if self._count % LOOK_EVERY == 0:
            self._keep_worst(self._count - NEIGHBOURS)

    def _keep_worst(self, before: int) -> None:
        """Of the recent pictures from before this frame keep those of the worst faults, or near to one, only."""
        assert self._meter is not None
        scores = self._meter.scores(TAIL)
        for frame in [frame for frame in self._recent if frame < before]:
            jpeg = self._recent.pop(frame)
            its = {kind: float(values[frame - self._count]) for kind, values in scores.items()}
            kind = max(its, key=its.__getitem__)
            if its[kind] > ALMOST:
                self._worst.append(Picture(frame, jpeg, its[kind], kind))
        self._worst = worst_of(self._worst)

    def _write(self, said: Mapping[str, Any], checkpoint: str) -> None:
        if self._meter is None:
            return
        self._keep_worst(self._count)
        envelope = None if self._envelope is None else self._envelope[: self._count]
        scores = self._meter.scores()
        worst = [dataclasses.replace(each, score=float(scores[each.kind][each.frame])) for each in self._worst]
        found = Assessment(
            slate=self._slate(said, checkpoint), fps=float(self.video.fps), n_frames=self._count, n_faces=self._n_faces,
            faults=self._meter.faults(), scores=scores, openings=self._meter.openings, envelope=envelope,
            sync=sync_words(self._meter.openings, envelope, self.video.fps),
            worst=sorted((each for each in worst if each.score > 1), key=lambda each: each.frame),
            closeups=self._closeups, sound=said["sound"],
            settings=changed_settings(self.options), cost=said["ms_per_frame"], seconds=said["seconds"],
            memory=peak_memory(), versions=versions(),
        )  # fmt: skip
        texts = {self.path.with_suffix(".json"): json.dumps(found.as_json(), indent=1), self.path: page(found)}
        for path, text in texts.items():
            with replace_when_complete(path) as part:
                part.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path need not be UTF-8
        print(f"{self.path}: {found.grade}: {'; '.join(found.reasons)}")

    def _slate(self, said: Mapping[str, Any], checkpoint: str) -> dict[str, str]:
        video, options = self.video, self.options
        followed = "the best detected face of each shot" if options.face_index == -1 else f"face {options.face_index}"
        share = 100 * max((share for share, _ in self._changed), default=0)
        outside = "some" if any(is_outside for _, is_outside in self._changed) else "no"
        return {
            "result": self.job.out_path,
            "picture": self.job.video_path,
            "sound": self.job.audio_path,
            "size": f"{video.width} × {video.height} px, {float(video.fps):.5g} frames/s",
            "length": f"{timecode(self._count, video.fps)} ({self._count} frames)",
            "first and last frame": f"00:00:00:00 to {timecode(max(0, self._count - 1), video.fps)}",
            "who speaks": "a fixed part of the picture" if options.is_voxceleb2 else followed,
            "faces": said["faces"],
            "touched": f"up to {share:.1f} % of a picture, {outside} pixels outside of the face's box, "
            f"in {len(self._changed)} frames looked at, before encoding",
            "network": f"{options.model_path}, SHA-256 {checkpoint}",
            "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        }  # fmt: skip


def worst_of(pictures: Sequence[Picture]) -> list[Picture]:
    """At most MOST_WORST of the pictures, worst first: one of neighbours with a fault of the same kind, and of each
    kind as many as of the others where there are as many."""
    kept: list[Picture] = []
    for picture in sorted(pictures, key=lambda each: -each.score):
        if all(each.kind != picture.kind or abs(each.frame - picture.frame) > NEIGHBOURS for each in kept):
            kept.append(picture)
    while len(kept) > MOST_WORST:
        kinds = [picture.kind for picture in kept]
        commonest = max(kinds, key=kinds.count)
        kept.pop(len(kinds) - 1 - kinds[::-1].index(commonest))
    return kept


def pair(item: Item, part: tuple[float, float, float, float]) -> bytes:
    """Source and result side by side, as JPEG. part: (top, bottom, left, right) of them that is shown, in boxes."""
    assert item.face is not None
    assert item.picture is not None
    y1, y2, x1, x2 = item.face.box
    height, width = y2 - y1, x2 - x1
    top, bottom, left, right = part
    box = y1 + round(top * height), y1 + round(bottom * height), x1 + round(left * width), x1 + round(right * width)
    crops = [crop_box(frame, box) for frame in (item.frame, item.picture)]
    size = PICTURE_WIDTH, max(1, round(PICTURE_WIDTH * crops[0].shape[0] / crops[0].shape[1]))
    interpolation = cv2.INTER_AREA if crops[0].shape[1] > PICTURE_WIDTH else cv2.INTER_CUBIC
    both = np.hstack([cv2.resize(crop, size, interpolation=interpolation) for crop in crops])
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(both, cv2.COLOR_RGB2BGR), quality)[1].tobytes()


def changed(item: Item) -> tuple[float, bool]:
    """The share of the frame's pixels that the result changes, and whether any are outside of the face's box."""
    assert item.face is not None
    assert item.picture is not None
    differs = (item.frame != item.picture).any(axis=2)
    share = float(differs.mean())
    differs[inside_frame(item.face.box, item.frame.shape)[0]] = False
    return share, bool(differs.any())


def sound_level(audio_path: str, n_frames: int, fps: Fraction) -> np.ndarray | None:
    """float [n_frames]: the sound's level at the frames (`rms_envelope`); None where it cannot be measured."""
    try:
        return rms_envelope(load_speech(audio_path), DEFAULT.sample_rate, n_frames, fps)
    except InputError as error:
        print(f"notice: the quality report says nothing of lip-sync: {error}", file=sys.stderr)
        return None


def sync_words(openings: np.ndarray, envelope: np.ndarray | None, fps: Fraction) -> str:
    """In words: whether the mouth follows the sound."""
    if envelope is None or not np.isfinite(openings).any():
        return "not measured: the mouth's opening or the sound's level is not known"
    try:
        score = sync_correlation(openings, envelope, fps)
    except InputError as error:
        return f"not measured: {error}"
    when = "after" if score.lag_ms > 0 else "before"
    return (
        f"the opening goes with the sound's level at r = {score.peak_r:.2f}, the sound {abs(score.lag_ms):.0f} ms "
        f"{when} the mouth (in real speech 40 ms before to 200 ms after)"
    )


def changed_settings(options: Options) -> dict[str, str]:
    """The flags that differ from their defaults, as they would be given."""
    fields = dataclasses.fields(options)
    return {f"--{f.name}": str(getattr(options, f.name)) for f in fields if getattr(options, f.name) != f.default}


def open_report(
    job: Job, options: Options, video: VideoSource, n_frames: int, detector: FaceAlignment | None
) -> list[QualityReport]:
    """The one of a job, or none where the options ask for none."""
    path = report_path(job, options)
    if path is None:
        return []
    # other detectors' landmarks are a network's, as long as a frame's sampling on a CPU
    finds_lips = detector is not None and (options.face_detector == "dlib" or options.finds_landmarks)
    lip_landmarks = detector.lip_landmarks if detector is not None and finds_lips else None

    def make_meter(envelope: np.ndarray | None) -> Meter:
        return FaultMeter(video.fps, envelope, lip_landmarks, options.face_hide_percentage)

    return [QualityReport(path, job, options, video, n_frames, make_meter)]
