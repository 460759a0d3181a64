"""Lip-sync a video to a speech file with a Diff2Lip network: `python generate.py --help`.

Pass 1 reads the video once and keeps only boxes and landmarks; pass 2 reads it again, samples crops in batches, runs
the stages on each, pastes it and encodes. Memory does not grow with the length of the video.
"""

import argparse
import dataclasses
import os
import random
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from audio.audio import count_windows, load_speech, mel_windows, melspectrogram
from face_detection.api import DETECTORS, Detection, FaceAlignment, FaceIdentity
from face_detection.tracks import (
    VOXCELEB2_SIZE,
    FaceTrack,
    VideoFaces,
    build_track,
    check_face_index,
    find_faces,
    fixed_track,
    smooth_landmarks,
    voxceleb2_box,
)
from guided_diffusion.dist_util import DEVICES, Ranks, choose_device, join_ranks
from guided_diffusion.errors import InputError
from guided_diffusion.logger import Timings, large_blocks_apart, report, versions, write_stats
from guided_diffusion.sampling import DiffusionSampler, Sampler, StoredSampler, generate_crops, plan_batches
from guided_diffusion.script_util import (
    FIXED_OPTIONS,
    Checkpoint,
    FlagParser,
    ModelConfig,
    add_flag,
    add_flags,
    add_model_flags,
    check_options,
    create_gaussian_diffusion,
    load_checkpoint,
    load_model,
    model_config,
    option,
)
from guided_diffusion.store import ChunkStore, content_key, file_digest
from guided_diffusion.streams import Face, Item, Stages, ahead, in_batches, per_face
from guided_diffusion.tfg_data_util import crop_box
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
from post_processing import LipAlpha, find_lips, generated_alpha, paste_stage, sharpen

ORDERS: tuple[str, ...] = typing.get_args(Order)
REF_TYPES = ("gt", "first_frame", "random")
INPUT_TYPES = ("gt", "first_frame")
QUALITY_PRESETS = {"fast": "ddim10", "balanced": "ddim25", "high": "ddim50", "ultra": "ddim100"}
# frames that are held at once for detection: 20 of 1080 x 1920
DETECTION_BATCH_BYTES = 1 << 27
LIP_BATCH = 16  # generated crops whose landmarks are found together
WRITE_AHEAD = 4  # results that wait for the encoder
# what stored faces and samples look like; raise it when either changes
STORE_FORMAT = 2


# ---------------------------------------------------------------------------------------------------------- options


def flag(default: Any, help: str, affects: str, choices: Sequence[str] = ()) -> Any:
    """A command-line flag. `affects` is the first part of a run that it changes: faces, sampling, output or run."""
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

    video_fps: float = flag(25.0, "frame rate of the result; 0 keeps the source's own", "faces")
    audio_longer: Order = flag("cut", "when the sound outlasts the video", "sampling", ORDERS)
    face_detector: str = flag("sfd", "dlib needs no download", "faces", DETECTORS)
    detection_size: int = flag(720, "faces are looked for in frames with at most this long side", "faces")
    face_det_batch_size: int = flag(64, "at most this many frames per call of the detector", "run")
    face_index: int = flag(-1, "which face, from the left in the first frame with faces; -1 is the best", "sampling")
    pads: str = flag("0,0,0,0", "pixels to grow the box: top,bottom,left,right", "sampling")
    is_voxceleb2: bool = flag(True, "no detection: VoxCeleb2's fixed crop of 224 x 224 frames", "faces")

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
        _ = self.pad_pixels
        for is_wrong, message in RULES:
            if is_wrong(self):
                raise InputError(message.format(**vars(self)))

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


