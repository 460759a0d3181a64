"""What happens to a generated crop on its way into the frame, and how well the composite fits into it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import skimage.color
from skimage.metrics import structural_similarity

from face_detection.lip_metrics import landmark_distance, mouth_opening
from guided_diffusion.color_util import find_cast, mean_cast, to_lab, without_cast
from guided_diffusion.denoise_util import NOISE_RADIUS, noise_level, without_noise
from guided_diffusion.lip_util import LIP, LipLandmarks, calculate_mouth_opening, mouth_area, mouth_width
from guided_diffusion.seam_util import box_contour, mask_contour, seam_ratio
from guided_diffusion.streams import Box, Face, Item, Stage, in_batches, in_windows
from guided_diffusion.tfg_data_util import (
    Slices,
    create_gradient_mask,
    crop_in_frame,
    face_crop,
    inside_frame,
    resize_crop,
    to_float,
    to_levels,
)
from temporal_consistency import FlickerMeter, WarpErrorMeter, ratio

# ---------------------------------------------------------------------------------------------------------- the paste


Alpha = Callable[[Item, tuple[int, int]], np.ndarray]
"""An item and its box's (height, width) -> how much of the crop shows, float32 [height, width] in [0, 1]."""


def paste_stage(alpha: Alpha | None = None) -> Stage:
    """The last stage: crops come into their frames, whole as upstream, or through `alpha`."""

    def stage(items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            if item.face is None or item.crop is None:
                yield replace(item, picture=item.frame)
                continue
            if alpha is None:
                picture = paste_crop(item.frame, to_levels(item.crop), item.face.box)
            else:
                y1, y2, x1, x2 = item.face.box
                shown = alpha(item, (y2 - y1, x2 - x1))
                crop = crop_in_frame(item.face, to_levels(item.crop), shown, item.frame.shape)
                picture = composite(item.frame, *crop)
            yield replace(item, picture=picture)

    return stage


def at_box(item: Item) -> np.ndarray:
    """The generated crop as it is pasted: uint8 [h, w, 3] at the size of its face's box."""
    assert item.face is not None
    assert item.crop is not None
    y1, y2, x1, x2 = item.face.box
    return resize_crop(to_levels(item.crop), y2 - y1, x2 - x1)


def source_crop(item: Item) -> np.ndarray:
    """What the frame shows of the face, at the size of its crop: RGB float32 [h, w, 3] in [0, 1]."""
    assert item.face is not None
    assert item.crop is not None
    return to_float(resize_crop(face_crop(item.frame, item.face), *item.crop.shape[:2]))


def paste_crop(frame: np.ndarray, crop: np.ndarray, box: Box) -> np.ndarray:
    """A copy of `frame` uint8 [H, W, 3] whose box shows `crop` uint8 [h, w, 3] (as upstream).

    Of a box that reaches beyond the frame, the part inside is pasted.
    """
    result = frame.copy()
    in_frame, in_box = inside_frame(box, frame.shape)
    y1, y2, x1, x2 = box
    result[in_frame] = resize_crop(crop, y2 - y1, x2 - x1)[in_box]
    return result


def composite(frame: np.ndarray, crop: np.ndarray, box: Box, alpha: np.ndarray) -> np.ndarray:
    """A copy of the frame in which the crop shows through alpha, rounded; where alpha is 0 no bit changes.

    :param frame: RGB uint8 [H, W, 3].
    :param crop: RGB uint8 [h, w, 3] at the box's size.
    :param box: the part of it inside the frame is composited.
    :param alpha: float32 [h, w] in [0, 1].
    """
    result = frame.copy()
    in_frame, in_box = inside_frame(box, frame.shape)
    inside, crop, alpha = result[in_frame], crop[in_box], alpha[in_box]
    x, y, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    shown = slice(y, y + height), slice(x, x + width)
    below = inside[shown]
    difference = cv2.subtract(crop[shown], below, dtype=cv2.CV_32F)
    below[:] = np.rint(below + alpha[shown][..., None] * difference)
    return result


def generated_alpha(
    item: Item, size: tuple[int, int], face_hide_percentage: float, blur_kernel_size: int
) -> np.ndarray:
    """The `Alpha` of what the network generated, feathered by `create_gradient_mask` at the box's size.

    :param blur_kernel_size: in pixels of the crop as the network made it; 0 feathers nothing.
    """
    assert item.crop_size is not None
    height, width = size
    kernels = blur_kernel_size * height // item.crop_size, blur_kernel_size * width // item.crop_size
    return create_gradient_mask(1, height, width, face_hide_percentage, kernels)[0, 0].numpy()


# ------------------------------------------------------------------------------------------------------ lip masks

HULL_GROWTH = 0.5
"""Share of the margin around the lips that is fully shown; the rest is the soft edge."""


LEAST_MARGIN = 1e-3  # px: landmarks that failed may give a mouth without any width


def create_lip_mask(face_shape: tuple[int, ...], lip_landmarks: np.ndarray, expansion_factor: float) -> np.ndarray:
    """A soft mask of the mouth, float32 [h, w] in [0, 1].

    1 on the hull of the lips and a little around it, 0 from a margin of (expansion_factor - 1) mouth widths on, and a
    smooth slope of the distance from the hull between the two.

    :param face_shape: (h, w), or more, of the picture that the landmarks belong to.
    :param lip_landmarks: float [..., 20, 2], (x, y) in its pixels: one mouth, or several that are covered together
        with all between them. They may lie outside.
    :param expansion_factor: above 1.
    """
    height, width = face_shape[:2]
    margin = max(LEAST_MARGIN, (expansion_factor - 1) * mouth_width(lip_landmarks))
    points = lip_landmarks.reshape(-1, 2)
    left, top = np.floor(points.min(axis=0) - margin).astype(int)
    right, bottom = np.ceil(points.max(axis=0) + margin).astype(int) + 1
    outside = np.ones((bottom - top, right - left), np.uint8)
    hull = cv2.convexHull((points - (left, top)).astype(np.float32))
    shift = 4  # binary digits after the point
    cv2.fillConvexPoly(outside, np.rint(hull * (1 << shift)).astype(np.int32), 0, shift=shift)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    slope = ((margin - distance) / ((1 - HULL_GROWTH) * margin)).clip(0, 1)
    slope *= slope * (3 - 2 * slope)
    mask = np.zeros((height, width), np.float32)
    y1, y2 = np.clip((top, bottom), 0, height)
    x1, x2 = np.clip((left, right), 0, width)
    mask[y1:y2, x1:x2] = slope[y1 - top : y2 - top, x1 - left : x2 - left]
    return mask


OPEN_GROWTH = 1.5
"""By how many times itself the margin around the lips grows for an opening of 1."""


def adaptive_mask_size(base_expansion: float, mouth_opening: float) -> float:
    """The expansion factor for a mouth: the base for a closed one, a margin that grows with the opening.

    :param base_expansion: at least 1.
    :param mouth_opening: in [0, 1], see `calculate_mouth_opening`.
    """
    return 1 + (base_expansion - 1) * (1 + OPEN_GROWTH * mouth_opening)


def find_lips(items: list[Item], lip_landmarks: LipLandmarks) -> list[Item]:
    """For `in_batches`: the items with the generated lips, as they will be pasted."""
    return [
        replace(item, lips=lips)
        for item, lips in zip(items, lip_landmarks([at_box(item) for item in items]), strict=True)
    ]


REMEMBERED = 2  # frames whose generated lips stay covered
RELEASE = 0.85  # of an opening is left after a frame
LARGEST_OPENING = 0.5  # of a mouth's width; four clips of speech have up to 0.49
LOWERED = np.zeros((20, 1), np.float32)  # by how much of an opening's growth each point goes down: the corners by half
LOWERED[[7, 8, 9, 10, 11, 17, 18, 19]] = 1
LOWERED[[0, 6, 12, 16]] = 0.5
PLAUSIBLE_SIZES = (0.5, 2.0)  # of a generated mouth's width over the source's
PLAUSIBLE_SHIFT = 0.5  # of the source's mouth width, between the mouths' centres without the opening


class LipAlpha:
    """The `Alpha` of the mouth: the source's lips and the generated ones, so that neither an old lip stays visible
    nor a generated one is cut off. It changes without lag and settles slowly: the generated lips of the last REMEMBERED
    frames stay covered (at their place in the box), and an opening is let go by RELEASE a frame. Both are forgotten at
    cuts and gaps.

    :param expansion: margin around the lips, see `create_lip_mask`.
    :param adaptive: the margin grows with the larger of the source's and the generated opening.
    :param generated: what the network generated: nothing else is shown.

    Where an item has no generated lips (see `find_lips`), or none that can be this mouth, the source's lips are taken,
    opened as far as a mouth can.
    """

    def __init__(self, expansion: float, adaptive: bool, generated: Alpha) -> None:
        self.expansion = expansion
        self.adaptive = adaptive
        self.generated = generated
        self._last_index: int | None = None
        self._recent: deque[np.ndarray] = deque(maxlen=1 + REMEMBERED)
        self._opening = 0.0

    def __call__(self, item: Item, size: tuple[int, int]) -> np.ndarray:
        face = item.face
        assert face is not None
        assert face.crop_landmarks is not None  # pass 1 finds them for this mask
        if face.is_cut or self._last_index is None or face.index != self._last_index + 1:
            self._recent.clear()
            self._opening = 0.0
        self._last_index = face.index
        scale = size[::-1]
        source = face.crop_landmarks[LIP].astype(np.float32)
        generated = item.lips
        if generated is None or not _is_same_mouth(generated, source):
            generated = _opened(source)
        self._recent.append(generated / scale)
        opening = max(calculate_mouth_opening(source), calculate_mouth_opening(generated))
        self._opening = max(opening, RELEASE * self._opening)
        expansion = adaptive_mask_size(self.expansion, self._opening) if self.adaptive else self.expansion
        mouths = np.stack([source, *(lips * scale for lips in self._recent)])
        return create_lip_mask(size, mouths, expansion) * self.generated(item, size)


def _is_same_mouth(lips: np.ndarray, source: np.ndarray) -> bool:
    """Whether lips that were found can be those of the source, moved by speech: of its width, upper lip and place."""
    width = mouth_width(source)
    low, high = PLAUSIBLE_SIZES
    shift = np.linalg.norm(lips[:7].mean(axis=0) - source[:7].mean(axis=0))
    return bool(low * width <= mouth_width(lips) <= high * width and shift <= PLAUSIBLE_SHIFT * width)


def _opened(lips: np.ndarray) -> np.ndarray:
    """The lips with the lower one as far down as a mouth opens."""
    across = lips[6] - lips[0]
    down = np.array([-across[1], across[0]])  # its length is the mouth's width
    return lips + max(0.0, LARGEST_OPENING - calculate_mouth_opening(lips)) * LOWERED * down


# ---------------------------------------------------------------------------------------------------------- noise


def denoise_stage(strength: float, face_hide_percentage: float) -> Stage:
    """Takes out the noise that sampling left in what was generated: see `denoise`."""
    return in_batches(partial(denoise, strength=strength, face_hide_percentage=face_hide_percentage), 1)


def denoise(items: list[Item], strength: float, face_hide_percentage: float) -> list[Item]:
    """For `in_batches`: the items, in their crops' generated part less of the noise that their frames do not have.

    A film's own grain stays, as sampling imitates it: only what the generated part has more than the frame counts.

    :param strength: 0 to 1, the share that is taken of what `without_noise` finds to be noise.
    """
    return [replace(item, crop=_denoised(item, strength, face_hide_percentage)) for item in items]


def _denoised(item: Item, strength: float, face_hide_percentage: float) -> np.ndarray:
    crop = item.crop
    assert crop is not None
    top = int(len(crop) * (1 - face_hide_percentage))
    own, sources = (noise_level(picture[top:]) for picture in (crop, source_crop(item)))
    if own <= sources:
        return crop
    result = crop.copy()
    around = max(0, top - 2 * NOISE_RADIUS)  # so that the edge has neighbours above
    clean = without_noise(crop[around:], float(np.sqrt(own**2 - sources**2)))[top - around :]
    result[top:] += strength * (clean - result[top:])
    return result


# --------------------------------------------------------------------------------------------------------- colour

COLOR_REACH = 4
"""Frames on either side whose casts count, by a Gaussian of half this deviation."""

SKIN_EDGE = 0.03  # of the crop's height: the deviation of the Gaussian that softens the skin's edge


def color_stage(color_match: str, face_hide_percentage: float) -> Stage:
    """Gives what was generated the colours of its frame: by a shift for all, by what its parts lack besides ("lab"),
    and by the skin's histogram for the skin ("histogram"); averaged over neighbouring frames of the shot."""
    find = partial(with_cast, with_histogram=color_match == "histogram", face_hide_percentage=face_hide_percentage)
    match = in_windows(partial(match_colors, face_hide_percentage=face_hide_percentage), COLOR_REACH)
    return lambda items: match(in_batches(find, 1)(items))


def beside_mouth(face: Face, height: int, width: int, face_hide_percentage: float) -> np.ndarray:
    """bool [height, width], of a crop of this size: what was generated, but for where lips may be."""
    beside = ~mouth_area(face, height, width)
    beside[: int(height * (1 - face_hide_percentage))] = False
    return beside


def generated_skin(face: Face, height: int, width: int, face_hide_percentage: float) -> np.ndarray:
    """bool [height, width], of a crop of this size: of `beside_mouth` what is within the line of the jaw."""
    return beside_mouth(face, height, width, face_hide_percentage) & within_jaw(face, height, width)


def within_jaw(face: Face, height: int, width: int) -> np.ndarray:
    """bool [height, width], of a crop of this size: inside the line of the jaw; without landmarks everywhere."""
    landmarks = face.crop_landmarks
    if landmarks is None or not np.isfinite(landmarks).all():
        return np.ones((height, width), dtype=bool)
    y1, y2, x1, x2 = face.box
    jaw = landmarks[:17] * (width / (x2 - x1), height / (y2 - y1))
    inside = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(np.rint(jaw).astype(np.int32)), 1)
    return np.asarray(cv2.erode(inside, np.ones((3, 3), np.uint8)) > 0)


