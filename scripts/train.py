"""Train or fine-tune a lip-sync network on clips with their own sound in sync: `python scripts/train.py --data CLIPS`.

The face of every clip is cropped once, and kept with its mel spectrogram in a cache. OUT gets log.txt, sample sheets,
model.safetensors (the averaged weights, for generate.py) and state.pt, from which the same command continues.
Exit status 2 for input that cannot be used.
"""

import copy
import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import _path  # noqa: F401
from audio.audio import count_windows, speech_mel
from audio.audio import mel_window as window_of_mel
from audio.hparams import DEFAULT as HPARAMS
from audio.hparams import HParams, front_end
from face_detection.api import DETECTORS, FaceAlignment
from face_detection.lip_metrics import mouth_opening
from face_detection.tracks import FaceTrack, build_track, find_faces
from guided_diffusion.dist_util import DEVICES, choose_device
from guided_diffusion.errors import InputError
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.sampling import sample
from guided_diffusion.script_util import (
    Checkpoint,
    FlagParser,
    ModelConfig,
    add_flags,
    add_model_flags,
    check_options,
    create_gaussian_diffusion,
    create_model,
    load_checkpoint,
    model_config,
    option,
    save_checkpoint,
)
from guided_diffusion.store import content_key, file_digest, replace_when_complete
from guided_diffusion.tfg_data_util import sample_to_crops, sampling_noise, tfg_process_batch
from guided_diffusion.unet import TFGModel
from guided_diffusion.video_util import VideoSource, open_video

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
FPS = 25
HIDE_PERCENTAGE = 0.5
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

OPENING_EXAMPLES = 32  # mel windows per step; they cost as much as 4 pictures of 64 px
OPENING_UNIT = 0.1  # of the inter-ocular distance, about what speech varies by
OPENING_NEIGHBOURS = 2  # frames before and after whose openings are read besides
OPENINGS = 2 * OPENING_NEIGHBOURS + 1

VALIDATION_EXAMPLES = 64
VALIDATION_OPENINGS = 256
SHEET_EXAMPLES = 8
SHEET_RESPACING = "ddim10"
SHEET_SEED = 7
SHEET_SIDE = 128  # crops are enlarged to at least this
FRESH_LISTED = 12
WEIGHT_DECAY = 0.01

Examples = tuple[list[np.ndarray], list[np.ndarray], np.ndarray]
"""Crops and reference crops uint8 [S, S, 3], mel windows float32 [N, audio_dim, 16]."""


# ---------------------------------------------------------------------------------------------------------- options


@dataclass(frozen=True)
class Options:
    """Every flag but the network's own.

    :raises InputError: naming the first value that is not allowed, and what is.
    """

    data: str = option("", "folder of clips whose own sound is in sync")
    out: str = option("", "folder for results; a run that is in it already continues")
    cache: str | None = option(None, "folder for crops and mel spectrograms; by default OUT/cache")
    init: str | None = option(None, "fine-tune this checkpoint; model flags given besides override its own")
    steps: int | None = option(None, "train for this many steps")
    minutes: float | None = option(None, "train for this long, without validation, over all pieces of a run")
    batch_size: int = option(16, "crops per step", within=(1, 1 << 14))
    lr: float = option(3e-4, "highest learning rate; it falls to zero along half a cosine", within=(0, 1))
    warmup: int = option(100, "steps until the learning rate is reached", within=(0, 1 << 30))
    grad_clip: float = option(1.0, "limit of the gradient's norm", within=(1e-6, 1e6))
    ema_decay: float = option(0.999, "decay of the averaged weights per step; less in the first steps", within=(0, 1))
    seed: int = option(0, "seed of weights, batches and noise", within=(0, 1 << 62))
    augment: float = option(
        1.0, "strength of the changes of colour, flip, scale and place of the crops, 0 to 1", within=(0, 1)
    )
    mel_augment: float = option(
        1.0, "strength of the changes that make the sound that of other voices, 0 to 1", within=(0, 1)
    )
    noisy_share: float = option(
        0.0, "share of the examples that get one of the noisiest third of the diffusion steps", within=(0, 1)
    )
    opening_weight: float = option(
        0.0, "weight of a second loss: whether the audio code tells how far the mouth is open; needs dlib's landmarks",
        within=(0, 1e3),
    )
    opening_steps: int = option(
        0, "first steps, which teach the audio encoder alone by --opening_weight's loss", within=(0, 1 << 30)
    )
    val_share: float = option(
        0.1, "share of the clips (of each clip, if there are few) kept for validation", within=(0.01, 0.5)
    )
    log_every: int = option(100, "steps between lines of the log", within=(1, 1 << 30))
    sheet_every: int = option(500, "steps between sample sheets", within=(1, 1 << 30))
    save_every: int = option(500, "steps between saved states", within=(1, 1 << 30))
    half: bool = option(False, "store model.safetensors in float16")
    face_detector: str = option("dlib", "who finds the faces", DETECTORS)
    detection_size: int = option(
        720, "faces are looked for in frames with at most this long side", within=(32, 1 << 14)
    )
    workers: int = option(2, "processes that crop faces", within=(1, 1024))
    device: str = option("auto", "where the network is trained", DEVICES)

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("data", "out"):
            if not getattr(self, name):
                raise InputError(f"--{name} is missing: give a folder")
        if self.opening_weight and self.face_detector != "dlib":
            raise InputError(
                f"--opening_weight {self.opening_weight} needs landmarks, which --face_detector {self.face_detector} "
                "does not give; give dlib, or drop --opening_weight"
            )
        if self.opening_steps and not self.opening_weight:
            raise InputError(
                f"--opening_steps {self.opening_steps} needs a loss to teach by; give --opening_weight 0.03"
            )
        if (self.steps is None) == (self.minutes is None):
            raise InputError("give either --steps or --minutes: how long to train")
        length = self.steps if self.minutes is None else self.minutes
        if not (length is not None and 0 < length < math.inf):
            raise InputError(f"--{'steps' if self.minutes is None else 'minutes'} {length}: give a number above 0")

    @property
    def cache_dir(self) -> Path:
        return Path(self.out, "cache") if self.cache is None else Path(self.cache)


