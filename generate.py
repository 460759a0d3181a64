"""Lip-sync a video to a speech file with a Diff2Lip network: `python generate.py --help`.

Pass 1 reads the video once and keeps only boxes and landmarks; pass 2 reads it again, samples crops in batches, runs
the stages on each, pastes it and encodes. Memory does not grow with the length of the video.
"""

import argparse
import dataclasses
import json
import os
import random
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from audio.audio import count_windows, mel_window, speech_mel
from audio.hparams import HParams, front_end
from face_detection.api import DETECTORS, FaceAlignment
from face_detection.tracks import FaceTrack, build_track, fixed_track, smooth_landmarks
from guided_diffusion.dist_util import DEVICES, Ranks, choose_device, join_ranks
from guided_diffusion.errors import InputError
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.logger import Timings, large_blocks_apart, peak_memory, versions
from guided_diffusion.script_util import (
    FIXED_OPTIONS,
    FlagParser,
    ModelConfig,
    add_flag,
    add_flags,
    add_model_flags,
    check_options,
    create_gaussian_diffusion,
    load_checkpoint,
    load_model,
    option,
)
from guided_diffusion.store import ChunkStore, content_key, file_digest, replace_when_complete
from guided_diffusion.tfg_data_util import resize_crop, sample_to_crops, sampling_noise, tfg_process_batch
from guided_diffusion.unet import TFGModel
from guided_diffusion.video_util import (
    Order,
    VideoSource,
    VideoWriter,
    check_target,
    count_frames,
    open_video,
    ordered_frames,
    source_index,
)
from post_processing import (
    Alpha,
    Face,
    LipAlpha,
    Paste,
    Stages,
    apply_stages,
    generated_alpha,
    paste_through,
    paste_whole,
    sharpen,
)

VOXCELEB2_SIZE = 224
ORDERS: tuple[str, ...] = typing.get_args(Order)
REF_TYPES = ("gt", "first_frame", "random")
INPUT_TYPES = ("gt", "first_frame")
QUALITY_PRESETS = {"fast": "ddim10", "balanced": "ddim25", "high": "ddim50", "ultra": "ddim100"}
# frames that are held at once for detection: 20 of 1080 x 1920
DETECTION_BATCH_BYTES = 1 << 27
# what stored tracks and samples look like; raise it when either changes
STORE_FORMAT = 1

Sampler = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], np.ndarray, int], np.ndarray]


# ---------------------------------------------------------------------------------------------------------- options


def flag(default: Any, help: str, affects: str, choices: Sequence[str] = ()) -> Any:
    """A command-line flag. `affects` is the first part of a run that it changes: detection, sampling, output or run."""
    return option(default, help, choices, affects=affects)


