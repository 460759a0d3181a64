"""Clips for training: the cropped faces and the mel spectrograms of a folder of videos, and examples drawn from them.

The face of every clip is cropped once, with a margin, and kept in a cache with the clip's mel spectrogram.
"""

import dataclasses
import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

import _path  # noqa: F401
from audio.audio import count_windows, speech_mel
from audio.audio import mel_window as window_of_mel
from audio.hparams import DEFAULT as HPARAMS
from audio.hparams import HParams
from face_detection.api import FaceAlignment
from face_detection.lip_metrics import mouth_opening
from face_detection.tracks import FaceTrack, build_track
from face_detection.video_faces import find_faces
from guided_diffusion.errors import InputError
from guided_diffusion.logger import versions
from guided_diffusion.store import content_key, file_digest, replace_when_complete
from guided_diffusion.video_util import VideoSource, open_video

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
FPS = 25
# what the cached files look like; raise it when that changes
CACHE_FORMAT = 2
DETECTION_BATCH = 8  # frames held at once
# Crops are kept with an eighth of the box around it on each side, from which shifted and larger views are taken.
MARGIN = 8
MIN_FACES = 10
MIN_VALIDATION_CLIPS = 10  # with fewer clips, the end of each is for validation

MAX_SHIFT = 0.04  # of the crop's side
MAX_SCALE = 0.1
MAX_SCALE_APART = 0.02
MAX_STRETCH = 0.1
MAX_DROP = 0.065
COLOUR_CHANGE = 0.1
LUMA = (0.299, 0.587, 0.114)

MEL_STRETCH = 0.12
MEL_SHIFT = 0.0625  # of the mel axis: 5 of 80 bands
MEL_LEVEL = 0.6  # 7.5 dB, a standard deviation
MEL_FLOOR = -3.9  # below is silence

OPENING_NEIGHBOURS = 2  # frames before and after whose openings are read besides
OPENINGS = 2 * OPENING_NEIGHBOURS + 1

Examples = tuple[list[np.ndarray], list[np.ndarray], np.ndarray]
"""Crops and reference crops uint8 [S, S, 3], mel windows float32 [N, audio_dim, 16]."""


# ------------------------------------------------------------------------------------------------------ preparation


@dataclass(frozen=True)
class Clip:
    """The face of a clip, in the frames that have one.

    crops: uint8 [F, G, G, 3], the box and a margin around it (see `face_view`).
    frames: int64 [F], the crops' frame numbers at FPS. mel: float32 [audio_dim, steps].
    openings: float32 [F, OPENINGS], see `openings_of`.
    """

    crops: np.ndarray
    frames: np.ndarray
    mel: np.ndarray
    openings: np.ndarray
    hparams: HParams = HPARAMS

    def part(self, start: int, stop: int) -> "Clip":
        return dataclasses.replace(
            self, crops=self.crops[start:stop], frames=self.frames[start:stop], openings=self.openings[start:stop]
        )


@dataclass(frozen=True)
class Preparation:
    """How a clip becomes crops and mel: called with its path in a worker process.

    Tracks, crops and mels are cached apart: another image size or mel front end does not detect anew.
    """

    cache: Path
    image_size: int
    hparams: HParams
    face_detector: str
    detection_size: int
    device: str

    def __call__(self, path: str) -> tuple[Path, Path, Path] | str:
        """:return: files of the track, crops and mel; or why the clip cannot be used."""
        try:
            return self.prepare(path)
        except InputError as error:
            return str(error)

    def prepare(self, path: str) -> tuple[Path, Path, Path]:
        clip = {"format": CACHE_FORMAT, "video": file_digest(path), "versions": versions()}
        detector = load_detector(self.face_detector, self.device, self.detection_size)
        detection = {"detector": self.face_detector, "size": self.detection_size, **detector.fingerprint(), **clip}
        mel_path = self.cache / f"mel-{content_key({**dataclasses.asdict(self.hparams), **clip})}.npy"
        track_path = self.cache / f"track-{content_key(detection)}.npz"
        crops_path = self.cache / f"crops-{content_key({'image_size': self.image_size, **detection})}.npy"
        if not mel_path.is_file():
            with replace_when_complete(mel_path) as part, open(part, "wb") as file:
                np.save(file, speech_mel(path, self.hparams)[0], allow_pickle=False)
        video = open_video(path, FPS)
        if not track_path.is_file():
            faces = find_faces(video.frames(), detector.detect, DETECTION_BATCH)
            track = build_track(faces, len(faces.faces), pads=(0, 0, 0, 0), detection_size=self.detection_size)
            track.save(track_path)
        if not crops_path.is_file():
            write_crops(crops_path, video, FaceTrack.load(track_path), self.image_size)
        return track_path, crops_path, mel_path


