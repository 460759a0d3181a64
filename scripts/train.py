"""Train or fine-tune a lip-sync network on clips with their own sound in sync: `python scripts/train.py --data CLIPS`.

The face of every clip is cropped once, and kept with its mel spectrogram in a cache. OUT gets log.txt, sample sheets,
model.safetensors (the averaged weights, for generate.py) and state.pt, from which the same command continues.
Exit status 2 for input that cannot be used.
"""

import copy
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

import _path  # noqa: F401
from audio.hparams import PRESETS, front_end, mel_map, model_options
from face_detection.api import DETECTORS
from guided_diffusion.dist_util import DEVICES, choose_device
from guided_diffusion.errors import InputError
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.sampling import sample
from guided_diffusion.script_util import (
    CHANNEL_MULT,
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
from guided_diffusion.store import file_digest, replace_when_complete
from guided_diffusion.tfg_data_util import sample_to_crops, sampling_noise, tfg_process_batch
from guided_diffusion.unet import ResBlock, TFGModel
from train_data import (
    OPENING_NEIGHBOURS,
    OPENINGS,
    Clip,
    Examples,
    Preparation,
    draw_examples,
    draw_openings,
    prepare_clips,
    split,
)

HIDE_PERCENTAGE = 0.5

OPENING_EXAMPLES = 32  # mel windows per step; they cost as much as 4 pictures of 64 px
OPENING_UNIT = 0.1  # of the inter-ocular distance, about what speech varies by

VALIDATION_EXAMPLES = 64
VALIDATION_OPENINGS = 256
SHEET_EXAMPLES = 8
SHEET_RESPACING = "ddim10"
SHEET_SEED = 7
SHEET_SIDE = 128  # crops are enlarged to at least this
FRESH_LISTED = 12
WEIGHT_DECAY = 0.01


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
    audio_preset: str = option("", "the network's front end in one word; model flags override it", ("", *PRESETS))
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
    flags = {name: value for name, value in given.items() if name not in names and value is not None}
    if options.audio_preset:
        flags = {**model_options(PRESETS[options.audio_preset]), **flags}
    return options, flags


# ---------------------------------------------------------------------------------------------- batches, validation


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
        hidden, samples = (
            sample_to_crops(x, inputs["image"], inputs["mask"]).cpu().numpy() for x in (inputs["noise"], generated)
        )
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


def with_bands_of(config: ModelConfig, init: Checkpoint) -> Checkpoint:
    """`init` with a first audio convolution for the mel bands of `config`: it weighs them as it did its own.

    Each of its bands is the average of the new ones by `mel_map`, whose rows are scaled to sum to 1: mels are
    logarithms, and a level that all bands share is normalised away behind the convolution.
    """
    rows = mel_map(front_end(config), front_end(init.config))
    name = "audio_encoder.input_block.0.weight"
    weight = init.state_dict[name]
    average = torch.from_numpy(rows / rows.sum(axis=1, keepdims=True)).to(weight)
    wider = torch.einsum("oik,ij->ojk", weight, average)
    return dataclasses.replace(init, state_dict={**init.state_dict, name: wider})


Place = tuple[int | None, str]
"""Where a tensor is: its level, counted from the full size, or None outside of the levels; and its name there."""


def tensor_places(model: TFGModel) -> dict[str, Place]:
    """The place of each tensor by its name: a network of another size has the same levels under other names."""
    layers: dict[str, Place] = {}
    level = 0
    for part, step in (("input_blocks", 1), ("output_blocks", -1)):
        number = 0  # of the block in its level
        for index, block in enumerate(getattr(model, part)):
            if part == "input_blocks" and index == 0:
                continue  # it reads the pixels, at any size
            for position, layer in enumerate(block):
                is_resampling = isinstance(layer, ResBlock) and layer.scale != (1, 1)
                kind = "resampling" if is_resampling else f"{number}.{type(layer).__name__}"
                layers[f"{part}.{index}.{position}"] = level, f"{part}.{kind}"
            number += 1
            if is_resampling:
                level, number = level + step, 0
    places: dict[str, Place] = {}
    for name in model.state_dict():
        parts = name.split(".")
        level_of, kind = layers.get(".".join(parts[:3]), (None, ".".join(parts[:3])))
        places[name] = level_of, ".".join([kind, *parts[3:]])
    return places


def matching(model: TFGModel, init: Checkpoint) -> tuple[int, dict[str, str]]:
    """The network's tensors that have the shape of one of the checkpoint's at the same place, and its name; and by how
    many levels the checkpoint's are shifted for that: so that most weights match."""
    with torch.device("meta"):
        names = {place: name for name, place in tensor_places(create_model(init.config)).items()}
    state_dict, places = model.state_dict(), tensor_places(model)
    shapes = {name: tensor.shape for name, tensor in init.state_dict.items()}

    def matches(shift: int) -> dict[str, str]:
        pairs = {
            name: names.get((None if level is None else level - shift, kind), "")
            for name, (level, kind) in places.items()
        }
        return {name: match for name, match in pairs.items() if shapes.get(match) == state_dict[name].shape}

    n_levels, n_known = (len(CHANNEL_MULT[size]) for size in (model.image_size, init.config.image_size))
    by_shift = {shift: matches(shift) for shift in sorted(range(1 - n_known, n_levels), key=abs)}
    return max(by_shift.items(), key=lambda one: sum(state_dict[name].numel() for name in one[1]))


def start_from(model: TFGModel, init: Checkpoint) -> str:
    """Copy the tensors whose places and shapes agree; say which start fresh.

    With another image size there are other levels: they are shifted so that most weights are kept. New ones begin as
    nothing but their resampling (as in Net2Net, Chen et al. 2016, arXiv 1511.05641): the checkpoint's network works
    between them from the first step on, and a network of 128 px begins with the picture of the one of 64.

    :raises InputError: when none agrees.
    """
    state_dict = model.state_dict()
    shift, matches = matching(model, init)
    if not matches:
        raise InputError("--init: no tensor of it has the name and shape of one in this network; drop the model flags")
    model.load_state_dict({name: init.state_dict[match] for name, match in matches.items()}, strict=False)
    n_levels, n_known = (len(CHANNEL_MULT[size]) for size in (model.image_size, init.config.image_size))
    new = [level for level in range(n_levels) if level - shift not in range(n_known)]
    for name, (level, kind) in tensor_places(model).items():
        if level in new and kind.endswith("skip_connection.weight"):
            torch.nn.init.eye_(state_dict[name][:, :, 0, 0])  # what comes from below, nothing of what was skipped
        elif level in new and kind.endswith("skip_connection.bias"):
            torch.nn.init.zeros_(state_dict[name])
    fresh = {name: list(tensor.shape) for name, tensor in state_dict.items() if name not in matches}
    lines = [
        f"--init: {len(matches)} of {len(state_dict)} tensors taken over, {len(fresh)} start fresh, "
        f"{len(init.state_dict) - len(matches)} of the checkpoint's are left out"
    ]
    if model.image_size != init.config.image_size:
        lines += [
            f"  level of {model.image_size >> level} px: "
            + ("new" if level in new else f"from that of {init.config.image_size >> level - shift} px")
            for level in range(n_levels)
        ]
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
    "data", "out", "cache", "init", "audio_preset", "steps", "minutes", "log_every", "sheet_every", "save_every",
    "half", "face_detector", "detection_size", "workers", "device",
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
    init = load_checkpoint(options.init, flag="--init")
    config = model_config({**dataclasses.asdict(init.config), **flags}, "command line")
    if config.audio_dim != init.config.audio_dim:
        print(f"--init: its first audio convolution, of {init.config.audio_dim} mel bands, now has {config.audio_dim}")
        init = with_bands_of(config, init)
    return config, init


def run(options: Options, flags: Mapping[str, Any]) -> int:
    device = choose_device(options.device)
    config, init = load_init(options, flags)
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        options.cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {options.out}: {error.strerror}; give a folder that you may write to") from None
    prepare = Preparation(
        options.cache_dir, config.image_size, front_end(config), options.face_detector, options.detection_size,
        str(device),
    )  # fmt: skip
    clips, data_key = prepare_clips(options.data, prepare, options.workers)
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