@dataclass(frozen=True)
class Options:
    """Every flag but the network's own (those are `ModelConfig`'s and come with the checkpoint).

    :raises InputError: naming the first value that is not allowed, and what is.
    """

    video_path: str = flag("", "video (or still image) to lip-sync", "run")
    audio_path: str = flag("", "speech: a sound file, or a video with sound", "run")
    out_path: str | None = flag(None, "result; by default <audio>_<video>.mp4 in sample_path", "run")
    model_path: str = flag("", "checkpoint (.pt with its .json beside it, or .safetensors)", "run")
    save_orig: bool = flag(True, "also write <name>_orig.mp4: the source frames with the new sound", "output")
    crf: int = flag(18, "H.264 quality, 0 (lossless but for 4:2:0) to 51", "output")

    generate_from_filelist: bool = flag(False, "work through --filelist instead of one video", "run")
    filelist: str = flag("test_filelist.txt", 'lines "audio_name video_name" (a tab where names have spaces)', "run")
    test_video_dir: str = flag("test_videos", "folder of the filelist's names, which are without .mp4", "run")
    sample_path: str = flag("d2l_gen", "folder for results", "run")
    sample_partition: str = flag("", "sub-folder of sample_path", "run")
    skip_existing: bool = flag(False, "leave results that exist already as they are", "run")

    video_fps: float = flag(25.0, "frame rate of the result; 0 keeps the source's own", "detection")
    audio_longer: Order = flag("cut", "when the sound outlasts the video", "sampling", ORDERS)
    face_detector: str = flag("sfd", "dlib needs no download", "detection", DETECTORS)
    detection_size: int = flag(720, "faces are looked for in frames with at most this long side", "detection")
    face_det_batch_size: int = flag(64, "at most this many frames per call of the detector", "run")
    face_index: int = flag(-1, "which face, from the left in the first frame with faces; -1 is the best", "detection")
    pads: str = flag("0,0,0,0", "pixels to grow the box: top,bottom,left,right", "detection")
    is_voxceleb2: bool = flag(True, "no detection: VoxCeleb2's fixed crop of 224 x 224 frames", "detection")

    face_hide_percentage: float = flag(0.5, "lower part of the crop that is generated", "sampling")
    sampling_seed: int | None = flag(None, "seed of the noise, one for all frames; none draws it anew", "sampling")
    sampling_batch_size: int = flag(2, "a batch has this many times nframes frames", "sampling")
    sampling_ref_type: str = flag("gt", "reference crop of a frame", "sampling", REF_TYPES)
    sampling_use_gt_for_ref: bool = flag(False, "the same as --sampling_ref_type gt", "sampling")
    sampling_input_type: str = flag("gt", "first_frame freezes the video", "sampling", INPUT_TYPES)
    use_ddim: bool = flag(False, "DDIM instead of ancestral sampling", "sampling")
    timestep_respacing: str = flag("", "ddimN (with --use_ddim True), or steps per section as a,b,c", "sampling")
    clip_denoised: bool = flag(True, "clamp the x_0 prediction", "sampling")
    use_fp16: bool = flag(True, "half precision on CUDA; float32 elsewhere", "run")
    device: str = flag("auto", "where the network runs", "run", DEVICES)

    blur_kernel_size: int = flag(
        0, "show the generated part only, its edges feathered over so many pixels of the network's crop", "output"
    )
    sharpening_strength: float = flag(0.0, "sharpen the generated part, 0 to 1", "output")
    landmark_mask: bool = flag(False, "show the generated mouth only", "output")
    mask_expansion: float = flag(1.2, "the mouth is shown up to (this - 1) of its width around the lips", "output")
    adaptive_mask: bool = flag(False, "the margin around the lips grows as the mouth opens", "output")

    work_dir: str | None = flag(None, "keep tracks and samples here: continue after a kill, composite anew", "run")
    stats: str | None = flag(None, "write times, memory, versions and options to this JSON file", "run")

    def __post_init__(self) -> None:
        ranges = (
            ("crf", 0, 51),
            ("video_fps", 0, 1000),
            ("detection_size", 32, 1 << 14),
            ("face_det_batch_size", 1, 1 << 14),
            ("face_index", -1, 1000),
            ("face_hide_percentage", 0.01, 1),
            ("sampling_batch_size", 1, 1 << 14),
            ("sharpening_strength", 0, 1),
            ("mask_expansion", 1.01, 3),
        )
        check_options(self, ranges)
        if self.sampling_seed is not None and not 0 <= self.sampling_seed < 1 << 63:
            raise InputError(f"--sampling_seed {self.sampling_seed}: give a whole number from 0 up")
        if self.sampling_use_gt_for_ref and self.sampling_ref_type != "gt":
            raise InputError(
                f"--sampling_use_gt_for_ref True contradicts --sampling_ref_type {self.sampling_ref_type}: drop one"
            )
        if self.blur_kernel_size != 0 and not 3 <= self.blur_kernel_size <= 63:
            raise InputError(f"--blur_kernel_size {self.blur_kernel_size}: give 3 to 63 pixels, or 0 for no blending")
        if self.landmark_mask and self.is_voxceleb2:
            raise InputError("--landmark_mask True needs a detected face: give --is_voxceleb2 False")
        if self.adaptive_mask and not self.landmark_mask:
            raise InputError("--adaptive_mask True changes the mask of the lips: give --landmark_mask True too")
        if self.mask_expansion != type(self).mask_expansion and not self.landmark_mask:
            raise InputError("--mask_expansion is the size of the lips' mask: give --landmark_mask True too")
        if self.work_dir is not None and self.sampling_seed is None:
            raise InputError("--work_dir needs a seed, so that stored samples fit new ones: give --sampling_seed 7")
        if not self.model_path:
            raise InputError("--model_path is missing: give a checkpoint (see README.md, Checkpoints)")
        if not self.generate_from_filelist and not (self.video_path and self.audio_path):
            raise InputError("give --video_path and --audio_path, or --generate_from_filelist True with --filelist")
        _ = self.pad_pixels

    @property
    def pad_pixels(self) -> tuple[int, int, int, int]:
        """`pads` as (top, bottom, left, right)."""
        parts = self.pads.split(",")
        if len(parts) != 4 or not all(part.strip().lstrip("-").isdecimal() for part in parts):
            raise InputError(f"--pads {self.pads}: give four whole numbers, top,bottom,left,right")
        top, bottom, left, right = map(int, parts)
        return top, bottom, left, right

    def affecting(self, part: str) -> dict[str, Any]:
        """The options that change this part of a run."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["affects"] == part}


def create_argparser() -> argparse.ArgumentParser:
    """Flags of Options, then the network's (default: the checkpoint's), then upstream's with one supported value."""
    parser = FlagParser("generate.py", "Lip-sync a video to a speech file.")
    group = parser.add_argument_group("options")
    add_flags(group, Options)
    presets = ", ".join(f"{name} {steps}" for name, steps in QUALITY_PRESETS.items())
    add_flag(group, "quality_preset", str, "", f"--use_ddim True and --timestep_respacing in one word: {presets}")
    add_model_flags(parser, "the network's own, known from the checkpoint; given here, they must agree")
    group = parser.add_argument_group("accepted for upstream's scripts, with this value only")
    for name, value in FIXED_OPTIONS.items():
        add_flag(group, name, type(value), None, str(value))
    return parser