@functools.cache
def load_detector(face_detector: str, device: str, detection_size: int) -> FaceAlignment:
    """One detector for all clips of a process."""
    return FaceAlignment(face_detector, device, detection_size)


def faces_seen(track: FaceTrack) -> np.ndarray:
    """Frames to learn from, int64: where a face was detected, not only bridged."""
    return np.flatnonzero(track.has_face & ~track.is_interpolated)


def openings_of(track: FaceTrack, frames: np.ndarray) -> np.ndarray:
    """`mouth_opening` around these frames, float32 [F, OPENINGS]: of the frame itself in the middle.

    NaN where the track has no landmarks or no frame.
    """
    openings = np.full(len(track.boxes), np.nan, np.float32)
    if track.landmarks is not None:
        openings[:] = [mouth_opening(landmarks) for landmarks in track.landmarks]
    around = np.pad(openings, OPENING_NEIGHBOURS, constant_values=np.nan)
    return np.lib.stride_tricks.sliding_window_view(around, OPENINGS)[frames]


def write_crops(path: Path, video: VideoSource, track: FaceTrack, image_size: int) -> None:
    """Write the faces with their margin as .npy, frame by frame: memory does not grow with the clip."""
    side = image_size + 2 * (image_size // MARGIN)
    frames = faces_seen(track)
    with replace_when_complete(path) as part:
        crops = np.lib.format.open_memmap(part, "w+", np.uint8, (len(frames), side, side, 3))
        wanted = dict(zip(frames.tolist(), crops, strict=True))
        for index, frame in enumerate(video.frames(stop=len(track.boxes))):
            if index in wanted:
                wanted[index][:] = crop_with_margin(frame, track.boxes[index], image_size)
        crops.flush()


def crop_with_margin(frame: np.ndarray, box: np.ndarray, image_size: int) -> np.ndarray:
    """Resize a frame so that the box (y1, y2, x1, x2) has image_size px, and cut it out with 1/MARGIN of it around.

    Its middle is what `resize_crop` makes of the box: bilinear, same positions. Beyond the frame its edge goes on.
    """
    margin = image_size // MARGIN
    y1, y2, x1, x2 = (float(v) for v in box)
    scale_y, scale_x = (y2 - y1) / image_size, (x2 - x1) / image_size
    to_frame = np.array(
        [
            [scale_x, 0, x1 + (0.5 - margin) * scale_x - 0.5],
            [0, scale_y, y1 + (0.5 - margin) * scale_y - 0.5],
        ]
    )
    side = image_size + 2 * margin
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(frame, to_frame, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def prepare_clips(
    data: str, prepare: Preparation, workers: int, flag: str = "--data"
) -> tuple[list[Clip], str]:
    """The clips of the folder `data` in order of their names, and a key for their content.

    :param workers: processes that `prepare` runs in.
    :param flag: what an error calls `data`.
    :raises InputError: when none can be used. Single ones that cannot are named and left out.
    """
    folder = Path(data)
    if not folder.is_dir():
        raise InputError(f"{flag} {data}: no such folder; give one with video files")
    paths = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not paths:
        raise InputError(f"{flag} {data}: no video in it; looked for {', '.join(VIDEO_SUFFIXES)}")
    load_detector(prepare.face_detector, prepare.device, prepare.detection_size)  # fails here if it has to
    clips, names = [], []
    for path, files in zip(paths, _prepared(prepare, paths, workers), strict=True):
        problem = files if isinstance(files, str) else None
        if not isinstance(files, str):
            track_file, crops, mel = files
            clip = load_clip(FaceTrack.load(track_file), np.load(crops, mmap_mode="r"), np.load(mel), prepare.hparams)
            if len(clip.frames) >= MIN_FACES:
                clips.append(clip)
                names.append([crops.name, mel.name])
            else:
                problem = f"a face in {len(clip.frames)} frames only"
        if problem:
            print(f"left out: {path}: {problem}", file=sys.stderr)
    if not clips:
        raise InputError(f"{flag} {data}: none of its {len(paths)} clips can be used")
    return clips, content_key({"clips": names})


def load_clip(track: FaceTrack, crops: np.ndarray, mel: np.ndarray, hparams: HParams) -> Clip:
    """The part of a clip that the sound suffices for; crops are of all `faces_seen`."""
    frames = faces_seen(track)
    frames = frames[frames < count_windows(mel, FPS, hparams)]
    return Clip(crops[: len(frames)], frames, mel, openings_of(track, frames), hparams)


def _prepared(prepare: Preparation, paths: list[str], workers: int) -> Iterator[tuple[Path, Path, Path] | str]:
    bar = functools.partial(tqdm, total=len(paths), desc="clips", unit="clip", disable=None)
    if workers == 1 or len(paths) == 1:
        yield from bar(map(prepare, paths))
        return
    # spawn: forked copies of PyTorch's and OpenCV's threads hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(paths)), context, initializer=_begin_worker) as pool:
        yield from bar(pool.map(prepare, paths))


def _begin_worker() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed run must not leave its workers behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def split(clips: list[Clip], val_share: float) -> tuple[list[Clip], list[Clip]]:
    """Clips for training and for validation: the last ones, or the ends of all when there are few."""
    if len(clips) >= MIN_VALIDATION_CLIPS:
        n = max(1, round(val_share * len(clips)))
        return clips[:-n], clips[-n:]
    cuts = [len(clip.frames) - max(2, round(val_share * len(clip.frames))) for clip in clips]
    return (
        [clip.part(0, cut) for clip, cut in zip(clips, cuts, strict=True)],
        [clip.part(cut, len(clip.frames)) for clip, cut in zip(clips, cuts, strict=True)],
    )


# --------------------------------------------------------------------------------------------------------- examples


def draw_examples(
    clips: Sequence[Clip], n: int, image_size: int, rng: np.random.Generator, augment: float | None, mel_augment: float
) -> Examples:
    """Draw n frames, all equally likely, each with another frame of its clip as reference.

    :param augment: strength of `augmented`; None leaves the crops as they are.
    :param mel_augment: strength of `other_voice`.
    """
    crops, refs, mels = [], [], []
    for clip, index in draw_frames(clips, n, rng):
        other = (index + int(rng.integers(1, len(clip.frames)))) % len(clip.frames)
        views = [clip.crops[index], clip.crops[other]]
        if augment is None:
            crop, ref = (face_view(view, image_size) for view in views)
        else:
            crop, ref = augmented(views, image_size, rng, augment)
        crops.append(crop)
        refs.append(ref)
        mels.append(other_voice(mel_window(clip, index), rng, mel_augment))
    return crops, refs, np.stack(mels)


def draw_openings(
    clips: Sequence[Clip], n: int, rng: np.random.Generator, mel_augment: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mel windows float32 [n, audio_dim, 16] and `Clip.openings` of n frames, all equally likely."""
    mels, openings = [], []
    for clip, index in draw_frames(clips, n, rng):
        mels.append(other_voice(mel_window(clip, index), rng, mel_augment))
        openings.append(clip.openings[index])
    return np.stack(mels), np.stack(openings)


def draw_frames(clips: Sequence[Clip], n: int, rng: np.random.Generator) -> Iterator[tuple[Clip, int]]:
    ends = np.cumsum([len(clip.frames) for clip in clips])
    for flat in rng.integers(ends[-1], size=n):
        number = int(np.searchsorted(ends, flat, side="right"))
        yield clips[number], int(flat - ends[number]) + len(clips[number].frames)


def mel_window(clip: Clip, index: int) -> np.ndarray:
    return window_of_mel(clip.mel, int(clip.frames[index]), FPS, clip.hparams)


def other_voice(mel: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A mel window [audio_dim, 16] in another voice: formants moved and stretched, the level and its slope changed.

    A vocal tract's length scales the formants (Jaitly & Hinton 2013, "Vocal Tract Length Perturbation").

    :return: float32 [audio_dim, 16] in [-4, 4], another array.
    """
    bands = len(mel)
    stretch = 1 + strength * rng.uniform(-MEL_STRETCH, MEL_STRETCH)
    shift = strength * rng.uniform(-MEL_SHIFT, MEL_SHIFT) * bands
    level, slope = strength * rng.normal(0, MEL_LEVEL, size=2)
    to_mel = np.array([[1, 0, 0], [0, stretch, shift]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(mel, to_mel, mel.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    louder = moved + (level + slope * np.linspace(-1, 1, bands)[:, None])
    return np.clip(np.where(moved > MEL_FLOOR, louder, moved), -4, 4).astype(np.float32)


def face_view(
    stored: np.ndarray, image_size: int, shift: tuple[int, int] = (0, 0), scale: tuple[float, float] = (1, 1)
) -> np.ndarray:
    """The box in a stored crop [G, G, 3], or a box moved by `shift` (x, y) px and `scale` (x, y) times as large.

    :return: uint8 [image_size, image_size, 3].
    """
    margin = (len(stored) - image_size) // 2
    x, y = margin + shift[0], margin + shift[1]
    if scale == (1, 1):
        return stored[y : y + image_size, x : x + image_size]
    first_x, first_y = ((1 - s) * (image_size - 1) / 2 for s in scale)
    to_stored = np.array([[scale[0], 0, x + first_x], [0, scale[1], y + first_y]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(stored, to_stored, (image_size, image_size), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def augmented(
    stored: Sequence[np.ndarray], image_size: int, rng: np.random.Generator, strength: float
) -> list[np.ndarray]:
    """Views with one flip, colour and scale, and some shift and scale of their own, as detected boxes have.

    Each is also stretched in height and moved up or down, at any strength: a detector's box ends at the chin, so the
    place and height of the eyes in it tell how far the jaw is down, and a network that reads the mouth from there does
    not listen to the sound.
    """
    scale = 1 + strength * rng.uniform(-MAX_SCALE, MAX_SCALE)
    step = -1 if rng.random() < 0.5 * strength else 1
    colour = colour_change(rng, strength)
    max_shift = round(strength * MAX_SHIFT * image_size)
    max_drop = round(MAX_DROP * image_size)
    views = []
    for crop in stored:
        width = scale * (1 + strength * rng.uniform(-MAX_SCALE_APART, MAX_SCALE_APART))
        height = width * rng.uniform(1 - MAX_STRETCH, 1 + MAX_STRETCH)
        shift = int(rng.integers(-max_shift, max_shift + 1)), int(rng.integers(-max_drop, max_drop + 1))
        view = face_view(crop, image_size, shift, (width, height))
        views.append(cv2.transform(np.ascontiguousarray(view), colour)[:, ::step])
    return views


def colour_change(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A random affine map of RGB, float64 [3, 4]: saturation, gain per channel, contrast around grey, brightness."""
    change = strength * COLOUR_CHANGE
    saturation, contrast = rng.uniform(1 - change, 1 + change, size=2)
    gains = rng.uniform(1 - change / 2, 1 + change / 2, size=3)
    brightness = rng.uniform(-change, change) * 127.5
    matrix = saturation * np.eye(3) + (1 - saturation) * np.array(LUMA)
    matrix = contrast * gains[:, None] * matrix
    return np.hstack([matrix, np.full((3, 1), 127.5 * (1 - contrast) + brightness)])