def parse_options(argv: Sequence[str] | None) -> tuple[Options, dict[str, Any]]:
    """Options, and the network's flags that were given."""
    parser = FlagParser("train.py", "Train or fine-tune a lip-sync network on clips with their own sound in sync.")
    add_flags(parser.add_argument_group("options"), Options)
    add_model_flags(parser, "the network's own; by default those of --init, else the paper's")
    given = vars(parser.parse_args(argv))
    names = {f.name for f in dataclasses.fields(Options)}
    options = Options(**{name: value for name, value in given.items() if name in names})
    return options, {name: value for name, value in given.items() if name not in names and value is not None}


# ------------------------------------------------------------------------------------------------------------- data


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
        clip = {"format": CACHE_FORMAT, "video": file_digest(path)}
        detection = {"detector": self.face_detector, "size": self.detection_size, **clip}
        mel_path = self.cache / f"mel-{content_key({**dataclasses.asdict(self.hparams), **clip})}.npy"
        track_path = self.cache / f"track-{content_key(detection)}.npz"
        crops_path = self.cache / f"crops-{content_key({'image_size': self.image_size, **detection})}.npy"
        if not mel_path.is_file():
            with replace_when_complete(mel_path) as part, open(part, "wb") as file:
                np.save(file, speech_mel(path, self.hparams)[0], allow_pickle=False)
        video = open_video(path, FPS)
        if not track_path.is_file():
            n_windows = count_windows(np.load(mel_path), FPS, self.hparams)
            detector = load_detector(self.face_detector, self.device, self.detection_size)
            faces = find_faces(video.frames(stop=n_windows), detector.detect, DETECTION_BATCH)
            track = build_track(faces, n_windows, pads=(0, 0, 0, 0), detection_size=self.detection_size)
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


def prepare_clips(options: Options, config: ModelConfig) -> tuple[list[Clip], str]:
    """The clips of `--data` in order of their names, and a key for their content.

    :raises InputError: when none can be used. Single ones that cannot are named and left out.
    """
    folder = Path(options.data)
    if not folder.is_dir():
        raise InputError(f"--data {options.data}: no such folder; give one with video files")
    paths = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not paths:
        raise InputError(f"--data {options.data}: no video in it; looked for {', '.join(VIDEO_SUFFIXES)}")
    prepare = Preparation(
        options.cache_dir, config.image_size, front_end(config), options.face_detector, options.detection_size,
        str(choose_device(options.device)),
    )  # fmt: skip
    load_detector(prepare.face_detector, prepare.device, prepare.detection_size)  # fails here if it has to
    clips, names = [], []
    for path, files in zip(paths, _prepared(prepare, paths, options.workers), strict=True):
        problem = files if isinstance(files, str) else None
        if not isinstance(files, str):
            track_file, crops, mel = files
            track = FaceTrack.load(track_file)
            frames = faces_seen(track)
            if len(frames) >= MIN_FACES:
                openings = openings_of(track, frames)
                clips.append(Clip(np.load(crops, mmap_mode="r"), frames, np.load(mel), openings, prepare.hparams))
                names.append([crops.name, mel.name])
            else:
                problem = f"a face in {len(frames)} frames only"
        if problem:
            print(f"left out: {path}: {problem}", file=sys.stderr)
    if not clips:
        raise InputError(f"--data {options.data}: none of its {len(paths)} clips can be used")
    return clips, content_key({"clips": names})


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


