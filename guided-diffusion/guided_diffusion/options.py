"""The options of generate.py: every flag, what it allows, what it changes, and which ones contradict each other."""

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .color_util import COLOR_MATCHES
from .dist_util import DEVICES
from .engines import ENGINES, PRECISIONS
from .errors import InputError
from .sampling import SAMPLERS
from .script_util import FlagParser, Rule, add_fixed_flags, add_flag, add_flags, add_model_flags, check_options, option
from .video_util import X264_PRESETS, Order

DENOISERS = ("none", "spectral", "deep")
DETECTORS = ("sfd", "blazeface", "yunet", "retinaface", "dlib")
AUDIO_PRESETS = ("standard", "enhanced")
# The fewest steps that are clearly nearer to 250 of DDIM than 25 are (docs/benchmarks.md, "Samplers"): sampler and
# steps by whether the network predicts x_0. One that was trained little may need more.
TURBO = {True: ("dpmpp_3m", "late5"), False: ("dpmpp_2m", "early8")}
QUALITY_PRESETS = {  # sampler, steps
    "turbo": ("turbo", ""), "fast": ("ddim", "ddim10"), "balanced": ("ddim", "ddim25"),
    "high": ("ddim", "ddim50"), "ultra": ("ddim", "ddim100"),
}  # fmt: skip
# What --enhance True stands for: what measured better on four real clips (docs/benchmarks.md, "One switch").
ENHANCEMENTS: Mapping[str, Any] = {
    "blur_kernel_size": 15, "color_match": "lab", "temporal_smoothing": 0.3, "super_resolution": True,
}  # fmt: skip
# how a number of steps is spread: --sampling_steps
STEPS = {"ddpm": "{}", "ddim": "ddim{}", "dpmpp_2m": "logsnr{}", "dpmpp_3m": "late{}"}

MOUTH = 0.2  # of the crop's height is below the middle of most mouths


def flag(
    default: Any,
    help: str,
    affects: str,
    choices: Sequence[str] = (),
    within: tuple[float, float] | None = None,
    none: str = "",
) -> Any:
    """A command-line flag. `affects` is the first part of a run that it changes: faces, sampling, output or run."""
    return option(default, help, choices, within, none, affects=affects)