# What is wrong, and what to say of it; the first that holds is said.
RULES: tuple[tuple[Callable[[Options], bool], str], ...] = (
    (
        lambda o: o.sampling_seed is not None and not 0 <= o.sampling_seed < 1 << 63,
        "--sampling_seed {sampling_seed}: give a whole number from 0 up",
    ),
    (
        lambda o: o.sampling_use_gt_for_ref and o.sampling_ref_type != "gt",
        "--sampling_use_gt_for_ref True contradicts --sampling_ref_type {sampling_ref_type}: drop one",
    ),
    (
        lambda o: o.blur_kernel_size != 0 and not 3 <= o.blur_kernel_size <= 63,
        "--blur_kernel_size {blur_kernel_size}: give 3 to 63 pixels, or 0 for no blending",
    ),
    (
        lambda o: o.landmark_mask and o.is_voxceleb2,
        "--landmark_mask True needs a detected face: give --is_voxceleb2 False",
    ),
    (
        lambda o: o.adaptive_mask and not o.landmark_mask,
        "--adaptive_mask True changes the mask of the lips: give --landmark_mask True too",
    ),
    (
        lambda o: o.mask_expansion != Options.mask_expansion and not o.landmark_mask,
        "--mask_expansion is the size of the lips' mask: give --landmark_mask True too",
    ),
    (
        lambda o: o.work_dir is not None and o.sampling_seed is None,
        "--work_dir needs a seed, so that stored samples fit new ones: give --sampling_seed 7",
    ),
    (lambda o: not o.model_path, "--model_path is missing: give a checkpoint (see README.md, Checkpoints)"),
    (
        lambda o: not o.generate_from_filelist and not (o.video_path and o.audio_path),
        "give --video_path and --audio_path, or --generate_from_filelist True with --filelist",
    ),
)


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


