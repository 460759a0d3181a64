"""Lip-sync a video to a speech file with a Diff2Lip network: `python generate.py --help`.

Pass 1 reads the video once and keeps only boxes and landmarks; pass 2 reads it again, samples crops in batches, runs
the stages on each, pastes it and encodes. Memory does not grow with the length of the video.
"""

import dataclasses
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from audio.assess import assess
from audio.audio import Prepare, count_windows, frames_of_sound, hushed, louder, mel_window, speech_mel
from audio.hparams import HParams, analysis_for, front_end
from audio.preprocess import WEIGHTS as DENOISER_WEIGHTS
from audio.preprocess import preprocess
from audio.silence import SpeechListener, rest_shares
from face_detection.api import Detection, FaceAlignment, face_identity
from face_detection.playback import Playback
from face_detection.rest import RestPictures
from face_detection.stable_crop import stable_crops
from face_detection.tracks import (
    FaceTrack,
    build_track,
    check_face_index,
    fixed_track,
    smooth_landmarks,
    voxceleb2_box,
    with_motion,
)
from face_detection.video_faces import VideoFaces, find_faces
from guided_diffusion.color_util import light_gains
from guided_diffusion.dist_util import Ranks, choose_device, join_ranks
from guided_diffusion.dry_run import Work, dry_run, impatient
from guided_diffusion.errors import InputError
from guided_diffusion.faults import CropJudge
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.jobs import Job, check_files, check_job, check_report, read_filelist
from guided_diffusion.logger import Timings, large_blocks_apart, report, versions, write_stats
from guided_diffusion.networks import load_networks
from guided_diffusion.options import Options, parse_options
from guided_diffusion.quality_report import QualityReport, open_report
from guided_diffusion.sampling import (
    ByResolution,
    Crops,
    Guide,
    Rested,
    Retrying,
    SampleBatch,
    Sampler,
    StoredSampler,
    WhiteBalanced,
    first_frame,
    generate_crops,
    plan_batches,
    shot_resolutions,
)
from guided_diffusion.script_util import ModelConfig
from guided_diffusion.store import ChunkStore, content_key, file_digest, load_array, save_array
from guided_diffusion.streams import Item, Stages, ahead, in_batches, per_face
from guided_diffusion.video_util import VideoSource, VideoWriter, check_size, count_frames, open_video
from post_processing import LipAlpha, color_stage, denoise_stage, find_lips, generated_alpha, paste_stage, sharpen
from super_resolution import SR_BATCH, LipSuperResolver
from temporal_consistency import GUIDED_STEPS, flow_guide, guided_steps, head_motion, smoothing_stage

