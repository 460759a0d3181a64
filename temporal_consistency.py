"""Smoothing that takes flicker out of generated crops, and how steady a result is compared with the video it is from.

`FlickerMeter` sees brightness and texture that come and go from frame to frame, `WarpErrorMeter` what optical flow does
not explain. Both are fed frame by frame and hold at most five frames, shrunk so that the face is FACE_SIDE px or less.
"""

from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from guided_diffusion.errors import InputError
from guided_diffusion.gaussian_diffusion import GaussianDiffusion, X0Fn
from guided_diffusion.lip_util import mouth_area, near_lips
from guided_diffusion.sampling import SampleBatch
from guided_diffusion.streams import Box, Face, Item, Stage, in_windows
from guided_diffusion.tfg_data_util import enlarging, inside_frame, lower_half_mask

# -------------------------------------------------------------------------------------------------- head movement

FACE_SIDE = 256
"""px, the longest side of a box that is looked at; larger frames are shrunk, for the meters by one factor per shot."""

MAX_POINTS = 200
MIN_SPACING = 7  # px between corners; closer, the tracker's 21 px windows share so much that noise moves as one
MIN_POINTS = 14  # with 10, noise passed the gates now and then (3 of 100 pictures); real faces give 20-60 at the median
MAX_ROUND_TRIP = 0.5  # px, forward and backward
RANSAC_THRESHOLD = 1.0  # px
MIN_INLIERS = 0.5
MAX_MEDIAN_RESIDUAL = 0.75  # px

MIN_FLOW_SIDE = 16  # px: in smaller pictures OpenCV 5.0's DIS gives NaN, raises, or ends the process (tried: 8 to 15)

FLICKER_FILTER = np.array([1, -4, 6, -4, 1], dtype=np.float32) / 16