def resolve_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags with those that --quality_preset stands for in its place; the rest of the program knows no preset.

    :raises InputError: for an unknown preset, and for one beside --timestep_respacing.
    """
    flags = dict(given)
    preset = flags.pop("quality_preset")
    if not preset:
        return flags
    if preset not in QUALITY_PRESETS:
        raise InputError(f"--quality_preset {preset}: choose from {', '.join(QUALITY_PRESETS)}")
    if flags["timestep_respacing"]:
        raise InputError(f"--quality_preset {preset} is {QUALITY_PRESETS[preset]}: drop it or --timestep_respacing")
    return {**flags, "use_ddim": True, "timestep_respacing": QUALITY_PRESETS[preset]}


def parse_options(argv: Sequence[str] | None) -> tuple[Options, dict[str, Any]]:
    """Options, and the network's flags that were given.

    :raises InputError: for flags or values that are not allowed.
    """
    given = resolve_preset(vars(create_argparser().parse_args(argv)))
    names = {f.name for f in dataclasses.fields(Options)}
    options = Options(**{name: value for name, value in given.items() if name in names})
    return options, {name: value for name, value in given.items() if name not in names and value is not None}


# ------------------------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    video_path: str
    audio_path: str
    out_path: str

    @property
    def orig_path(self) -> str:
        path = Path(self.out_path)
        return str(path.with_name(f"{path.stem}_orig{path.suffix}"))


def single_job(options: Options) -> Job:
    name = f"{Path(options.audio_path).stem}_{Path(options.video_path).stem}.mp4"
    out_path = options.out_path or str(Path(options.sample_path, options.sample_partition, name))
    return Job(options.video_path, options.audio_path, out_path)


def filelist_jobs(options: Options) -> list[Job]:
    """The filelist's lines (REFERENCE.md: Filelist mode).

    :raises InputError: when the list cannot be read or a line is not two names.
    """
    try:
        lines = Path(options.filelist).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text"
        raise InputError(f"--filelist {options.filelist}: {reason}; give lines 'audio_name video_name'") from None
    jobs = []
    for number, line in enumerate(lines, 1):
        names = line.strip().split("\t") if "\t" in line.strip() else line.split()
        if not names:
            continue
        if len(names) != 2:
            where = f"--filelist {options.filelist} line {number}"
            raise InputError(f"{where}: {line.strip()!r} is not 'audio_name video_name'")
        audio, video = names
        out_name = f"{audio.replace('/', '.')}_{video.replace('/', '.')}.mp4"
        out_path = Path(options.sample_path, options.sample_partition, out_name)
        jobs.append(Job(_listed(options, video), _listed(options, audio), str(out_path)))
    if not jobs:
        raise InputError(f"--filelist {options.filelist}: has no lines; give lines 'audio_name video_name'")
    return jobs


def _listed(options: Options, name: str) -> str:
    path = Path(options.test_video_dir, name)
    return str(path if path.is_file() else f"{path}.mp4")


def check_job(job: Job, options: Options) -> None:
    """Inputs are files, targets can be written and are not the inputs."""
    for name, path in (("video_path", job.video_path), ("audio_path", job.audio_path)):
        if not os.path.isfile(path):
            raise InputError(f"--{name} {path}: no such file")
    for target in (job.out_path, job.orig_path) if options.save_orig else (job.out_path,):
        check_target(target)
        if os.path.exists(target) and any(os.path.samefile(target, p) for p in (job.video_path, job.audio_path)):
            raise InputError(f"--out_path {target}: is one of the inputs; give another name")


def report(job: Job, frames: int, track: FaceTrack, timings: Timings, stages: Stages) -> dict[str, Any]:
    """Print the closing line of a job; return what --stats says of it."""
    seconds = timings.total()
    shares = ", ".join(f"{part} {100 * t / seconds:.0f} %" for part, t in timings.seconds.items())
    rate = frames / seconds
    print(f"{job.out_path}: {frames} frames in {seconds:.1f} s, {rate:.2f} frames/s ({shares})")
    print(f"faces: {track.summary()}")
    return {
        **dataclasses.asdict(job),
        "frames": frames,
        "seconds": seconds,
        "ms_per_frame": {part: 1000 * t / frames for part, t in timings.seconds.items()},
        "stages": [name for name, _ in stages],
        "faces": track.summary(),
    }


# --------------------------------------------------------------------------------------------------- the two passes


@dataclass(frozen=True)
class Clip:
    """A job's inputs, opened: the video at the result's rate and the mel spectrogram [audio_dim, steps]."""

    video: VideoSource
    mel: np.ndarray
    hparams: HParams

    @property
    def fps(self) -> Fraction:
        return self.video.fps

    @property
    def n_windows(self) -> int:
        """Frames that the sound suffices for."""
        return count_windows(self.mel, self.fps, self.hparams)


def open_clip(job: Job, options: Options, hparams: HParams) -> Clip:
    """:raises InputError: when video or sound cannot be used."""
    return Clip(open_video(job.video_path, options.video_fps), speech_mel(job.audio_path, hparams)[0], hparams)


@dataclass(frozen=True)
class DiffusionSampler:
    """Crops, reference crops and mel windows of a batch -> generated crops."""

    model: TFGModel
    diffusion: GaussianDiffusion
    config: ModelConfig
    options: Options
    device: torch.device

    @torch.inference_mode()
    def __call__(
        self, crops: Sequence[np.ndarray], ref_crops: Sequence[np.ndarray], mels: np.ndarray, batch_number: int
    ) -> np.ndarray:
        """:return: uint8 [N, h, w, 3] for N crops uint8 [h, w, 3] at the network's size."""
        options = self.options
        noise = sampling_noise(len(crops), self.config.image_size, options.sampling_seed)
        refs = ref_crops if self.config.use_ref else None
        batch = tfg_process_batch(crops, refs, mels, noise, options.face_hide_percentage, self.device)
        # seeded by the batch, so that a continued run draws what an uninterrupted one does
        seed = options.sampling_seed
        generator = None if seed is None else torch.Generator().manual_seed((seed << 20) % (1 << 62) + batch_number)
        loop = self.diffusion.ddim_sample_loop if options.use_ddim else self.diffusion.p_sample_loop
        sample_loop = partial(loop, clip_denoised=options.clip_denoised, generator=generator)
        return sample_to_crops(sample(self.model, sample_loop, batch), batch["image"], batch["mask"])