def check_model_flags(flags: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Flags may repeat the checkpoint's configuration, not contradict it."""
    model_config(flags, "command line")
    for name, value in flags.items():
        known = getattr(checkpoint.config, name, value)
        if value != known:
            raise InputError(f"--{name} {value} contradicts {checkpoint.source}, which says {known}; drop the flag")


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


# --------------------------------------------------------------------------------------------------- the two passes


@dataclass(frozen=True)
class Clip:
    """A job's inputs, opened: the video at the result's rate and the mel spectrogram [audio_dim, steps]."""

    video: VideoSource
    mel: np.ndarray

    @property
    def fps(self) -> Fraction:
        return self.video.fps

    @property
    def n_windows(self) -> int:
        """Frames that the sound suffices for."""
        return count_windows(self.mel, self.fps)

    def mel_window(self, frame: int) -> np.ndarray:
        """What the network hears of an output frame, float32 [audio_dim, window_steps]."""
        return mel_windows(self.mel, frame, frame + 1, self.fps)[0]


def open_clip(job: Job, options: Options) -> Clip:
    """:raises InputError: when video or sound cannot be used."""
    return Clip(open_video(job.video_path, options.video_fps), melspectrogram(load_speech(job.audio_path)))


def detect_faces(
    clip: Clip, options: Options, detector: FaceAlignment, known: VideoFaces | None, timings: Timings
) -> VideoFaces:
    """Pass 1: the faces of the frames that the sound suffices for; `known` are those of the first frames."""
    video = clip.video
    start = known.next_start if known else 0
    frames = timings.iterate("decode", video.frames(start, clip.n_windows))
    bar = tqdm(frames, desc="faces", unit="frame", total=clip.n_windows - start, disable=None)

    def detect(images: Sequence[np.ndarray]) -> list[list[Detection]]:
        with timings.measure("detect"):
            return detector.detect(images, with_landmarks=options.landmark_mask)

    fitting = max(1, DETECTION_BATCH_BYTES // (video.width * video.height * 3))
    batch_size = min(options.face_det_batch_size, fitting)
    check = partial(check_face_index, pads=options.pad_pixels, face_index=options.face_index)
    return find_faces(bar, detect, batch_size, known, n_frames=clip.n_windows, check=check)


def follow_face(clip: Clip, faces: VideoFaces, options: Options) -> FaceTrack:
    """One person's track over the frames that the sound suffices for."""

    def identify(index: int, face: Detection) -> np.ndarray:
        return face_identity().describe(next(iter(clip.video.frames(index, index + 1))), face)

    return build_track(
        faces, clip.n_windows, pads=options.pad_pixels, face_index=options.face_index, identify=identify,
        detection_size=options.detection_size,
    )  # fmt: skip


@cache
def face_identity() -> FaceIdentity:
    """One for all jobs, loaded when first needed."""
    return FaceIdentity()


def fixed_face(clip: Clip, timings: Timings) -> FaceTrack:
    """VoxCeleb2's fixed crop in the frames that the sound suffices for."""
    video = clip.video
    if (video.width, video.height) != (VOXCELEB2_SIZE, VOXCELEB2_SIZE):
        print(
            f"warning: --is_voxceleb2 True takes a fixed crop of 224 x 224 frames, this video is {video.width} x "
            f"{video.height}; give --is_voxceleb2 False to detect faces",
            file=sys.stderr,
        )
    with timings.measure("decode"):
        return fixed_track(count_frames(video, clip.n_windows), voxceleb2_box(video.height, video.width))


class Playback:
    """The source's frames with their faces, in the order of the result's.

    :param n_output: frames of the result.
    """

    def __init__(self, video: VideoSource, track: FaceTrack, n_windows: int, options: Options) -> None:
        self.video = video
        self.track = track
        self.options = options
        self.n_source = len(track.boxes)
        outlasts = options.audio_longer != "cut" or video.is_image
        self.n_output = n_windows if outlasts else self.n_source
        self.is_frozen = options.sampling_input_type == "first_frame"
        self.shot_starts = [i for i in range(1, self.n_output) if self._is_cut(i)]

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Output frames [start, stop)."""
        starts = set(self.shot_starts)
        for index, (source, frame) in zip(range(start, stop), self._frames(start, stop), strict=True):
            yield Item(frame, self._face(source, index, index in starts))

    def reference(self) -> np.ndarray | None:
        """The one reference crop of all frames, or None when each frame is its own."""
        kind = self.options.sampling_ref_type
        if kind == "gt":
            return None
        index = 0
        if kind == "random":  # the seed arrives as a string upstream
            index = random.Random(str(self.options.sampling_seed)).randint(0, self.n_source - 1)
        source = self._with_face(index)
        face = self._face(source)
        assert face is not None
        return crop_box(self._source_frame(source), face.box)

    def _frames(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        if not self.is_frozen:
            return ordered_frames(self.video, self.n_source, stop, self.options.audio_longer, start=start)
        source = self._with_face(0)
        frame = self._source_frame(source)
        return ((source, frame) for _ in range(start, stop))

    def _face(self, source: int, index: int = 0, is_cut: bool = False) -> Face | None:
        if not self.track.has_face[source]:
            return None
        y1, y2, x1, x2 = (int(v) for v in self.track.boxes[source])
        landmarks = None if self.track.landmarks is None else self.track.landmarks[source]
        return Face(index, (y1, y2, x1, x2), landmarks, is_cut)

    def _is_cut(self, index: int) -> bool:
        """Whether a shot begins at this output frame: played backwards, a source's cut comes a frame later, and the
        jump of a loop is one."""
        if self.is_frozen:
            return False
        before, source = (source_index(i, self.n_source, self.options.audio_longer) for i in (index - 1, index))
        low, high = sorted((before, source))
        return high - low > 1 or bool(self.track.is_cut[low + 1 : high + 1].any())

    def _with_face(self, source: int) -> int:
        """`source`, or the nearest later (else the nearest earlier) frame that has the face."""
        with_face = np.flatnonzero(self.track.has_face)
        later = with_face[with_face >= source]
        return int(later[0] if len(later) else with_face[-1])

    def _source_frame(self, source: int) -> np.ndarray:
        return next(iter(self.video.frames(start=source, stop=source + 1)))


@dataclass(frozen=True)
class SecondPass:
    """Pass 2 up to the generated crops, in batches that can each be made on its own."""

    clip: Clip
    playback: Playback
    sampler: Sampler
    batches: list[range]
    batch_size: int
    timings: Timings

    def items(self, batches: Sequence[range]) -> Iterator[Item]:
        """The frames of some batches in a row; decoded a batch ahead of sampling."""
        decoded = self.timings.iterate("decode", self.playback.items(batches[0].start, batches[-1].stop))
        decoded = self.timings.iterate(None, ahead(decoded, self.batch_size))
        yield from generate_crops(decoded, batches, self.sampler, self.clip.mel_window, self.playback.reference())
        next(decoded, None)  # its end, so that its thread need not be interrupted


def build_stages(options: Options, image_size: int, detector: FaceAlignment | None) -> Stages:
    """What happens to a generated crop, in order: the enhancements that the options turn on, then the paste."""
    stages: Stages = []
    hidden = options.face_hide_percentage
    if options.sharpening_strength:
        strength = options.sharpening_strength
        stages.append(
            ("sharpen", per_face(partial(sharpen, sharpening_strength=strength, face_hide_percentage=hidden)))
        )
    if not (options.blur_kernel_size or options.landmark_mask):
        return [*stages, ("paste", paste_stage())]
    generated = partial(
        generated_alpha,
        face_hide_percentage=hidden,
        blur_kernel_size=options.blur_kernel_size,
        image_size=image_size,
    )
    if not options.landmark_mask:
        return [*stages, ("paste", paste_stage(generated))]
    assert detector is not None  # Options checked it
    stages.append(("lips", in_batches(partial(find_lips, lip_landmarks=detector.lip_landmarks), LIP_BATCH)))
    return [*stages, ("paste", paste_stage(LipAlpha(options.mask_expansion, options.adaptive_mask, generated)))]


def write_result(job: Job, second_pass: SecondPass, stages: Stages, options: Options) -> None:
    """Pass 2, encoded with the soundtrack; the targets appear when they are complete.

    Four threads work beside each other: decoding, sampling, the stages, and this one, which encodes.
    """
    video, timings = second_pass.clip.video, second_pass.timings
    open_writer = partial(VideoWriter, source=video, fps=video.fps, crf=options.crf, audio_path=job.audio_path)
    with ExitStack() as stack:
        result = stack.enter_context(open_writer(job.out_path))
        orig = stack.enter_context(open_writer(job.orig_path)) if options.save_orig else None
        sampled = stack.enter_context(closing(ahead(second_pass.items(second_pass.batches), second_pass.batch_size)))
        items = timings.iterate(None, sampled)
        for name, stage in stages:
            items = timings.iterate(name, stage(items))
        items = timings.iterate(None, stack.enter_context(closing(ahead(items, WRITE_AHEAD))))
        for item in tqdm(items, total=second_pass.playback.n_output, desc="frames", unit="frame", disable=None):
            with timings.measure("encode"):
                result.write(item.picture)
                if orig:
                    orig.write(item.frame)


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
    checkpoint = load_checkpoint(options.model_path)
    check_model_flags(model_flags, checkpoint)
    config = checkpoint.config
    diffusion = create_gaussian_diffusion(config, options.timestep_respacing)
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
            "config": dataclasses.asdict(config),
            "arithmetic": [device.type, fp16],
        }
    sampler = DiffusionSampler(
        load_model(checkpoint, device, fp16), diffusion, config, device, options.use_ddim, options.clip_denoised,
        options.sampling_seed, options.face_hide_percentage,
    )  # fmt: skip
    return Tools(config, sampler, detector, sampler_key, ranks)


def lip_sync(job: Job, options: Options, tools: Tools) -> dict[str, Any] | None:
    """Make one result. With several ranks on one job all call it: each samples a part, and rank 0 composites beside.

    :return: what --stats says of the job; None on ranks that did not composite.
    """
    timings = Timings()
    clip = open_clip(job, options)
    ranks = tools.ranks if not options.generate_from_filelist else Ranks()
    keys = None if options.work_dir is None else work_keys(job, options, tools)
    track = find_track(clip, options, tools, keys, ranks, timings)
    playback = Playback(clip.video, track, clip.n_windows, options)
    batch_size = options.sampling_batch_size * tools.config.nframes
    batches = plan_batches(playback.n_output, batch_size, playback.shot_starts)
    mine = _share(batches, ranks)
    sampler: Sampler = timings.measure("sample")(tools.sampler)
    if keys is not None:
        of_others = {batch.start for batch in batches if batch not in mine}
        sampler = StoredSampler(sampler, ChunkStore(keys.samples), of_others)
    second_pass = SecondPass(clip, playback, sampler, batches, batch_size, timings)
    if ranks.rank > 0:
        for _ in second_pass.items(mine) if mine else ():
            pass
        return None
    stages = build_stages(options, tools.config.image_size, tools.detector)
    write_result(job, second_pass, stages, options)
    said = report(job.out_path, playback.n_output, playback.track.summary(), timings)
    return {**dataclasses.asdict(job), **said, "stages": [name for name, _ in stages]}


def _share(batches: list[range], ranks: Ranks) -> list[range]:
    """This rank's batches: as many as the others', in a row."""
    edges = [len(batches) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1)]
    return batches[slice(*edges)]


def find_track(
    clip: Clip, options: Options, tools: Tools, keys: "WorkFiles | None", ranks: Ranks, timings: Timings
) -> FaceTrack:
    """Who is followed, in which boxes. Rank 0 looks for the faces that are not stored, the others wait for it.

    :raises InputError: naming the video, when there is no such face.
    """
    if tools.detector is None:
        return fixed_face(clip, timings)
    if ranks.rank > 0:
        ranks.barrier()
    known = VideoFaces.load(keys.faces) if keys is not None and keys.faces.is_file() else None
    faces = known
    try:
        if faces is None or not faces.suffices(clip.n_windows):
            with large_blocks_apart():
                faces = detect_faces(clip, options, tools.detector, known, timings)
            if keys is not None:
                faces.save(keys.faces)
        if ranks.rank == 0:
            ranks.barrier()
        return smooth_landmarks(follow_face(clip, faces, options))
    except InputError as error:
        raise InputError(f"--video_path {clip.video.path}: {error}") from None


@dataclass(frozen=True)
class WorkFiles:
    """A file for the video's faces, a folder for the job's samples; each is named by all that it depends on."""

    faces: Path
    samples: Path


def work_keys(job: Job, options: Options, tools: Tools) -> WorkFiles:
    faces = {
        "format": STORE_FORMAT,
        "versions": versions(),
        "video": file_digest(job.video_path),
        "options": options.affecting("faces"),
        "detector": tools.detector.fingerprint() if tools.detector else None,
    }
    samples = {
        **faces,
        "audio": file_digest(job.audio_path),
        "sampling": options.affecting("sampling"),
        "sampler": tools.sampler_key,
    }
    # boxes, and so samples, are the same with landmarks and without
    faces["landmarks"] = options.landmark_mask and options.face_detector != "dlib"
    if faces["landmarks"] and tools.detector:
        faces["detector"] = tools.detector.fingerprint(with_landmarks=True)
    work_dir = Path(str(options.work_dir))
    return WorkFiles(work_dir / f"faces-{content_key(faces)}.npz", work_dir / f"samples-{content_key(samples)}")


def run_single(options: Options, model_flags: Mapping[str, Any], ranks: Ranks) -> int:
    job = single_job(options)
    check_job(job, options)
    if options.skip_existing and os.path.exists(job.out_path):
        print(f"{job.out_path}: exists, skipped")
        return 0
    if ranks.size > 1 and options.work_dir is None:
        raise InputError(f"{ranks.size} processes on one video share their samples in a folder: give --work_dir")
    result = lip_sync(job, options, load_tools(options, model_flags, ranks))
    if options.stats and result is not None:
        save_stats(options, result)
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
            result = lip_sync(job, options, tools)
            results += [result] if result else []
        except Exception as error:
            if not isinstance(error, InputError | OSError):
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
            save_stats(options, {"jobs": results, "failed": failures, "skipped": skipped})
    return 1 if any(rank_failures for _, rank_failures, _ in gathered) else 0


def save_stats(options: Options, result: dict[str, Any]) -> None:
    settings = {"device": str(choose_device(options.device)), "options": dataclasses.asdict(options)}
    write_stats(Path(str(options.stats)), {**result, **settings})


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
    except OSError as error:  # a full disk, a folder that went away
        print(f"generate.py: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