# frames that are held at once for detection: 20 of 1080 x 1920
DETECTION_BATCH_BYTES = 1 << 27
LIP_BATCH = 16  # generated crops whose landmarks are found together
WRITE_AHEAD = 4  # results that wait for the encoder
UNHEARD_SECONDS = 0.2  # of sound may be cut off without a word
# what stored faces, movements and samples look like; raise it when one of them changes
STORE_FORMAT = 4


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
    :param mouth_gain: dB by which the network hears it louder.
    :param rest: float32 [n_windows], how far the mouth is at rest in each, 0 to 1; None: nobody asked.
    """

    video: VideoSource
    mel: np.ndarray
    hparams: HParams
    seconds: Fraction
    n_windows: int
    mouth_gain: float = 0
    rest: np.ndarray | None = None

    def mel_window(self, frame: int) -> np.ndarray:
        """What the network hears of an output frame, float32 [audio_dim, window_steps]."""
        window = louder(mel_window(self.mel, frame, self.video.fps, self.hparams), self.mouth_gain, self.hparams)
        return window if self.rest is None else hushed(window, self.rest[frame], self.hparams)


def open_clip(job: Job, options: Options, hparams: HParams) -> Clip:
    """:raises InputError: when video or sound cannot be used."""
    video = open_video(job.video_path, options.video_fps)
    check_size(job.video_path, video.width, video.height)
    denoise = "none" if options.dry_run else options.denoise_audio  # a plan has no time for it
    prepare: Prepare = partial(
        preprocess, denoise=denoise, strength=options.denoise_strength, compress=options.compress_audio
    )
    listener = SpeechListener(prepare) if options.silence_gate else None
    analysis = analysis_for(hparams, options.audio_preset)
    mel, seconds = speech_mel(job.audio_path, hparams, options.pad_audio, listener or prepare, analysis)
    n_windows = frames_of_sound(seconds, video.fps) if options.pad_audio else count_windows(mel, video.fps, hparams)
    clip = Clip(video, mel, hparams, seconds, n_windows, options.mouth_gain)
    if listener is None:
        return clip
    rest = rest_shares(listener.spans, n_windows, video.fps, hparams)
    return dataclasses.replace(clip, rest=options.silence_gate * rest)


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
            return detector.detect(images, with_landmarks=options.finds_landmarks)

    fitting = max(1, DETECTION_BATCH_BYTES // (video.width * video.height * 3))
    batch_size = min(options.face_det_batch_size, fitting)
    check = partial(check_face_index, pads=options.pad_pixels, face_index=options.face_index)
    return find_faces(bar, detect, batch_size, known, n_frames=clip.n_windows, check=check)


def follow_face(clip: Clip, faces: VideoFaces, options: Options, motion: np.ndarray | None = None) -> FaceTrack:
    """One person's track over the frames that the sound suffices for; with the head's movement, along it."""

    def identify(index: int, face: Detection) -> np.ndarray:
        return face_identity().describe(next(iter(clip.video.frames(index, index + 1))), face)

    track = build_track(
        faces, clip.n_windows, pads=options.pad_pixels, face_index=options.face_index, identify=identify,
        detection_size=options.detection_size, motion=motion, smooth_window=1 if options.stable_crop else 5,
    )  # fmt: skip
    return stable_crops(track) if options.stable_crop else track


def sampled_items(
    batches: Sequence[range], clip: Clip, playback: Playback, sampler: Sampler, options: Options, batch_size: int,
    timings: Timings,
) -> Iterator[Item]:  # fmt: skip
    """Pass 2 up to the generated crops, for some batches in a row; a batch is decoded ahead of sampling."""
    if not batches:
        return
    reference = playback.reference(options.sampling_ref_type, options.sampling_seed)
    context = GUIDED_STEPS if options.flow_guidance else 0
    decoded = timings.iterate("decode", playback.items(first_frame(batches, context), batches[-1].stop))
    with closing(timings.iterate(None, ahead(decoded, batch_size))) as frames:
        yield from generate_crops(frames, batches, sampler, clip.mel_window, reference, context)
        next(frames, None)  # its end, so that its thread need not be interrupted


def build_stages(
    options: Options, detector: FaceAlignment | None, resolver: LipSuperResolver | None = None
) -> Stages:
    """What happens to a generated crop, in order: the enhancements that the options turn on, then the paste."""
    stages: Stages = []
    hidden = options.face_hide_percentage
    if options.denoise:
        stages.append(("denoise", denoise_stage(options.denoise, hidden)))
    if options.color_match != "none":
        stages.append(("colour", color_stage(options.color_match, hidden)))
    if options.temporal_smoothing:
        stages.append(("smooth", smoothing_stage(options.temporal_smoothing, hidden)))
    if resolver is not None:
        enhance = partial(resolver.enhance, face_hide_percentage=hidden)
        stages.append(("super-resolution", in_batches(enhance, SR_BATCH)))
    if options.sharpening_strength:
        strength = options.sharpening_strength
        stages.append(
            ("sharpen", per_face(partial(sharpen, sharpening_strength=strength, face_hide_percentage=hidden)))
        )
    if not (options.blur_kernel_size or options.landmark_mask):
        return [*stages, ("paste", paste_stage())]
    generated = partial(generated_alpha, face_hide_percentage=hidden, blur_kernel_size=options.blur_kernel_size)
    if not options.landmark_mask:
        return [*stages, ("paste", paste_stage(generated))]
    assert detector is not None  # Options checked it
    stages.append(("lips", in_batches(partial(find_lips, lip_landmarks=detector.lip_landmarks), LIP_BATCH)))
    return [*stages, ("paste", paste_stage(LipAlpha(options.mask_expansion, options.adaptive_mask, generated)))]


def write_result(
    job: Job, video: VideoSource, items: Iterator[Item], n_items: int, stages: Stages, options: Options,
    timings: Timings, meters: Sequence[QualityReport] = (),
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
            for meter in meters:
                with timings.measure("report"):
                    meter.update(item)


# --------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Tools:
    """What jobs share. The keys: what stored faces and samples depend on besides options and inputs.

    :param batch_size: frames that are sampled at once.
    :param larger: the size and the sampler of the network for wide faces.
    """

    config: ModelConfig
    sampler: Sampler
    batch_size: int
    detector: FaceAlignment | None
    face_key: dict[str, Any]
    sampler_key: dict[str, Any]
    ranks: Ranks
    resolver: LipSuperResolver | None = None
    larger: tuple[int, Sampler] | None = None


def load_tools(options: Options, model_flags: Mapping[str, Any], ranks: Ranks) -> Tools:
    """Checkpoint, network, detector. :raises InputError: when one of them cannot be had."""
    device = choose_device(options.device, ranks.local_rank)
    if options.enhance and ranks.rank == 0:
        print(f"enhance: {options.enhancements}")
    networks = load_networks(options, model_flags, device, partial(make_guide, options), is_told=ranks.rank == 0)
    detector = None
    if not options.is_voxceleb2:
        detector = FaceAlignment(
            options.face_detector, str(device), options.detection_size, options.face_det_batch_size
        )
    resolver = None
    if options.super_resolution and options.sr_strength:
        resolver = LipSuperResolver(options.sr_model, options.sr_strength, device)
    face_key = {} if detector is None or options.work_dir is None else detector.fingerprint()
    return Tools(
        networks.config, networks.sampler, networks.batch_size, detector, face_key, networks.key, ranks, resolver,
        networks.larger,
    )  # fmt: skip


def make_guide(options: Options, diffusion: GaussianDiffusion) -> Guide | None:
    """What the options let guide the sampling, or None."""
    guide = None
    if options.flow_guidance:
        guide = partial(flow_guide, steps=guided_steps(diffusion), weight=options.flow_guidance)
    return impatient(guide, diffusion) if options.dry_run else guide


def job_sampler(
    options: Options, tools: Tools, playback: Playback, rest: np.ndarray | None, is_told: bool
) -> Sampler:
    """The network's sampler, in all that the options put around it; `is_told` prints what is chosen for this job."""
    sampler = tools.sampler
    if tools.larger is not None:
        sampler = by_resolution(options, tools.config.image_size, sampler, tools.larger, playback, is_told)
    if options.white_balance:
        sampler = white_balanced(sampler, options, playback)
    if options.retry_flagged:
        lip_landmarks = tools.detector.lip_landmarks if tools.detector else None
        sampler = Retrying(sampler, CropJudge(lip_landmarks, options.face_hide_percentage), options.retry_flagged)
    if rest is not None:
        pictures = RestPictures(playback, rest, options.face_hide_percentage)
        if is_told:
            print(pictures.summary())
        sampler = Rested(sampler, pictures)
    return sampler