def with_cast(items: list[Item], with_histogram: bool, face_hide_percentage: float) -> list[Item]:
    """For `in_batches`: the items with what their crops' colours lack."""
    found = []
    for item in items:
        assert item.face is not None
        assert item.crop is not None
        height, width = item.crop.shape[:2]
        generated = slice(int(height * (1 - face_hide_percentage)), None)
        own, true = (to_lab(picture[generated]) for picture in (item.crop, source_crop(item)))
        beside = beside_mouth(item.face, height, width, face_hide_percentage)
        skin = beside & within_jaw(item.face, height, width)
        found.append(replace(item, cast=find_cast(own, true, skin[generated], beside[generated], with_histogram)))
    return found


def match_colors(window: Sequence[Item], place: int, face_hide_percentage: float) -> Item:
    """For `in_windows`: the item with the mean cast of the window taken out of its crop's generated part, which goes
    from the lips too: a cast lies on all that was generated. The rest of the crop is as it was."""
    item = window[place]
    known = {at - place: near.cast for at, near in enumerate(window) if near.cast is not None}
    if item.crop is None or item.face is None or not known:
        return item
    weights = [float(np.exp(-0.5 * (2 * distance / COLOR_REACH) ** 2)) for distance in known]
    height, width = item.crop.shape[:2]
    skin = generated_skin(item.face, height, width, face_hide_percentage).astype(np.float32)
    crop = item.crop.copy()
    generated = slice(int(height * (1 - face_hide_percentage)), None)
    soft = cv2.GaussianBlur(skin[generated], (0, 0), SKIN_EDGE * height)
    crop[generated] = without_cast(crop[generated], mean_cast([*known.values()], weights), soft)
    return replace(item, crop=crop)


