"""Faults of a result: frames that fall out of their shot, and mouths that stand still or go their own way.

A face is measured at the network's own size, the result beside the source. What is measured of a frame is compared with
the running median of its shot, in units of the clip's own scatter: a soft network, or a clip with noise, flags nothing;
a frame that is softer or noisier than its neighbours is flagged.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import maximum_filter1d, median_filter

from .denoise_util import GAUSSIAN, NOISE_FILTER
from .lip_util import (
    LipLandmarks,
    calculate_mouth_opening,
    inter_ocular_distance,
    mouth_area,
    mouth_width,
    opening_correlation,
)
from .sampling import SampleBatch
from .seam_util import box_contour, mask_contour, seam_ratio
from .streams import Box, Face, Item
from .tfg_data_util import face_crop, inside_frame, resize_crop

# ------------------------------------------------------------------------------------------------ measures of a face

LEAST = 0.05
"""Of Lab's L, 0 to 100: added before a logarithm; less is rounding."""

AROUND = 8  # px around a crop: as far as a seam is looked for
DEFAULT_SIZE = 128  # of a crop whose size is unknown
SIDES = 0.15  # of the width, on either side: what is beside a face is background
NOSE = 33  # of the 68 landmarks: its base

COLOUR = ("light", "green_red", "blue_yellow")
FACE_MEASURES = ("detail", "noise", "contrast", "darkness", "redness", "change", *COLOUR)
LIP_MEASURES = ("opening", "lip_width", "lip_x", "lip_y")
CROP_MEASURES = (*FACE_MEASURES, *LIP_MEASURES)
PICTURE_MEASURES = ("seam_mask", "seam_box", "motion", "head_motion")
MEASURES = (*CROP_MEASURES, *PICTURE_MEASURES)


