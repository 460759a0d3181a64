"""The picture of a mouth at rest, for the frames in which nobody speaks: taken from elsewhere in the same shot."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np

from face_detection.lip_metrics import head_similarity, mouth_opening, pose_distances
from face_detection.playback import Playback
from guided_diffusion.lip_util import LIP, inter_ocular_distance, mouth_width
from guided_diffusion.streams import Face
from guided_diffusion.tfg_data_util import create_gradient_mask, resize_crop, visible_box
from post_processing import create_lip_mask

CLOSED = 0.08
"""Opening (`mouth_opening`) below which lips touch or nearly do."""

AS_CLOSED = 0.01
"""Openings that differ by less are the same: the landmarks' noise."""

AROUND_LIPS = 1.6
"""Expansion factor of the lips' mask (`create_lip_mask`): an open mouth that the network painted is covered as well."""

SIGMAS = np.linspace(0.3, 1.5, 13)  # px, of the blurs that are tried

PURSED = 0.2
"""What a mouth that is by 1 (a logarithm) wider or narrower than usual counts like, as a distance of poses: lips are
closed when they are pursed for a p too, which does not look like rest."""

FADE = 8
"""The picture at rest fades in over the edges of the generated part, in at most this fraction of the crop's height
(`create_gradient_mask`)."""


class RestPictures:
    """Lays the picture of a mouth at rest over what was generated for a silent frame.

    The picture is the shot's own (`rest_frames`), aligned at nose and eyes, at the resolution of what it covers and no
    sharper than that. It shows on the mouth, in the generated part, and fades around it: the jaw of another frame would
    be a second one beside the network's. It is not left to the network: real64 reads the opening from the crop's upper
    half or its framing, whatever sound and reference say (docs/benchmarks.md).

    :param playback: its track has landmarks.
    :param shares: float32 [n_output], how far the mouth is at rest in each output frame.
    """

    def __init__(self, playback: Playback, shares: np.ndarray, face_hide_percentage: float) -> None:
        assert playback.track.landmarks is not None  # Options asked for them
        self._landmarks = playback.track.landmarks
        self._shares = shares
        self._face_hide_percentage = face_hide_percentage
        self._frame = lru_cache(maxsize=1)(playback.source_frame)
        self.sources = rest_frames(playback, shares)

    def __call__(self, face: Face, crop: np.ndarray) -> np.ndarray:
        """The crop uint8 [h, w, 3] that was generated for the face, eased into the picture at rest."""
        source = int(self.sources[face.index])
        if source < 0 or face.landmarks is None or face.crop_landmarks is None:
            return crop
        y1, y2, x1, x2 = face.box
        to_face = np.vstack([head_similarity(self._landmarks[source], face.landmarks), (0, 0, 1)])
        to_box = (np.linalg.inv(face.crop_to_frame) @ to_face)[:2]
        rest = cv2.warpAffine(self._frame(source), to_box, (x2 - x1, y2 - y1), borderMode=cv2.BORDER_REPLICATE)
        height, width = crop.shape[:2]
        alpha = create_gradient_mask(1, height, width, self._face_hide_percentage, height // FADE)[0, 0].numpy()
        own, others = face.crop_landmarks[LIP], self._landmarks[source][LIP] @ to_box[:, :2].T + to_box[:, 2]
        mouths = np.stack([own, others]) * (width / (x2 - x1), height / (y2 - y1))
        alpha *= create_lip_mask((height, width), mouths, AROUND_LIPS)
        rest = as_soft_as(resize_crop(rest, height, width), crop, alpha)
        shown = crop + float(self._shares[face.index]) * alpha[..., None] * (rest.astype(np.float32) - crop)
        return np.rint(shown).astype(np.uint8)

    def summary(self) -> str:
        """One line: "silence: 87 frames at rest", and in how many of them the mouth cannot close."""
        sources, counts = np.unique(self.sources[self.sources >= 0], return_counts=True)
        is_open = np.array([mouth_opening(self._landmarks[source]) > CLOSED for source in sources], bool)
        told = [f"{counts.sum()} frames at rest"]
        if is_open.any():
            told.append(f"{counts[is_open].sum()} of them open, as the mouth never closes there")
        return f"silence: {', '.join(told)}"


def as_soft_as(picture: np.ndarray, other: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The picture blurred until it has no more detail than another one: a network paints softer than a camera, and what
    is done to its softness afterwards would be too much for the picture.

    :param picture: RGB uint8 [h, w, 3]; `other` likewise.
    :param weight: float32 [h, w], where the detail counts.
    """

    def detail(image: np.ndarray) -> float:
        light = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        return float((np.abs(cv2.Laplacian(light, cv2.CV_32F)) * weight).sum())

    most = detail(other)
    blurred = picture
    for sigma in SIGMAS:
        if detail(blurred) <= most:
            break
        blurred = cv2.GaussianBlur(picture, (0, 0), sigma)
    return blurred


def rest_frames(playback: Playback, shares: np.ndarray) -> np.ndarray:
    """The source frame that each output frame's mouth rests as: int64 [n_output], -1 where it speaks or there is none.

    It is one for a span of silence within a shot: of the shot's frames with the smallest opening (within AS_CLOSED) the
    one in which the head is turned most alike and the mouth as wide as usual. Interpolated landmarks tell no opening,
    and a face that the frame's edge cuts off is taken only where the shot has no other.
    """
    track, landmarks = playback.track, playback.track.landmarks
    assert landmarks is not None
    chosen = np.full(playback.n_output, -1)
    is_at_rest = shares[: playback.n_output] > 0
    openings = np.array([mouth_opening(face) for face in landmarks])
    openings[track.is_interpolated] = np.nan
    widths = np.log([max(mouth_width(face[LIP]), 1e-6) / inter_ocular_distance(face) for face in landmarks])
    shots = np.cumsum(track.is_cut)
    size = playback.video.height, playback.video.width
    is_whole = np.array([visible_box(box, size) == tuple(box) for box in track.boxes.tolist()], bool)
    edges = {0, playback.n_output, *playback.shot_starts, *np.flatnonzero(np.diff(is_at_rest)) + 1}
    for start, stop in pairwise(sorted(edges)):
        shown = [source for source in map(playback.source, range(start, stop)) if track.has_face[source]]
        if not (is_at_rest[start] and shown):
            continue
        in_shot = np.where(shots == shots[shown[0]], openings, np.nan)
        if np.isfinite(in_shot[is_whole]).any():
            in_shot = np.where(is_whole, in_shot, np.nan)
        closed = np.flatnonzero(in_shot <= np.nanmin(in_shot, initial=np.inf) + AS_CLOSED)
        if len(closed):
            turned = pose_distances(landmarks[closed], landmarks[shown[len(shown) // 2]])
            pursed = np.abs(widths[closed] - np.median(widths[np.isfinite(in_shot)]))
            chosen[start:stop] = closed[np.argmin(turned + PURSED * pursed)]
    return chosen
