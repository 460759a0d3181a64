"""Builds talking-head clips with known truth: `python scripts/make_sample.py samples` makes the project's own sample.

The face is NASA's portrait of Eileen Collins (public domain, `skimage.data.astronaut`), the speech is espeak-ng's
(Debian: apt-get install espeak-ng). The phonemes' times drive a mouth: the face is warped by thin-plate splines, a
cavity with tongue and teeth lies behind the lips, the head sways, the eyes blink. How far the mouth is open is known
exactly in every frame. `--training DIR --minutes M` makes clips of many sentences, voices, poses and lights instead.
"""

import argparse
import ctypes
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import soundfile
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

import _path  # noqa: F401
from face_detection.api import FaceAlignment
from face_detection.lip_metrics import mouth_opening
from guided_diffusion.errors import InputError
from guided_diffusion.store import replace_when_complete
from guided_diffusion.video_util import VideoWriter

FPS = 25
SAMPLE_TEXT = "Good morning. My name is Pam, and I fly to the moon. We have blue water, warm bread and a good view."
SPEECH_TEXT = "Five brave women open a window above the farm. Please remember what my father told you about both boats."
SAMPLE_VOICE, SPEECH_VOICE = "en-us+f2", "en+Andrea"

# ----------------------------------------------------------------------------------------------------------- speech


class Phoneme(NamedTuple):
    """An espeak-ng mnemonic and when it starts, in seconds."""

    start: float
    name: str


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of espeak-ng's speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _EventId),
    ]  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
# speak_lib.h: the constants of espeak_AUDIO_OUTPUT, espeak_EVENT_TYPE, espeak_PARAMETER and the flags
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1
_LIST_TERMINATED, _PHONEME = 0, 7
_RATE, _PITCH = 1, 3


@cache
def _espeak() -> tuple[ctypes.CDLL, int]:
    """The library and its sample rate in Hz."""
    try:
        library = ctypes.CDLL("libespeak-ng.so.1")
    except OSError:
        raise InputError("libespeak-ng.so.1 is not installed; on Debian or Ubuntu: apt-get install espeak-ng") from None
    return library, library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)