@dataclass(frozen=True)
class Batch:
    """The network's inputs as inference makes them (`tfg_process_batch`), and what is to be predicted.

    steps: int64 [N], diffusion steps. noise: epsilon in x_t, [N x 3 x h x w].
    """

    inputs: dict[str, Tensor]
    steps: Tensor
    noise: Tensor


def make_batch(examples: Examples, steps: Tensor, generator: torch.Generator, device: torch.device) -> Batch:
    """The noise of x_t is not the one that hides the lower half in cond_img.

    Inference starts from one noise for both. But a network trained so could subtract it from x_t and read x_0 at any
    step; in DDIM, where x_t holds the network's own x_0 of the step before, it would only repeat its first guess.
    """
    crops, refs, mels = examples
    hiding, noise = torch.randn(2, len(crops), 3, *crops[0].shape[:2], generator=generator)
    inputs = tfg_process_batch(crops, refs, mels, hiding, HIDE_PERCENTAGE, device)
    return Batch(inputs, steps.to(device), noise.to(device))


def training_batch(
    clips: Sequence[Clip], step: int, options: Options, config: ModelConfig, device: torch.device
) -> Batch:
    """A function of seed and step alone, so that a continued run needs nothing of the one before."""
    rng = np.random.default_rng([options.seed, step])
    examples = draw_examples(clips, options.batch_size, config.image_size, rng, options.augment, options.mel_augment)
    steps = torch.from_numpy(draw_steps(config.diffusion_steps, options.batch_size, options.noisy_share, rng))
    return make_batch(examples, steps, torch.Generator().manual_seed(int(rng.integers(1 << 62))), device)


