"""How well a composite fits into its frame: measures of single frames, and a meter of them all."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np
import skimage.color
from skimage.metrics import structural_similarity

from face_detection.lip_metrics import landmark_distance, mouth_opening
from guided_diffusion.color_util import to_lab
from guided_diffusion.lip_util import LIP
from guided_diffusion.seam_util import box_contour, mask_contour, seam_ratio
from guided_diffusion.streams import Box, Face, Item
from guided_diffusion.tfg_data_util import Slices, inside_frame, to_float
from post_processing import generated_skin
from temporal_consistency import FlickerMeter, WarpErrorMeter, ratio


def ring_delta_e(frame: np.ndarray, box: Box) -> float:
    """Difference of colour between two rings, 4 to 8 pixels inside and outside the box's contour.

    The CIEDE2000 difference of the rings' mean Lab colours (METHODS: Seams and blending). A face differs from what is
    around it: what the paste adds is the excess over the same on the source frame. A cast that makes the two more
    alike lowers it, so judge by the excess's size and its deviation over time.

    :param frame: RGB uint8 [H, W, 3].
    :param box: (y1, y2, x1, x2), half open, in frame pixels.
    :return: 0 for equal colours, about 1 where a difference becomes visible; NaN when a ring has no pixel: the box
        is under 10 pixels wide or high, or everything around it is outside the frame.
    """
    inner = _filled(frame, box, -4) & ~_filled(frame, box, -8)
    outer = _filled(frame, box, 8) & ~_filled(frame, box, 4)
    if not inner.any() or not outer.any():
        return float("nan")
    means = (skimage.color.rgb2lab(frame[ring]).mean(axis=0) for ring in (inner, outer))
    return float(skimage.color.deltaE_ciede2000(*means))


def _filled(frame: np.ndarray, box: Box, growth: int) -> np.ndarray:
    """bool [H, W], True in the box grown by that many pixels on each side."""
    y1, y2, x1, x2 = box
    filled = np.zeros(frame.shape[:2], dtype=bool)
    filled[max(0, y1 - growth) : max(0, y2 + growth), max(0, x1 - growth) : max(0, x2 + growth)] = True
    return filled


def skin_difference(
    source: np.ndarray, result: np.ndarray, face: Face, face_hide_percentage: float
) -> dict[str, float]:
    """How the colours of the lower face's skin differ from the source's, at the same pixels; nothing without skin.

    skin_delta_e is the CIEDE2000 difference of the mean colours. skin_histogram is the distance of the histograms
    (Wasserstein's first, in L, a, b, their mean): it sees contrast and shades too. skin_l, skin_a and skin_b are the
    difference of the means. A jaw that moves to other words changes the shades: about 1 is usual.
    """
    in_frame, in_box = inside_frame(face.box, source.shape)
    y1, y2, x1, x2 = face.box
    skin = generated_skin(face, y2 - y1, x2 - x1, face_hide_percentage)[in_box]
    if not skin.any():
        return {}
    theirs, own = (to_lab(to_float(frame[in_frame][skin])[None])[0] for frame in (source, result))
    mean, own_mean = theirs.mean(axis=0), own.mean(axis=0)
    difference = dict(zip(("skin_l", "skin_a", "skin_b"), map(float, own_mean - mean), strict=True))
    distance = np.abs(np.sort(own, axis=0) - np.sort(theirs, axis=0)).mean()
    delta_e = skimage.color.deltaE_ciede2000(mean, own_mean)
    return {"skin_delta_e": float(delta_e), "skin_histogram": float(distance), **difference}


def lip_sharpness(frame: np.ndarray, lip_landmarks: np.ndarray) -> float:
    """Sharpness of the lips: the variance of the luma's Laplacian in their bounding box (Pech-Pacheco et al., 2000).

    It grows with contrast, noise and the size of the picture: divide by the same on the source frame.

    :param frame: RGB uint8 [H, W, 3].
    :param lip_landmarks: float [20, 2], (x, y) in frame pixels.
    :return: squared levels; NaN when the lips are outside the frame, or not known (NaN).
    """
    if not np.isfinite(lip_landmarks).all():
        return float("nan")
    x1, y1 = np.maximum(np.floor(lip_landmarks.min(axis=0)).astype(int), 0)
    x2, y2 = np.maximum(np.floor(lip_landmarks.max(axis=0)).astype(int) + 1, 0)
    luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(luma, cv2.CV_32F)[y1:y2, x1:x2]
    return float(laplacian.var()) if laplacian.size else float("nan")


LIP_MARGIN = 0.25


def compared_regions(face: Face, size: tuple[int, ...]) -> dict[str, Slices]:
    """Rows and columns of what a result is compared with a true picture in: face, lower and lips.

    The face's box, its lower half, and the lips' bounding box grown by LIP_MARGIN of its width on each side. They are
    empty where they are outside a frame of this (height, width, ...); without landmarks there are no lips.
    """
    y1, y2, x1, x2 = face.box
    boxes = {"face": face.box, "lower": ((y1 + y2) // 2, y2, x1, x2)}
    if face.landmarks is not None and np.isfinite(face.landmarks[LIP]).all():
        low, high = face.landmarks[LIP].min(axis=0), face.landmarks[LIP].max(axis=0)
        margin = LIP_MARGIN * (high[0] - low[0])
        (left, top), (right, bottom) = np.floor(low - margin).astype(int), np.ceil(high + margin).astype(int)
        boxes["lips"] = (int(top), int(bottom), int(left), int(right))
    return {name: inside_frame(box, size)[0] for name, box in boxes.items()}


CHROMA_MARGIN = 5
"""Pixels around a changed area that change too when the chroma's resolution is halved and restored (measured)."""


def outside_difference(source: np.ndarray, result: np.ndarray, box: Box) -> int:
    """The largest difference, in levels of any channel, outside the box grown by CHROMA_MARGIN.

    0 when nothing but the box was touched and nothing was encoded, or nothing lies outside. Encoding at a crf above 0
    adds differences of its own everywhere.

    :param source: RGB uint8 [H, W, 3]; `result` likewise, of the same size.
    :param box: (y1, y2, x1, x2), half open, in frame pixels.
    """
    difference = cv2.absdiff(source, result)
    difference[_filled(source, box, CHROMA_MARGIN)] = 0
    return int(difference.max())


MAX_PSNR = 100.0
"""dB, what equal pictures count as."""

MIN_SSIM_SIDE = 7  # px, SSIM's window


def psnr(mean_square: np.ndarray | float) -> np.ndarray:
    """dB for mean square errors in levels of 0..255, MAX_PSNR for equal pictures; NaN stays NaN."""
    with np.errstate(divide="ignore"):
        return np.minimum(MAX_PSNR, 10 * np.log10(255**2 / np.asarray(mean_square)))


class Metric(NamedTuple):
    """A line of a report. `worst`: 1 when a high value in a frame is bad, -1 when a low one is, 0 for neither."""

    group: str
    name: str
    meaning: str
    worst: int = 0


METRICS = (
    Metric("image", "psnr_face", "dB, face box, against the reference; higher is better", -1),
    Metric("image", "psnr_lower", "dB, lower half of the box; higher is better", -1),
    Metric("image", "psnr_lips", "dB, the lips and a quarter of their width around; higher is better", -1),
    Metric("image", "ssim_face", "face box; 1 is equal", -1),
    Metric("image", "ssim_lower", "lower half of the box; 1 is equal", -1),
    Metric("image", "ssim_lips", "the lips' region; 1 is equal", -1),
    Metric("image", "ms_ssim_lips", "the lips' region at three scales; 1 is equal", -1),
    Metric("image", "lpips_face", "perceptual distance, face box; 0 is equal", 1),
    Metric("image", "lpips_lower", "lower half of the box; 0 is equal", 1),
    Metric("image", "lpips_lips", "the lips' region; 0 is equal", 1),
    Metric("seam", "seam_mask", "step at the mask's upper edge / the source's own; 1 is no seam", 1),
    Metric("seam", "seam_box", "step at the box's sides and lower edge / the source's own; 1 is no seam", 1),
    Metric("colour", "delta_e_excess", "ΔE2000 across the box's contour less the source's; 0 is no cast", 1),
    Metric("colour", "delta_e_deviation", "its standard deviation over time; 0 is steady"),
    Metric("colour", "skin_delta_e", "ΔE2000 of the lower face's skin from the source's; 0 is no cast", 1),
    Metric("colour", "skin_drift", "how far that difference strays over time, in Lab; 0 is steady"),
    Metric("colour", "skin_histogram", "distance of the skin's histograms, in Lab; 0 is equal", 1),
    Metric("temporal", "flicker_brightness", "of the lower face / the source's; 1 is as steady, below 1 over-smoothed"),
    Metric("temporal", "flicker_texture", "likewise for detail"),
    Metric("temporal", "warp_error", "what optical flow does not explain / the source's; 1 is as steady", 1),
    Metric("lip-sync", "sync_peak_r", "correlation of mouth opening and sound level at the best lag"),
    Metric("lip-sync", "sync_lag_ms", "that lag; natural speech has -40 to 200"),
    Metric("lip-sync", "sync_r0", "correlation without a lag"),
    Metric("lip-sync", "sync_z", "peak above wrong alignments, in standard deviations"),
    Metric("lip-sync", "truth_r", "correlation of mouth opening and the true one; 1 is equal"),
    Metric("lip-sync", "opening_r", "correlation of mouth opening and that before; 1 moves alike"),
    Metric("lip-sync", "opening_std", "how far the mouth moves / before; 1 is as far"),
    Metric("lip-sync", "lmd", "lip landmarks' distance from the reference / inter-ocular distance; 0 is equal", 1),
    Metric("lip-sync", "lse_c", "SyncNet confidence; higher is better"),
    Metric("lip-sync", "lse_d", "SyncNet distance; lower is better"),
    Metric("sharpness", "lip_sharpness", "of the lips / the source's; 1 is as sharp", -1),
    Metric("untouched", "outside_difference", "largest difference from the source outside the box, in levels", 1),
)
"""All that is known to measure of a result. `QualityMeter` measures what needs pictures alone, scripts/evaluate.py adds
lpips_*, ms_ssim_lips, sync_*, truth_r, opening_* and lse_*."""

REFERENCE_METRICS = ("psnr_face", "psnr_lower", "psnr_lips", "ssim_face", "ssim_lower", "ssim_lips", "lmd")
"""Those of `QualityMeter` that compare the result with the true pictures."""

RATIOS = ("seam_mask", "seam_box", "lip_sharpness")  # of the result over the source

FRAME_MEASURES = (
    "mse_face", "mse_lower", "mse_lips", "ssim_face", "ssim_lower", "ssim_lips", "lmd", "delta_e_excess",
    "outside_difference", "mouth_opening", "skin_delta_e", "skin_histogram", "skin_l", "skin_a", "skin_b",
    *(f"{name}_{of}" for name in RATIOS for of in ("result", "source")),
)  # fmt: skip

FindLandmarks = Callable[[np.ndarray, Box], np.ndarray | None]
"""A frame RGB uint8 [H, W, 3] and the face's box -> float32 [68, 2] in frame pixels, or None."""


def measure_frame(
    item: Item, reference: np.ndarray | None, find_landmarks: FindLandmarks, face_hide_percentage: float
) -> dict[str, float]:
    """The FRAME_MEASURES of one frame by name, NaN where there is nothing to measure; without a reference fewer.

    :param item: with a face, and its picture.
    :param reference: the true picture, RGB uint8 [H, W, 3].
    """
    source, face, result = item.frame, item.face, item.picture
    assert face is not None
    assert result is not None
    box = face.box
    landmarks = find_landmarks(result, box)
    values = {
        "delta_e_excess": ring_delta_e(result, box) - ring_delta_e(source, box),
        "outside_difference": outside_difference(source, result, box),
        "mouth_opening": np.nan if landmarks is None else mouth_opening(landmarks),
        **skin_difference(source, result, face, face_hide_percentage),
    }
    for of, frame in (("result", result), ("source", source)):
        values[f"seam_mask_{of}"] = seam_ratio(frame, mask_contour(box, face_hide_percentage))
        values[f"seam_box_{of}"] = seam_ratio(frame, box_contour(box))
        values[f"lip_sharpness_{of}"] = np.nan if face.landmarks is None else lip_sharpness(frame, face.landmarks[LIP])
    if reference is None:
        return values
    for part, region in compared_regions(face, source.shape).items():
        values[f"mse_{part}"], values[f"ssim_{part}"] = _mse_and_ssim(result[region], reference[region])
    true_landmarks = find_landmarks(reference, box)
    if landmarks is not None and true_landmarks is not None:
        values["lmd"] = landmark_distance(landmarks, true_landmarks)
    return values


def _mse_and_ssim(picture: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """NaN for pictures that are too small."""
    if not picture.size:
        return np.nan, np.nan
    mse = float(np.mean((picture.astype(np.float32) - reference) ** 2))
    if min(picture.shape[:2]) < MIN_SSIM_SIDE:
        return mse, np.nan
    return mse, float(structural_similarity(picture, reference, channel_axis=2))


@dataclass
class QualityScores:
    """What was measured of a result.

    :param metrics: by the names of METRICS.
    :param not_measured: why there is no value, by name.
    :param series: float [F] by name, a value per frame, NaN where there is none. Besides metrics there is
        mouth_opening: the result's (see `face_detection.lip_metrics`).
    :param notes: what was left out, in sentences.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    series: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, reason: str) -> None:
        """Record a value, or why there is none where it is NaN."""
        if np.isfinite(value):
            self.metrics[name] = float(value)
        else:
            self.not_measured[name] = reason


def known_face(item: Item, find_landmarks: FindLandmarks) -> Face | None:
    """The item's face with landmarks, where they can be found; None where its box is outside the frame."""
    face = item.face
    if face is None or not item.frame[inside_frame(face.box, item.frame.shape)[0]].size:
        return None
    return face if face.landmarks is not None else replace(face, landmarks=find_landmarks(item.frame, face.box))


class QualityMeter:
    """What a result's pictures alone tell of its quality, frame by frame: fed in order, it keeps numbers, not frames.

    :param find_landmarks: of the result's and the reference's faces, and of the source's where an item has none.
    :param face_hide_percentage: that the result was made with.
    """

    def __init__(self, find_landmarks: FindLandmarks, face_hide_percentage: float = 0.5) -> None:
        self.find_landmarks = find_landmarks
        self.face_hide_percentage = face_hide_percentage
        self._flicker = FlickerMeter()
        self._warp = WarpErrorMeter()
        self._rows: list[np.ndarray] = []
        self._has_reference = False

    def update(self, item: Item, reference: np.ndarray | None = None) -> None:
        """Take in the next frame.

        :param item: with its picture. A face whose box is outside the frame counts as none.
        :param reference: what the picture should be, of the same size.
        :raises InputError: the picture's size is not the frame's.
        """
        face = known_face(item, self.find_landmarks)
        item = replace(item, face=face)
        self._flicker.update(item)
        self._warp.update(item)
        self._has_reference |= reference is not None
        values = {}
        if face is not None:
            values = measure_frame(item, reference, self.find_landmarks, self.face_hide_percentage)
        self._rows.append(np.array([values.get(name, np.nan) for name in FRAME_MEASURES]))

    def scores(self) -> QualityScores:
        """The scores of all frames so far; REFERENCE_METRICS only if there were references."""
        scores, no_face = QualityScores(), "no frame of it could be measured"
        rows = np.array(self._rows).reshape(-1, len(FRAME_MEASURES))
        measured = dict(zip(FRAME_MEASURES, rows.T, strict=True))
        for name in ("delta_e_excess", "outside_difference", "mouth_opening", "skin_delta_e", "skin_histogram"):
            scores.series[name] = measured[name]
        for name in ("delta_e_excess", "skin_delta_e", "skin_histogram"):
            scores.add(name, _over_time(np.nanmean, measured[name]), no_face)
        strayed = [_over_time(np.nanstd, measured[name]) for name in ("skin_l", "skin_a", "skin_b")]
        scores.add("skin_drift", float(np.linalg.norm(strayed)), no_face)
        scores.add("delta_e_deviation", _over_time(np.nanstd, measured["delta_e_excess"]), no_face)
        scores.add("outside_difference", _over_time(np.nanmax, measured["outside_difference"]), no_face)
        for name in RATIOS:
            result, source = measured[f"{name}_result"], measured[f"{name}_source"]
            scores.series[name] = ratio(result, source)
            # the ratio of the means: a frame whose source shows almost nothing there would rule a mean of ratios
            quotient = ratio(np.array(_over_time(np.nanmean, result)), np.array(_over_time(np.nanmean, source)))
            scores.add(name, float(quotient), no_face)
        if self._has_reference:
            for part in ("face", "lower", "lips"):
                scores.series[f"psnr_{part}"] = psnr(measured[f"mse_{part}"])
                mean_square = _over_time(np.nanmean, measured[f"mse_{part}"])
                scores.add(f"psnr_{part}", float(psnr(mean_square)), no_face)
            for name in ("ssim_face", "ssim_lower", "ssim_lips", "lmd"):
                scores.series[name] = measured[name]
                scores.add(name, _over_time(np.nanmean, measured[name]), no_face)
        self._add_temporal(scores)
        return scores

    def _add_temporal(self, scores: QualityScores) -> None:
        flicker, warp = self._flicker.scores(), self._warp.scores()
        too_short = "no five frames in a row with a face whose movement can be followed"
        scores.add("flicker_brightness", flicker.brightness, too_short)
        scores.add("flicker_texture", flicker.texture, too_short)
        scores.add("warp_error", warp.ratio, "no two frames in a row with a face")
        scores.series["flicker_brightness"] = flicker.brightness_series
        scores.series["flicker_texture"] = flicker.texture_series
        scores.series["warp_error"] = warp.series
        scores.notes.append(
            f"flicker is measured in {flicker.n_frames} of {len(self._rows)} frames: "
            "blinks and quick movements are left out"
        )


def _over_time(statistic: Callable[[np.ndarray], np.floating], values: np.ndarray) -> float:
    """The statistic, one that leaves NaN out, of values per frame; NaN without any."""
    return np.nan if np.isnan(values).all() else float(statistic(values))