def synthesize(text: str, voice: str, rate: int = 165, pitch: int = 50) -> tuple[np.ndarray, int, list[Phoneme]]:
    """Speech by espeak-ng, with the exact time of each phoneme.

    :param voice: espeak-ng's name, with a variant after a plus: "en-us+f2".
    :param rate: words per minute.
    :param pitch: 0 to 100.
    :return: float32 [n] in [-1, 1], its rate in Hz, the phonemes in order.
    :raises InputError: espeak-ng or the voice is not there.
    """
    library, sample_rate = _espeak()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise InputError(f"espeak-ng has no voice {voice!r}; see espeak-ng --voices")
    sound = bytearray()
    phonemes: list[Phoneme] = []

    def receive(samples: object, count: int, events: object) -> int:
        if count > 0:
            sound.extend(ctypes.string_at(samples, 2 * count))  # type: ignore[arg-type]
        for event in events:  # type: ignore[attr-defined]
            if event.type == _LIST_TERMINATED:
                break
            if event.type == _PHONEME:
                phonemes.append(Phoneme(event.sample / sample_rate, event.id.string.decode()))
        return 0

    callback = _CALLBACK(receive)  # must live until the call below returns
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetParameter(_RATE, rate, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
    return np.frombuffer(bytes(sound), np.int16).astype(np.float32) / 32768, sample_rate, phonemes


# ---------------------------------------------------------------------------------------------------------- visemes


class Viseme(NamedTuple):
    """A shape of the mouth. All but `width` are from 0 to 1."""

    jaw: float
    """How far the jaw lets the lips part."""
    width: float = 0.0
    """-1 rounded, 0 neutral, 1 spread."""
    press: float = 0.0
    """Lips pressed together, whatever the jaw does."""
    teeth: float = 0.0
    """Lower lip at the upper teeth."""
    tongue: float = 0.0
    """Tip of the tongue raised."""


REST = Viseme(0.0)
# By espeak-ng's mnemonics of English; a diphthong has two shapes. Looked up by the longest beginning that is here.
VISEMES = {
    **dict.fromkeys(("a", "aa", "A:", "A@"), (Viseme(0.95, 0.1),)),
    **dict.fromkeys(("0", "V"), (Viseme(0.75),)),
    "aI": (Viseme(0.95, 0.1), Viseme(0.35, 0.5)),
    "aU": (Viseme(0.95), Viseme(0.35, -0.8)),
    "O": (Viseme(0.65, -0.6),),
    "OI": (Viseme(0.65, -0.7), Viseme(0.3, 0.4)),
    "o": (Viseme(0.5, -0.7),),
    "oU": (Viseme(0.55, -0.5), Viseme(0.3, -0.9)),
    "u": (Viseme(0.22, -1.0),),
    "U": (Viseme(0.3, -0.7),),
    "i": (Viseme(0.22, 0.8),),
    "I": (Viseme(0.32, 0.4),),
    "e": (Viseme(0.5, 0.4),),
    "eI": (Viseme(0.5, 0.4), Viseme(0.3, 0.6)),
    "E": (Viseme(0.55, 0.3),),
    **dict.fromkeys(("@", "3", "a#"), (Viseme(0.35),)),
    "@L": (Viseme(0.3, -0.2, tongue=0.8),),
    **dict.fromkeys(("p", "b", "m"), (Viseme(0.05, press=1.0),)),
    **dict.fromkeys(("f", "v"), (Viseme(0.1, teeth=1.0),)),
    "w": (Viseme(0.12, -1.0),),
    "r": (Viseme(0.22, -0.5),),
    **dict.fromkeys(("l", "n", "t", "d", "*"), (Viseme(0.22, 0.1, tongue=1.0),)),
    **dict.fromkeys(("s", "z"), (Viseme(0.1, 0.4),)),
    **dict.fromkeys(("S", "Z", "tS", "dZ"), (Viseme(0.15, -0.5),)),
    **dict.fromkeys(("T", "D"), (Viseme(0.22, 0.1, tongue=1.0),)),
    **dict.fromkeys(("k", "g", "N"), (Viseme(0.32),)),
    "h": (Viseme(0.4),),
    "j": (Viseme(0.2, 0.6),),
    "_": (REST,),
}
TRACK_RATE = 500  # shapes per second before they are smoothed and sampled at the frames
# Seconds, standard deviation of a Gaussian: neighbouring sounds colour each other, closures are quick
COARTICULATION = Viseme(jaw=0.035, width=0.05, press=0.014, teeth=0.022, tongue=0.03)
SHORTEST_CLOSURE = 0.08  # seconds: two frames, so that a closure is seen in one


def viseme_track(phonemes: Sequence[Phoneme], n_frames: int) -> np.ndarray:
    """The mouth's shape at the frames' times, float64 [n_frames, 5] in the order of Viseme's fields."""
    n = int(np.ceil((n_frames / FPS + 0.5) * TRACK_RATE))
    track = np.tile(np.array(REST), (n, 1))
    begin = 0.0
    for phoneme, after in pairwise([*phonemes, Phoneme(n / TRACK_RATE, "_")]):
        shapes = _shapes(phoneme.name)
        edges = np.linspace(max(begin, phoneme.start), max(begin, after.start), len(shapes) + 1)
        if shapes[0].press or shapes[0].teeth:
            edges[-1] = max(edges[-1], phoneme.start + SHORTEST_CLOSURE)
        begin = edges[-1]
        for shape, start, stop in zip(shapes, edges[:-1], edges[1:], strict=True):
            rows = slice(round(start * TRACK_RATE), round(stop * TRACK_RATE))
            track[rows] = shape
    for column, seconds in zip(track.T, COARTICULATION, strict=True):
        column[:] = gaussian_filter1d(column, seconds * TRACK_RATE, mode="nearest")
    return track[np.rint(np.arange(n_frames) / FPS * TRACK_RATE).astype(int)]


def _shapes(name: str) -> tuple[Viseme, ...]:
    for length in range(len(name), 0, -1):
        if name[:length] in VISEMES:
            return VISEMES[name[:length]]
    return (Viseme(0.3),)


# ------------------------------------------------------------------------------------------------------------- face

# The portrait's part that is used and its enlargement; below, coordinates (x, y) are the portrait's pixels.
LEFT, TOP, SIDE, ENLARGE = 98, 0, 256, 2
MOUTH = (166, 288, 118, 216)  # x1, x2, y1, y2 of the part that is warped
# Read off the portrait by hand: dlib takes the smile's creases for corners of the mouth.
INNER_UPPER = np.array([
    (203.5, 140), (208, 141.6), (213, 142.6), (218, 143.6), (223, 144.2), (228, 144), (233, 143.2), (238, 142.2),
    (244, 141),
])  # fmt: skip
INNER_LOWER = np.array([
    (203.5, 140), (207, 144), (211, 147.3), (216, 149.3), (222, 150), (228, 149.7), (233, 148.6), (238, 145.6),
    (244, 141),
])  # fmt: skip
OUTER_UPPER = np.array([
    (201.5, 138.8), (208, 138.9), (215, 139.3), (222, 140.4), (228, 139.8), (237, 139.8), (246, 139.8)
])  # fmt: skip
OUTER_LOWER = np.array([(241, 147.5), (233, 152.8), (222, 155.5), (214, 154.3), (206.5, 148)])
CENTRE, HALF_WIDTH = 223.0, 20.5
JAW_SHARE = np.array([0, 0, 0, 0.12, 0.3, 0.6, 0.85, 0.97, 1, 0.97, 0.85, 0.6, 0.3, 0.12, 0, 0, 0])
"""How far the jaw's landmarks 0 to 16 follow the chin."""
SAG = 5.4  # px, how far the closed lips' line hangs below its ends
WIDEST_GAP = 14.0
SMALLEST_GAP = 0.7  # px: the dark line between closed lips
CAVITY, TONGUE = np.array([44, 14, 14], np.float32), np.array([168, 88, 86], np.float32)


@dataclass(frozen=True)
class Mouth:
    """Where a viseme puts the lips; arrays as the constants above, and the chin's drop in px."""

    inner_upper: np.ndarray
    inner_lower: np.ndarray
    outer_upper: np.ndarray
    outer_lower: np.ndarray
    drop: float


def mouth_of(shape: Sequence[float]) -> Mouth:
    """The lips of a viseme (in the order of Viseme's fields)."""
    jaw, width, press, teeth, _ = shape
    jaw *= 1 - press
    rounded = max(0.0, -width)
    narrowing = 1 + 0.05 * max(0.0, width) - 0.3 * rounded

    def place(points: np.ndarray, dy: np.ndarray | float) -> np.ndarray:
        x = CENTRE + (points[:, 0] - CENTRE) * narrowing
        # rounding takes the smile's corners down
        lowered = 3.0 * rounded * np.clip(np.abs(points[:, 0] - CENTRE) / HALF_WIDTH, 0, 1) ** 2
        return np.stack([x, points[:, 1] + dy + lowered], axis=1)

    bulge = _bulge(INNER_UPPER[:, 0])
    ends = np.interp(INNER_UPPER[:, 0], INNER_UPPER[[0, -1], 0], INNER_UPPER[[0, -1], 1])
    line = ends + SAG * bulge
    gap = (SMALLEST_GAP + WIDEST_GAP * jaw) * bulge ** (1 - 0.35 * rounded)
    raised = 2.4 * teeth * bulge
    upper_y = line - 0.14 * gap - raised - 0.4 * rounded * bulge
    lower_y = line + 0.86 * gap + (1.6 * teeth - 0.3 * press) * bulge
    upper_shift, lower_shift = upper_y - INNER_UPPER[:, 1], lower_y - INNER_LOWER[:, 1]
    outer_upper_shift = 0.8 * np.interp(OUTER_UPPER[:, 0], INNER_UPPER[:, 0], upper_shift)
    outer_lower_shift = 0.92 * np.interp(OUTER_LOWER[:, 0], INNER_LOWER[::, 0], lower_shift)
    plump = _bulge(OUTER_UPPER[:, 0]), _bulge(OUTER_LOWER[:, 0])
    return Mouth(
        place(INNER_UPPER, upper_shift),
        place(INNER_LOWER, lower_shift),
        place(OUTER_UPPER, outer_upper_shift + (0.7 * press - 1.0 * rounded) * plump[0]),
        place(OUTER_LOWER, outer_lower_shift + (1.2 * rounded - 1.0 * press - 0.8 * teeth) * plump[1]),
        drop=0.8 * WIDEST_GAP * jaw - 0.8,
    )


def _bulge(x: np.ndarray) -> np.ndarray:
    """1 in the mouth's middle, 0 at its corners."""
    return np.clip(1 - ((x - CENTRE) / HALF_WIDTH) ** 2, 0, 1) ** 0.8


class Puppet:
    """The portrait, ready to be given mouths, blinks and poses."""

    def __init__(self) -> None:
        from skimage import data

        portrait = data.astronaut()[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
        big = cv2.resize(portrait, None, fx=ENLARGE, fy=ENLARGE, interpolation=cv2.INTER_LANCZOS4)
        self.canvas = big.astype(np.float32)
        faces = FaceAlignment("dlib").detect([big])[0]
        found = min(faces, key=lambda face: face.box[1]).landmarks  # the other one is a badge
        assert found is not None
        self.landmarks = found / ENLARGE + (LEFT, TOP)
        x1, x2, y1, y2 = MOUTH
        step = np.linspace(0, 1, 9)
        frame = [(x1 + (x2 - x1) * s, y) for s in step for y in (y1, y2)]
        frame += [(x, y1 + (y2 - y1) * s) for s in step[1:-1] for x in (x1, x2)]
        collar = [(x, 203.0) for x in np.linspace(190, 262, 5)]
        self._fixed = np.array([*self.landmarks[31:36], *frame, *collar])
        self._grid = _pixels(MOUTH)
        self._teeth = self._photographed_teeth()

    # ------------------------------------------------------------------------------------------------------- mouth

    def truth(self, mouth: Mouth) -> np.ndarray:
        """The 68 landmarks of the face with this mouth, float64 [68, 2], in the portrait's pixels."""
        landmarks = self.landmarks.astype(np.float64).copy()
        landmarks[:17, 1] += JAW_SHARE * mouth.drop
        landmarks[48:55] = mouth.outer_upper
        landmarks[55:60] = mouth.outer_lower
        landmarks[60:65] = mouth.inner_upper[[0, 2, 4, 6, 8]]
        landmarks[65:68] = mouth.inner_lower[[6, 4, 2]]
        return landmarks

    def with_mouth(self, mouth: Mouth, tongue: float) -> np.ndarray:
        """The canvas, float32 [H, W, 3] in 0..255, with this mouth."""
        jaw = self.landmarks[3:14]
        dropped = jaw + np.stack([np.zeros(11), JAW_SHARE[3:14] * mouth.drop], axis=1)
        shared_to = [self._fixed, dropped]
        shared_from = [self._fixed, jaw]
        upper = self._look_up([*shared_to, mouth.inner_upper, mouth.outer_upper],
                              [*shared_from, INNER_UPPER, OUTER_UPPER])  # fmt: skip
        ends = slice(0, None, 6)
        lower = self._look_up(
            [*shared_to, mouth.inner_lower, mouth.outer_lower, mouth.outer_upper[ends]],
            [*shared_from, INNER_LOWER, OUTER_LOWER, OUTER_UPPER[ends]],
        )
        share = self._below(mouth)[..., None]
        skin = self._sample(upper * (1 - share) + lower * share)
        hole = self._hole(mouth)[..., None]
        result = self.canvas.copy()
        rows, columns = _canvas_slices(MOUTH)
        result[rows, columns] = skin * (1 - hole) + self._interior(mouth, tongue) * hole
        return result

    def _look_up(self, to: list[np.ndarray], from_: list[np.ndarray]) -> np.ndarray:
        """Where each pixel of MOUTH comes from, float32 [h, w, 2]: the thin-plate spline through the given points."""
        x1, x2, y1, y2 = MOUTH
        n = 36
        coarse = np.stack(np.meshgrid(np.linspace(x1, x2, n), np.linspace(y1, y2, n)), axis=-1)
        target = np.concatenate(to)
        spline = RBFInterpolator(target, np.concatenate(from_) - target, kernel="thin_plate_spline")
        shift = spline(coarse.reshape(-1, 2)).reshape(n, n, 2).astype(np.float32)
        where = (self._grid - (x1, y1)) / (x2 - x1, y2 - y1) * (n - 1)
        return self._grid + _remap(shift, where, cv2.INTER_LINEAR)

    def _sample(self, source: np.ndarray) -> np.ndarray:
        return _remap(self.canvas, (source - (LEFT, TOP) + 0.5) * ENLARGE - 0.5)

    def _below(self, mouth: Mouth) -> np.ndarray:
        """The lower lip's side of the mouth, float32 [h, w]: a hard change between the lips, ever softer beside."""
        x, y = self._grid[..., 0], self._grid[..., 1]
        middle = (mouth.inner_upper + mouth.inner_lower) / 2
        line = np.interp(x, middle[:, 0], middle[:, 1])
        beside = np.maximum(0, np.maximum(middle[0, 0] - x, x - middle[-1, 0]))
        share = np.clip((y - line) / (1 + 1.6 * beside) + 0.5, 0, 1)
        return (share * share * (3 - 2 * share)).astype(np.float32)

    def _hole(self, mouth: Mouth) -> np.ndarray:
        """The opening between the lips, float32 [h, w] in [0, 1]."""
        outline = np.concatenate([_curve(mouth.inner_upper), _curve(mouth.inner_lower)[::-1]])
        return _polygon(outline, self._grid.shape[:2])

    def _photographed_teeth(self) -> tuple[np.ndarray, np.ndarray]:
        """What shows between the portrait's lips, continued upwards behind the upper lip, and where its teeth are."""
        outline = np.concatenate([_curve(INNER_UPPER) - (0, 6), _curve(INNER_LOWER)[::-1] - (0, 0.9)])
        x, y = self._grid[..., 0], self._grid[..., 1]
        lip = np.interp(x, INNER_UPPER[:, 0], INNER_UPPER[:, 1])
        picture = self._sample(np.stack([x, np.maximum(y, lip + 1.6)], axis=-1))
        return picture, _polygon(outline, x.shape)

    def _interior(self, mouth: Mouth, tongue: float) -> np.ndarray:
        """Cavity, tongue, lower and upper teeth, float32 [h, w, 3]."""
        x, y = self._grid[..., 0], self._grid[..., 1]
        floor = np.interp(x, mouth.inner_lower[:, 0], mouth.inner_lower[:, 1]).astype(np.float32)
        ceiling = np.interp(x, mouth.inner_upper[:, 0], mouth.inner_upper[:, 1]).astype(np.float32)
        bottom = float(mouth.inner_lower[4, 1])
        picture = np.broadcast_to(CAVITY, (*x.shape, 3)).copy()
        height = 4.0 + 2.0 * tongue
        distance = ((x - CENTRE) / 12.5) ** 2 + ((y - (bottom + 0.5 - 2.0 * tongue)) / height) ** 2
        shade = np.clip(1.25 - 0.5 * distance, 0.4, 1)[..., None]
        picture += (TONGUE * shade - picture) * _soft(1 - distance, 0.5)[..., None]
        photo, mask = self._teeth
        # the lower teeth: the upper ones turned over, smaller and darker, just above the lower lip
        down = np.stack([CENTRE + (x - CENTRE) * 1.35, 149.2 - (y - (floor - 1.6)) * 1.4], axis=-1)
        place = (down - self._grid[0, 0]) * ENLARGE
        lower, lower_mask = (_remap(layer, place, cv2.INTER_LINEAR) for layer in (photo, mask))
        seen = lower_mask * _soft(10.5 - np.abs(x - CENTRE), 3) * _soft(y - (floor - 1.8), 0.5)
        picture += (0.62 * lower - picture) * seen[..., None]
        picture += (photo - picture) * mask[..., None]
        # the upper lip's shadow, and less light towards the corners
        half = (mouth.inner_upper[-1, 0] - mouth.inner_upper[0, 0]) / 2
        light = np.clip(0.5 + 0.5 * (y - ceiling) / 3.0, 0.5, 1)
        light *= np.clip(1.25 - (np.abs(x - CENTRE) / half) ** 3, 0.3, 1)
        light *= np.clip((floor - ceiling) / 3.5, 0.25, 1)
        return picture * light[..., None].astype(np.float32)

    # ---------------------------------------------------------------------------------------------- blink and pose

    def blinked(self, canvas: np.ndarray, blink: float) -> np.ndarray:
        """The canvas with the upper lids lowered by `blink` (0 open, 1 closed)."""
        if blink <= 0.01:
            return canvas
        result = canvas
        for eye in (self.landmarks[36:42], self.landmarks[42:48]):
            (ax, ay), (bx, by) = eye[0], eye[3]
            area = (ax - 3, bx + 3, eye[:, 1].min() - 8, eye[:, 1].max() + 4)
            grid = _pixels(area)
            x, y = grid[..., 0], grid[..., 1]
            bend = np.clip(1 - ((x - (ax + bx) / 2) / ((bx - ax) / 2)) ** 2, 0, 1)
            corner = np.interp(x, [ax, bx], [ay, by])
            open_ = corner - bend * (corner.mean() - eye[1:3, 1].mean() + 0.7)
            shut = corner + bend * (eye[4:6, 1].mean() - corner.mean() + 0.5)
            lid = open_ + blink * (shut - open_)
            top = open_ - 5.0
            skin = 3.2 - 2.2 * (1 - bend) ** 2  # px of it above the lashes, which stay where they are
            source = np.where((y > top) & (y < lid), top + (y - top) * skin / (lid - top), y)
            source = y + (source - y) * min(1.0, 6 * blink) * _soft(bend, 0.3)
            rows, columns = _canvas_slices(area)
            part = self._sample(np.stack([x, source], axis=-1))
            stretched = (_soft(y - top, 2) * _soft(lid - y, 1) * _soft(bend, 0.3) * blink)[..., None]
            part += (cv2.GaussianBlur(part, (0, 0), 3) - part) * stretched
            # a line of lashes on the closing lid
            lash = np.exp(-(((y - lid) / 0.7) ** 2)) * bend**0.5 * min(1.0, 2 * blink)
            result = result.copy()
            result[rows, columns] = part * (1 - 0.45 * lash[..., None])
        return result.astype(np.float32)


class Pose(NamedTuple):
    """The head's pose: shift in px, roll in radians, scale; turn and nod are the face's shift within its outline."""

    x: float = 0.0
    y: float = 0.0
    roll: float = 0.0
    scale: float = 1.0
    turn: float = 0.0
    nod: float = 0.0


class Camera(NamedTuple):
    """What a clip shows: side of the square picture in px, enlargement, shift in px and roll in radians."""

    side: int = 480
    zoom: float = 1.95
    x: float = 0.0
    y: float = 0.0
    roll: float = 0.0


NECK = np.array([224.0, 200.0])  # what the head turns around
FACE_CENTRE = np.array([223.0, 128.0])


def look(canvas: np.ndarray, pose: Pose, camera: Camera) -> np.ndarray:
    """The picture of a canvas: the head in its pose, body and background at rest, float32 [side, side, 3]."""
    steps = (np.arange(camera.side, dtype=np.float32) + 0.5) / camera.side - 0.5
    pixels = np.stack(np.meshgrid(steps, steps), axis=-1)
    seen = _turned(pixels * (camera.side / camera.zoom), camera.roll) + FACE_CENTRE - (camera.x, camera.y)
    seen = seen.astype(np.float32)
    posed = _turned(seen - NECK - (pose.x, pose.y), -pose.roll) / pose.scale + NECK
    head = _soft(1.75 - np.hypot((seen[..., 0] - 226) / 62, (seen[..., 1] - 105) / 72), 0.75)
    head = head * _soft(205 - seen[..., 1], 26)
    face = np.exp(-(((seen[..., 0] - 223) / 34) ** 2) - ((seen[..., 1] - 130) / 40) ** 2)
    source = seen + head[..., None] * (posed - seen) - face[..., None] * (pose.turn, pose.nod)
    return _remap(canvas, (source - (LEFT, TOP) + 0.5) * ENLARGE - 0.5)


def _remap(picture: np.ndarray, at: np.ndarray, interpolation: int = cv2.INTER_CUBIC) -> np.ndarray:
    """The picture's values at positions (x, y) [h, w, 2] in its pixels; mirrored beyond its border."""
    x, y = np.moveaxis(at.astype(np.float32), -1, 0)
    return np.asarray(cv2.remap(picture, x, y, interpolation, borderMode=cv2.BORDER_REFLECT_101))


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]], points.dtype)


