"""What a dry run found, in words: lengths, faces, the time and memory to expect, and the flags that help."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .options import Options
from .video_util import timecode

X264_DELAY = 45  # frames that x264's look-ahead and threads hold back: they are encoded when all others are done
DENOISE_SECONDS = {"none": 0.0, "spectral": 0.05, "deep": 0.2}  # of one core per second of sound (docs/user-guide.md)

MOST_WITHOUT_FACE = 0.1  # share of the frames looked at
LARGE_FACE = 1.5  # times the network's size: its pixels show
SMALL_FACE = 0.5  # times the network's size: most of what it paints is lost
MANY_STEPS = 100
MOST_UNHEARD = 0.2  # s


@dataclass(frozen=True)
class Cost:
    """Seconds that one frame takes: on the clock, and of all cores together."""

    wall: float = 0.0
    cpu: float = 0.0


@dataclass(frozen=True)
class Seen:
    """A frame that was looked at. box: of the followed face, (y1, y2, x1, x2); None where there is none."""

    index: int
    n_faces: int
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    :param n_source: frames of the video that are read, at the result's rate; `n_output` those of the result.
    :param n_windows: frames that the sound suffices for.
    :param steps: of sampling; `steps_of_preview` of them were made for the preview, 0: there is none.
    :param shot_starts: frames looked at that show another scene than the one looked at before.
    :param sound: what the assessment says of it.
    """

    video_path: str
    audio_path: str
    out_path: str
    width: int
    height: int
    source_fps: float
    fps: float
    n_source: int
    n_output: int
    n_windows: int
    sound_seconds: float
    image_size: int
    seen: Sequence[Seen]
    shot_starts: Sequence[int]
    sound: Sequence[str]
    steps: int = 0
    steps_of_preview: int = 0
    costs: Mapping[str, Cost] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    memory_mib: float | None = None
    sheet: str = ""

    @property
    def without_face(self) -> list[Seen]:
        return [each for each in self.seen if each.box is None]

    @property
    def widths(self) -> list[int]:
        """Of the followed face, in px, ascending."""
        return sorted(each.box[3] - each.box[2] for each in self.seen if each.box is not None)


def estimate_seconds(
    costs: Mapping[str, Cost], n_source: int, n_output: int, batch_size: int, cores: int, sound: float
) -> float:
    """How long a run takes, from what a frame costs in each part.

    In pass 1 the parts follow each other. In pass 2 they run beside each other: it is as long as the slowest of them
    (or as all of them together on the cores there are), and the others add what is still under way at either end.

    :param costs: of decode, detect, motion, sample, stages, encode (both files) and report; what is missing is not run.
    :param sound: seconds until the sound is read.
    """
    first = sum(costs[part].wall + costs["decode"].wall for part in ("detect", "motion") if part in costs)
    delays = {"decode": batch_size, "sample": batch_size, "stages": 1, "encode": X264_DELAY}
    walls = {part: costs[part].wall for part in delays if part in costs}
    ends = {part: min(n_output, delays[part]) * wall for part, wall in walls.items()}
    walls["encode"] += costs.get("report", Cost()).wall  # in the same thread
    slowest = max(walls, key=walls.__getitem__)
    beside = n_output * walls[slowest] + sum(ends.values()) - ends[slowest]
    busy = n_output * sum(costs[part].cpu for part in (*walls, "report") if part in costs) / cores
    return sound + n_source * (first or costs["decode"].wall) + max(beside, busy)


def advice(plan: Plan, options: Options, gpu_is_idle: bool = False) -> list[str]:
    """What may go wrong or could be better, each with the flag that helps.

    :param gpu_is_idle: there is a GPU, and the network does not run on it.
    """
    of_run = _of_run(plan, options, gpu_is_idle)
    return [*_of_faces(plan, options), *_of_lengths(plan), *_of_sound(plan), *of_run]


def _of_faces(plan: Plan, options: Options) -> list[str]:
    if options.is_voxceleb2:
        if (plan.width, plan.height) == (224, 224):
            return []
        return ["a fixed part of the picture is taken for the face, as of VoxCeleb2's 224 x 224: --is_voxceleb2 False"]
    said = []
    missing, looked = len(plan.without_face), len(plan.seen)
    unusable = sum(each.n_faces > 0 for each in plan.without_face)
    shrunk = max(plan.width, plan.height) > options.detection_size
    larger = f"--detection_size {min(max(plan.width, plan.height), 2 * options.detection_size)}, or " if shrunk else ""
    first = next((each for each in plan.seen if each.n_faces), None)
    if first is not None and options.face_index >= first.n_faces:
        indices = "0" if first.n_faces == 1 else f"0 to {first.n_faces - 1}"
        return [
            f"--face_index {options.face_index}: the first frame with faces that was looked at (frame {first.index}) "
            f"has {first.n_faces}: --face_index {indices}, or -1 for the best detected"
        ]
    if missing == looked:
        if unusable:
            return [
                f"faces in {unusable} of the {looked} frames looked at, too small or with the mouth outside the "
                "picture; give a video that shows it"
            ]
        return [f"no face in any of the {looked} frames looked at: {larger}another --face_detector"]
    if missing > MOST_WITHOUT_FACE * looked:
        whom = " to follow" if unusable else ""
        said.append(
            f"no face{whom} in {100 * missing / looked:.0f} % of the frames looked at, which stay as they are: "
            f"{larger}another --face_detector; --motion_tracking True helps across short gaps"
        )
    most = max(each.n_faces for each in plan.seen)
    if most > 1 and options.face_index == -1:
        said.append(f"up to {most} faces at once, and the best detected is followed: --face_index 0 to {most - 1}")
    width = median(plan.widths)
    if width > LARGE_FACE * plan.image_size and not (options.super_resolution or options.adaptive_resolution):
        said.append(
            f"the face is {width:.0f} px wide, the network paints {plan.image_size}: --super_resolution True for detail"
        )
    if width < SMALL_FACE * plan.image_size:
        said.append(f"the face is only {width:.0f} px wide, the network paints {plan.image_size}: take a larger copy")
    return said


