"""Speed of sampling by engine: `python scripts/benchmark_sampling.py`.

speed     seconds per image and step, and per frame, of a plain loop (upstream's way: audio encoded at every step, NCHW
          memory, float32, 25 steps of DDIM) and of every engine that is to be had here, in turn; how far their samples
          are from the plain loop's
loading   seconds of an engine's first and later use, and peak memory of a process that samples a batch with it
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import _path  # noqa: F401
from guided_diffusion.dist_util import DEVICES, choose_device
from guided_diffusion.engines import Denoiser, Engine, choose_engine, load_denoiser
from guided_diffusion.errors import InputError
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.logger import peak_memory
from guided_diffusion.options import TURBO
from guided_diffusion.sampling import sample
from guided_diffusion.script_util import (
    Checkpoint,
    ModelConfig,
    create_gaussian_diffusion,
    create_model,
    load_checkpoint,
    save_checkpoint,
)
from guided_diffusion.store import file_digest
from guided_diffusion.tfg_data_util import sampling_noise, tfg_process_batch
from guided_diffusion.unet import TFGModel

PARTS = ("speed", "loading")
PLAIN_STEPS = 25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--model_path", help="checkpoint; default one of the paper's size with random weights")
    parser.add_argument("--batch", type=int, default=4, help="images per batch")
    parser.add_argument("--respacing", default="ddim4", help="sampling steps, as generate.py's --timestep_respacing")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is printed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--measure", nargs=3, metavar=("ENGINE", "PRECISION", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    if arguments.measure:
        name, precision, cache = arguments.measure
        measure_loading(arguments.model_path, choose_engine(name, precision, device), Path(cache), arguments.batch)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model_path or paper_sized(Path(folder, "paper.safetensors"))
        if "speed" in arguments.parts:
            benchmark_speed(path, device, arguments.batch, arguments.respacing, arguments.rounds, Path(folder))
        if "loading" in arguments.parts:
            benchmark_loading(path, device, arguments.batch, arguments.threads)
    return 0


def paper_sized(path: Path) -> str:
    """A checkpoint of the paper's configuration with random weights."""
    torch.manual_seed(0)
    config = ModelConfig()
    save_checkpoint(path, config, random_weights(create_model(config)).state_dict())
    return str(path)


def random_weights(model: TFGModel) -> TFGModel:
    """PyTorch's own random weights everywhere: fresh networks have zeros in every branch, which compare equal."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d):
            module.reset_parameters()
    return model


def random_batch(config: ModelConfig, n: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The network's inputs for n images."""
    rng = np.random.default_rng(0)
    size = config.image_size
    crops = list(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8))
    mels = rng.uniform(-4, 4, (n, config.audio_dim, config.syncnet_mel_step_size)).astype(np.float32)
    return tfg_process_batch(crops, crops if config.use_ref else None, mels, sampling_noise(n, size, 7), 0.5, device)


def engines_here(device: torch.device) -> list[Engine]:
    wanted = [("torch", "float32", False)]
    if device.type == "cuda":
        wanted += [("torch", "float16", False), ("torch", "bfloat16", False), ("torch", "float16", True)]
    if device.type == "cpu":
        wanted += [("openvino", "float32", False), ("openvino", "bfloat16", False)]
    found = []
    for name, precision, is_compiled in wanted:
        try:
            found.append(choose_engine(name, precision, device, is_compiled=is_compiled))
        except InputError as error:
            print(f"left out: {error}")
    return found


# ------------------------------------------------------------------------------------------------------------ speed


def benchmark_speed(path: str, device: torch.device, n: int, respacing: str, rounds: int, cache: Path) -> None:
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    diffusion = create_gaussian_diffusion(config, respacing)
    batch = random_batch(config, n, device)
    loops = {"plain loop": partial(plain_loop, plain_model(checkpoint, device), diffusion, batch)}
    for engine in engines_here(device):
        denoiser = load_denoiser(checkpoint, file_digest(path), engine, cache)
        loops[str(engine)] = partial(our_loop, denoiser, diffusion, batch)
    seconds, samples = alternate(loops, rounds)
    steps = diffusion.num_timesteps
    _, turbo_respacing = TURBO[config.predict_xstart]
    turbo_steps = create_gaussian_diffusion(config, turbo_respacing).num_timesteps
    print(
        f"\nspeed, {config.image_size} px, {n} images, {steps} steps, median of {rounds}, {torch.get_num_threads()} "
        f"threads; ms per frame at {PLAIN_STEPS} and at {turbo_steps} steps"
    )
    plain = seconds["plain loop"]
    for name, took in seconds.items():
        step = 1000 * took / n / steps
        turbo = plain * PLAIN_STEPS / (took * turbo_steps)
        print(
            f"  {name}: {step:.2f} ms per image and step; {PLAIN_STEPS * step:.0f} and {turbo_steps * step:.0f} ms per "
            f"frame; {plain / took:.2f} and {turbo:.2f} times as fast as the plain loop at {PLAIN_STEPS}; "
            f"{decibels(samples[name], samples['plain loop']):.1f} dB"
        )


def plain_model(checkpoint: Checkpoint, device: torch.device) -> TFGModel:
    model = create_model(checkpoint.config)
    model.load_state_dict(checkpoint.state_dict)
    return model.to(device).eval()


def plain_loop(model: TFGModel, diffusion: GaussianDiffusion, batch: dict[str, Tensor]) -> Tensor:
    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        return model(x, timesteps, batch["cond_img"], batch.get("ref_img"), batch["indiv_mels"], batch["mask"])

    with torch.no_grad():
        return diffusion.ddim_sample_loop(denoise, batch["noise"]).cpu()


def our_loop(denoiser: Denoiser, diffusion: GaussianDiffusion, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return sample(denoiser, diffusion.ddim_sample_loop, batch).cpu()


def alternate(functions: Mapping[str, Callable[[], Tensor]], rounds: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Call the functions in turn, so that a drift of the machine's speed meets all: median seconds and results."""
    results = {name: function() for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            results[name] = function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}, results


def decibels(a: Tensor, b: Tensor) -> float:
    """PSNR of pictures in [-1, 1]."""
    error = float((a - b).pow(2).mean())
    return 10 * math.log10(4 / error) if error else math.inf


# ---------------------------------------------------------------------------------------------------------- loading


def benchmark_loading(path: str, device: torch.device, n: int, threads: int) -> None:
    print(f"\nloading, {n} images; a process each")
    for engine in engines_here(device):
        with tempfile.TemporaryDirectory() as cache:
            for use in ("first", "later"):
                command = [
                    sys.executable, __file__, "--model_path", path, "--batch", str(n), "--threads", str(threads),
                    "--device", device.type, "--measure", engine.name, engine.precision, cache,
                ]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f"  {engine}, {use} use: {done.stdout.strip()}")


def measure_loading(path: str, engine: Engine, cache: Path, n: int) -> None:
    checkpoint = load_checkpoint(path)
    start = time.perf_counter()
    denoiser = load_denoiser(checkpoint, file_digest(path), engine, cache)
    seconds = time.perf_counter() - start
    config = checkpoint.config
    del checkpoint
    our_loop(denoiser, create_gaussian_diffusion(config, "ddim1"), random_batch(config, n, engine.device))
    print(f"loaded in {seconds:.1f} s; {peak_memory()['rss']:.0f} MiB after a batch of {n}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"benchmark_sampling.py: error: {error}", file=sys.stderr)
        sys.exit(2)