def _pixels(area: tuple[float, float, float, float]) -> np.ndarray:
    """The portrait's coordinates of the canvas's pixels in an area (x1, x2, y1, y2), float32 [h, w, 2]."""
    rows, columns = _canvas_slices(area)
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / ENLARGE - 0.5 + LEFT
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / ENLARGE - 0.5 + TOP
    return np.stack(np.meshgrid(x, y), axis=-1)


def _canvas_slices(area: tuple[float, float, float, float]) -> tuple[slice, slice]:
    x1, x2, y1, y2 = area
    return (
        slice(int((y1 - TOP) * ENLARGE), int((y2 - TOP) * ENLARGE)),
        slice(int((x1 - LEFT) * ENLARGE), int((x2 - LEFT) * ENLARGE)),
    )


def _curve(points: np.ndarray) -> np.ndarray:
    """A smooth curve through points whose x rises, float64 [60, 2]."""
    from scipy.interpolate import PchipInterpolator

    x = np.linspace(points[0, 0], points[-1, 0], 60)
    return np.stack([x, PchipInterpolator(points[:, 0], points[:, 1])(x)], axis=1)


def _polygon(outline: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An outline in the portrait's coordinates, filled in the pixels of MOUTH, float32 [h, w] with soft edges."""
    fine, bits = 4, 3
    corner = np.array([MOUTH[0], MOUTH[2]])
    pixels = ((outline - corner + 0.5) * ENLARGE * fine - 0.5) * (1 << bits)
    filled = np.zeros((shape[0] * fine, shape[1] * fine), np.uint8)
    cv2.fillPoly(filled, [np.rint(pixels).astype(np.int32)], 255, shift=bits)
    small = cv2.resize(filled, shape[::-1], interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (3, 3), 0).astype(np.float32) / 255


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """0 below 0, 1 above `width`, smooth between."""
    share = np.clip(distance / width, 0, 1)
    return (share * share * (3 - 2 * share)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- clips


@dataclass(frozen=True)
class Light:
    """How a clip is lit: gain per channel, gamma, and how much one side is darker (-1 to 1)."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    side: float = 0.0

    def on(self, picture: np.ndarray) -> np.ndarray:
        """float32 [h, w, 3] in 0..255 -> uint8."""
        unit = np.clip(picture / 255, 0, 1)
        if self.gamma != 1:
            unit = unit**self.gamma
        slope = 1 + self.side * np.linspace(-0.5, 0.5, picture.shape[1], dtype=np.float32)[:, None]
        lit = unit * (slope * np.array(self.gain, np.float32))
        return np.rint(np.clip(lit, 0, 1) * 255).astype(np.uint8)


def poses(n_frames: int, rng: np.random.Generator, amount: float = 1.0) -> list[Pose]:
    """A small slow sway; `amount` 0 is none."""
    sizes = np.array([2.6, 1.6, 0.028, 0.012, 2.4, 1.4]) * amount
    noise = gaussian_filter1d(rng.normal(size=(n_frames + 200, 6)), 11, axis=0)[100 : 100 + n_frames]
    noise /= noise.std(axis=0).mean() + 1e-9
    sway = np.clip(noise, -2, 2) * sizes * 0.6
    sway[:, 3] += 1
    return [Pose(*row) for row in sway]


def blinks(n_frames: int, rng: np.random.Generator) -> np.ndarray:
    """How far the eyes are closed in each frame, float64 [n_frames]: a blink of 0.24 s every 2 to 5 s."""
    closed = np.zeros(n_frames + 12)
    start = int(rng.uniform(0.5, 3) * FPS)
    while start < n_frames:
        closed[start : start + 6] = [0.5, 1, 1, 0.75, 0.4, 0.15]
        start += int(rng.uniform(2, 5) * FPS)
    return closed[:n_frames]


@dataclass(frozen=True)
class Script:
    """Everything that makes a clip."""

    text: str
    voice: str
    rate: int
    pitch: int
    camera: Camera
    light: Light
    sway: float
    seed: int


def make_clip(puppet: Puppet, script: Script, path: Path, crf: float = 18) -> list[float]:
    """Write the clip to `path`; return the mouth's opening in each frame (`lip_metrics.mouth_opening`)."""
    sound, sample_rate, phonemes = synthesize(script.text, script.voice, script.rate, script.pitch)
    n_frames = int(len(sound) / sample_rate * FPS)
    rng = np.random.default_rng(script.seed)
    head, eyes = poses(n_frames, rng, script.sway), blinks(n_frames, rng)
    opening = []
    side = script.camera.side
    with replace_when_complete(path.with_suffix(".wav")) as wav:
        soundfile.write(wav, sound, sample_rate, format="WAV")
    with VideoWriter(str(path), (side, side), FPS, crf, str(path.with_suffix(".wav"))) as writer:
        for shape, pose, blink in zip(viseme_track(phonemes, n_frames), head, eyes, strict=True):
            mouth = mouth_of(shape)
            canvas = puppet.blinked(puppet.with_mouth(mouth, float(shape[4])), float(blink))
            writer.write(script.light.on(look(canvas, pose, script.camera)))
            opening.append(round(mouth_opening(puppet.truth(mouth)), 4))
    return opening


# Sentences of training clips: subject verb object place, so that every sound meets every other.
SUBJECTS = """\
my father|the young farmer|a big brown bear|every boy|our neighbour|she|they|the baker from the village|Bob|
Mary and Peter|five old women|the pilot|nobody|the whole family|a few people|the queen|this machine|
your best friend|the white horse|we|I|the judge|her mother|a small bird|the fisherman|both of them|
the music teacher|John""".split("|")
VERBS = """\
bought|found|would love to have|painted|remembers|moved|broke|showed us|wanted|always watches|opened|
threw away|never saw|forgot|carried|made|will bring|picked up|gave back|can hear|washed|put away|
is looking for|left behind|described|has borrowed|believed in|paid for""".split("|")
OBJECTS = """\
the blue boat|a warm loaf of bread|fifty heavy boxes|the purple umbrella|some fresh apple juice|an old map|
the broken window|two loud drums|a very long letter|all of the money|the moon and the stars|
a pair of yellow shoes|the garden gate|her favourite film|a bowl of hot soup|the deep river|
more than enough paper|one wooden chair|the fast train|a cup of tea|those green leaves|a beautiful song|
the good news|his father's watch|a bag of potatoes|the open road""".split("|")
PLACES = """\
above the farm|in the morning|before the show began|at the market|by the bridge|on a rainy day|near the harbour|
with both hands|for the first time|after school|behind the church|every Friday|without a word|in February|
under the table|while we were away|just outside Paris|at half past five|from the roof|to our great surprise|
over and over|this week""".split("|")
OPENERS = ["", "", "", "Well, ", "Yes. ", "Oh! ", "Maybe ", "Wow, ", "But ", "Imagine: ", "Of course ", "Hello. "]
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029")
# espeak-ng's variants: the plainer ones, without robots and whispers, and without those that are almost held-out ones
VARIANTS = """\
f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m7 Alex Alicia Andy Annie AnxiousAndy Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco
Mario Michael Mike Nguyen Storm adam announcer antonio aunty benjamin boris caleb croak david ed edward edward2 grandma
grandpa gustave iven iven2 iven3 iven4 john kaukovalta klatt klatt2 klatt3 klatt4 klatt5 klatt6 marcelo michel miguel
norbert pablo paul pedro quincy rob robert sandro shelby travis victor zac""".split()
HELD_OUT_VARIANTS = ("Andrea", "anika", "linda", "steph", "m6", "m8", "max")
VOICES = [f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS]
HELD_OUT_VOICES = [f"{accent}+{variant}" for accent in ACCENTS for variant in HELD_OUT_VARIANTS]


def training_script(seed: int, voices: Sequence[str]) -> Script:
    """A clip of some sentences, with a voice, a pose, a framing and a light of its own."""
    rng = np.random.default_rng(seed)

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))].strip()

    sentences = [
        f"{OPENERS[rng.integers(len(OPENERS))]}{pick(SUBJECTS)} {pick(VERBS)} {pick(OBJECTS)} {pick(PLACES)}."
        for _ in range(3)
    ]
    gain = float(rng.uniform(0.75, 1.15))
    warmth = rng.uniform(-0.1, 0.1)
    return Script(
        " ".join(sentences),
        pick(voices),
        rate=int(rng.integers(130, 200)),
        pitch=int(rng.integers(25, 76)),
        camera=Camera(
            side=256,
            zoom=float(rng.uniform(1.35, 1.75)),
            x=float(rng.uniform(-8, 8)),
            y=float(rng.uniform(-8, 8)),
            roll=float(rng.uniform(-0.1, 0.1)),
        ),
        light=Light(
            gain=(gain * (1 + warmth), gain, gain * (1 - warmth)),
            gamma=float(rng.uniform(0.85, 1.2)),
            side=float(rng.uniform(-0.3, 0.3)),
        ),
        sway=float(rng.uniform(0.5, 1.6)),
        seed=seed,
    )