def lab_at(crop: np.ndarray, size: int) -> np.ndarray:
    """A face's crop, RGB uint8 [h, w, 3], as Lab: float32 [size, size, 3], L in [0, 100]."""
    interpolation = cv2.INTER_AREA if min(crop.shape[:2]) > size else cv2.INTER_LINEAR
    small = cv2.resize(crop, (size, size), interpolation=interpolation)
    return np.asarray(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def upright(frame: np.ndarray, face: Face) -> tuple[np.ndarray, Box]:
    """A picture in which the face's crop fills an upright box, and that box: the frame, or of a placed crop what is
    around it, turned with it, which leaves its edges where seams are looked for.

    :param frame: RGB uint8 [H, W, 3].
    """
    if face.placement is None:
        return frame, face.box
    y1, y2, x1, x2 = face.box
    height, width = y2 - y1, x2 - x1
    to_frame = face.placement.astype(np.float64)
    to_frame[:, 2] -= to_frame[:, :2] @ (AROUND, AROUND)
    around = cv2.warpAffine(
        frame, to_frame, (width + 2 * AROUND, height + 2 * AROUND), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return around, (AROUND, AROUND + height, AROUND, AROUND + width)


def measure_face(
    result: np.ndarray, source: np.ndarray, mouth: np.ndarray, face_hide_percentage: float
) -> dict[str, float]:
    """The FACE_MEASURES of a face, NaN where there is nothing to measure.

    :param result: as `lab_at` makes it, float32 [s, s, 3]; `source` likewise.
    :param mouth: bool [s, s], where the mouth is.
    """
    size, side = len(result), round(SIDES * len(result))
    inside = slice(int(size * (1 - face_hide_percentage)) + 1, size - 1), slice(side, size - side)
    lower = np.zeros((size, size), bool)
    lower[inside] = True
    skin, mouth = lower & ~mouth, lower & mouth
    light, cast = result[..., 0], result - source
    (detail, noise), (its_detail, its_noise) = (_texture(face[..., 0], lower, skin) for face in (result, source))
    values = {
        "detail": detail - its_detail,
        "noise": noise - its_noise,
        "contrast": _log(float(light[mouth].std())) if mouth.any() else np.nan,
        "darkness": _mean(light[skin]) - _mean(light[mouth]),
        "redness": _mean(result[..., 1][mouth]) - _mean(result[..., 1][skin]),
        "change": _mean(np.abs(cast[..., 0][mouth])),
    }
    return values | {name: _mean(cast[..., channel][skin]) for channel, name in enumerate(COLOUR)}


def measure_crop(
    shown: np.ndarray, source: np.ndarray, face: Face, lips: np.ndarray | None, size: int, face_hide_percentage: float
) -> dict[str, float]:
    """The CROP_MEASURES of a face.

    :param shown: the result in the face's box, RGB uint8 [h, w, 3]; `source` likewise, of the same size.
    :param lips: the result's, float [20, 2], (x, y) in pixels of `shown`.
    :param size: of the crop as the network made it.
    """
    values = measure_face(lab_at(shown, size), lab_at(source, size), mouth_area(face, size, size), face_hide_percentage)
    return values | measure_lips(lips, face)


def _texture(light: np.ndarray, lower: np.ndarray, skin: np.ndarray) -> tuple[float, float]:
    """Logarithms of how much detail a lower face shows, and of the noise of its skin."""
    light = np.ascontiguousarray(light)
    edges, fine = cv2.Laplacian(light, cv2.CV_32F), cv2.filter2D(light, cv2.CV_32F, NOISE_FILTER)
    return _log(_mean(np.abs(edges[lower]))), _log(_mean(np.abs(fine[skin])))


def measure_lips(lips: np.ndarray | None, face: Face) -> dict[str, float]:
    """The LIP_MEASURES of a generated mouth; NaN where no lips were found.

    Its opening over its width and, in distances of the eyes, its width (a logarithm) and how far its upper lip is from
    the nose. Eyes and nose are the source's; its mouth, which says something else, does not count.

    :param lips: float [20, 2], (x, y) in pixels of the face's box.
    """
    if lips is None:
        return dict.fromkeys(LIP_MEASURES, np.nan)
    y1, y2, x1, x2 = face.box
    nose, eyes = np.array([0.5 * (x2 - x1), 0.6 * (y2 - y1)]), 0.4 * (x2 - x1)
    landmarks = face.crop_landmarks
    if landmarks is not None and np.isfinite(landmarks).all():
        nose, eyes = landmarks[NOSE], max(1.0, inter_ocular_distance(landmarks))
    x, y = (lips[:7].mean(axis=0) - nose) / eyes
    relative_width = np.log(max(mouth_width(lips), 1.0) / eyes)
    return dict(zip(LIP_MEASURES, (calculate_mouth_opening(lips), relative_width, x, y), strict=True))


def _log(value: float) -> float:
    return float(np.log(LEAST + value))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


# ---------------------------------------------------------------------------------------------------- what stands out

WINDOW = 31
"""Frames that the running median is over, 1.2 s at 25 fps: what lasts for less than half of them stands out."""

SCATTER = 4.0
"""A threshold in standard deviations of the clip, as its median absolute deviation tells them."""


class Criterion(NamedTuple):
    """When a measure says that a frame has a fault.

    :param sign: 1 when a high value is bad, -1 a low one, 0 both.
    :param least: away from the running median: below it nothing is a fault, however steady the clip.
    """

    kind: str
    measure: str
    sign: int
    least: float


# tuned on two clips, tried on two others: docs/benchmarks.md
CRITERIA = (
    Criterion("blur", "detail", -1, 0.25),
    Criterion("noise", "noise", 1, 0.35),
    Criterion("seam", "seam_mask", 1, 0.4),
    Criterion("seam", "seam_box", 1, 0.4),
    Criterion("mouth", "contrast", 0, 0.5),
    Criterion("mouth", "darkness", 0, 4.0),
    Criterion("mouth", "redness", 0, 4.0),
    Criterion("mouth", "lip_width", 0, 0.35),
    Criterion("mouth", "lip_x", 0, 0.2),
    Criterion("mouth", "lip_y", 0, 0.2),
)
COLOUR_LEAST = 3.0  # of Lab, where 2.3 are just seen
STEP = 4  # frames on either side of a step of the colour
FLICKER_LEAST = 1.4  # of Lab's L


def frame_scores(measures: Mapping[str, np.ndarray], shots: Sequence[slice]) -> dict[str, np.ndarray]:
    """How faulty each frame is by the kind of fault, float [F]: 1 is the threshold; 0 beside the shots.

    :param measures: float [F] each, some or all of MEASURES; one that is nowhere known says nothing.
    :param shots: frames that follow each other.
    """
    scores: dict[str, np.ndarray] = {}
    for kind, name, sign, least in CRITERIA:
        if name in measures:
            away = residuals(measures[name][:, None], shots)[:, 0]
            found = excess(np.abs(away) if sign == 0 else sign * away, away, least)
            scores[kind] = np.maximum(scores.get(kind, 0.0), found)
    colours = np.stack([measures[name] for name in COLOUR], axis=1)
    flicker = spikes(colours[:, 0], shots)
    scores["flicker"] = excess(flicker, flicker, FLICKER_LEAST)
    away = np.linalg.norm(residuals(colours, shots), axis=1)
    step = steps(colours, shots)
    colour = np.maximum(excess(away, away, COLOUR_LEAST), excess(step, step, COLOUR_LEAST))
    scores["colour"] = np.where(scores["flicker"] > 1, 0, colour)
    return scores


def residuals(values: np.ndarray, shots: Sequence[slice]) -> np.ndarray:
    """float [F, n] less the running median of the shot; 0 where a value is unknown."""
    rest = np.zeros(values.shape)
    for shot in shots:
        part = np.asarray(values[shot], np.float64)
        known = np.isfinite(part)
        if not known.any():
            continue
        part = np.where(known, part, np.median(part[known.all(axis=1)], axis=0) if known.all(axis=1).any() else 0)
        size = min(WINDOW, len(part) // 2 * 2 + 1)
        rest[shot] = np.where(known, part - median_filter(part, (size, 1), mode="reflect"), 0)
    return rest


def excess(badness: np.ndarray, values: np.ndarray, least: float) -> np.ndarray:
    """The badness float [F] in thresholds: `least`, or SCATTER standard deviations of the values if that is more."""
    middle = np.median(values) if len(values) else 0.0
    scatter = GAUSSIAN * np.median(np.abs(values - middle)) if len(values) else 0.0
    return badness / max(abs(middle) + SCATTER * scatter, least)


def spikes(values: np.ndarray, shots: Sequence[slice]) -> np.ndarray:
    """float [F]: the distance of each of the values float [F] from the one before or after it, whichever is nearer.

    High in a frame that is unlike both; not beside it, and not where something new begins. A shot's first frame is
    compared with the two after it, its last one with the two before.
    """
    found = np.zeros(len(values))
    for shot in shots:
        part = values[shot]
        if len(part) > 2:
            before, after = part - np.r_[part[2], part[:-1]], part - np.r_[part[1:], part[-3]]
            apart = np.minimum(np.abs(before), np.abs(after))
            found[shot] = np.nan_to_num(np.where(before * after > 0, apart, 0))  # a step on the way is none
    return found


def steps(values: np.ndarray, shots: Sequence[slice]) -> np.ndarray:
    """float [F]: how far the means of the STEP values [F, n] before and from a frame on are apart, where that is
    more than in the frames around."""
    found = np.zeros(len(values))
    for shot in shots:
        part = values[shot]
        if len(part) < 2 * STEP:
            continue
        means = sliding_window_view(part, STEP, axis=0).mean(axis=-1)
        apart = np.nan_to_num(np.linalg.norm(means[STEP:] - means[:-STEP], axis=1))
        peaks = apart == maximum_filter1d(apart, 2 * STEP + 1)
        found[shot.start + STEP : shot.stop - STEP + 1] = np.where(peaks, apart, 0)
    return found


# --------------------------------------------------------------------------------------------------------- stretches

FROZEN_SECONDS = 0.3
FROZEN_SHARE = 0.07  # of the changes of the mouth from frame to frame at their 90th percentile
HEAD_SHARE = 0.15  # of the change of the upper face
FROZEN_LEAST = 0.06  # of Lab's L; rounding
SPEECH = 0.1  # of the loudest: quieter is no speech
UNCHANGED = 0.4  # of Lab's L, a level of 255: the mean difference of a mouth that nobody changed
MOST = 10.0  # a score that says "at all"

SYNC_SECONDS = 4.0
SYNC_LAGS = range(-4, 9)  # frames
FOLLOWS = 0.4  # correlation of mouth and sound: clips below do not say what a stretch should be
FOLLOWS_NOT = 0.1


def frozen_scores(
    motion: np.ndarray, head_motion: np.ndarray, envelope: np.ndarray | None, fps: float, shots: Sequence[slice]
) -> np.ndarray:
    """float [F], above 1 where the mouth stands still for FROZEN_SECONDS or longer while somebody speaks.

    Still is what changes by less than FROZEN_SHARE of what it does elsewhere and HEAD_SHARE of the upper face, or not
    at all. Without the sound, a head that moves counts as speech.
    """
    scores = np.zeros(len(motion))
    moving = motion[np.isfinite(motion)]
    if not len(moving):
        return scores
    steady, head = np.full((2, len(motion)), np.inf)
    for shot in shots:  # a frame in which it moves does not end a stretch
        for smooth, values in ((steady, motion), (head, head_motion)):
            smooth[shot] = median_filter(np.nan_to_num(values[shot], nan=np.inf), 5, mode="reflect")
    limit = np.minimum(FROZEN_SHARE * float(np.percentile(moving, 90)), HEAD_SHARE * head)
    limit = np.maximum(limit, FROZEN_LEAST)
    speaks = head > FROZEN_LEAST if envelope is None else is_loud(envelope)
    for first, last in runs(steady < limit, shots):
        still = slice(first, last + 1)
        if last - first + 1 >= FROZEN_SECONDS * fps and np.median(speaks[still]) > 0:
            scores[still] = min(MOST, float((limit[still] / np.maximum(steady[still], limit[still] / MOST)).mean()))
    return scores


def is_loud(envelope: np.ndarray) -> np.ndarray:
    """bool [F], where a sound with this level may be speech."""
    return np.asarray(envelope > SPEECH * np.percentile(envelope, 95))


def unchanged_scores(change: np.ndarray, envelope: np.ndarray | None) -> np.ndarray:
    """float [F], above 1 where the mouth is the source's. While nobody speaks, both may be the same mouth at rest.

    :param change: float [F], of CROP_MEASURES.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.nan_to_num(np.minimum(MOST, UNCHANGED / change))
    return scores if envelope is None else np.where(is_loud(envelope), scores, 0)


def sync_scores(openings: np.ndarray, envelope: np.ndarray, fps: float) -> np.ndarray:
    """float [F], above 1 over stretches of SYNC_SECONDS in which the mouth does not follow the sound.

    Only where it does in the clip as a whole, at one lag: there is no other scale for it.
    """
    scores = np.zeros(len(openings))
    length = round(SYNC_SECONDS * fps)
    known = np.isfinite(openings)
    if known.sum() < 2 * length:
        return scores
    by_lag = {lag: opening_correlation(openings, np.roll(envelope, -lag)) for lag in SYNC_LAGS}
    lag, follows = max(by_lag.items(), key=lambda each: each[1])
    if follows < FOLLOWS:
        return scores
    heard = np.roll(envelope, -lag)
    for start in range(0, len(openings) - length + 1, max(1, length // 4)):
        part = slice(start, start + length)
        if known[part].mean() > 0.5 and envelope[part].std() > 0.3 * envelope.std():
            score = (follows - opening_correlation(openings[part], heard[part])) / (follows - FOLLOWS_NOT)
            scores[part] = np.maximum(scores[part], score)
    return scores


def runs(where: np.ndarray, shots: Sequence[slice], join: int = 0) -> Iterator[tuple[int, int]]:
    """First and last index of each run of True within a shot; runs with up to `join` others between them are one."""
    for shot in shots:
        found = shot.start + np.flatnonzero(where[shot])
        for run in np.split(found, np.flatnonzero(np.diff(found) > join + 1) + 1):
            if len(run):
                yield int(run[0]), int(run[-1])


# --------------------------------------------------------------------------------------------------------- the meter


class Kind(NamedTuple):
    """What a kind of fault is, and what helps against it."""

    meaning: str
    helps: str


KINDS = {
    "blur": Kind("softer than the frames around", "--retry_flagged 2, or more steps: --quality_preset high"),
    "noise": Kind("noisier than the frames around", "--retry_flagged 2, or more steps: --quality_preset high"),
    "seam": Kind("an edge where the generated part ends", "--blur_kernel_size 15, or --landmark_mask True"),
    "colour": Kind("another colour than the frames around", "--retry_flagged 2, or --temporal_smoothing 0.5"),
    "flicker": Kind("brighter or darker for one frame", "--temporal_smoothing 0.5, or --retry_flagged 2"),
    "mouth": Kind("the mouth is missing, or no mouth", "--retry_flagged 2; look at the face in the source there"),
    "frozen": Kind("the mouth stands still though there is speech", "another --sampling_seed; look at the sound there"),
    "sync": Kind("the mouth does not follow the sound", "--denoise_audio deep, or --mouth_gain 6"),
    "unchanged": Kind("the mouth is the source's own", "a larger --face_hide_percentage or --mask_expansion"),
}
"""The kinds of faults."""

JOIN = 2  # frames without a fault between two of a kind that count as one


@dataclass(frozen=True)
class Fault:
    """A fault over some frames.

    :param kind: a key of KINDS.
    :param first: output frame, counted from 0; `last`, which belongs to it, and `worst`, where it shows most, likewise.
    :param seconds: when it begins.
    :param score: at its worst; 1 is the threshold.
    :param helps: what helps.
    """

    kind: str
    first: int
    last: int
    worst: int
    seconds: float
    score: float
    helps: str


class FaultMeter:
    """Looks for faults in a result, frame by frame: fed in order, it keeps numbers, and the face of the last frame.

    :param fps: of the result.
    :param envelope: float [F], the sound's level at its frames (`audio.rms_envelope`); None: nothing is said of sound.
    :param lip_landmarks: finds the lips where an item has none; None: mouths are judged without.
    :param face_hide_percentage: that the result was made with.
    """

    def __init__(
        self,
        fps: Fraction | float,
        envelope: np.ndarray | None = None,
        lip_landmarks: LipLandmarks | None = None,
        face_hide_percentage: float = 0.5,
    ) -> None:
        self.fps = float(fps)
        self.envelope = envelope
        self.lip_landmarks = lip_landmarks
        self.face_hide_percentage = face_hide_percentage
        self._rows: list[np.ndarray] = []
        self._shots: list[slice] = []  # frames with a face that follow each other
        self._last: np.ndarray | None = None

    def update(self, item: Item) -> None:
        """Take in the next frame, with its picture. A face whose box is outside the frame counts as none."""
        face, index = item.face, len(self._rows)
        values: dict[str, float] = {}
        if face is None or item.crop is None or not item.frame[inside_frame(face.box, item.frame.shape)[0]].size:
            self._last = None
        else:
            if self._last is None or face.is_cut:
                self._shots.append(slice(index, index))
                self._last = None
            self._shots[-1] = slice(self._shots[-1].start, index + 1)
            values = self._measure(item, face)
        self._rows.append(np.array([values.get(name, np.nan) for name in MEASURES], np.float32))

    def _measure(self, item: Item, face: Face) -> dict[str, float]:
        assert item.picture is not None
        size = item.crop_size or DEFAULT_SIZE
        shown, source = (face_crop(frame, face) for frame in (item.picture, item.frame))
        lips = item.lips
        if lips is None and self.lip_landmarks is not None:
            lips = self.lip_landmarks([shown])[0]
        values = measure_crop(shown, source, face, lips, size, self.face_hide_percentage)
        (picture, box), (frame, _) = (upright(picture, face) for picture in (item.picture, item.frame))
        contours = {"seam_mask": mask_contour(box, self.face_hide_percentage), "seam_box": box_contour(box)}
        for name, contour in contours.items():
            values[name] = float(np.log(seam_ratio(picture, contour) / seam_ratio(frame, contour)))
        light = lab_at(shown, size)[..., 0]
        if self._last is not None and self._last.shape == light.shape:
            moved = np.abs(light - self._last)
            values["motion"] = _mean(moved[mouth_area(face, size, size)])
            values["head_motion"] = _mean(moved[: size // 2])
        self._last = light
        return values

    @property
    def openings(self) -> np.ndarray:
        """float [F], the result's mouth opening over its width; NaN where it is not known."""
        return self._measured()["opening"]

    def _measured(self, start: int = 0) -> dict[str, np.ndarray]:
        rows = np.array(self._rows[start:], np.float64).reshape(-1, len(MEASURES))
        return dict(zip(MEASURES, rows.T, strict=True))

    def scores(self, last: int | None = None) -> dict[str, np.ndarray]:
        """How faulty each frame is so far by the KINDS of faults, float [F]; above 1 it is.

        :param last: so many of the last frames only, as if there were no others: it takes no longer for a long result.
        """
        n = len(self._rows)
        start = 0 if last is None else max(0, n - last)
        measured = self._measured(start)
        shots = [slice(max(0, shot.start - start), shot.stop - start) for shot in self._shots if shot.stop > start]
        scores = frame_scores(measured, shots)
        envelope = None
        if self.envelope is not None:
            envelope = self.envelope[start:n]
            envelope = np.pad(envelope, (0, n - start - len(envelope)))
            scores["sync"] = sync_scores(measured["opening"], envelope, self.fps)
        scores["frozen"] = frozen_scores(measured["motion"], measured["head_motion"], envelope, self.fps, shots)
        scores["unchanged"] = unchanged_scores(measured["change"], envelope)
        return scores

    def faults(self) -> list[Fault]:
        """The faults of all frames so far, by their first frames."""
        found = [
            self._fault(kind, first, last, scores)
            for kind, scores in self.scores().items()
            for first, last in runs(scores > 1, self._shots, JOIN)
        ]
        return sorted(found, key=lambda fault: (fault.first, fault.kind))

    def _fault(self, kind: str, first: int, last: int, scores: np.ndarray) -> Fault:
        worst = first + int(np.argmax(scores[first : last + 1]))
        return Fault(kind, first, last, worst, first / self.fps, float(scores[worst]), KINDS[kind].helps)


# --------------------------------------------------------------------------------------------------------- the judge


@dataclass(frozen=True)
class CropJudge:
    """A `sampling.Judge`: what `FaultMeter` says of frames by themselves and beside their neighbours, of bare crops.

    :param lip_landmarks: finds the generated lips; None: mouths are judged without.
    """

    lip_landmarks: LipLandmarks | None
    face_hide_percentage: float

    def measures(self, batch: SampleBatch, crops: np.ndarray) -> np.ndarray:
        """The CROP_MEASURES of N crops uint8 [N, h, w, 3] of a batch, float [N, n]."""
        shown = [resize_crop(crop, *source.shape[:2]) for crop, source in zip(crops, batch.crops, strict=True)]
        lips = [None] * len(shown) if self.lip_landmarks is None else self.lip_landmarks(shown)
        rows = [
            measure_crop(crop, source, face, its_lips, len(crops[0]), self.face_hide_percentage)
            for crop, source, face, its_lips in zip(shown, batch.crops, batch.faces, lips, strict=True)
        ]
        return np.array([[row[name] for name in CROP_MEASURES] for row in rows])

    def scores(self, measures: np.ndarray) -> np.ndarray:
        """The worst score of each frame, float [N], of measures float [N, n] of frames in a row."""
        by_kind = frame_scores(dict(zip(CROP_MEASURES, measures.T, strict=True)), [slice(0, len(measures))])
        return np.max(list(by_kind.values()), axis=0)