def draw_steps(n_steps: int, n: int, noisy_share: float, rng: np.random.Generator) -> np.ndarray:
    """Diffusion steps, int64 [n]: all equally likely but for a share from the noisiest third.

    There the mouth cannot be seen in x_t any more, and only the sound tells how far it is open.
    """
    steps = rng.integers(n_steps, size=n)
    noisy = rng.random(n) < noisy_share
    return np.where(noisy, n_steps - 1 - steps // 3, steps)


class Validation:
    """Frames, steps and noises that stay the same through a run, and between runs on the same clips."""

    def __init__(self, clips: Sequence[Clip], options: Options, config: ModelConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.batch_size = options.batch_size
        self.examples = draw_examples(
            clips, VALIDATION_EXAMPLES, config.image_size, np.random.default_rng(0), augment=None, mel_augment=0
        )
        self.openings = draw_openings(clips, VALIDATION_OPENINGS, np.random.default_rng(0), mel_augment=0)
        self.sheet_diffusion = create_gaussian_diffusion(config, SHEET_RESPACING)

    def _batches(self) -> Iterator[Batch]:
        crops, refs, mels = self.examples
        steps = torch.linspace(0, self.config.diffusion_steps - 1, len(crops)).long()
        generator = torch.Generator().manual_seed(0)
        for start in range(0, len(crops), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield make_batch((crops[part], refs[part], mels[part]), steps[part], generator, self.device)

    @torch.inference_mode()
    def loss(self, model: TFGModel, diffusion: GaussianDiffusion) -> float:
        losses = [batch_losses(model, diffusion, batch, self.config) for batch in self._batches()]
        return float(torch.cat(losses).mean())

    @torch.inference_mode()
    def opening_r(self, training: "Training") -> float:
        """Correlation of the openings with those that are read from the audio code."""
        mels, openings = self.openings
        read = read_openings(training.ema, training.opening_head, torch.from_numpy(mels).to(self.device))
        return float(np.corrcoef(read[:, OPENING_NEIGHBOURS].cpu(), openings[:, OPENING_NEIGHBOURS])[0, 1])

    @torch.inference_mode()
    def sheet(self, model: TFGModel) -> np.ndarray:
        """A row per frame: crop, reference, what the network sees of the crop, its sample as generate.py makes it."""
        crops, refs, mels = self.examples
        crops, refs, mels = crops[:SHEET_EXAMPLES], refs[:SHEET_EXAMPLES], mels[:SHEET_EXAMPLES]
        size = self.config.image_size
        noise = sampling_noise(len(crops), size, SHEET_SEED)
        inputs = tfg_process_batch(crops, refs, mels, noise, HIDE_PERCENTAGE, self.device)
        network_inputs = inputs if self.config.use_ref else {k: v for k, v in inputs.items() if k != "ref_img"}
        generated = sample(model, self.sheet_diffusion.ddim_sample_loop, network_inputs)
        hidden, samples = (sample_to_crops(x, inputs["image"], inputs["mask"]) for x in (noise, generated))
        columns = [np.concatenate(list(column)) for column in (crops, refs, hidden, samples)]
        enlarge = -(-SHEET_SIDE // size)
        return np.concatenate(columns, axis=1).repeat(enlarge, axis=0).repeat(enlarge, axis=1)


# --------------------------------------------------------------------------------------------------------- training


def batch_losses(model: TFGModel, diffusion: GaussianDiffusion, batch: Batch, config: ModelConfig) -> Tensor:
    """Loss per sample, float32 [N]."""
    inputs = batch.inputs
    device_type = batch.noise.device.type
    # untested here: half the memory on CUDA; bfloat16 has float32's range, so gradients need no scaling
    mixed = device_type == "cuda" and torch.cuda.is_bf16_supported()

    def denoise(x_t: Tensor, timesteps: Tensor) -> Tensor:
        with torch.autocast(device_type, torch.bfloat16, enabled=mixed):
            ref_img = inputs["ref_img"] if config.use_ref else None
            output = model(x_t, timesteps, inputs["cond_img"], ref_img, inputs["indiv_mels"], inputs["mask"])
        return output.float()

    return diffusion.training_losses(denoise, inputs["image"], batch.steps, batch.noise, inputs["mask"])


@dataclass
class Training:
    """What a step changes, and what state.pt holds. `losses` are those since the last line of the log.

    opening_head: reads the mouth's openings from the audio code for `--opening_weight`; not part of the network.
    """

    model: TFGModel
    ema: TFGModel
    opening_head: torch.nn.Linear
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)


def new_training(config: ModelConfig, options: Options, init: Checkpoint | None, device: torch.device) -> Training:
    torch.manual_seed(options.seed)
    model = create_model(config)
    if init is not None:
        print(start_from(model, init))
    model.to(device).to(memory_format=torch.channels_last)
    code = model.encode_audio(torch.zeros(1, config.audio_dim, config.syncnet_mel_step_size, device=device))
    opening_head = torch.nn.Linear(code[0].numel(), OPENINGS, device=device)
    parameters = [*model.parameters(), *opening_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=WEIGHT_DECAY, fused=True)
    return Training(model, copy.deepcopy(model).requires_grad_(False).eval(), opening_head, optimizer)


def start_from(model: TFGModel, init: Checkpoint) -> str:
    """Copy the tensors whose names and shapes agree; say which start fresh.

    :raises InputError: when none agrees.
    """
    state_dict = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in init.state_dict.items()
        if name in state_dict and state_dict[name].shape == tensor.shape
    }
    if not fitting:
        raise InputError("--init: no tensor of it has the name and shape of one in this network; drop the model flags")
    model.load_state_dict(fitting, strict=False)
    fresh = {name: list(tensor.shape) for name, tensor in state_dict.items() if name not in fitting}
    lines = [f"--init: {len(fitting)} of {len(state_dict)} tensors taken over, {len(fresh)} start fresh"]
    if len(fresh) <= FRESH_LISTED:
        for name, shape in fresh.items():
            was = list(init.state_dict[name].shape) if name in init.state_dict else "absent"
            lines.append(f"  {name} {shape} (was {was})")
    else:
        modules = [".".join(name.split(".")[:2]) for name in fresh]
        lines += [f"  {module}: {modules.count(module)} tensors" for module in dict.fromkeys(modules)]
    return "\n".join(lines)


def progress(training: Training, options: Options) -> float:
    """From 0 to 1, the end of the training."""
    if options.steps is not None:
        return training.step / options.steps
    assert options.minutes is not None  # Options checked it
    return training.seconds / (60 * options.minutes)


def learning_rate(training: Training, options: Options) -> float:
    """Linear warm-up, and half a cosine to zero (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts)."""
    warm = min(1.0, (training.step + 1) / max(1, options.warmup))
    return options.lr * warm * (1 + math.cos(math.pi * min(1.0, progress(training, options)))) / 2


def opening_loss(training: Training, clips: Sequence[Clip], options: Options, device: torch.device) -> Tensor:
    """How far off the openings are that `opening_head` reads from the audio code: mean square, in OPENING_UNITs.

    The picture's loss teaches the sound slowly: it is mostly that of pixels that do not depend on it, one window per
    picture. This one has no picture to pay for; and the neighbours' openings, which the window tells too, halve the
    number of windows that it takes.
    """
    rng = np.random.default_rng([options.seed, training.step, 1])
    mels, openings = draw_openings(clips, OPENING_EXAMPLES, rng, options.mel_augment)
    read = read_openings(training.model, training.opening_head, torch.from_numpy(mels).to(device))
    known = np.isfinite(openings)
    return torch.nn.functional.mse_loss(read[known], torch.from_numpy(openings[known] / OPENING_UNIT).to(device))


def read_openings(model: TFGModel, opening_head: torch.nn.Linear, mels: Tensor) -> Tensor:
    """`Clip.openings` in OPENING_UNITs, read from the audio codes of mel windows; float32."""
    return opening_head(model.encode_audio(mels).flatten(1).float())


def train_step(
    training: Training, diffusion: GaussianDiffusion, clips: Sequence[Clip], options: Options, config: ModelConfig,
    device: torch.device,
) -> None:  # fmt: skip
    # dropout draws from it; a function of seed and step, as all else
    torch.manual_seed(int(np.random.default_rng([options.seed, training.step, 2]).integers(1 << 62)))
    losses = []
    if training.step >= options.opening_steps:
        batch = training_batch(clips, training.step, options, config, device)
        losses.append(batch_losses(training.model, diffusion, batch, config).mean())
    if options.opening_weight:
        losses.append(options.opening_weight * opening_loss(training, clips, options, device))
    training.losses.append(losses[0].item())
    training.optimizer.zero_grad()
    torch.stack(losses).sum().backward()
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), options.grad_clip)
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(training, options)
    training.optimizer.step()
    decay = min(options.ema_decay, (1 + training.step) / (10 + training.step))
    with torch.no_grad():
        for average, parameter in zip(training.ema.parameters(), training.model.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)
    training.step += 1


