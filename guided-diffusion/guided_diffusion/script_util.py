"""Options as dataclasses and flags; model and diffusion options; checkpoints together with their configuration."""

import argparse
import dataclasses
import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .gaussian_diffusion import NOISE_SCHEDULES, get_named_beta_schedule
from .respace import SpacedDiffusion, choose_timesteps
from .store import replace_when_complete
from .unet import TFGModel

CHANNEL_MULT = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 3, 4, 4),
    512: (1, 1, 2, 2, 4, 4),
}

# Far beyond any trained network: a foreign configuration must not fill the memory before its shapes are compared.
LARGEST = {
    "num_channels": 4096,
    "num_res_blocks": 64,
    "nframes": 10000,
    "audio_dim": 1024,
    "sample_rate": 192000,
    "n_fft": 1 << 16,
    "syncnet_mel_step_size": 1024,
    "diffusion_steps": 100000,
}

# Upstream's options with one supported value: the others never ran, or concern training only.
FIXED_OPTIONS: dict[str, bool | int | float | str] = {
    "use_audio": True,
    "resblock_updown": True,
    "class_cond": False,
    "audio_as_style_encoder_mlp": False,
    "audio_encoder_kwargs": "{}",
    "syncnet_T": 5,
    "audio_frames_per_video": 16,
    "use_checkpoint": False,
    "use_kl": False,
    "rescale_learned_sigmas": False,
    "loss_variation": 0,
}


# ------------------------------------------------------------------------------------------------- options and flags


def option(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    within: tuple[float, float] | None = None,
    none: str = "",
    **metadata: Any,
) -> Any:
    """A field of an option dataclass, for `check_options` and `add_flags`.

    :param within: the lowest and the highest value of a number.
    :param none: the word on the command line for the value None.
    """
    kept = {"help": help, "choices": choices, "within": within, "none": none, **metadata}
    return field(default=default, metadata=kept)


Rule = tuple[Callable[[Any], bool], str]
"""Whether options contradict each other, and what to say then, with options' names in braces for their values."""


def check_options(options: Any, rules: Iterable[Rule] = ()) -> None:
    """Check each value of an option dataclass against what is allowed, then all of them against the rules.

    :raises InputError: naming the first value that is not allowed, and what is.
    """
    for f in dataclasses.fields(options):
        choices, within, value = f.metadata["choices"], f.metadata["within"], getattr(options, f.name)
        if choices and value not in choices:
            raise InputError(f"--{f.name} {value}: choose from {', '.join(filter(None, choices))}")
        if within and value is not None and not within[0] <= value <= within[1]:
            raise InputError(f"--{f.name} {value}: give a value from {within[0]} to {within[1]}")
    for is_wrong, message in rules:
        if is_wrong(options):
            raise InputError(message.format(**vars(options)))