# ----------------------------------------------------------------------------------------------------- sharpening

RADIUS = 0.01  # of the face's width: about a pixel of a network of 128 px, which is what enlarging blurs over
GAIN = 2.0  # at full strength
FLAT = 8 / 255  # a neighbourhood with less contrast is noise and stays as it is, with twice as much it is sharpened
OVERSHOOT = 0.02  # of full scale at full strength, beyond the neighbours


def enhance_lip_detail(generated_face: np.ndarray, sharpening_strength: float) -> np.ndarray:
    """Unsharp masking that makes neither halos nor noise.

    The difference from a Gaussian blur is amplified where there is contrast to sharpen: noise in FLAT regions stays as
    it is. No pixel leaves the range of its neighbours by more than OVERSHOOT * strength: edges become steeper, not
    haloed.

    :param generated_face: RGB float32 [h, w, 3] in [0, 1], of the box's width, with which the radius goes; all of the
        face or a part of its height.
    :param sharpening_strength: 0 (nothing changes) to 1.
    :return: the same shape, dtype and range.
    """
    sigma = RADIUS * generated_face.shape[1]
    radius = max(1, round(2 * sigma))
    neighbours = np.ones((2 * radius + 1,) * 2, np.uint8)
    low: np.ndarray = cv2.erode(generated_face, neighbours)
    high: np.ndarray = cv2.dilate(generated_face, neighbours)
    amount = high - low
    amount *= 1 / FLAT
    amount -= 1
    np.clip(amount, 0, 1, out=amount)
    amount *= GAIN * sharpening_strength
    sharpened = generated_face - cv2.GaussianBlur(generated_face, (2 * radius + 1,) * 2, sigma)
    sharpened *= amount
    sharpened += generated_face
    overshoot = OVERSHOOT * sharpening_strength
    low -= overshoot
    high += overshoot
    np.clip(sharpened, low, high, out=sharpened)
    return np.clip(sharpened, 0, 1, out=sharpened)


def sharpen(crop: np.ndarray, face: Face, sharpening_strength: float, face_hide_percentage: float) -> np.ndarray:
    """For `per_face`: the crop at its box's size, its generated lower part sharpened."""
    y1, y2, x1, x2 = face.box
    sharpened = resize_crop(crop, y2 - y1, x2 - x1)
    top = int((y2 - y1) * (1 - face_hide_percentage))
    sharpened[top:] = enhance_lip_detail(sharpened[top:], sharpening_strength)
    return sharpened


# ------------------------------------------------------------------------------------------ measures of a composite


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
