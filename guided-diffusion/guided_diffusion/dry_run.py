"""`--dry_run True`: a run's plan in seconds, from frames here and there and one batch of them taken all the way.

No result is written: the plan is printed, and a sheet with what would be followed and one finished frame lies beside
where the result would.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from audio.assess import assess
from face_detection.api import Detection, FaceAlignment, face_identity
from face_detection.cuts import CutDetector
from face_detection.stable_crop import stable_crops
from face_detection.tracks import FaceTrack, build_track, fixed_track, smooth_landmarks, voxceleb2_box, with_motion
from face_detection.video_faces import VideoFaces
from temporal_consistency import GUIDED_STEPS, head_motion

from .color_util import light_gains
from .dist_util import choose_device
from .errors import InputError
from .gaussian_diffusion import GaussianDiffusion, X0Fn
from .jobs import Job
from .logger import peak_memory
from .options import Options
from .plan import DENOISE_SECONDS, X264_DELAY, Cost, Plan, Seen, advice, estimate_seconds, plan_lines
from .quality_report import open_report
from .sampling import Guide, SampleBatch, Sampler, WhiteBalanced, determine_optimal_resolution, generate_crops
from .script_util import ModelConfig, create_gaussian_diffusion
from .store import content_key, replace_when_complete, writable_folder
from .streams import Box, Item, Stages
from .tfg_data_util import face_crop, inside_frame, sample_to_crops, visible_box
from .video_util import VideoSource, VideoWriter, estimate_frames, timecode

LOOK_SECONDS = 4.0  # of looking for faces
MOST_LOOKS = 40
SOUND_SECONDS = 60  # that the sound's verdict is about
SAMPLE_SECONDS = 5.0  # after which sampling the preview is broken off
BATCH_SECONDS = 5.0  # that a whole batch may take to be timed
ENCODE_SECONDS = 1.5
EXCERPT_BYTES = 1 << 27  # frames that are taken all the way: 20 of 1080 x 1920
EXCERPT = 10  # of them, or as many as a batch has
SHEET_WIDTH, SHEET_PICTURES = 1280, 24
COLUMNS = 4, 6  # of wide and of tall pictures


class Unfinished(Exception):
    """Sampling was broken off. crops: x_0 by then, uint8 [N, h, w, 3]."""

    def __init__(self, crops: np.ndarray, steps: int, of_steps: int) -> None:
        super().__init__(f"{steps} of {of_steps} steps")
        self.crops, self.steps, self.of_steps = crops, steps, of_steps


def impatient(guide: Guide | None, diffusion: GaussianDiffusion) -> Guide:
    """The guide, or none, of a sampler that raises `Unfinished` after SAMPLE_SECONDS."""

    def begin(batch: SampleBatch, image: Tensor, mask: Tensor) -> X0Fn:
        edit = guide(batch, image, mask) if guide else None
        start = time.perf_counter()

        def x0_fn(step: int, x_0: Tensor) -> Tensor:
            edited = edit(step, x_0) if edit else x_0
            edited.flatten()[0].item()  # waits for a GPU
            steps, of_steps = step + 1, diffusion.num_timesteps
            is_late = len(batch.faces) == 1 and time.perf_counter() - start > SAMPLE_SECONDS
            if is_late and steps < of_steps:
                crops = sample_to_crops(edited, image, mask).cpu().numpy()
                raise Unfinished(crops, steps, of_steps)
            return edited

        return x0_fn

    return begin


class Clip(Protocol):
    """A job's inputs, opened (generate.py)."""

    @property
    def video(self) -> VideoSource: ...
    @property
    def seconds(self) -> Fraction: ...
    @property
    def n_windows(self) -> int: ...
    def mel_window(self, frame: int, /) -> np.ndarray: ...