def parse_bool(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "y", "t"):
        return True
    if text.lower() in ("false", "0", "no", "n", "f"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a truth value: give true or false")


class FlagParser(argparse.ArgumentParser):
    """Flags are spelled out; what is wrong with them is an InputError."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(message)


def add_flag(group: Any, name: str, type_: type, default: Any, help: str, none: str = "") -> None:
    def convert(text: str) -> Any:
        if none and text == none:
            return None
        return parse_bool(text) if type_ is bool else type_(text)

    convert.__name__ = type_.__name__  # argparse names it when it fails
    group.add_argument(f"--{name}", type=convert, default=default, metavar=type_.__name__.upper(), help=help)


def add_flags(group: Any, options: type) -> None:
    """A flag for every field of an option dataclass."""
    types = typing.get_type_hints(options)
    for f in dataclasses.fields(options):
        type_ = next((t for t in (types[f.name], *typing.get_args(types[f.name])) if t in (bool, int, float)), str)
        choices = f" ({', '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
        add_flag(
            group, f.name, type_, f.default, f"{f.metadata['help']}{choices}; default {f.default!r}", f.metadata["none"]
        )


def add_fixed_flags(parser: argparse.ArgumentParser) -> None:
    """Upstream's flags with one supported value, None where they are not given."""
    group = parser.add_argument_group("accepted for upstream's scripts, with this value only")
    for name, value in FIXED_OPTIONS.items():
        add_flag(group, name, type(value), None, str(value))


def add_model_flags(parser: argparse.ArgumentParser, title: str) -> None:
    """A flag for every field of ModelConfig and for upstream's name of their quotient, None where it is not given."""
    group = parser.add_argument_group(title)
    for f in dataclasses.fields(ModelConfig):
        add_flag(group, f.name, f.type, None, f.metadata["help"])  # type: ignore[arg-type]
    add_flag(group, "mel_steps_per_sec", float, None, "sample_rate / hop_size")


# ------------------------------------------------------------------------------------------------ model and diffusion


@dataclass(frozen=True)
class ModelConfig:
    """A checkpoint's configuration. The defaults are the paper's (REFERENCE.md: Paper configuration).

    :raises InputError: naming the first value that is not allowed, and what is.
    """

    image_size: int = option(128, "crop size of the network in pixels")
    num_channels: int = option(128, "base channels")
    num_res_blocks: int = option(2, "residual blocks per level")
    num_heads: int = option(4, "attention heads where num_head_channels is -1")
    num_heads_upsample: int = option(-1, "attention heads on the way up (-1: num_heads)")
    num_head_channels: int = option(64, "channels per attention head")
    attention_resolutions: str = option("32,16,8", "sizes in pixels with attention, or -1 for none")
    dropout: float = option(0.0, "dropout in training")
    use_scale_shift_norm: bool = option(False, "embedding as scale and shift of the norm")
    learn_sigma: bool = option(True, "the network also predicts the variance")
    use_ref: bool = option(True, "condition on a reference crop")
    nrefer: int = option(1, "number of reference crops")
    nframes: int = option(5, "frames per sample; batches have sampling_batch_size * nframes frames")
    audio_as_style: bool = option(True, "add the audio code to the timestep embedding")
    audio_dim: int = option(80, "mel bands")
    sample_rate: int = option(16000, "rate of the sound that the network hears, in Hz")
    n_fft: int = option(800, "samples of a mel spectrogram's step")
    hop_size: int = option(200, "samples from one step to the next")
    syncnet_mel_step_size: int = option(16, "steps of a mel window")
    diffusion_steps: int = option(1000, "steps of the training process")
    noise_schedule: str = option("linear", "linear or cosine")
    predict_xstart: bool = option(False, "the network predicts x_0, not epsilon")
    rescale_timesteps: bool = option(False, "scale timesteps to 0..1000")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.type is float and isinstance(value, int):
                object.__setattr__(self, f.name, float(value))
            elif type(value) is not f.type:
                raise InputError(f"{f.name} is {value!r}; it must be of type {f.type.__name__}")  # type: ignore[union-attr]
        if self.image_size not in CHANNEL_MULT:
            raise InputError(f"image_size is {self.image_size}; choose from {', '.join(map(str, CHANNEL_MULT))}")
        if self.noise_schedule not in NOISE_SCHEDULES:
            raise InputError(f"noise_schedule is {self.noise_schedule!r}; choose from {', '.join(NOISE_SCHEDULES)}")
        if self.num_channels % 32:
            raise InputError(f"num_channels is {self.num_channels}; it must be a multiple of 32")
        for name, largest in LARGEST.items():
            if not 1 <= getattr(self, name) <= largest:
                raise InputError(f"{name} is {getattr(self, name)}; it must be from 1 to {largest}")
        if not 0 <= self.dropout <= 1:
            raise InputError(f"dropout is {self.dropout}; it must be from 0 to 1")
        if self.nrefer != int(self.use_ref):
            raise InputError(f"nrefer is {self.nrefer} with use_ref {self.use_ref}; there is one reference or none")
        if self.n_fft % 2:
            raise InputError(f"n_fft is {self.n_fft}; it must be even")
        if not 1 <= self.hop_size <= self.n_fft:
            raise InputError(f"hop_size is {self.hop_size}; it must be from 1 to n_fft, {self.n_fft}")
        if self.syncnet_mel_step_size == 1:
            raise InputError("syncnet_mel_step_size is 1; the network halves a mel window, so it must be 2 or more")
        if not self.audio_as_style and self.syncnet_mel_step_size != 16:
            raise InputError(f"syncnet_mel_step_size is {self.syncnet_mel_step_size}; without audio_as_style it is 16")
        if not self.audio_as_style and self.image_size != 2 ** (len(CHANNEL_MULT[self.image_size]) + 2):
            raise InputError(f"audio_as_style is False at image_size {self.image_size}; that needs an 8 x 8 bottom")
        self._check_heads()

    def _check_heads(self) -> None:
        mults = CHANNEL_MULT[self.image_size]
        # the middle block, behind the last level, always has attention
        levels = {level for level in range(len(mults)) if 2**level in self.attention_ds} | {len(mults) - 1}
        for name in ("num_heads", "num_heads_upsample") if self.num_head_channels == -1 else ("num_head_channels",):
            value = getattr(self, name)
            for channels in (self.num_channels * mults[level] for level in sorted(levels)):
                if not (value >= 1 and channels % value == 0) and (name, value) != ("num_heads_upsample", -1):
                    raise InputError(f"{name} is {value}; it must divide the {channels} channels where attention is")

    @property
    def mel_steps_per_sec(self) -> float:
        return self.sample_rate / self.hop_size

    @property
    def attention_ds(self) -> tuple[int, ...]:
        """`attention_resolutions` as downsampling factors."""
        sizes = self.attention_resolutions.split(",")
        if sizes == ["-1"]:
            return ()
        if not {size.strip() for size in sizes} <= {str(size) for size in range(1, self.image_size + 1)}:
            raise InputError(
                f"attention_resolutions is {self.attention_resolutions!r}; give sizes in pixels like '32,16,8', or -1"
            )
        return tuple(self.image_size // int(size) for size in sizes)


def model_config(options: Mapping[str, Any], source: str) -> ModelConfig:
    """The configuration from a mapping of upstream's flag names, such as a checkpoint carries.

    :param source: where the options came from, for messages.
    :raises InputError: for an unknown name or a value that is not supported.
    """
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    given = {}
    for name, value in options.items():
        if name in known:
            given[name] = value
        elif name in FIXED_OPTIONS:
            if value != FIXED_OPTIONS[name] and not (name == "audio_encoder_kwargs" and value == {}):
                raise InputError(f"{source}: {name} is {value!r}; only {FIXED_OPTIONS[name]!r} is supported")
        elif name not in ("use_fp16", "mel_steps_per_sec"):  # how to run; known from other options
            raise InputError(f"{source}: unknown option {name!r}; known are {', '.join(sorted(known))}")
    try:
        config = ModelConfig(**given)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    steps = options.get("mel_steps_per_sec", config.mel_steps_per_sec)
    if steps != config.mel_steps_per_sec:
        quotient = f"sample_rate {config.sample_rate} / hop_size {config.hop_size}"
        raise InputError(f"{source}: mel_steps_per_sec is {steps}; {quotient} makes it {config.mel_steps_per_sec:g}")
    return config


def create_model(config: ModelConfig) -> TFGModel:
    """A network of this configuration with fresh weights, in training mode."""
    return TFGModel(
        image_size=config.image_size,
        in_channels=3 * (2 + config.nrefer),
        model_channels=config.num_channels,
        out_channels=6 if config.learn_sigma else 3,
        num_res_blocks=config.num_res_blocks,
        attention_ds=config.attention_ds,
        channel_mult=CHANNEL_MULT[config.image_size],
        dropout=config.dropout,
        num_heads=config.num_heads,
        num_head_channels=config.num_head_channels,
        num_heads_upsample=config.num_heads_upsample,
        use_scale_shift_norm=config.use_scale_shift_norm,
        audio_as_style=config.audio_as_style,
        audio_dim=config.audio_dim,
    )


def create_gaussian_diffusion(config: ModelConfig, timestep_respacing: str = "") -> SpacedDiffusion:
    """The diffusion process of this configuration over the timesteps of `choose_timesteps`.

    :raises InputError: when the respacing does not fit.
    """
    betas = get_named_beta_schedule(config.noise_schedule, config.diffusion_steps)
    try:
        use_timesteps = choose_timesteps(betas, timestep_respacing)
    except ValueError as error:
        raise InputError(f"--timestep_respacing {error}") from None
    return SpacedDiffusion(
        use_timesteps,
        betas,
        predict_xstart=config.predict_xstart,
        learn_sigma=config.learn_sigma,
        rescale_timesteps=config.rescale_timesteps,
    )


# -------------------------------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """Weights with the configuration that they were trained in; `source` says where the configuration came from."""

    config: ModelConfig
    state_dict: dict[str, Tensor]
    source: str


def load_checkpoint(path: str, flags: Mapping[str, Any] = {}, flag: str = "--model_path") -> Checkpoint:
    """Read a checkpoint and check its tensors' names and shapes against its configuration.

    Formats: `.safetensors` with the configuration as JSON under "config" in its metadata; a file of `torch.save` with
    a bare state dict, or with {"config": ..., "state_dict": ...}. Without an embedded configuration a JSON file of the
    same name beside it counts, and without that the flags, and the paper's values for flags that are not given (the
    released checkpoint is a bare state dict; upstream's scripts pass all flags).

    :param flags: the network's own flags that were given: a checkpoint's own configuration they may repeat only.
    :param flag: that the path was given with, for messages.
    :raises InputError: for a missing, truncated or foreign file, the first flag that contradicts the configuration or
        is not supported, or the first tensor that does not fit.
    """
    file, given = Path(path), f"{flag} {path}"
    if not file.is_file():
        raise InputError(f"{given}: no such file; give a checkpoint (see README.md, Checkpoints)")
    read = _read_safetensors if file.suffix == ".safetensors" else _read_torch
    state_dict, embedded = read(file, given)
    sidecar = file.with_suffix(".json")
    if embedded is not None:
        source = f"the configuration inside {file.name}"
        config = _repeated(flags, model_config(embedded, source), source)
    elif sidecar.is_file():
        source = f"the configuration in {sidecar}"
        config = _repeated(flags, model_config(_read_json(sidecar.read_bytes(), source), source), source)
    else:
        source = (
            f"{'the flags and ' if flags else ''}the paper's configuration ({file.name} carries none and there is no "
            f"{sidecar.name} beside it: write it, or give --model_path's own flags, such as --image_size and "
            "--num_channels)"
        )
        config = model_config(flags, "command line")
    _check_shapes(state_dict, config, given, source)
    return Checkpoint(config, state_dict, source)


def save_checkpoint(path: Path, config: ModelConfig, state_dict: Mapping[str, Tensor], half: bool = False) -> None:
    """Write a `.safetensors` with the configuration inside, as `load_checkpoint` reads it; complete or not at all.

    :param half: store float16.
    """
    from safetensors.torch import save_file

    dtype = torch.float16 if half else torch.float32
    # safetensors stores the plain order of elements only, and no two names of one memory
    tensors = {
        name: tensor.detach().to("cpu", dtype, copy=True).contiguous() for name, tensor in state_dict.items()
    }
    with replace_when_complete(path) as part:
        save_file(tensors, part, {"config": json.dumps(dataclasses.asdict(config))})


def load_model(
    checkpoint: Checkpoint, device: torch.device | str, dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> TFGModel:  # fmt: skip
    """The checkpoint's network on `device`, ready for inference; `dtype` is its torso's."""
    with torch.device("meta"):
        model = create_model(checkpoint.config)
    model.load_state_dict(checkpoint.state_dict, strict=True, assign=True)
    if dtype != torch.float32:
        model.convert_torso(dtype)
    model.to(device).to(memory_format=memory_format)
    return model.requires_grad_(False).eval()


def _read_json(text: bytes | str, source: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise InputError(f"{source}: not a JSON object of options")
    return options


def _read_safetensors(file: Path, given: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            state_dict = {name: tensors.get_tensor(name).float() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{given}: not a complete safetensors file ({error})") from None
    config = metadata.get("config")
    return state_dict, None if config is None else _read_json(config, f"the configuration inside {file.name}")


def _read_torch(file: Path, given: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # a damaged or foreign file makes torch's unpickler fail in many ways
        raise InputError(
            f"{given}: not a checkpoint (truncated, or not plain tensors saved by torch.save)"
        ) from None
    config = None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        config, content = content.get("config"), content["state_dict"]
        plain = (bool, int, float, str, dict)
        if config is not None and not (isinstance(config, dict) and all(isinstance(v, plain) for v in config.values())):
            raise InputError(f"{given}: its 'config' is not a mapping of options to plain values")
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{given}: holds no state dict (a mapping of names to tensors)")
    return {str(name): tensor.float() for name, tensor in content.items()}, config


def _repeated(flags: Mapping[str, Any], config: ModelConfig, source: str) -> ModelConfig:
    """The checkpoint's own configuration: flags may repeat it, not contradict it."""
    for name, value in flags.items():
        known = getattr(config, name, value)
        if value != known:
            raise InputError(f"--{name} {value} contradicts {source}, which says {known}; drop the flag")
    return model_config({**dataclasses.asdict(config), **flags}, "command line")


def _check_shapes(state_dict: Mapping[str, Tensor], config: ModelConfig, given: str, source: str) -> None:
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in create_model(config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise InputError(
                f"{given} does not fit: {name} is {found.get(name, 'missing')} in the file but "
                f"{expected.get(name, 'absent')} by {source}"
            )