class StopSignal:
    """Whether SIGTERM or SIGINT has come; a second one ends the program at once."""

    number: int | None = None

    @contextmanager
    def watch(self) -> Iterator["StopSignal"]:
        before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

        def note(number: int, _: FrameType | None) -> None:
            self.number = number
            for n, handler in before.items():
                signal.signal(n, handler)

        for n in before:
            signal.signal(n, note)
        try:
            yield self
        finally:
            for n, handler in before.items():
                signal.signal(n, handler)


def train(
    training: Training, clips: Sequence[Clip], validation: Validation, options: Options, config: ModelConfig,
    save: Callable[[], None], stop: StopSignal,
) -> None:  # fmt: skip
    """Train to the end, or to a signal; saves on the way and at the end."""
    diffusion = create_gaussian_diffusion(config)
    logged_step, logged_seconds = training.step, training.seconds
    while progress(training, options) < 1 and stop.number is None:
        start = time.monotonic()
        train_step(training, diffusion, clips, options, config, validation.device)
        training.seconds += time.monotonic() - start
        is_last = progress(training, options) >= 1
        if training.step % options.log_every == 0 or is_last:
            rate = (training.step - logged_step) / (training.seconds - logged_seconds)
            figures = f"val {validation.loss(training.ema, diffusion):.5f}"
            if options.opening_weight:
                figures += f"  opening r {validation.opening_r(training):.3f}"
            log(training, figures, rate, options)
            logged_step, logged_seconds = training.step, training.seconds
        if training.step % options.sheet_every == 0 or is_last:
            write_sheet(Path(options.out, f"sheet-{training.step:07d}.png"), validation.sheet(training.ema))
        if training.step % options.save_every == 0:
            save()
    save()