class Tools(Protocol):
    """What makes results (generate.py)."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def sampler(self) -> Sampler: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def detector(self) -> FaceAlignment | None: ...
    @property
    def larger(self) -> tuple[int, Sampler] | None: ...


@dataclass(frozen=True)
class Work:
    """A job, and what would make it. open_seconds: what opening it took."""

    job: Job
    options: Options
    clip: Clip
    tools: Tools
    stages: Stages
    open_seconds: float

    @property
    def steps(self) -> int:
        """Of sampling."""
        _, respacing = self.options.sampler_and_steps(self.tools.config.predict_xstart)
        return create_gaussian_diffusion(self.tools.config, respacing).num_timesteps

    def sampler(self, frame: np.ndarray, box: Box) -> Sampler:
        """Of the network for a face, in the light of a frame, RGB uint8 [H, W, 3]."""
        sampler = self._by_resolution(box)
        if not self.options.white_balance:
            return sampler
        gains = light_gains(frame)
        return WhiteBalanced(sampler, lambda _batch: gains)

    def _by_resolution(self, box: Box) -> Sampler:
        tools = self.tools
        if tools.larger is None:
            return tools.sampler
        sizes = tools.config.image_size, tools.larger[0]
        size = determine_optimal_resolution(box, self.options.resolution_threshold, sizes)
        return tools.sampler if size == sizes[0] else tools.larger[1]


def dry_run(work: Work) -> dict[str, Any]:
    """Print the plan and write the sheet.

    :return: the plan as --stats has it.
    :raises InputError: when no frame can be read.
    """
    options, video = work.options, work.clip.video
    n_source = min(estimate_frames(video), work.clip.n_windows)
    outlasts = options.audio_longer != "cut" or video.is_image
    n_looked_in = 1 if options.sampling_input_type == "first_frame" else n_source
    looks = look(video, n_looked_in, work.tools.detector, describe_for(options))
    track = follow(looks, work)
    boxes = [box_of(track, place) for place in range(len(looks))]
    plan = Plan(
        **dataclasses.asdict(work.job), width=video.width, height=video.height, source_fps=float(video.source_fps),
        fps=float(video.fps), n_source=n_source, n_output=work.clip.n_windows if outlasts else n_source,
        n_windows=work.clip.n_windows, sound_seconds=float(work.clip.seconds), image_size=work.tools.config.image_size,
        seen=[Seen(each.index, len(each.faces), box) for each, box in zip(looks, boxes, strict=True)],
        shot_starts=scene_changes(looks), sound=heard(work.job.audio_path), steps=work.steps,
    )  # fmt: skip
    item = None
    if any(boxes):
        plan, item = measured(work, plan, track, looks)
    path = sheet_path(work.job.out_path)
    plan = dataclasses.replace(plan, sheet=str(path))
    said = advice(plan, options, torch.cuda.is_available() and choose_device(options.device).type == "cpu")
    print("\n".join(plan_lines(plan, said)))
    try:
        with replace_when_complete(path) as part:
            Image.fromarray(sheet(looks, boxes, plan, item)).save(part, format="PNG")
    except OSError as error:
        plan = dataclasses.replace(plan, sheet="")
        print(f"notice: the sheet could not be written: {error}", file=sys.stderr)
    return {**dataclasses.asdict(plan), "advice": said}


def sheet_path(out_path: str) -> Path:
    """Beside the result; its name begins with the result's, with as much of it as a name has room for.

    What has no room is told by a digest: a list's long names may differ at their ends alone.
    """
    path, ending = Path(out_path), "_plan.png"
    name, most = os.fsencode(path.stem), os.pathconf(writable_folder(str(path.parent)), "PC_NAME_MAX")
    if len(name) + len(ending) <= most:
        return path.with_name(path.stem + ending)
    ending = f"_{content_key({'name': path.stem})}{ending}"
    return path.with_name(name[: most - len(ending)].decode(errors="ignore") + ending)


def heard(audio_path: str) -> list[str]:
    """The verdict on the sound's beginning. What goes wrong with it must not cost the plan."""
    try:
        return assess(audio_path, SOUND_SECONDS).verdict
    except Exception as error:
        return [f"could not be assessed: {error}"]


# ---------------------------------------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class Look:
    """At one frame.

    :param picture: a small one, `scale` times the frame's size.
    :param descriptors: what each of the faces looks like, float [128]; none where nobody asked.
    """

    index: int
    faces: list[Detection]
    picture: np.ndarray
    scale: float
    descriptors: list[np.ndarray]

    def descriptor(self, face: Detection) -> np.ndarray:
        """Of one of the faces."""
        return next(its for its, other in zip(self.descriptors, self.faces, strict=True) if other is face)


Describe = Callable[[np.ndarray, Detection], np.ndarray]


def describe_for(options: Options) -> Describe | None:
    """What tells people apart, where one of them is to be followed."""
    if options.face_index == -1 or options.is_voxceleb2:
        return None
    try:
        return face_identity().describe
    except InputError as error:  # the run may do without it: in one shot in which nobody is lost
        print(f"notice: this plan takes people by their place: {error}", file=sys.stderr)
        return None


