"""What happens to a generated crop on its way into the frame."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np

from guided_diffusion.color_util import find_cast, mean_cast, to_lab, without_cast
from guided_diffusion.denoise_util import NOISE_RADIUS, noise_level, without_noise
from guided_diffusion.lip_util import LIP, LipLandmarks, calculate_mouth_opening, mouth_area, mouth_width
from guided_diffusion.streams import Box, Face, Item, Stage, in_batches, in_windows
from guided_diffusion.tfg_data_util import (
    create_gradient_mask,
    crop_in_frame,
    face_crop,
    inside_frame,
    resize_crop,
    to_float,
    to_levels,
)

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
