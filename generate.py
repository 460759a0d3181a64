"""Lip-sync a video to a speech file with a Diff2Lip network: `python generate.py --help`.

Pass 1 reads the video once and keeps only boxes and landmarks; pass 2 reads it again, samples crops in batches, runs
the stages on each, pastes it and encodes. Memory does not grow with the length of the video.
"""

import argparse
import dataclasses
import os
import signal
import sys
import traceback
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from audio.audio import count_windows, frames_of_sound, mel_window, speech_mel
from audio.hparams import HParams, front_end
from face_detection.api import DETECTORS, Detection, FaceAlignment, face_identity
from face_detection.playback import Playback
from face_detection.tracks import (
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
from guided_diffusion.jobs import Job, check_files, check_job, read_filelist
from guided_diffusion.logger import Timings, large_blocks_apart, report, versions, write_stats
from guided_diffusion.sampling import SAMPLERS, DiffusionSampler, Sampler, StoredSampler, generate_crops, plan_batches
from guided_diffusion.script_util import (
    FlagParser,
    ModelConfig,
    Rule,
    add_fixed_flags,
    add_flag,
    add_flags,
    add_model_flags,
    check_options,
    create_gaussian_diffusion,
    load_checkpoint,
    load_model,
    option,
)
from guided_diffusion.store import ChunkStore, content_key, file_digest
from guided_diffusion.streams import Item, Stages, ahead, in_batches, per_face
from guided_diffusion.video_util import (
    X264_PRESETS,
    Order,
    VideoSource,
    VideoWriter,
    check_size,
    count_frames,
    open_video,
)
from post_processing import LipAlpha, find_lips, generated_alpha, paste_stage, sharpen

QUALITY_PRESETS = {  # sampler, steps
    "turbo": ("dpmpp_2m", "logsnr7"), "fast": ("ddim", "ddim10"), "balanced": ("ddim", "ddim25"),
    "high": ("ddim", "ddim50"), "ultra": ("ddim", "ddim100"),
}  # fmt: skip
# how a number of steps is spread: --sampling_steps
STEPS = {"ddpm": "{}", "ddim": "ddim{}", "dpmpp_2m": "logsnr{}"}
# frames that are held at once for detection: 20 of 1080 x 1920
DETECTION_BATCH_BYTES = 1 << 27
LIP_BATCH = 16  # generated crops whose landmarks are found together
WRITE_AHEAD = 4  # results that wait for the encoder
UNHEARD_SECONDS = 0.2  # of sound may be cut off without a word
# what stored faces and samples look like; raise it when either changes
STORE_FORMAT = 2


# ---------------------------------------------------------------------------------------------------------- options


def flag(
    default: Any, help: str, affects: str, choices: Sequence[str] = (), within: tuple[float, float] | None = None
) -> Any:
    """A command-line flag. `affects` is the first part of a run that it changes: faces, sampling, output or run."""
    return option(default, help, choices, within, affects=affects)


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
    crf: int = flag(18, "H.264 quality, 0 (lossless but for 4:2:0) to 51", "output", within=(0, 51))
    x264_preset: str = flag("medium", "H.264 speed against size of file", "output", X264_PRESETS)

    generate_from_filelist: bool = flag(False, "work through --filelist instead of one video", "run")
    filelist: str = flag("test_filelist.txt", 'lines "audio_name video_name" (a tab where names have spaces)', "run")
    test_video_dir: str = flag("test_videos", "folder of the filelist's names, which are without .mp4", "run")
    sample_path: str = flag("d2l_gen", "folder for results", "run")
    sample_partition: str = flag("", "sub-folder of sample_path", "run")
    skip_existing: bool = flag(False, "leave results that exist already as they are", "run")

    video_fps: float = flag(25.0, "frame rate of the result; 0 keeps the source's own", "faces", within=(0, 1000))
    audio_longer: Order = flag("cut", "when the sound outlasts the video", "sampling", typing.get_args(Order))
    pad_audio: bool = flag(False, "the result lasts as long as the sound, not one mel window less", "sampling")
    face_detector: str = flag("sfd", "dlib needs no download", "faces", DETECTORS)
    detection_size: int = flag(
        720, "faces are looked for in frames with at most this long side", "faces", within=(32, 1 << 14)
    )
    face_det_batch_size: int = flag(64, "at most this many frames per call of the detector", "run", within=(1, 1 << 14))
    face_index: int = flag(
        -1, "which face, from the left in the first frame with faces; -1 is the best", "sampling", within=(-1, 1000)
    )
    pads: str = flag("0,0,0,0", "pixels to grow the box: top,bottom,left,right", "sampling")
    is_voxceleb2: bool = flag(True, "no detection: VoxCeleb2's fixed crop of 224 x 224 frames", "faces")

    face_hide_percentage: float = flag(0.5, "lower part of the crop that is generated", "sampling", within=(0.01, 1))
    sampling_seed: int | None = flag(None, "seed of the noise, one for all frames; none draws it anew", "sampling")
    sampling_batch_size: int = flag(2, "a batch has this many times nframes frames", "sampling", within=(1, 1 << 14))
    sampling_ref_type: str = flag("gt", "reference crop of a frame", "sampling", ("gt", "first_frame", "random"))
    sampling_use_gt_for_ref: bool = flag(False, "the same as --sampling_ref_type gt", "sampling")
    sampling_input_type: str = flag("gt", "first_frame freezes the video", "sampling", ("gt", "first_frame"))
    sampler: str = flag("", "default: ddim with --use_ddim True, else ddpm", "sampling", ("", *SAMPLERS))
    use_ddim: bool = flag(False, "DDIM instead of ancestral sampling", "sampling")
    timestep_respacing: str = flag("", "ddimN, logsnrN (for dpmpp_2m), or steps per section as a,b,c", "sampling")
    clip_denoised: bool = flag(True, "clamp the x_0 prediction", "sampling")
    use_fp16: bool = flag(True, "half precision on CUDA; float32 elsewhere", "run")
    device: str = flag("auto", "where the network runs", "run", DEVICES)

    blur_kernel_size: int = flag(
        0, "show the generated part only, its edges feathered over so many pixels of the network's crop", "output"
    )
    sharpening_strength: float = flag(0.0, "sharpen the generated part, 0 to 1", "output", within=(0, 1))
    landmark_mask: bool = flag(False, "show the generated mouth only", "output")
    mask_expansion: float = flag(
        1.2, "the mouth is shown up to (this - 1) of its width around the lips", "output", within=(1.01, 3)
    )
    adaptive_mask: bool = flag(False, "the margin around the lips grows as the mouth opens", "output")

    work_dir: str | None = flag(None, "keep faces and samples here: continue after a kill, composite anew", "run")
    stats: str | None = flag(None, "write times, memory, versions and options to this JSON file", "run")

    def __post_init__(self) -> None:
        _ = self.pad_pixels
        check_options(self, RULES)

    @property
    def sampler_name(self) -> str:
        return self.sampler or ("ddim" if self.use_ddim else "ddpm")

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


# fmt: off
RULES: tuple[Rule, ...] = (
    (lambda o: o.sampling_seed is not None and not 0 <= o.sampling_seed < 1 << 63,
     "--sampling_seed {sampling_seed}: give a whole number from 0 up"),
    (lambda o: o.sampling_use_gt_for_ref and o.sampling_ref_type != "gt",
     "--sampling_use_gt_for_ref True contradicts --sampling_ref_type {sampling_ref_type}: drop one"),
    (lambda o: o.blur_kernel_size != 0 and not 3 <= o.blur_kernel_size <= 63,
     "--blur_kernel_size {blur_kernel_size}: give 3 to 63 pixels, or 0 for no blending"),
    (lambda o: o.landmark_mask and o.is_voxceleb2,
     "--landmark_mask True needs a detected face: give --is_voxceleb2 False"),
    (lambda o: o.adaptive_mask and not o.landmark_mask,
     "--adaptive_mask True changes the mask of the lips: give --landmark_mask True too"),
    (lambda o: o.mask_expansion != Options.mask_expansion and not o.landmark_mask,
     "--mask_expansion is the size of the lips' mask: give --landmark_mask True too"),
    (lambda o: o.work_dir is not None and o.sampling_seed is None,
     "--work_dir needs a seed, so that stored samples fit new ones: give --sampling_seed 7"),
    (lambda o: not o.model_path,
     "--model_path is missing: give a checkpoint (see README.md, Checkpoints)"),
    (lambda o: not o.generate_from_filelist and not (o.video_path and o.audio_path),
     "give --video_path and --audio_path, or --generate_from_filelist True with --filelist"),
)
# fmt: on


def create_argparser() -> argparse.ArgumentParser:
    """Flags of Options, then the network's (default: the checkpoint's), then upstream's with one supported value."""
    parser = FlagParser("generate.py", "Lip-sync a video to a speech file.")
    group = parser.add_argument_group("options")
    add_flags(group, Options)
    add_flag(group, "sampling_steps", int, 0, "steps, spread as the sampler likes it best")
    presets = ", ".join(f"{name} {sampler} {steps}" for name, (sampler, steps) in QUALITY_PRESETS.items())
    add_flag(group, "quality_preset", str, "", f"--sampler and --timestep_respacing in one word: {presets}")
    add_model_flags(parser, "the network's own, known from the checkpoint; given here, they must agree")
    add_fixed_flags(parser)
    return parser


def resolve_steps(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags with those that --quality_preset or --sampling_steps stand for; the rest of the program knows neither.

    :raises InputError: for an unknown preset, and for two flags that say how many steps there are.
    """
    flags = dict(given)
    sampler = flags["sampler"] or ("ddim" if flags["use_ddim"] else "ddpm")
    said = [name for name in ("quality_preset", "sampling_steps", "timestep_respacing") if flags[name]]
    if len(said) > 1:
        both = " and ".join(f"--{name} {flags[name]}" for name in said)
        raise InputError(f"{both}: each says how many steps there are; drop all but one")
    preset, count = flags.pop("quality_preset"), flags.pop("sampling_steps")
    if preset and preset not in QUALITY_PRESETS:
        raise InputError(f"--quality_preset {preset}: choose from {', '.join(QUALITY_PRESETS)}")
    if preset:
        if flags["sampler"] not in ("", QUALITY_PRESETS[preset][0]):
            raise InputError(f"--quality_preset {preset} contradicts --sampler {sampler}: drop one")
        sampler, flags["timestep_respacing"] = QUALITY_PRESETS[preset]
    elif count and sampler in STEPS:  # Options says what is wrong with another one
        flags["timestep_respacing"] = STEPS[sampler].format(count)
    return {**flags, "sampler": sampler, "use_ddim": sampler == "ddim"}


def parse_options(argv: Sequence[str] | None) -> tuple[Options, dict[str, Any]]:
    """Options, and the network's flags that were given.

    :raises InputError: for flags or values that are not allowed.
    """
    given = resolve_steps(vars(create_argparser().parse_args(argv)))
    names = {f.name for f in dataclasses.fields(Options)}
    options = Options(**{name: value for name, value in given.items() if name in names})
    return options, {name: value for name, value in given.items() if name not in names and value is not None}


# ------------------------------------------------------------------------------------------------------------- jobs


def single_job(options: Options) -> Job:
    name = f"{Path(options.audio_path).stem}_{Path(options.video_path).stem}.mp4"
    out_path = options.out_path or str(Path(options.sample_path, options.sample_partition, name))
    return Job(options.video_path, options.audio_path, out_path)


# --------------------------------------------------------------------------------------------------- the two passes


@dataclass(frozen=True)
class Clip:
    """A job's inputs, opened.

    :param video: at the result's rate.
    :param mel: of the sound, float32 [audio_dim, steps], as the checkpoint's front end makes it.
    :param seconds: length of the sound.
    :param n_windows: frames that the sound suffices for.
    """

    video: VideoSource
    mel: np.ndarray
    hparams: HParams
    seconds: Fraction
    n_windows: int

    def mel_window(self, frame: int) -> np.ndarray:
        """What the network hears of an output frame, float32 [audio_dim, window_steps]."""
        return mel_window(self.mel, frame, self.video.fps, self.hparams)


def open_clip(job: Job, options: Options, hparams: HParams) -> Clip:
    """:raises InputError: when video or sound cannot be used."""
    video = open_video(job.video_path, options.video_fps)
    check_size(job.video_path, video.width, video.height)
    mel, seconds = speech_mel(job.audio_path, hparams, options.pad_audio)
    n_windows = frames_of_sound(seconds, video.fps) if options.pad_audio else count_windows(mel, video.fps, hparams)
    return Clip(video, mel, hparams, seconds, n_windows)


def detect_faces(
    clip: Clip, options: Options, detector: FaceAlignment, known: VideoFaces | None, timings: Timings
) -> VideoFaces:
    """Pass 1: the faces of the frames that the sound suffices for; `known` are those of the first frames."""
    video = clip.video
    start = known.next_start if known else 0
    frames = timings.iterate("decode", video.frames(start, clip.n_windows))
    bar = tqdm(frames, desc="faces", unit="frame", disable=None)

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


def sampled_items(
    batches: Sequence[range], clip: Clip, playback: Playback, sampler: Sampler, options: Options, batch_size: int,
    timings: Timings,
) -> Iterator[Item]:  # fmt: skip
    """Pass 2 up to the generated crops, for some batches in a row; a batch is decoded ahead of sampling."""
    if not batches:
        return
    reference = playback.reference(options.sampling_ref_type, options.sampling_seed)
    decoded = timings.iterate("decode", playback.items(batches[0].start, batches[-1].stop))
    with closing(timings.iterate(None, ahead(decoded, batch_size))) as frames:
        yield from generate_crops(frames, batches, sampler, clip.mel_window, reference)
        next(frames, None)  # its end, so that its thread need not be interrupted


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


def write_result(
    job: Job, video: VideoSource, items: Iterator[Item], n_items: int, stages: Stages, options: Options,
    timings: Timings,
) -> None:  # fmt: skip
    """Pass 2 from the generated crops on; the targets appear when they are complete.

    The stages run in a thread of their own, beside this one, which encodes.
    """
    open_writer = partial(
        VideoWriter, source=video, fps=video.fps, crf=options.crf, audio_path=job.audio_path, preset=options.x264_preset
    )
    with timings.measure("encode"), ExitStack() as stack:  # the waits inside are taken out of it
        result = stack.enter_context(open_writer(job.out_path))
        orig = stack.enter_context(open_writer(job.orig_path, is_original=True)) if options.save_orig else None
        for name, stage in stages:
            items = timings.iterate(name, stage(items))
        items = timings.iterate(None, stack.enter_context(closing(ahead(items, WRITE_AHEAD))))
        for item in tqdm(items, total=n_items, desc="frames", unit="frame", disable=None):
            result.write(item.picture)
            if orig:
                orig.write(item.frame)


# --------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Tools:
    """What jobs share. The keys: what stored faces and samples depend on besides options and inputs; else empty."""

    config: ModelConfig
    sampler: Sampler
    detector: FaceAlignment | None
    face_key: dict[str, Any]
    sampler_key: dict[str, Any]
    ranks: Ranks


def load_tools(options: Options, model_flags: Mapping[str, Any], ranks: Ranks) -> Tools:
    """Checkpoint, network, detector. :raises InputError: when one of them cannot be had."""
    device = choose_device(options.device, ranks.local_rank)
    checkpoint = load_checkpoint(options.model_path, model_flags)
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
    face_key, sampler_key = {}, {}
    if options.work_dir is not None:
        if detector is not None:
            face_key = detector.fingerprint()
        sampler_key = {
            "checkpoint": file_digest(options.model_path),
            "config": dataclasses.asdict(config),
            "arithmetic": [device.type, fp16],
        }
    sampler = DiffusionSampler(
        load_model(checkpoint, device, fp16), diffusion, config, device, options.sampler_name, options.clip_denoised,
        options.sampling_seed, options.face_hide_percentage,
    )  # fmt: skip
    return Tools(config, sampler, detector, face_key, sampler_key, ranks)


def lip_sync(job: Job, options: Options, tools: Tools) -> dict[str, Any] | None:
    """Make one result. With several ranks on one job all call it: each samples a part, and rank 0 composites beside.

    :return: what --stats says of the job; None on ranks that did not composite.
    """
    timings = Timings()
    clip = open_clip(job, options, front_end(tools.config))
    ranks = tools.ranks if not options.generate_from_filelist else Ranks()
    files = None if options.work_dir is None else work_files(job, options, tools)
    track = find_track(clip, options, tools, files, ranks, timings)
    playback = Playback(
        clip.video, track, clip.n_windows, options.audio_longer, options.sampling_input_type == "first_frame"
    )
    if ranks.rank == 0:
        tell_unheard(float((clip.n_windows - playback.n_output) / clip.video.fps))
    batch_size = options.sampling_batch_size * tools.config.nframes
    batches = plan_batches(playback.n_output, batch_size, playback.shot_starts)
    first, last = (len(batches) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    sampler: Sampler = timings.measure("sample")(tools.sampler)
    if files is not None:
        of_others = {batch.start for batch in (*batches[:first], *batches[last:])}
        sampler = StoredSampler(sampler, ChunkStore(files.samples), of_others)
    items = sampled_items(
        batches[first:last] if ranks.rank > 0 else batches, clip, playback, sampler, options, batch_size, timings
    )
    if ranks.rank > 0:
        for _ in items:
            pass
        return None
    stages = build_stages(options, tools.config.image_size, tools.detector)
    with closing(ahead(items, batch_size)) as sampled:  # runs ahead of the stages
        write_result(job, clip.video, timings.iterate(None, sampled), playback.n_output, stages, options, timings)
    said = report(job.out_path, playback.n_output, track.summary(), timings)
    return {**dataclasses.asdict(job), **said, "stages": [name for name, _ in stages]}


def tell_unheard(seconds: float) -> None:
    if seconds > UNHEARD_SECONDS:
        told = f"notice: the video ends before the sound: {seconds:.1f} s of it are cut off; with --audio_longer"
        print(told, "pingpong the video goes on, back and forth, until the sound ends", file=sys.stderr)


def find_track(
    clip: Clip, options: Options, tools: Tools, files: "WorkFiles | None", ranks: Ranks, timings: Timings
) -> FaceTrack:
    """Who is followed, in which boxes. Rank 0 looks for the faces that are not stored, the others wait for it.

    :raises InputError: naming the video, when there is no such face.
    """
    video = clip.video
    if tools.detector is None:
        with timings.measure("decode"):
            return fixed_track(count_frames(video, clip.n_windows), voxceleb2_box(video.height, video.width))
    if ranks.rank > 0:
        ranks.barrier()
    try:
        faces = VideoFaces.stored(files.faces) if files is not None else None
        if faces is None or not faces.suffices(clip.n_windows):
            with large_blocks_apart():
                faces = detect_faces(clip, options, tools.detector, faces, timings)
            if files is not None:
                faces.save(files.faces)
        if ranks.rank == 0:
            ranks.barrier()
        return smooth_landmarks(follow_face(clip, faces, options))
    except InputError as error:
        raise InputError(f"--video_path {video.path}: {error}") from None


@dataclass(frozen=True)
class WorkFiles:
    """A file for the video's faces, a folder for the job's samples; each is named by all that it depends on."""

    faces: Path
    samples: Path


def work_files(job: Job, options: Options, tools: Tools) -> WorkFiles:
    faces = {
        "format": STORE_FORMAT,
        "versions": versions(),
        "video": file_digest(job.video_path),
        "options": options.affecting("faces"),
        "detector": tools.face_key,
    }
    samples = {
        **faces,
        "audio": file_digest(job.audio_path),
        "sampling": options.affecting("sampling"),
        "sampler": tools.sampler_key,
    }
    # boxes, and so samples, are the same with landmarks and without
    if options.landmark_mask and options.face_detector != "dlib" and tools.detector is not None:
        faces["detector"] = tools.detector.fingerprint(with_landmarks=True)
    work_dir = Path(str(options.work_dir))
    return WorkFiles(work_dir / f"faces-{content_key(faces)}.npz", work_dir / f"samples-{content_key(samples)}")


def run_single(options: Options, model_flags: Mapping[str, Any], ranks: Ranks) -> int:
    job = single_job(options)
    if options.skip_existing and os.path.exists(job.out_path):
        print(f"{job.out_path}: exists, skipped")
        return 0
    check_job(job, options.save_orig)
    if ranks.size > 1 and options.work_dir is None:
        raise InputError(f"{ranks.size} processes on one video share their samples in a folder: give --work_dir")
    result = lip_sync(job, options, load_tools(options, model_flags, ranks))
    if options.stats and result is not None:
        save_stats(options, result)
    return 0


def run_filelist(options: Options, model_flags: Mapping[str, Any], ranks: Ranks) -> int:
    """Every rank takes each `size`-th line. A failing line is reported, the rest goes on; then the status is 1."""
    out_folder = Path(options.sample_path, options.sample_partition)
    jobs = read_filelist(options.filelist, options.test_video_dir, out_folder, options.save_orig)
    tools = load_tools(options, model_flags, ranks)
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    skipped = 0
    for job in jobs[ranks.rank :: ranks.size]:
        if options.skip_existing and os.path.exists(job.out_path):
            skipped += 1
            continue
        try:
            check_job(job, options.save_orig)
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
        check_files(options.work_dir, options.stats)
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