def places(n: int) -> Iterator[int]:
    """The numbers below n, each once; however few are taken, they are spread over all (van der Corput's order)."""
    bits = max(1, (n - 1).bit_length())
    taken = set()
    for k in range(1 << bits):
        place = int(f"{k:0{bits}b}"[::-1], 2) * n >> bits
        if place not in taken:
            taken.add(place)
            yield place


def look(
    video: VideoSource, n_frames: int, detector: FaceAlignment | None, describe: Describe | None = None
) -> list[Look]:
    """Faces in frames from all over the video, as many as there is time for; by their index.

    :raises InputError: when not one frame can be read.
    """
    deadline = time.perf_counter() + LOOK_SECONDS
    looks: dict[int, Look] = {}
    for place in islice(places(n_frames), MOST_LOOKS):
        if looks and time.perf_counter() > deadline:
            break
        for number, (index, picture) in enumerate(video.near(place)):
            is_late = time.perf_counter() > deadline
            if index >= place or is_late or (number == 0 and index not in looks):
                if index not in looks and index < n_frames:
                    looks[index] = _look(index, picture(), detector, describe)
                break
    if not looks:
        raise InputError(f"--video_path {video.path}: no frame of it could be read")
    return [looks[index] for index in sorted(looks)]


def _look(index: int, frame: np.ndarray, detector: FaceAlignment | None, describe: Describe | None) -> Look:
    scale = min(1.0, SHEET_WIDTH / COLUMNS[0] / frame.shape[1])
    size = max(1, round(scale * frame.shape[1])), max(1, round(scale * frame.shape[0]))
    picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    faces = detector.detect([frame])[0] if detector else []
    return Look(index, faces, picture, scale, [describe(frame, face) for face in faces] if describe else [])


def scene_changes(looks: Sequence[Look]) -> list[int]:
    """The frames looked at that show another scene than the one looked at before."""
    cuts = CutDetector()
    return [each.index for each in looks if cuts.update(each.picture)]


def follow(looks: Sequence[Look], work: Work) -> FaceTrack:
    """Who would be followed in the frames looked at; nobody where that is not to be had. Each is a shot of its own."""
    video, options = work.clip.video, work.options
    if work.tools.detector is None:
        return fixed_track(len(looks), voxceleb2_box(video.height, video.width))

    def descriptor(place: int, face: Detection) -> np.ndarray:
        return looks[place].descriptor(face)

    identify = descriptor if any(each.descriptors for each in looks) else None
    is_cut = np.arange(len(looks)) > 0
    faces = VideoFaces([each.faces for each in looks], is_cut, (video.height, video.width), is_complete=False)
    try:
        return build_track(faces, len(looks), pads=options.pad_pixels, face_index=options.face_index, identify=identify)
    except InputError:  # no face in any of them, or not so many: the plan says so
        nobody = fixed_track(len(looks), (0, 0, 0, 0))
        return dataclasses.replace(nobody, has_face=np.zeros(len(looks), bool))


def box_of(track: FaceTrack, place: int) -> Box | None:
    y1, y2, x1, x2 = (int(v) for v in track.boxes[place])
    return (y1, y2, x1, x2) if track.has_face[place] else None


# -------------------------------------------------------------------------------------------------------- measuring


@contextmanager
def timed(costs: dict[str, Cost], part: str, frames: int) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:  # also of a sample that is broken off
        costs[part] = Cost((time.perf_counter() - wall) / frames, (time.process_time() - cpu) / frames)


def measured(work: Work, plan: Plan, track: FaceTrack, looks: Sequence[Look]) -> tuple[Plan, Item | None]:
    """The plan with what a run would cost, and one finished frame: a few frames in a row are taken all the way."""
    costs: dict[str, Cost] = {}
    with_face = np.flatnonzero(track.has_face).tolist()
    place = max(with_face, key=lambda i: max((face.score for face in looks[i].faces), default=0))
    items = excerpt(work, looks[place].index, plan, track.boxes[place], costs)
    if not items:
        return plan, None
    finished, steps, of_steps = finish(work, items, costs)
    shown = [item for item in finished if item.picture is not None]
    n_encoded = encode(work, shown, costs)
    time_report(work, shown, plan.n_output, costs)
    seconds = estimate_seconds(
        costs, plan.n_source, plan.n_output, work.tools.batch_size, len(os.sched_getaffinity(0)),
        work.open_seconds + DENOISE_SECONDS[work.options.denoise_audio] * plan.sound_seconds,
    )  # fmt: skip
    planned = dataclasses.replace(
        plan, steps=of_steps, steps_of_preview=steps, costs=costs, seconds=seconds,
        memory_mib=memory(work, len(items), n_encoded),
    )  # fmt: skip
    return planned, finished[0]