def _of_lengths(plan: Plan) -> list[str]:
    unheard = (plan.n_windows - plan.n_output) / plan.fps
    said = []
    if unheard > MOST_UNHEARD:
        said.append(f"the video ends before the sound, {unheard:.1f} s are cut off: --audio_longer pingpong")
    if abs(plan.source_fps - plan.fps) > 0.01:
        said.append(
            f"the video's {plan.source_fps:.5g} frames/s become {plan.fps:.5g}, as the network was trained: "
            "--video_fps 0 keeps them"
        )
    return said


def _of_sound(plan: Plan) -> list[str]:
    return [f"sound: {line}" for line in plan.sound if not line.startswith("good")]


def _of_run(plan: Plan, options: Options, gpu_is_idle: bool) -> list[str]:
    said = []
    if gpu_is_idle:
        said.append("there is a GPU, and it is not used: --device cuda")
    if options.sampling_seed is None:
        said.append("without a seed every frame has its own noise, which flickers: --sampling_seed 7")
    if plan.steps > MANY_STEPS:
        said.append(f"{plan.steps} steps are many more than pictures show: --quality_preset turbo has 5 or 8")
    return said


def plan_lines(plan: Plan, said: Sequence[str]) -> list[str]:
    """The plan as it is printed; `said` is its `advice`."""
    rate = f"{plan.source_fps:.5g} frames/s" + (
        f", read at {plan.fps:.5g}" if abs(plan.source_fps - plan.fps) > 0.01 else ""
    )
    lines = [
        f"dry run: {plan.out_path} would be made; nothing is written but {plan.sheet}",
        f"video    {plan.width} x {plan.height}, {rate}, about {plan.n_source} frames are read",
        f"sound    {plan.sound_seconds:.1f} s; {'; '.join(plan.sound)}",
        f"result   about {plan.n_output} frames, {timecode(plan.n_output, plan.fps)}: {_order(plan)}",
        f"faces    {_faces(plan)}",
        f"shots    {_shots(plan)}",
    ]
    if plan.seconds is not None:
        parts = ", ".join(f"{part} {1000 * cost.wall:.1f}" for part, cost in plan.costs.items())
        lines.append(f"time     about {_duration(plan.seconds)} (ms per frame: {parts})")
    if plan.memory_mib is not None:
        lines.append(f"memory   about {plan.memory_mib:.0f} MiB")
    if 0 < plan.steps_of_preview < plan.steps:
        done = f"{plan.steps_of_preview} of {plan.steps} steps"
        lines.append(f"preview  after {done}, to save time: the result is sharper")
    return [*lines, *(f"advice:  {line}" for line in said or ["none"])]


def _order(plan: Plan) -> str:
    if plan.n_output < plan.n_windows:
        return "it ends with the video"
    if plan.n_output > plan.n_source:
        return "the video is repeated until the sound ends"
    return "it ends with the sound"


def _faces(plan: Plan) -> str:
    found = len(plan.seen) - len(plan.without_face)
    if not found:
        who = "the one to follow " if any(each.n_faces for each in plan.seen) else ""
        return f"{who}in none of the {len(plan.seen)} frames looked at"
    if not any(each.n_faces for each in plan.seen):
        width = f"{plan.widths[0]} px wide (the network's: {plan.image_size})"
        return f"not looked for: a fixed part of the picture, {width}"
    sizes = f"{plan.widths[0]} to {plan.widths[-1]} px wide (the network's: {plan.image_size})"
    gaps = ", ".join(timecode(each.index, plan.fps) for each in plan.without_face[:5])
    more = ", .." if len(plan.without_face) > 5 else ""
    return f"in {found} of {len(plan.seen)} frames looked at, {sizes}" + (f"; none at {gaps}{more}" if gaps else "")


def _shots(plan: Plan) -> str:
    if not plan.shot_starts:
        return "one scene in all frames looked at"
    changes = ", ".join(timecode(index, plan.fps) for index in plan.shot_starts[:8])
    more = ", .." if len(plan.shot_starts) > 8 else ""
    return f"at least {len(plan.shot_starts) + 1} scenes; another one by {changes}{more}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