def log(training: Training, validation: str, rate: float, options: Options) -> None:
    line = (
        f"step {training.step}  {training.seconds / 60:.2f} min  train {np.mean(training.losses):.5f}  "
        f"{validation}  lr {learning_rate(training, options):.2e}  {rate:.2f} steps/s"
    )
    training.losses.clear()
    print(line, flush=True)
    with open(Path(options.out, "log.txt"), "a", encoding="utf-8") as file:
        file.write(line + "\n")


def write_sheet(path: Path, sheet: np.ndarray) -> None:
    _, png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    with replace_when_complete(path) as part:
        part.write_bytes(png.tobytes())


# -------------------------------------------------------------------------------------------------- saving, resuming

# What a continued run may change: it changes no number, or only how long the training is.
FREE_OPTIONS = (
    "data", "out", "cache", "init", "steps", "minutes", "log_every", "sheet_every", "save_every", "half",
    "face_detector", "detection_size", "workers", "device",
)  # fmt: skip


def identity(options: Options, config: ModelConfig, data_key: str) -> dict[str, Any]:
    """What must be the same when a run continues, by name."""
    fixed = {name: value for name, value in dataclasses.asdict(options).items() if name not in FREE_OPTIONS}
    init = file_digest(options.init) if options.init is not None else None
    return {**fixed, **dataclasses.asdict(config), "init": init, "data": data_key}


def save_state(path: Path, training: Training, run: Mapping[str, Any]) -> None:
    state = {
        "run": dict(run),
        "model": training.model.state_dict(),
        "ema": training.ema.state_dict(),
        "opening_head": training.opening_head.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "step": training.step,
        "seconds": training.seconds,
        "losses": training.losses,
    }
    with replace_when_complete(path) as part:
        torch.save(state, part)


def load_state(path: Path, training: Training, run: Mapping[str, Any]) -> None:
    """Continue in `training` what `save_state` wrote.

    :raises InputError: when it is not a state, or one of another run; names the first difference.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = dict(state["run"])
    except Exception:  # a damaged or foreign file makes torch's unpickler fail in many ways
        raise InputError(f"{path}: not a state that train.py wrote; give another --out, or delete it") from None
    for name, value in run.items():
        if stored.get(name) != value:
            given = "other content" if name in ("data", "init") else f"{value}; it was {stored.get(name)}"
            raise InputError(f"--out {path.parent}: holds a run with another --{name} ({given}); give another --out")
    training.model.load_state_dict(state["model"])
    training.ema.load_state_dict(state["ema"])
    training.opening_head.load_state_dict(state["opening_head"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.step, training.seconds, training.losses = state["step"], state["seconds"], state["losses"]


def load_init(options: Options, flags: Mapping[str, Any]) -> tuple[ModelConfig, Checkpoint | None]:
    """The network's configuration, and the checkpoint to start from."""
    if options.init is None:
        return model_config(flags, "command line"), None
    try:
        init = load_checkpoint(options.init)
    except InputError as error:
        raise InputError(str(error).replace("--model_path", "--init", 1)) from None
    return model_config({**dataclasses.asdict(init.config), **flags}, "command line"), init


def run(options: Options, flags: Mapping[str, Any]) -> int:
    device = choose_device(options.device)
    config, init = load_init(options, flags)
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        options.cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {options.out}: {error.strerror}; give a folder that you may write to") from None
    clips, data_key = prepare_clips(options, config)
    training_clips, validation_clips = split(clips, options.val_share)
    training = new_training(config, options, init, device)
    run_identity = identity(options, config, data_key)
    state = out / "state.pt"
    if state.is_file():
        load_state(state, training, run_identity)
        print(f"continues at step {training.step}, after {training.seconds / 60:.1f} minutes")
    n_parameters = sum(parameter.numel() for parameter in training.model.parameters())
    frames, held_out = (sum(len(clip.frames) for clip in part) for part in (training_clips, validation_clips))
    print(
        f"{len(clips)} clips, {frames} frames to train on and {held_out} for validation; "
        f"{n_parameters / 1e6:.1f} million parameters on {device}",
        flush=True,
    )

    def save() -> None:
        save_state(state, training, run_identity)
        save_checkpoint(out / "model.safetensors", config, training.ema.state_dict(), options.half)

    validation = Validation(validation_clips, options, config, device)
    with StopSignal().watch() as stop:
        train(training, training_clips, validation, options, config, save, stop)
    if stop.number is not None:
        print(f"stopped at step {training.step}; the same command continues", file=sys.stderr)
        return 128 + stop.number
    print(out / "model.safetensors")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(*parse_options(argv))
    except InputError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
