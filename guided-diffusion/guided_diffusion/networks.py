"""From options to samplers: which networks are loaded, with which engine, and what samples depend on them."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from .engines import Engine, choose_engine, largest_batch, load_denoiser
from .errors import InputError
from .gaussian_diffusion import GaussianDiffusion
from .options import Options
from .sampling import DiffusionSampler, Guide, Sampler, when_used
from .script_util import ModelConfig, create_gaussian_diffusion, load_checkpoint
from .store import file_digest

FRONT_END = ("sample_rate", "n_fft", "hop_size", "audio_dim", "syncnet_mel_step_size")

MakeGuide = Callable[[GaussianDiffusion], Guide | None]
"""A network's process -> what guides its sampling."""


@dataclass(frozen=True)
class Networks:
    """The network of --model_path, and that of --model_path_256 where there is one.

    :param config: of the first.
    :param sampler: its.
    :param larger: the size and the sampler of the second.
    :param batch_size: frames that are sampled at once.
    :param key: what samples depend on besides options and inputs.
    """

    config: ModelConfig
    sampler: Sampler
    larger: tuple[int, Sampler] | None
    batch_size: int
    key: dict[str, Any]


def load_networks(
    options: Options, model_flags: Mapping[str, Any], device: torch.device, make_guide: MakeGuide, is_told: bool
) -> Networks:
    """Of two networks each is loaded when the first shot needs it; what is wrong with it is said before.

    :param is_told: print what they run with.
    :raises InputError: when one of them cannot be had.
    """
    engine = choose_engine(options.engine, options.precision, device, options.use_fp16, options.compile)
    if is_told:
        print(f"notice: the network runs with {engine}", file=sys.stderr)
    load = partial(load_sampler, options=options, engine=engine, make_guide=make_guide)
    sampler: Sampler
    key: dict[str, Any]
    if options.adaptive_resolution:
        config, larger_config = read_pair(options, model_flags)
        sampler = when_used(partial(load, options.model_path, model_flags))
        larger = larger_config.image_size, when_used(partial(load, options.model_path_256, {}))
        key = {"larger": network_key(options.model_path_256, larger_config, engine, options)}
        largest = larger_config
    else:
        sampler, larger, key = load(options.model_path, model_flags), None, {}
        config = largest = sampler.config
    times = options.sampling_batch_size
    batch_size = largest_batch(largest, engine) if times is None else times * config.nframes
    key |= {**network_key(options.model_path, config, engine, options), "batch_size": batch_size}
    return Networks(config, sampler, larger, batch_size, key)


def load_sampler(
    path: str, flags: Mapping[str, Any], options: Options, engine: Engine, make_guide: MakeGuide
) -> DiffusionSampler:
    """The sampler of a checkpoint's network. :raises InputError: when the checkpoint or the steps do not fit."""
    checkpoint = load_checkpoint(path, flags)
    sampler, respacing = options.sampler_and_steps(checkpoint.config.predict_xstart)
    if sampler == "dpmpp_3m" and not checkpoint.config.predict_xstart:
        advice = "for which --sampler dpmpp_3m is not meant: turbo chooses by the network"
        print(f"notice: {path} predicts epsilon, {advice}", file=sys.stderr)
    diffusion = create_gaussian_diffusion(checkpoint.config, respacing)
    cache = Path(options.work_dir) if options.work_dir is not None else user_cache_path("lip-sync")
    return DiffusionSampler(
        load_denoiser(checkpoint, file_digest(path), engine, cache), diffusion, checkpoint.config, engine.device,
        sampler, options.clip_denoised, options.sampling_seed, options.face_hide_percentage,
        make_guide(diffusion),
    )  # fmt: skip


def network_key(path: str, config: ModelConfig, engine: Engine, options: Options) -> dict[str, Any]:
    """What the samples of a checkpoint's network depend on."""
    sampler, respacing = options.sampler_and_steps(config.predict_xstart)
    return {
        "checkpoint": file_digest(path), "config": dataclasses.asdict(config), "arithmetic": engine.key,
        "sampler": sampler, "timesteps": create_gaussian_diffusion(config, respacing).timestep_map.tolist(),
    }  # fmt: skip


def read_pair(options: Options, model_flags: Mapping[str, Any]) -> tuple[ModelConfig, ModelConfig]:
    """The configurations of --model_path and --model_path_256, whose networks are not built yet.

    :raises InputError: when one of them cannot be used, or not in place of the other.
    """
    config = load_checkpoint(options.model_path, model_flags).config
    larger = load_checkpoint(options.model_path_256, flag="--model_path_256").config
    for each in (config, larger):
        create_gaussian_diffusion(each, options.sampler_and_steps(each.predict_xstart)[1])
    if larger.image_size <= config.image_size:
        raise InputError(
            f"--model_path_256 {options.model_path_256} is a network of {larger.image_size} px, --model_path "
            f"{options.model_path} one of {config.image_size}: give a larger one, or the two the other way round"
        )
    for name in FRONT_END:
        heard, heard_by_larger = getattr(config, name), getattr(larger, name)
        if heard_by_larger != heard:
            raise InputError(
                f"--model_path_256 {options.model_path_256} hears another mel spectrogram than --model_path "
                f"{options.model_path}: its {name} is {heard_by_larger}, not {heard}; give two networks that hear the "
                "same, as scripts/train.py --init makes them"
            )
    return config, larger