@dataclass(frozen=True)
class Options:
    """Every flag but the network's own (those are `ModelConfig`'s and come with the checkpoint).

    :raises InputError: naming the first value that is not allowed, and what is.
    """

    video_path: str = flag("", "video (or still image) to lip-sync", "run")
    audio_path: str = flag("", "speech: a sound file, or a video with sound", "run")
    out_path: str | None = flag(None, "result; by default <audio>_<video>.mp4 in sample_path", "run")
    model_path: str = flag("", "checkpoint (.pt with its .json beside it, or .safetensors)", "run")
    model_path_256: str = flag("", "second checkpoint, of a network of 256 px, for --adaptive_resolution", "run")
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
    denoise_audio: str = flag("none", "take noise out of what the network hears", "sampling", DENOISERS)
    denoise_strength: float | None = flag(
        None, "share of the denoiser's decibels that is taken; auto: half of spectral's, all of deep's", "sampling",
        within=(0.01, 1), none="auto",
    )  # fmt: skip
    compress_audio: bool = flag(False, "even out the loudness of what the network hears", "sampling")
    audio_preset: str = flag("", "the front end; by default the checkpoint's own", "sampling", ("", *AUDIO_PRESETS))
    mouth_gain: float = flag(
        0.0, "dB by which the network hears the speech louder than it is", "sampling", within=(-20, 20)
    )
    silence_gate: float = flag(0.0, "the mouth rests while nobody speaks, 0 (off) to 1", "sampling", within=(0, 1))
    face_detector: str = flag("sfd", "dlib needs no download", "faces", DETECTORS)
    detection_size: int = flag(
        720, "faces are looked for in frames with at most this long side", "faces", within=(32, 1 << 14)
    )
    face_det_batch_size: int = flag(64, "at most this many frames per call of the detector", "run", within=(1, 1 << 14))
    face_index: int = flag(
        -1, "which face, from the left in the first frame with faces; -1 is the best", "sampling", within=(-1, 1000)
    )
    pads: str = flag("0,0,0,0", "pixels to grow the box: top,bottom,left,right", "sampling")
    motion_tracking: bool = flag(
        False, "where the detector loses the face or its landmarks jump, follow the head's movement", "sampling"
    )
    stable_crop: bool = flag(
        False, "let the box go evenly, to fractions of a pixel, and turn with a tilted head", "sampling"
    )
    is_voxceleb2: bool = flag(True, "no detection: VoxCeleb2's fixed crop of 224 x 224 frames", "faces")

    adaptive_resolution: bool = flag(False, "shots with a wide face are generated by --model_path_256", "sampling")
    resolution_threshold: float = flag(
        200.0, "width in pixels above which a face is wide", "sampling", within=(1, 1 << 14)
    )
    face_hide_percentage: float = flag(0.5, "lower part of the crop that is generated", "sampling", within=(0.01, 1))
    sampling_seed: int | None = flag(None, "seed of the noise, one for all frames; none draws it anew", "sampling")
    sampling_batch_size: int | None = flag(
        2, "a batch has this many times nframes frames; auto: by the device", "sampling", within=(1, 1 << 14),
        none="auto",
    )  # fmt: skip
    sampling_ref_type: str = flag("gt", "reference crop of a frame", "sampling", ("gt", "first_frame", "random"))
    sampling_use_gt_for_ref: bool = flag(False, "the same as --sampling_ref_type gt", "sampling")
    sampling_input_type: str = flag("gt", "first_frame freezes the video", "sampling", ("gt", "first_frame"))
    sampler: str = flag(
        "", "default: ddim with --use_ddim True, else ddpm; turbo has steps of its own", "sampling",
        ("", *SAMPLERS, "turbo"),
    )  # fmt: skip
    use_ddim: bool = flag(False, "DDIM instead of ancestral sampling", "sampling")
    timestep_respacing: str = flag(
        "", "ddimN, logsnrN or earlyN (for dpmpp_2m), lateN (for dpmpp_3m), or steps per section as a,b,c", "sampling"
    )
    clip_denoised: bool = flag(True, "clamp the x_0 prediction", "sampling")
    flow_guidance: float = flag(
        0.0, "draw each frame's skin to the frame before while sampling, up to 1", "sampling", within=(0, 1)
    )
    white_balance: bool = flag(
        False, "the network sees each shot in white light, and what it makes gets the shot's own back", "sampling"
    )
    retry_flagged: int = flag(
        0, "sample frames with a fault among their batch again, at most so often", "sampling", within=(0, 16)
    )
    device: str = flag("auto", "where the network runs", "run", DEVICES)
    engine: str = flag("torch", "what runs the network", "run", ENGINES)
    precision: str = flag("auto", "auto: see --use_fp16; with openvino bfloat16 where it is fast", "run", PRECISIONS)
    use_fp16: bool = flag(True, "half precision on CUDA; float32 elsewhere", "run")
    compile: bool = flag(False, "torch.compile on CUDA: the first batch takes a minute, the others less", "run")

    enhance: bool = flag(
        False, "the recommended enhancements in one flag; each can still be given another value", "run"
    )
    blur_kernel_size: int = flag(
        0, "show the generated part only, its edges feathered over so many pixels of the network's crop", "output"
    )
    denoise: float = flag(
        0.0, "take the noise that sampling left out of the generated part, 0 (off) to 1", "output", within=(0, 1)
    )
    color_match: str = flag(
        "none", "give what is generated its frame's colours, part by part; histogram: the skin's spread of them too",
        "output", COLOR_MATCHES,
    )  # fmt: skip
    temporal_smoothing: float = flag(
        0.0, "take flicker out of the generated part, 0 (off) to 0.9", "output", within=(0, 0.9)
    )
    super_resolution: bool = flag(False, "more detail for the lips, by a network of its own", "output")
    sr_model: str = flag(
        "realesr-general-wdn-x4v3", "that network: a name (see docs/user-guide.md) or a file", "output"
    )
    sr_strength: float = flag(1.0, "how much of its detail is added, 0 to 1", "output", within=(0, 1))
    sharpening_strength: float = flag(0.0, "sharpen the generated part, 0 to 1", "output", within=(0, 1))
    landmark_mask: bool = flag(False, "show the generated mouth only", "output")
    mask_expansion: float = flag(
        1.2, "the mouth is shown up to (this - 1) of its width around the lips", "output", within=(1.01, 3)
    )
    adaptive_mask: bool = flag(False, "the margin around the lips grows as the mouth opens", "output")

    work_dir: str | None = flag(None, "keep faces and samples here: continue after a kill, composite anew", "run")
    quality_report: str | None = flag(None, "write what is to be said of the result to this .html, and a .json", "run")
    dry_run: bool = flag(False, "only say in seconds what would be done: who is followed, how long it takes", "run")
    stats: str | None = flag(None, "write times, memory, versions and options to this JSON file", "run")

    def __post_init__(self) -> None:
        _ = self.pad_pixels
        check_options(self, RULES)

    @property
    def sampler_name(self) -> str:
        return self.sampler or ("ddim" if self.use_ddim else "ddpm")

    def sampler_and_steps(self, predict_xstart: bool) -> tuple[str, str]:
        """Of SAMPLERS, and a respacing, for a network of this kind."""
        return TURBO[predict_xstart] if self.sampler == "turbo" else (self.sampler_name, self.timestep_respacing)

    @property
    def enhancements(self) -> str:
        """The flags that `enhance` stands for, with their values."""
        return " ".join(f"--{name} {getattr(self, name)}" for name in ENHANCEMENTS)

    @property
    def follows_head(self) -> bool:
        """Whether the head's movement (`Face.motion`) is asked for."""
        return self.temporal_smoothing > 0 or self.flow_guidance > 0 or self.motion_tracking

    @property
    def finds_landmarks(self) -> bool:
        """Whether landmarks are asked for, also of detectors that do without."""
        return self.landmark_mask or self.color_match != "none" or self.samples_by_landmarks

    @property
    def samples_by_landmarks(self) -> bool:
        asked = self.flow_guidance, self.motion_tracking, self.stable_crop, self.retry_flagged, self.silence_gate
        return any(asked)

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
    (lambda o: o.precision == "float16" and not o.use_fp16,
     "--precision float16 contradicts --use_fp16 False: drop one"),
    (lambda o: o.compile and o.engine != "torch",
     "--compile True is PyTorch's: drop it, or --engine {engine}"),
    (lambda o: o.flow_guidance and o.sampler_name == "ddpm",
     "--flow_guidance {flow_guidance} needs a sampler that draws no noise on the way: give --sampler ddim or turbo"),
    (lambda o: o.flow_guidance and o.sampling_seed is None,
     "--flow_guidance {flow_guidance} needs one noise for all frames: give --sampling_seed 7"),
    (lambda o: o.motion_tracking and o.is_voxceleb2,
     "--motion_tracking True needs a detected face: give --is_voxceleb2 False"),
    (lambda o: o.silence_gate and o.is_voxceleb2,
     "--silence_gate {silence_gate} needs a detected face: give --is_voxceleb2 False"),
    (lambda o: o.stable_crop and o.is_voxceleb2,
     "--stable_crop True needs a detected face: give --is_voxceleb2 False"),
    (lambda o: o.stable_crop and not (o.blur_kernel_size or o.landmark_mask),
     "--stable_crop True has no whole pixels to paste a crop into: give --blur_kernel_size 15 or --landmark_mask True "
     "too"),
    (lambda o: o.denoise_strength is not None and o.denoise_audio == "none",
     "--denoise_strength is for noise that is taken out: give --denoise_audio spectral or deep too"),
    (lambda o: o.blur_kernel_size != 0 and not 3 <= o.blur_kernel_size <= 63,
     "--blur_kernel_size {blur_kernel_size}: give 3 to 63 pixels, or 0 for no blending"),
    (lambda o: (o.sr_model, o.sr_strength) != (Options.sr_model, Options.sr_strength) and not o.super_resolution,
     "--sr_model and --sr_strength are about --super_resolution: give --super_resolution True too"),
    (lambda o: o.super_resolution and o.face_hide_percentage < MOUTH,
     "--super_resolution True enhances the mouth, of which --face_hide_percentage {face_hide_percentage} generates "
     f"nothing or little: give {MOUTH} or more"),
    (lambda o: o.landmark_mask and o.is_voxceleb2,
     "--landmark_mask True needs a detected face: give --is_voxceleb2 False"),
    (lambda o: o.adaptive_mask and not o.landmark_mask,
     "--adaptive_mask True changes the mask of the lips: give --landmark_mask True too"),
    (lambda o: o.mask_expansion != Options.mask_expansion and not o.landmark_mask,
     "--mask_expansion is the size of the lips' mask: give --landmark_mask True too"),
    (lambda o: o.work_dir is not None and o.sampling_seed is None,
     "--work_dir needs a seed, so that stored samples fit new ones: give --sampling_seed 7"),
    (lambda o: o.adaptive_resolution and not o.model_path_256,
     "--adaptive_resolution True needs --model_path_256, a second network: one of another size cannot run at 256 px. "
     "Train one with scripts/train.py --init {model_path} --image_size 256, or give --super_resolution True instead"),
    (lambda o: bool(o.model_path_256) and not o.adaptive_resolution,
     "--model_path_256 is for shots with a wide face: give --adaptive_resolution True too; for all of them give it as "
     "--model_path"),
    (lambda o: o.resolution_threshold != Options.resolution_threshold and not o.adaptive_resolution,
     "--resolution_threshold chooses between two networks: give --adaptive_resolution True too"),
    (lambda o: o.quality_report is not None and not o.quality_report.endswith(".html"),
     "--quality_report {quality_report}: give a name that ends in .html; a .json is written beside it"),
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
    said = {name: " ".join(steps) for name, steps in QUALITY_PRESETS.items()}
    said["turbo"] = " or ".join(map(" ".join, TURBO.values())) + " by what the network predicts"
    presets = ", ".join(map(" ".join, said.items()))
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
    if flags["sampler"] == "turbo" and {"sampling_steps", "timestep_respacing"} & {*said}:
        raise InputError("--sampler turbo has steps of its own: drop it, or --sampling_steps and --timestep_respacing")
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
    parser = create_argparser()
    flags = vars(parser.parse_args(argv))
    if flags["enhance"]:
        parser.set_defaults(**ENHANCEMENTS)
        flags = vars(parser.parse_args(argv))
    given = resolve_steps(flags)
    names = {f.name for f in dataclasses.fields(Options)}
    options = Options(**{name: value for name, value in given.items() if name in names})
    return options, {name: value for name, value in given.items() if name not in names and value is not None}