def by_resolution(
    options: Options, lower: int, smaller: Sampler, wide: tuple[int, Sampler], playback: Playback, is_told: bool
) -> Sampler:
    """Of two networks' samplers the one that the face in each shot asks for."""
    higher, larger = wide
    track = playback.track
    cuts = np.flatnonzero(track.is_cut)
    shots = [boxes[has] for boxes, has in zip(np.split(track.boxes, cuts), np.split(track.has_face, cuts), strict=True)]
    resolutions = shot_resolutions(shots, options.resolution_threshold, (lower, higher))
    if is_told:
        n_wide = resolutions.count(higher)
        print(f"resolution: {n_wide} of {len(shots)} shots with {higher} px, {len(shots) - n_wide} with {lower} px")
    samplers = {lower: smaller, higher: larger}
    of_frames = np.repeat(resolutions, np.diff([0, *cuts, len(track.boxes)]))
    return ByResolution(lambda batch: samplers[of_frames[playback.source(batch.first)]])


def white_balanced(sampler: Sampler, options: Options, playback: Playback) -> Sampler:
    """The sampler in white light, which is estimated once for each shot."""
    of_shot = cache(lambda start: light_gains(playback.source_frame(start)))

    def gains(source: int) -> np.ndarray:
        return of_shot(playback.shot_start(source))

    reference = playback.reference_source(options.sampling_ref_type, options.sampling_seed)
    return WhiteBalanced(
        sampler, lambda batch: gains(playback.source(batch.first)), None if reference is None else gains(reference)
    )