def head_motion(previous: np.ndarray, current: np.ndarray, box: Box) -> np.ndarray | None:
    """The head's movement between two frames, seen on the upper face: the mouth below moves to its own words.

    Corners in the upper half of the box (Shi & Tomasi 1994), tracked there and back (pyramidal Lucas-Kanade, Bouguet
    2001; forward-backward error, Kalal 2010), then a similarity fitted with RANSAC. Faces larger than FACE_SIDE are
    looked at that small.

    :param previous: RGB uint8 [H, W, 3].
    :param current: the next frame, RGB uint8 [H, W, 3].
    :param box: the face in the previous frame; of one that reaches beyond the frame, what is inside counts.
    :return: float32 [2, 3], from pixels (x, y) of the previous frame to pixels of the current one; None when the frames
        do not tell: too few corners return to within MAX_ROUND_TRIP, less than MIN_INLIERS of these agree on a
        movement, or their median distance from it reaches MAX_MEDIAN_RESIDUAL.
    """
    y1, y2, x1, x2 = box
    height, width = y2 - y1, x2 - x1
    rows, columns = inside_frame((y1, y1 + height // 2, x1, x2), previous.shape)[0]
    is_visible = rows.start < rows.stop and columns.start < columns.stop
    if previous.shape != current.shape or min(height, width) < 2 or not is_visible:
        return None
    # half a box around the upper face: as far as a head may move
    around = inside_frame((y1 - height // 2, y2, x1 - width // 2, x2 + width // 2), previous.shape)[0]
    top, left = (side.start for side in around)
    before, after = (cv2.cvtColor(frame[around], cv2.COLOR_RGB2GRAY) for frame in (previous, current))
    upper = np.zeros_like(before)
    upper[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = 255
    scale = min(1, FACE_SIDE / max(height, width))
    if scale < 1:  # the px below are meant for faces of that size; and it is faster
        before, after, upper = (
            cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            for picture in (before, after, upper)
        )
    corners = cv2.goodFeaturesToTrack(before, MAX_POINTS, qualityLevel=0.01, minDistance=MIN_SPACING, mask=upper)
    if corners is None:
        return None
    corners = corners.reshape(-1, 1, 2)
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, np.empty_like(corners))
    returned, found_again, _ = cv2.calcOpticalFlowPyrLK(after, before, moved, np.empty_like(corners))
    round_trip = np.linalg.norm(returned - corners, axis=-1)
    kept = ((found == 1) & (found_again == 1) & (round_trip < MAX_ROUND_TRIP)).ravel()
    if kept.sum() < MIN_POINTS:
        return None
    start, end = (points[kept].reshape(-1, 2) for points in (corners, moved))
    motion, inliers = cv2.estimateAffinePartial2D(start, end, method=cv2.RANSAC, ransacReprojThreshold=RANSAC_THRESHOLD)
    if motion is None or inliers.mean() < MIN_INLIERS:
        return None
    residual = np.linalg.norm(start @ motion[:, :2].T + motion[:, 2] - end, axis=1)
    if np.median(residual) >= MAX_MEDIAN_RESIDUAL:
        return None
    # pixel (x, y) of the frame is (x + 0.5 - left) * scale - 0.5 of the picture
    to_picture = np.array([[scale, 0, scale * (0.5 - left) - 0.5], [0, scale, scale * (0.5 - top) - 0.5], [0, 0, 1]])
    in_frame = np.linalg.inv(to_picture) @ np.vstack([motion, [0, 0, 1]]) @ to_picture
    return in_frame[:2].astype(np.float32)


# ------------------------------------------------------------------------------------------------------ smoothing

SMOOTHING_REACH = 2
"""Frames on either side that smoothing looks at."""

CHANGE = 10 / 255
"""Of full scale: where a neighbourhood has changed by this much, a neighbour's weight is 1/e of its full one."""

GAIN_CHANGE = 20 / 255
"""The same for what a pixel says of the brightness of the whole."""

NEIGHBOURHOOD = 0.04
"""Of the crop's width: the standard deviation of the Gaussian over which a change is averaged."""

DARKEST = 0.02  # of full scale: below it ratios are noise


class TemporalSmoother:
    """Smooths frames as they come, each towards what it made of the last one.

    `smoothing_stage` follows the head and looks forward too, so that nothing lags; this is for frames that do not move,
    without a look ahead. The arithmetic is the same.

    :param smoothing_factor: 0 (nothing changes) to below 1, the share of the last frame where nothing moves.
    """

    def __init__(self, smoothing_factor: float) -> None:
        self.smoothing_factor = smoothing_factor
        self._last: np.ndarray | None = None

    def smooth_transition(self, current_frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The next frame, smoothed.

        :param current_frame: RGB float32 [h, w, 3] in [0, 1]; one of another size than the last begins anew.
        :param mask: float32 [h, w] in [0, 1], how much of the frame may change.
        :return: the same shape, dtype and range.
        """
        if self._last is None or self._last.shape != current_frame.shape:
            self._last = current_frame
        else:
            weight = self.smoothing_factor / (1 - self.smoothing_factor)
            last = _Neighbour(self._last, np.ones(mask.shape, bool), weight)
            self._last = _smoothed(current_frame, [last], mask)
        return self._last


def smoothing_stage(smoothing_factor: float, face_hide_percentage: float) -> Stage:
    """Takes flicker out of the generated parts of crops: see `smooth`."""
    return in_windows(
        partial(smooth, smoothing_factor=smoothing_factor, face_hide_percentage=face_hide_percentage), SMOOTHING_REACH
    )


def smooth(window: Sequence[Item], place: int, smoothing_factor: float, face_hide_percentage: float) -> Item:
    """For `in_windows`: the item with its crop's generated part smoothed over time, the rest as it is.

    The neighbours are moved as the head moves, and count for smoothing_factor^|distance in frames|: what a recursive
    smoother does forwards and then backwards, without its lag. The window ends where the head's movement is unknown.
    """
    item = window[place]
    assert item.crop is not None
    height, width = item.crop.shape[:2]
    mask = lower_half_mask(1, height, width, face_hide_percentage)[0, 0].numpy()
    neighbours = list(_neighbours(window, place, mask, smoothing_factor))
    return replace(item, crop=_smoothed(item.crop, neighbours, mask)) if neighbours else item


class _Neighbour(NamedTuple):
    """A picture that another one is smoothed towards."""

    picture: np.ndarray
    """RGB float32 [h, w, 3] in [0, 1], of the other's size."""
    is_shown: np.ndarray
    """bool [h, w], where it shows the same part of the face: generated as well, or known as well."""
    weight: float
    """The other's own is 1."""


def _neighbours(window: Sequence[Item], place: int, mask: np.ndarray, smoothing_factor: float) -> Iterator[_Neighbour]:
    """The neighbours' crops as the head at `place` shows them."""
    size = mask.shape[::-1]
    part = 1 + mask.astype(np.uint8)  # 0 is outside
    to_frame = _crop_to_frame(window[place])
    for step in (-1, 1):
        motion = np.eye(3)
        last = place
        while 0 <= (at := last + step) < len(window):
            face, crop = window[max(last, at)].face, window[at].crop
            if face is None or face.motion is None or crop is None or crop.shape[:2] != mask.shape:
                break
            link = np.vstack([face.motion, [0, 0, 1]])
            motion = (link if step > 0 else np.linalg.inv(link)) @ motion
            to_neighbour = (np.linalg.inv(_crop_to_frame(window[at])) @ motion @ to_frame)[:2]
            picture = cv2.warpAffine(
                crop, to_neighbour, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
            )
            its_part = cv2.warpAffine(part, to_neighbour, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
            yield _Neighbour(picture, its_part == part, smoothing_factor ** abs(at - place))
            last = at


def _crop_to_frame(item: Item) -> np.ndarray:
    """float64 [3, 3], from pixels (x, y) of a crop to the frame's, as the paste enlarges it."""
    assert item.face is not None
    assert item.crop is not None
    y1, y2, x1, x2 = item.face.box
    return np.asarray(item.face.crop_to_frame @ enlarging(item.crop.shape, (y2 - y1, x2 - x1)))


def _smoothed(current: np.ndarray, neighbours: Sequence[_Neighbour], mask: np.ndarray) -> np.ndarray:
    """The weighted mean of a picture and its neighbours in time, of each only where it has hardly changed.

    Brightness and texture go apart. The gain of what is masked towards each neighbour, less that of the rest, which is
    as it was filmed, is what generating it did; their mean is given to the whole, with the roots of the weights: a
    gain cannot smear. Of texture, a neighbour at the picture's own brightness counts for exp(-(change / CHANGE)^2), the
    robust weight of Perona & Malik (1990), of the rms change around a pixel: flicker goes, movement stays.

    :param current: RGB float32 [h, w, 3] in [0, 1].
    :param mask: float32 [h, w] in [0, 1], how much of it may change.
    :return: the same shape, dtype and range.
    """
    luma = cv2.cvtColor(current, cv2.COLOR_RGB2GRAY)
    log_luma = np.log(np.maximum(luma, DARKEST))
    sigma = NEIGHBOURHOOD * current.shape[1]
    total = np.ones_like(luma)
    towards = np.zeros_like(current)
    log_gain, gain_weights = 0.0, 1.0
    for picture, is_shown, weight in neighbours:
        its_luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        trust = is_shown * np.exp(-((cv2.GaussianBlur(its_luma - luma, (0, 0), sigma) / GAIN_CHANGE) ** 2))
        log_ratio = np.log(np.maximum(its_luma, DARKEST)) - log_luma
        generated, filmed = (_weighted_mean(log_ratio, trust * part) for part in (mask, 1 - mask))
        log_gain += np.sqrt(weight) * (generated - filmed)
        gain_weights += np.sqrt(weight)
        difference = np.float32(np.exp(-generated)) * picture - current
        change = cv2.GaussianBlur(cv2.cvtColor(difference**2, cv2.COLOR_RGB2GRAY), (0, 0), sigma)
        share = weight * np.exp(-change / CHANGE**2) * is_shown
        total += share
        towards += share[..., None] * difference
    smoothed = (current + towards / total[..., None]) * np.float32(np.exp(log_gain / gain_weights))
    return np.where(mask[..., None] > 0, current + mask[..., None] * (smoothed.clip(0, 1) - current), current)


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """0 where hardly a pixel counts."""
    total = float(weights.sum())
    return float((weights * values).sum()) / total if total > 1 else 0.0


# ------------------------------------------------------------------------------------------- guidance by the flow

GUIDED_STEPS = 1
"""Steps that are guided, and so the frames of context that a batch needs."""

DISAGREEMENT = 0.047
"""Of colours in [-1, 1], 6 levels: where the texture differs by this much, its share is 1/e of the full one."""

ALL = 0.999  # of what is interpolated between ones
OUTSIDE = np.array([(0, 0, 2), (0, 0, 2)], dtype=np.float32)  # of every crop


def guided_steps(diffusion: GaussianDiffusion) -> range:
    """The steps at which `flow_guide` acts, counted from 0: the last GUIDED_STEPS.

    What is done earlier, the network takes back: where brightness flickered 1.31 times as much as in the source, it
    does so 0.95 times after guidance at the last of 10 steps, 1.31 at the one before, 1.42 at the one before that
    (docs/benchmarks.md).
    """
    return range(max(0, diffusion.num_timesteps - GUIDED_STEPS), diffusion.num_timesteps)


def flow_guide(batch: SampleBatch, image: Tensor, mask: Tensor, steps: Container[int], weight: float) -> X0Fn:
    """A `sampling.Guide`: at some steps each face's skin is drawn to what the frame before shows of it.

    The x_0 of the row before is warped by the head's movement (`Face.motion`) from its crop to the row's. It is taken
    as the network predicted it, not as it was drawn to its own predecessor: blur does not pile up, and with G steps a
    row depends on no more than G rows before (METHODS: Temporal consistency). Of the difference to it over the skin,

    - the mean, in each colour, less that of the known part in the source: flicker of the brightness, where the light
      stays. The share `weight` of it is taken from all that is generated, which ghosts nothing.
    - the rest d: flicker of the texture, where it is small. The share weight * exp(-(d / DISAGREEMENT)^2), d in the
      mean of the colours, is taken from the skin; what moves stays as it is.

    Skin is what is generated in both frames, without the surroundings of the lips in either. Where the movement is
    unknown, as at cuts and gaps, nothing changes.

    :param image: the source's crops, [N x 3 x h x w] in [-1, 1].
    :param mask: [N x 1 x h x w], 1 where the faces are generated.
    :param steps: counted from 0.
    :param weight: 0 to 1.
    """
    n, _, height, width = mask.shape
    warps = [OUTSIDE, *(_crop_warp(before, face) for before, face in pairwise(batch.faces))]
    grid = affine_grid(torch.from_numpy(np.stack(warps)).to(mask), [n, 3, height, width], align_corners=False)

    def row_before(x: Tensor) -> Tensor:
        return grid_sample(x.roll(1, 0), grid, align_corners=False)  # 0 beyond its crop

    def in_both(region: Tensor) -> Tensor:
        return region * (row_before(region) > ALL)

    mouths = np.stack([mouth_area(face, height, width) for face in batch.faces])
    skin = in_both(mask * ~torch.from_numpy(mouths[:, None]).to(mask.device))
    light = _mean(row_before(image) - image, in_both(1 - mask))
    followed = mask * skin.amax(dim=(2, 3), keepdim=True)

    def x0_fn(step: int, x_0: Tensor) -> Tensor:
        if step not in steps:
            return x_0
        difference = row_before(x_0) - x_0
        brightness = _mean(difference, skin)
        texture = difference - brightness
        is_same = torch.exp(-((texture.mean(dim=1, keepdim=True) / DISAGREEMENT) ** 2))
        return x_0 + weight * (followed * (brightness - light) + skin * is_same * texture)

    return x0_fn


def _mean(x: Tensor, where: Tensor) -> Tensor:
    """[N x C x 1 x 1], over the pixels `where` [N x 1 x h x w] is 1; 0 without any."""
    return (x * where).sum(dim=(2, 3), keepdim=True) / where.sum(dim=(2, 3), keepdim=True).clamp(min=1)


def _crop_warp(before: Face, face: Face) -> np.ndarray:
    """float32 [2, 3] of `affine_grid`: from places (x, y) in a face's crop to the same skin in the crop before, -1 to 1
    from edge to edge in both; OUTSIDE where the movement is unknown."""
    if face.motion is None:
        return OUTSIDE
    to_before = np.linalg.inv(np.vstack([face.motion, [0, 0, 1]]))
    warp = np.linalg.inv(_from_edges(before)) @ to_before @ _from_edges(face)
    return warp[:2].astype(np.float32)


def _from_edges(face: Face) -> np.ndarray:
    """float64 [3, 3], from (x, y) in a crop, -1 to 1 from edge to edge, to frame pixels, whole at their centres."""
    y1, y2, x1, x2 = face.box
    height, width = y2 - y1, x2 - x1
    to_box = np.array([[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2], [0, 0, 1]])
    return np.asarray(face.crop_to_frame @ to_box)


# ------------------------------------------------------------------------------------------------------- measures


@dataclass(frozen=True)
class FlickerScores:
    """What `FlickerMeter` measured; NaN where there was nothing to measure."""

    brightness: float
    """Fast changes of the lower face's mean brightness: 1 as in the source, above 1 flickers, below 1 over-smoothed."""
    texture: float
    """The same for detail: below 1 also when it is blurred away within each frame."""
    n_frames: int
    """Frames measured. A few tens at least make a score."""
    brightness_series: np.ndarray
    """float64 [F], |mean S| of each frame's lower face in the result, in levels of 0..255; NaN where not measured."""
    texture_series: np.ndarray
    """float64 [F], the standard deviation of S there, likewise."""


class FlickerMeter:
    """Flicker of a result's lower face relative to the source's.

    Frames t-2..t+2 are registered onto t by the source's `head_motion`, and S = sum_k h_k I_{t+k} is taken of their
    luma, h = [1, -4, 6, -4, 1] / 16. This fourth difference has a gain of 0.02 at 3 Hz, 0.12 at 5 Hz, and 1 at 12.5 Hz
    (at 25 fps): movements of a mouth (2-7 Hz) and drifts hardly pass, flicker does (METHODS: flicker metrics). With

        brightness = rms over t of mean(S),   texture = rms over t and pixels of S - mean(S),

    over R, the lower half of the box without the lips, each score is that of the result / that of the source.

    METHODS divides either by the same on the upper face, to take out what encoding did to the whole picture. But a
    plain paste changes the upper face too, so that its flicker would be forgiven; and beside the box encoding does not
    do what it does to a face (docs/benchmarks.md). So what it does to the lower face stays in the score.
    """

    def __init__(self) -> None:
        self._window: deque[_Tracked] = deque(maxlen=len(FLICKER_FILTER))
        self._measured: list[np.ndarray] = []  # per frame [source, result; mean S, standard deviation of S]

    def update(self, item: Item) -> None:
        """Take in the next frame, with its picture.

        Two frames next to a cut, to a frame without a face, or to a head movement that cannot be followed are not
        measured; nor is a frame without landmarks itself.

        :raises InputError: the picture's size is not the frame's.
        """
        self._measured.append(np.full((2, 2), np.nan))
        face = item.face
        if face is None or face.is_cut:
            self._window.clear()
        if face is None:
            return
        last = self._window[-1] if self._window else None
        pair = _shrink(item, face.box, last.pair.scale if last else None)
        motion = head_motion(last.pair.source, pair.source, last.pair.box) if last else None
        if motion is None:
            self._window.clear()
        self._window.append(_track(pair, face.landmarks, motion))
        if len(self._window) == self._window.maxlen and (lips := self._window[2].lips) is not None:
            self._measured[-3] = _measure_flicker(list(self._window), lips)

    def scores(self) -> FlickerScores:
        """The scores of all frames so far."""
        measured = np.array(self._measured).reshape(-1, 2, 2)
        seen = measured[~np.isnan(measured).any(axis=(1, 2))]
        source, result = np.sqrt((seen**2).sum(axis=0) / max(len(seen), 1))
        brightness, texture = ratio(result, source)
        return FlickerScores(float(brightness), float(texture), len(seen), *np.abs(measured[:, 1]).T)


@dataclass(frozen=True)
class WarpError:
    """What `WarpErrorMeter` measured; NaN where there was nothing to measure."""

    ratio: float
    """E_warp of the result / E_warp of the source: 1 as steady as the source, above 1 less so, below 1 smoother."""
    n_frames: int
    """Frames measured."""
    series: np.ndarray
    """float64 [F], the result's error from each frame to the next, in squared levels of 0..255; else NaN."""


class WarpErrorMeter:
    """E_warp of a result relative to the source (Lai et al. 2018, Learning Blind Video Temporal Consistency, sec. 4.2).

    E = mean over t of sum M ||warp(I_{t+1}) - I_t||^2 / sum M, over the lower half of the box. The flow (DIS, Kroeger
    2016) and M, 1 where it can be trusted, come from the source for both videos. With the flow w = (u, v) from t to
    t+1 and the flow ŵ back, M leaves out (Sundaram et al. 2010)

        occlusions         |w + ŵ|^2 > 0.01 (|w|^2 + |ŵ|^2) + 0.5
        motion boundaries  |∇u|^2 + |∇v|^2 > 0.01 |w|^2 + 0.002

    It rewards blur, sees little of brightness flicker, and counts lips that move to other words than the source's as
    errors: read it beside `FlickerMeter`.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._last: _Pair | None = None
        self._errors: list[tuple[float, float]] = []  # per frame: source, result

    def update(self, item: Item) -> None:
        """Take in the next frame, with its picture. :raises InputError: as `FlickerMeter.update`."""
        self._errors.append((np.nan, np.nan))
        face = item.face
        last = None if face is None or face.is_cut else self._last
        self._last = None if face is None else _shrink(item, face.box, last.scale if last else None)
        if last is not None and self._last is not None:
            self._errors[-2] = self._measure(last, self._last)

    def _measure(self, before: "_Pair", after: "_Pair") -> tuple[float, float]:
        """E of the source and of the result between two neighbouring frames."""
        y1, y2, x1, x2 = before.box
        margin = (y2 - y1) // 8  # the flow needs surroundings, and pixels come from there
        around = inside_frame((y1 - margin, y2 + margin, x1 - margin, x2 + margin), before.source.shape)[0]
        (top, bottom), (left, right) = ((side.start, side.stop) for side in around)
        if min(bottom - top, right - left) < MIN_FLOW_SIDE:
            return np.nan, np.nan
        grey_before, grey_after = (cv2.cvtColor(pair.source[around], cv2.COLOR_RGB2GRAY) for pair in (before, after))
        no_guess = np.empty(0, dtype=np.float32)
        forward = np.asarray(self._flow.calc(grey_before, grey_after, no_guess))
        backward = _follow(np.asarray(self._flow.calc(grey_after, grey_before, no_guess)), forward)
        trusted = _trusted(forward, backward)
        lower = slice(max(0, (y1 + y2) // 2 - top), max(0, y2 - top)), slice(max(0, x1 - left), max(0, x2 - left))
        videos = ((before.source, after.source), (before.result, after.result))
        source, result = (
            _mean_square((_follow(next_[around].astype(np.float32), forward) - this[around])[lower], trusted[lower])
            for this, next_ in videos
        )
        return source, result

    def scores(self) -> WarpError:
        """The scores of all frames so far."""
        errors = np.array(self._errors).reshape(-1, 2)
        seen = errors[~np.isnan(errors).any(axis=1)]
        source, result = seen.sum(axis=0)
        return WarpError(float(ratio(result, source)), len(seen), errors[:, 1])


@dataclass(frozen=True)
class _Pair:
    """A frame of both videos, shrunk."""

    source: np.ndarray
    result: np.ndarray
    box: Box
    scale: float


@dataclass(frozen=True)
class _Tracked:
    """A pair with what registering and masking it takes."""

    pair: _Pair
    luma: np.ndarray
    """float32 [H, W, 2]: source, result."""
    lips: np.ndarray | None
    """int32 [20, 2], in pixels of the shrunk frame."""
    motion: np.ndarray
    """float64 [3, 3], from the previous frame to this one."""


def _shrink(item: Item, box: Box, scale: float | None) -> _Pair:
    """:param scale: the shot's; None derives it from the box."""
    source, result = item.frame, item.picture
    assert result is not None
    if source.shape != result.shape:
        (height, width), (other_height, other_width) = source.shape[:2], result.shape[:2]
        raise InputError(
            f"frames of {width}x{height} (source) and {other_width}x{other_height} (result): "
            "temporal consistency is measured on videos of equal size"
        )
    y1, y2, x1, x2 = box
    scale = min(1, FACE_SIDE / max(y2 - y1, x2 - x1)) if scale is None else scale
    if scale < 1:
        source, result = (
            cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for frame in (source, result)
        )
    small_box = round(y1 * scale), round(y2 * scale), round(x1 * scale), round(x2 * scale)
    return _Pair(source, result, small_box, scale)


def _track(pair: _Pair, landmarks: np.ndarray | None, motion: np.ndarray | None) -> _Tracked:
    luma = np.dstack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (pair.source, pair.result)])
    lips = None if landmarks is None else np.rint(landmarks[48:68] * pair.scale).astype(np.int32)
    step = np.eye(3) if motion is None else np.vstack([motion, [0, 0, 1]])
    return _Tracked(pair, luma.astype(np.float32), lips, step)


def _measure_flicker(window: list[_Tracked], lips: np.ndarray) -> np.ndarray:
    """[source, result; mean S, standard deviation of S] of the lower face in the middle one of five frames."""
    one_back, two_back = window[2].motion, window[2].motion @ window[1].motion
    one_on, two_on = window[3].motion, window[4].motion @ window[3].motion
    from_middle = [np.linalg.inv(two_back), np.linalg.inv(one_back), np.eye(3), one_on, two_on]
    y1, y2, x1, x2 = window[2].pair.box
    height, width = y2 - y1, x2 - x1
    corner = np.array([[1, 0, x1], [0, 1, y1], [0, 0, 1]])
    second = np.zeros((height, width, 2), dtype=np.float32)
    for weight, frame, motion in zip(FLICKER_FILTER, window, from_middle, strict=True):
        second += weight * cv2.warpAffine(
            frame.luma,
            (motion @ corner)[:2],
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderValue=(np.nan, np.nan),  # pixels that one of the frames does not show drop out
        )
    usable = ~np.isnan(second).any(axis=2) & ~near_lips(lips - np.array([x1, y1], dtype=np.int32), height, width)
    usable[: height // 2] = False
    if not usable.any():
        return np.full((2, 2), np.nan)
    return np.stack([second[usable].mean(axis=0), second[usable].std(axis=0)], axis=1)


def _follow(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """float32 `picture` [H, W, C] looked up where each pixel's flow [H, W, 2] leads; NaN outside."""
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return np.asarray(cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderValue=(np.nan,) * 4))


def _trusted(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """bool [H, W], M of `WarpErrorMeter`; `backward` is already looked up where `forward` leads."""
    length = (forward**2).sum(axis=2)
    gradient = sum((d**2).sum(axis=2) for d in np.gradient(forward, axis=(0, 1)))
    # NaN compares false: what leaves the picture is not trusted
    returns = ((forward + backward) ** 2).sum(axis=2) <= 0.01 * (length + (backward**2).sum(axis=2)) + 0.5
    return returns & (gradient <= 0.01 * length + 0.002)


def _mean_square(difference: np.ndarray, where: np.ndarray) -> float:
    """Mean over channels and the pixels `where`, NaN without any."""
    return float((difference[where] ** 2).mean()) if where.any() else np.nan


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Their quotient, NaN for a denominator of zero (a still picture)."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