def sample(model: TFGModel, sample_loop: Callable[..., Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Run a sampling loop on a batch of `tfg_process_batch`: x_0, [N x 3 x h x w] in [-1, 1].

    The audio code does not depend on the step: it is computed once.
    """
    denoise = partial(
        model.denoise,
        cond_img=batch["cond_img"],
        ref_img=batch.get("ref_img"),
        audio_code=model.encode_audio(batch["indiv_mels"]),
        mask=batch["mask"],
    )
    return sample_loop(denoise, batch["noise"])


def find_faces(clip: Clip, options: Options, detector: FaceAlignment | None, timings: Timings) -> FaceTrack:
    """Pass 1: the face's track over the frames that the sound suffices for."""
    video = clip.video
    if detector is None:
        if (video.width, video.height) != (VOXCELEB2_SIZE, VOXCELEB2_SIZE):
            print(
                f"warning: --is_voxceleb2 True takes a fixed crop of 224 x 224 frames, this video is {video.width} x "
                f"{video.height}; give --is_voxceleb2 False to detect faces",
                file=sys.stderr,
            )
        with timings.measure("decode"):
            n_source = count_frames(video, clip.n_windows)
        return fixed_track(n_source, voxceleb2_box(video.height, video.width))

    frames = timings.iterate("decode", video.frames(stop=clip.n_windows))

    def detect(images: Sequence[np.ndarray]) -> list[Any]:
        with timings.measure("detect"):
            return detector.detect(images, with_landmarks=options.landmark_mask)

    fitting = max(1, DETECTION_BATCH_BYTES // (video.width * video.height * 3))
    try:
        return build_track(
            tqdm(frames, desc="faces", unit="frame", disable=None),
            detect,
            batch_size=min(options.face_det_batch_size, fitting),
            pads=options.pad_pixels,
            face_index=options.face_index,
        )
    except InputError as error:
        raise InputError(f"--video_path {video.path}: {error}") from None


def voxceleb2_box(height: int, width: int) -> tuple[int, int, int, int]:
    """The fixed crop (y1, y2, x1, x2) of a VoxCeleb2 frame (REFERENCE.md: Video loop)."""
    side = int(width * 1.8 / 8)
    return 0, height - int(height * 2.36 / 8), side, width - side


@dataclass(frozen=True)
class Batch:
    """Consecutive output frames: faces of those that have one, with their samples uint8 [h, w, 3], by output index."""

    frames: dict[int, np.ndarray]
    faces: dict[int, Face]
    samples: dict[int, np.ndarray]


class SecondPass:
    """Pass 2 up to the sampled crops: cuts the output into batches, each of which can be made on its own."""

    def __init__(
        self, clip: Clip, track: FaceTrack, options: Options, config: ModelConfig, sampler: Sampler,
        store: ChunkStore | None, timings: Timings,
    ) -> None:  # fmt: skip
        self.clip = clip
        self.track = track
        self.options = options
        self.config = config
        self.sampler = sampler
        self.store = store
        self.timings = timings
        self.n_source = len(track.boxes)
        outlasts = options.audio_longer != "cut" or clip.video.is_image
        self.n_output = clip.n_windows if outlasts else self.n_source
        self.size = options.sampling_batch_size * config.nframes
        self.n_batches = -(-self.n_output // self.size)
        self._fixed_ref = self._reference_crop()

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches first..last-1."""
        frames = self.timings.iterate("decode", self._frames(first * self.size))
        for number in range(first, last):
            indexed = list(islice(frames, self.size))
            start = number * self.size
            faces = {
                start + k: self._face(start + k, source, frame)
                for k, (source, frame) in enumerate(indexed)
                if self.track.has_face[source]
            }
            samples = self._samples(number, list(faces.values()))
            yield Batch(
                {start + k: frame for k, (_, frame) in enumerate(indexed)},
                faces,
                dict(zip(faces, samples, strict=True)),
            )

    def _frames(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
        if self.options.sampling_input_type == "first_frame":
            source = self._with_face(0)
            frame = self._source_frame(source)
            return ((source, frame) for _ in range(start, self.n_output))
        return ordered_frames(
            self.clip.video, self.n_source, self.n_output, self.options.audio_longer, start=start
        )

    def _face(self, index: int, source: int, frame: np.ndarray) -> Face:
        y1, y2, x1, x2 = (int(v) for v in self.track.boxes[source])
        size = self.config.image_size
        return Face(
            index=index,
            frame=frame,
            box=(y1, y2, x1, x2),
            landmarks=None if self.track.landmarks is None else self.track.landmarks[source],
            is_cut=self._is_cut(index, source),
            network_crop=resize_crop(frame[y1:y2, x1:x2], size, size),
        )

    def _is_cut(self, index: int, source: int) -> bool:
        """Whether a shot begins at this output frame: played backwards, a source's cut comes a frame later, and the
        jump of a loop is one."""
        if index == 0 or self.options.sampling_input_type == "first_frame":
            return False
        before = source_index(index - 1, self.n_source, self.options.audio_longer)
        low, high = sorted((before, source))
        return high - low > 1 or bool(self.track.is_cut[low + 1 : high + 1].any())

    def _samples(self, number: int, faces: list[Face]) -> np.ndarray | list[np.ndarray]:
        if not faces:
            return []
        stored = self.store.load(number) if self.store else None
        if stored is not None:
            return stored
        mels = np.stack([mel_window(self.clip.mel, face.index, self.clip.fps, self.clip.hparams) for face in faces])
        crops = [face.network_crop for face in faces]
        ref_crops = crops if self._fixed_ref is None else [self._fixed_ref] * len(crops)
        with self.timings.measure("sample"):
            samples = self.sampler(crops, ref_crops, mels, number)
        if self.store:
            self.store.save(number, samples)
        return samples

    def _reference_crop(self) -> np.ndarray | None:
        """The one reference of all frames, or None when each frame is its own."""
        kind = self.options.sampling_ref_type
        if kind == "gt":
            return None
        index = 0
        if kind == "random":  # the seed arrives as a string upstream
            index = random.Random(str(self.options.sampling_seed)).randint(0, self.n_source - 1)
        source = self._with_face(index)
        return self._face(0, source, self._source_frame(source)).network_crop

    def _with_face(self, source: int) -> int:
        """`source`, or the nearest later (else the nearest earlier) frame that has the face."""
        with_face = np.flatnonzero(self.track.has_face)
        later = with_face[with_face >= source]
        return int(later[0] if len(later) else with_face[-1])

    def _source_frame(self, source: int) -> np.ndarray:
        return next(iter(self.clip.video.frames(start=source, stop=source + 1)))


def build_stages(options: Options) -> Stages:
    """The enhancements that the options turn on, by name and in order; none without flags."""
    stages: Stages = []
    if options.sharpening_strength:
        strength, hidden = options.sharpening_strength, options.face_hide_percentage
        stages.append(("sharpen", partial(sharpen, sharpening_strength=strength, face_hide_percentage=hidden)))
    return stages


def build_paste(options: Options, image_size: int, detector: FaceAlignment | None) -> Paste:
    """How a crop comes into its frame: whole as upstream, or through the mask that the options ask for."""
    if not (options.blur_kernel_size or options.landmark_mask):
        return paste_whole
    alpha: Alpha = partial(
        generated_alpha,
        face_hide_percentage=options.face_hide_percentage,
        blur_kernel_size=options.blur_kernel_size,
        image_size=image_size,
    )
    if options.landmark_mask and detector is not None:
        alpha = LipAlpha(options.mask_expansion, options.adaptive_mask, alpha, detector.get_lip_landmarks)
    return partial(paste_through, alpha=alpha)


def pictures(
    second_pass: SecondPass, stages: Stages, timings: Timings, paste: Paste = paste_whole
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pass 2 up to the encoder: (source frame, result), each uint8 [H, W, 3], for every output frame."""
    for batch in second_pass.batches(0, second_pass.n_batches):
        for index, frame in batch.frames.items():
            picture = frame
            if index in batch.faces:
                face = batch.faces[index]
                crop = apply_stages(batch.samples[index], face, stages, timings.measure)
                with timings.measure("paste"):
                    picture = paste(crop, face)
            yield frame, picture


def write_result(job: Job, second_pass: SecondPass, stages: Stages, paste: Paste, timings: Timings) -> None:
    """Encode pass 2's pictures with the soundtrack; the targets appear when they are complete."""
    video, options = second_pass.clip.video, second_pass.options
    open_writer = partial(VideoWriter, source=video, fps=video.fps, crf=options.crf, audio_path=job.audio_path)
    bar = partial(tqdm, total=second_pass.n_output, desc="frames", unit="frame", disable=None)
    with open_writer(job.out_path) as result, ExitStack() as stack:
        orig = stack.enter_context(open_writer(job.orig_path)) if options.save_orig else None
        for frame, picture in bar(pictures(second_pass, stages, timings, paste)):
            with timings.measure("encode"):
                result.write(picture)
                if orig:
                    orig.write(frame)


# --------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Tools:
    """What jobs share: the loaded networks and the ranks."""

    config: ModelConfig
    sampler: Sampler
    detector: FaceAlignment | None
    sampler_key: dict[str, Any]
    ranks: Ranks


def load_tools(options: Options, model_flags: Mapping[str, Any], ranks: Ranks) -> Tools:
    """Checkpoint, network, detector. :raises InputError: when one of them cannot be had."""
    device = choose_device(options.device, ranks.local_rank)
    checkpoint = load_checkpoint(options.model_path, model_flags)
    diffusion = create_gaussian_diffusion(checkpoint.config, options.timestep_respacing)
    fp16 = options.use_fp16 and device.type == "cuda"
    if options.use_fp16 and not fp16 and ranks.rank == 0:
        print(f"notice: --use_fp16 True has no effect on {device.type}: the network runs in float32", file=sys.stderr)
    detector = None
    if not options.is_voxceleb2:
        detector = FaceAlignment(
            options.face_detector, str(device), options.detection_size, options.face_det_batch_size
        )
    sampler_key = {}
    if options.work_dir is not None:
        sampler_key = {
            "checkpoint": file_digest(options.model_path),
            "config": dataclasses.asdict(checkpoint.config),
            "options": options.affecting("sampling"),
            "arithmetic": [device.type, fp16, torch.__version__],
        }
    model = load_model(checkpoint, device, fp16)
    sampler = DiffusionSampler(model, diffusion, checkpoint.config, options, device)
    return Tools(checkpoint.config, sampler, detector, sampler_key, ranks)


def lip_sync(job: Job, clip: Clip, options: Options, tools: Tools) -> dict[str, Any] | None:
    """Make one result. With several ranks on one job all call it: each samples a part, rank 0 composites.

    :return: what --stats says of the job; None on ranks that did not composite.
    """
    timings = Timings()
    track_path, store = _work_files(job, clip, options, tools)
    ranks = tools.ranks if not options.generate_from_filelist else Ranks()
    if ranks.rank > 0:
        ranks.barrier()
    if track_path is not None and track_path.is_file():
        track = FaceTrack.load(track_path)
    else:
        with large_blocks_apart():
            track = find_faces(clip, options, tools.detector, timings)
        if track_path is not None:
            track.save(track_path)
    if ranks.rank == 0:
        ranks.barrier()
    track = smooth_landmarks(track)
    second_pass = SecondPass(clip, track, options, tools.config, tools.sampler, store, timings)
    if ranks.size > 1:
        mine = np.array_split(np.arange(second_pass.n_batches), ranks.size)[ranks.rank]
        for _ in second_pass.batches(mine[0], mine[-1] + 1) if len(mine) else ():
            pass
        ranks.barrier()
        if ranks.rank > 0:
            return None
    stages = build_stages(options)
    paste = build_paste(options, tools.config.image_size, tools.detector)
    write_result(job, second_pass, stages, paste, timings)
    return report(job, second_pass.n_output, track, timings, stages)


def _work_files(job: Job, clip: Clip, options: Options, tools: Tools) -> tuple[Path | None, ChunkStore | None]:
    """Where this job's track and samples are kept, named by all that they depend on."""
    if options.work_dir is None:
        return None, None
    track_parts = {
        "format": STORE_FORMAT,
        "video": file_digest(job.video_path),
        "frames": clip.n_windows,
        "options": options.affecting("detection"),
    }
    sample_parts = {"track": track_parts, "audio": file_digest(job.audio_path), **tools.sampler_key}
    work_dir = Path(options.work_dir)
    # boxes, and so samples, are the same with landmarks and without
    track_key = content_key({**track_parts, "landmarks": options.landmark_mask and options.face_detector != "dlib"})
    track_path = work_dir / f"track-{track_key}.npz"
    return track_path, ChunkStore(work_dir / f"samples-{content_key(sample_parts)}")


def run_single(options: Options, model_flags: Mapping[str, Any], ranks: Ranks) -> int:
    job = single_job(options)
    check_job(job, options)
    if options.skip_existing and os.path.exists(job.out_path):
        print(f"{job.out_path}: exists, skipped")
        return 0
    if ranks.size > 1 and options.work_dir is None:
        raise InputError(f"{ranks.size} processes on one video share their samples in a folder: give --work_dir")
    tools = load_tools(options, model_flags, ranks)
    result = lip_sync(job, open_clip(job, options, front_end(tools.config)), options, tools)
    if options.stats and result is not None:
        write_stats(options, result)
    return 0


def run_filelist(options: Options, model_flags: Mapping[str, Any], ranks: Ranks) -> int:
    """Every rank takes each `size`-th line. A failing line is reported, the rest goes on; then the status is 1."""
    jobs = filelist_jobs(options)
    tools = load_tools(options, model_flags, ranks)
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    skipped = 0
    for job in jobs[ranks.rank :: ranks.size]:
        if options.skip_existing and os.path.exists(job.out_path):
            skipped += 1
            continue
        try:
            check_job(job, options)
            result = lip_sync(job, open_clip(job, options, front_end(tools.config)), options, tools)
            results += [result] if result else []
        except Exception as error:
            if not isinstance(error, InputError):
                traceback.print_exc()
            failures.append(f"{job.out_path}: {error}")
            print(f"generate.py: error: {failures[-1]}", file=sys.stderr)
    gathered = ranks.gather((results, failures, skipped))
    if ranks.rank == 0:
        results = [result for rank_results, _, _ in gathered for result in rank_results]
        failures = [failure for _, rank_failures, _ in gathered for failure in rank_failures]
        skipped = sum(count for _, _, count in gathered)
        print(f"{len(jobs)} lines: {len(results)} made, {skipped} existed, {len(failures)} failed")
        for failure in failures:
            print(f"failed: {failure}")
        if options.stats:
            write_stats(options, {"jobs": results, "failed": failures, "skipped": skipped})
    return 1 if any(rank_failures for _, rank_failures, _ in gathered) else 0


def write_stats(options: Options, result: dict[str, Any]) -> None:
    """Write `--stats`: times, memory, versions, device and all options."""
    content = {
        **result,
        "peak_memory_mib": peak_memory(),
        "device": str(choose_device(options.device)),
        "versions": versions(),
        "options": dataclasses.asdict(options),
    }
    with replace_when_complete(Path(str(options.stats))) as part:
        part.write_text(json.dumps(content, indent=2), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    # so that a terminated run, like an interrupted one, clears away what it had begun to write
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options, model_flags = parse_options(argv)
        with join_ranks() as ranks:
            run = run_filelist if options.generate_from_filelist else run_single
            return run(options, model_flags, ranks)
    except InputError as error:
        print(f"generate.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