def lip_sync(job: Job, options: Options, tools: Tools) -> dict[str, Any] | None:
    """Make one result. With several ranks on one job all call it: each samples a part, and rank 0 composites beside.

    :return: what --stats says of the job; None on ranks that did not composite.
    """
    timings = Timings()
    clip = open_clip(job, options, front_end(tools.config))
    ranks = tools.ranks if not options.generate_from_filelist else Ranks()
    if options.dry_run and ranks.rank > 0:
        return None
    if options.dry_run:
        stages = build_stages(options, tools.detector, tools.resolver)
        return dry_run(Work(job, options, clip, tools, stages, timings.total()))
    files = None if options.work_dir is None else work_files(job, options, tools)
    track = find_track(clip, options, tools, files, ranks, timings)
    playback = Playback(
        clip.video, track, clip.n_windows, options.audio_longer, options.sampling_input_type == "first_frame"
    )
    if ranks.rank == 0:
        tell_unheard(float((clip.n_windows - playback.n_output) / clip.video.fps))
    batch_size = tools.batch_size
    batches = plan_batches(playback.n_output, batch_size, playback.shot_starts)
    first, last = (len(batches) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    sampler = timed(job_sampler(options, tools, playback, clip.rest, is_told=ranks.rank == 0), timings)
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
    stages = build_stages(options, tools.detector, tools.resolver)
    quality = open_report(job, options, clip.video, playback.n_output, tools.detector)
    with closing(ahead(items, batch_size)) as sampled:  # runs ahead of the stages
        waited = timings.iterate(None, sampled)
        write_result(job, clip.video, waited, playback.n_output, stages, options, timings, quality)
    said = report(job.out_path, playback.n_output, track.summary(), timings)
    sound = {"sound": assessed(job.audio_path)} if options.stats or quality else {}
    for meter in quality:
        meter.write({**said, **sound}, tools.sampler_key["checkpoint"])
    stages_run = [name for name, _ in stages]
    return {**dataclasses.asdict(job), **said, "stages": stages_run, "sampler": tools.sampler_key, **sound}


def assessed(audio_path: str) -> dict[str, Any]:
    """What is known of the sound; the result is there, and nothing that goes wrong here may cost it."""
    try:
        return dataclasses.asdict(assess(audio_path))
    except Exception as error:
        print(f"notice: the sound could not be assessed: {error}", file=sys.stderr)
        return {"not_measured": str(error)}


def timed(sampler: Sampler, timings: Timings) -> Sampler:
    """The sampler, its time and that of the waits for its crops added to "sample"."""

    @timings.measure("sample")
    def begin(batch: SampleBatch) -> Crops:
        return timings.measure("sample")(sampler(batch))

    return begin


def tell_unheard(seconds: float) -> None:
    if seconds > UNHEARD_SECONDS:
        told = f"notice: the video ends before the sound: {seconds:.1f} s of it are cut off; with --audio_longer"
        print(told, "pingpong the video goes on, back and forth, until the sound ends", file=sys.stderr)


def find_track(
    clip: Clip, options: Options, tools: Tools, files: "WorkFiles | None", ranks: Ranks, timings: Timings
) -> FaceTrack:
    """Who is followed, in which boxes. Rank 0 makes what is not stored, the others wait for it.

    :raises InputError: naming the video, when there is no such face.
    """
    video = clip.video
    if ranks.rank > 0:
        ranks.barrier()
    faces: VideoFaces | None = None
    try:
        if tools.detector is None:
            with timings.measure("decode"):
                track = fixed_track(count_frames(video, clip.n_windows), voxceleb2_box(video.height, video.width))
        else:
            faces = VideoFaces.stored(files.faces) if files is not None else None
            if faces is None or not faces.suffices(clip.n_windows):
                with large_blocks_apart():
                    faces = detect_faces(clip, options, tools.detector, faces, timings)
                if files is not None:
                    faces.save(files.faces)
            track = follow_face(clip, faces, options)
        if options.follows_head:
            track = follow_head(track, clip, files, timings)
        if options.motion_tracking and faces is not None:
            track = follow_face(clip, faces, options, track.motion)
    except InputError as error:
        raise InputError(f"--video_path {video.path}: {error}") from None
    if ranks.rank == 0:
        ranks.barrier()
    return smooth_landmarks(track)


def follow_head(track: FaceTrack, clip: Clip, files: "WorkFiles | None", timings: Timings) -> FaceTrack:
    """The track with the head's movement, stored or seen in the video, which is read once more for it."""
    motion = load_array(files.motion) if files is not None else None
    if motion is not None:
        return dataclasses.replace(track, motion=motion)
    frames = timings.iterate("decode", clip.video.frames(stop=len(track.boxes)))
    bar = tqdm(frames, total=len(track.boxes), desc="head", unit="frame", disable=None)
    track = with_motion(track, bar, timings.measure("motion")(head_motion))
    if files is not None and track.motion is not None:
        save_array(files.motion, track.motion)
    return track


@dataclass(frozen=True)
class WorkFiles:
    """Files for the video's faces and the head's movement, a folder for the job's samples; each is named by all that
    it depends on."""

    faces: Path
    motion: Path
    samples: Path


def work_files(job: Job, options: Options, tools: Tools) -> WorkFiles:
    faces = {
        "format": STORE_FORMAT,
        "versions": versions(),
        "video": file_digest(job.video_path),
        "options": options.affecting("faces"),
        "detector": tools.face_key,
    }
    motion = {
        **faces, "audio": file_digest(job.audio_path), "sampling": options.affecting("sampling"),
        "front_end": dataclasses.asdict(front_end(tools.config)),  # it says how many frames the sound suffices for
    }  # fmt: skip
    samples = {**motion, "sampler": tools.sampler_key}
    if options.denoise_audio != "none":
        samples["denoiser"] = [file_digest(str(path)) for path in DENOISER_WEIGHTS[options.denoise_audio]]
    # boxes, and so samples, are the same with landmarks and without, but where they are drawn by them
    if options.finds_landmarks and options.face_detector != "dlib" and tools.detector is not None:
        faces["detector"] = tools.detector.fingerprint(with_landmarks=True)
        if options.samples_by_landmarks:
            samples["detector"] = faces["detector"]
    work_dir = Path(str(options.work_dir))
    return WorkFiles(
        work_dir / f"faces-{content_key(faces)}.npz",
        work_dir / f"motion-{content_key(motion)}.npy",
        work_dir / f"samples-{content_key(samples)}",
    )


def run_single(options: Options, model_flags: Mapping[str, Any], ranks: Ranks) -> int:
    job = single_job(options)
    if options.skip_existing and os.path.exists(job.out_path):
        print(f"{job.out_path}: exists, skipped")
        return 0
    check_job(job, options.save_orig)
    check_report(job, options)
    if ranks.size > 1 and options.work_dir is None:
        raise InputError(f"{ranks.size} processes on one video share their samples in a folder: give --work_dir")
    tools = load_tools(options, model_flags, ranks)
    if any(key != tools.sampler_key for key in ranks.gather(tools.sampler_key)):
        raise InputError(
            "the processes would not make the same samples, as their devices or checkpoints differ: give "
            "--sampling_batch_size 2 and --precision float32, and the same checkpoint, or one kind of machine"
        )
    result = lip_sync(job, options, tools)
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
            check_report(job, options)
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
        done = "planned" if options.dry_run else "made"
        print(f"{len(jobs)} lines: {len(results)} {done}, {skipped} existed, {len(failures)} failed")
        for failure in failures:
            print(f"failed: {failure}")
        if options.stats:
            save_stats(options, {"jobs": results, "failed": failures, "skipped": skipped})
    return 1 if any(rank_failures for _, rank_failures, _ in gathered) else 0


def save_stats(options: Options, result: dict[str, Any]) -> None:
    settings = {"device": str(choose_device(options.device)), "options": dataclasses.asdict(options)}
    write_stats(Path(str(options.stats)), {**result, **settings})


def main(argv: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be UTF-8
    # so that a terminated run, like an interrupted one, clears away what it had begun to write
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options, model_flags = parse_options(argv)
        check_files(options.work_dir, options.stats, options.quality_report)
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