def excerpt(work: Work, start: int, plan: Plan, box: np.ndarray, costs: dict[str, Cost]) -> list[Item]:
    """Frames in a row from one that was looked at, with the face, timed; none where it cannot be found again."""
    options, video = work.options, work.clip.video
    fitting = EXCERPT_BYTES // (video.width * video.height * 3)
    n = max(1, min(max(work.tools.batch_size, EXCERPT), fitting, plan.n_source - start))
    near = (picture for index, picture in video.near(start) if index >= start)
    frames = [picture() for picture in islice(near, 1)]
    with timed(costs, "decode", max(1, n - 1)):
        frames += [picture() for picture in islice(near, n - 1)]
    if work.tools.detector is None:
        y1, y2, x1, x2 = (int(v) for v in box)
        track = fixed_track(len(frames), (y1, y2, x1, x2))
    else:
        with timed(costs, "detect", len(frames)):
            found = work.tools.detector.detect(frames, with_landmarks=options.finds_landmarks)
        place = np.array([box[2:].mean(), box[:2].mean()])
        nearest = [sorted(faces, key=lambda face: float(np.abs(_centre(face) - place).sum()))[:1] for faces in found]
        no_cuts = np.zeros(len(frames), bool)
        faces = VideoFaces(nearest, no_cuts, (video.height, video.width), is_complete=True)
        try:
            track = build_track(
                faces, len(frames), pads=options.pad_pixels, smooth_window=1 if options.stable_crop else 5
            )
        except InputError:
            return []
        track = smooth_landmarks(stable_crops(track) if options.stable_crop else track)
    if options.follows_head:
        with timed(costs, "motion", len(frames)):
            track = with_motion(track, frames, head_motion)
    shown = [track.face(i, start + i, is_cut=False, last=i - 1 if i else None) for i in range(len(frames))]
    return [Item(frame, face) for frame, face in zip(frames, shown, strict=True) if face is not None]


def _centre(face: Detection) -> np.ndarray:
    x1, y1, x2, y2 = face.box
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2])


def finish(work: Work, items: list[Item], costs: dict[str, Cost]) -> tuple[list[Item], int, int]:
    """The items with what the network and the stages make of them, timed, and how many steps were made of how many.

    One is sampled first. Where it takes long the others get its crop, so that the stages have something to do.
    """
    first = items[0].face
    assert first is not None
    sampler = work.sampler(items[0].frame, first.box)
    reference = None if work.options.sampling_ref_type == "gt" else face_crop(items[0].frame, first)

    def sample(some: list[Item]) -> list[Item]:
        start = some[0].face.index  # type: ignore[union-attr]
        with timed(costs, "sample", len(some)):
            batch = range(start, start + len(some))
            return list(generate_crops(iter(some), [batch], sampler, work.clip.mel_window, reference))

    try:
        crop, steps = sample(items[:1])[0].crop, work.steps
        of_steps = steps
    except Unfinished as broken:
        crop, steps, of_steps = broken.crops[0].astype(np.float32) / 255, broken.steps, broken.of_steps
    alone = costs["sample"]
    assert crop is not None
    if steps == of_steps and alone.wall * len(items) < BATCH_SECONDS:
        sampled = sample(items)
    else:
        sampled = [dataclasses.replace(item, crop=crop, crop_size=len(crop)) for item in items]
    per_frame = costs["sample"]
    context = GUIDED_STEPS if work.options.flow_guidance else 0
    more = of_steps / steps * (1 + context / work.tools.batch_size)
    costs["sample"] = Cost(per_frame.wall * more, per_frame.cpu * more)
    stream = iter(sampled)
    for _, stage in work.stages:
        stream = stage(stream)
    with timed(costs, "stages", len(sampled)):
        finished = list(stream)
    return finished, steps, of_steps