@cache
def _puppet() -> Puppet:
    return Puppet()


def _make_training_clip(folder: Path, voices: Sequence[str], seed: int) -> int:
    cv2.setNumThreads(1)
    path = folder / f"{seed:05d}.mp4"
    truth = path.with_suffix(".json")
    if not truth.is_file():
        script = training_script(seed, voices)
        opening = make_clip(_puppet(), script, path)
        write_truth(truth, script, opening)
    return len(json.loads(truth.read_text(encoding="utf-8"))["opening"])


def write_truth(path: Path, script: Script, opening: list[float]) -> None:
    content = {"text": script.text, "voice": script.voice, "fps": FPS, "opening": opening}
    with replace_when_complete(path) as part:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")


def make_training(folder: Path, minutes: float, first_seed: int, voices: Sequence[str], workers: int) -> None:
    """Clips with seeds from `first_seed` up, until there are `minutes` of them; existing ones are kept."""
    _espeak()  # fails here if it has to
    folder.mkdir(parents=True, exist_ok=True)
    done, seed = 0, first_seed
    with ProcessPoolExecutor(workers) as pool, tqdm(total=round(minutes * 60), unit="s", disable=None) as bar:
        while done < minutes * 60 * FPS:
            seeds = range(seed, seed + 4 * workers)
            for n_frames in pool.map(partial(_make_training_clip, folder, voices), seeds):
                done += n_frames
                bar.update(n_frames // FPS)
            seed = seeds.stop
    print(f"{folder}: {done / FPS / 60:.1f} minutes, seeds {first_seed} to {seed - 1}")


def make_samples(folder: Path) -> None:
    """The project's sample: a clip with its own speech, another speech, and the truth of both."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = Script(SAMPLE_TEXT, SAMPLE_VOICE, 150, 55, Camera(), Light(), sway=1.0, seed=3)
    opening = make_clip(_puppet(), clip, folder / "astronaut.mp4", crf=20)
    (folder / "astronaut.wav").unlink()  # it is in the clip
    write_truth(folder / "astronaut.json", clip, opening)
    sound, sample_rate, phonemes = synthesize(SPEECH_TEXT, SPEECH_VOICE, 150, 50)
    with replace_when_complete(folder / "speech.wav") as part:
        soundfile.write(part, sound, sample_rate, format="WAV")
    track = viseme_track(phonemes, int(len(sound) / sample_rate * FPS))
    opening = [round(mouth_opening(_puppet().truth(mouth_of(shape))), 4) for shape in track]
    speech = Script(SPEECH_TEXT, SPEECH_VOICE, 150, 50, Camera(), Light(), sway=0, seed=0)
    write_truth(folder / "speech.json", speech, opening)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="?", metavar="DIR", help="folder for the project's sample")
    parser.add_argument("--training", metavar="DIR", help="folder for training clips")
    parser.add_argument("--minutes", type=float, default=20, help="of training clips")
    parser.add_argument("--first_seed", type=int, default=0, help="clips of other seeds have other sentences")
    parser.add_argument("--held_out", action="store_true", help="with voices that no other training clip has")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args(argv)
    try:
        if (arguments.samples is None) == (arguments.training is None):
            raise InputError("give a folder for the sample, or --training DIR for training clips")
        if arguments.training:
            voices = HELD_OUT_VOICES if arguments.held_out else VOICES
            make_training(
                Path(arguments.training), arguments.minutes, arguments.first_seed, voices, arguments.workers
            )
        else:
            make_samples(Path(arguments.samples))
    except InputError as error:
        print(f"make_sample.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