def encode(work: Work, items: Sequence[Item], costs: dict[str, Cost]) -> int:
    """Time the encoder on the finished frames, forth and back; with --save_orig both files. :return: frames encoded."""
    options = work.options
    pictures = cycle([item.picture for item in (*items, *items[-2:0:-1]) if item.picture is not None])
    n = 0
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, f"excerpt{Path(work.job.out_path).suffix}"))
        with VideoWriter(path, work.clip.video, work.clip.video.fps, options.crf, preset=options.x264_preset) as writer:
            while n < X264_DELAY and time.perf_counter() - wall < ENCODE_SECONDS:
                writer.write(next(pictures))
                n += 1
    files = 2 if options.save_orig else 1
    costs["encode"] = Cost(files * (time.perf_counter() - wall) / n, files * (time.process_time() - cpu) / n)
    return n


def time_report(work: Work, items: Sequence[Item], n_output: int, costs: dict[str, Cost]) -> None:
    """Time what --quality_report measures of the finished frames; the first is measured before, as it reads sound."""
    for meter in open_report(work.job, work.options, work.clip.video, n_output, work.tools.detector):
        meter.update(items[0])
        with timed(costs, "report", len(items)):
            for item in items:
                meter.update(item)


def memory(work: Work, n_items: int, n_encoded: int) -> float:
    """MiB that a run may take at its peak: what this process did, and the frames that a run holds beyond it."""
    frame = work.clip.video.width * work.clip.video.height * 3 / 2**20
    fitting = max(1, EXCERPT_BYTES // (work.clip.video.width * work.clip.video.height * 3))
    held = max(4 * work.tools.batch_size, min(work.options.face_det_batch_size, fitting) if work.tools.detector else 0)
    in_encoder = (2 if work.options.save_orig else 1) * X264_DELAY - n_encoded
    return peak_memory()["rss"] + frame * (held - 2 * n_items) + max(0, in_encoder) * frame / 2


# ------------------------------------------------------------------------------------------------------------ sheet


def sheet(looks: Sequence[Look], boxes: Sequence[Box | None], plan: Plan, item: Item | None) -> np.ndarray:
    """Small pictures with the followed face in a box, other faces in grey, and a finished frame beside its source."""
    every = -(-len(looks) // SHEET_PICTURES)
    columns = COLUMNS[plan.height > plan.width]
    cells = [_cell(each, box, plan) for each, box in list(zip(looks, boxes, strict=True))[::every]]
    rows = [_row(cells[at : at + columns], columns, SHEET_WIDTH) for at in range(0, len(cells), columns)]
    if item is not None and item.face is not None and item.picture is not None:
        y1, y2, x1, x2 = item.face.box
        height, width = (y2 - y1) // 2, x2 - x1
        around, _ = inside_frame((y1 - height, y2 + height, x1 - width, x2 + width), item.frame.shape)
        rows.append(_row([item.frame[around], item.picture[around]], 2, SHEET_WIDTH))
    return np.concatenate(rows)


def _cell(look: Look, box: Box | None, plan: Plan) -> np.ndarray:
    image = Image.fromarray(look.picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(15)
    for face in look.faces:
        draw.rectangle([round(v * look.scale) for v in face.box], outline=(150, 150, 150))
    if box is not None:
        y1, y2, x1, x2 = (round(v * look.scale) for v in visible_box(box, (plan.height, plan.width)))
        draw.rectangle([x1, y1, x2, y2], outline=(60, 255, 90), width=3)
    said = timecode(look.index, plan.fps) + ("" if box is not None else "  not followed" if look.faces else "  no face")
    draw.rectangle((0, 0, 8 + draw.textlength(said, font), 20), fill=(0, 0, 0))
    draw.text((4, 1), said, font=font, fill=(255, 255, 255) if box is not None else (255, 110, 90))
    return np.asarray(image)


def _row(pictures: Sequence[np.ndarray], columns: int, width: int) -> np.ndarray:
    """Pictures of one shape side by side, with room for `columns` of them."""
    size = width // columns
    height = max(1, round(size * pictures[0].shape[0] / pictures[0].shape[1]))
    row = np.zeros((height, width, 3), np.uint8)
    for place, picture in enumerate(pictures):
        interpolation = cv2.INTER_AREA if picture.shape[1] > size else cv2.INTER_CUBIC
        row[:, place * size : (place + 1) * size] = cv2.resize(picture, (size, height), interpolation=interpolation)
    return row
