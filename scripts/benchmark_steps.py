"""How near few sampling steps are to 250 of DDIM with a network: `python scripts/benchmark_steps.py CLIPS`.

CLIPS is a folder of videos with their own sound. Printed is the PSNR in dB of the generated half to what 250 steps of
DDIM give, for every deterministic sampler: the mean over frames spread over each clip; and the fewest steps that are as
near as the 25 of DDIM that the paper takes. A network trained elsewhere may need other steps than those that
`--quality_preset turbo` takes (docs/benchmarks.md, Samplers): this tells.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import _path  # noqa: F401
from audio.hparams import front_end
from face_detection.api import DETECTORS
from guided_diffusion.dist_util import DEVICES, choose_device
from guided_diffusion.engines import ENGINES, PRECISIONS, Denoiser, choose_engine, largest_batch, load_denoiser
from guided_diffusion.errors import InputError
from guided_diffusion.options import STEPS
from guided_diffusion.sampling import SAMPLERS, sample
from guided_diffusion.script_util import ModelConfig, create_gaussian_diffusion, load_checkpoint
from guided_diffusion.store import file_digest
from guided_diffusion.tfg_data_util import sampling_noise, tfg_process_batch
from train_data import Clip, Preparation, face_view, mel_window, prepare_clips

DEMO = Path(__file__).parent.parent / "checkpoints" / "demo.safetensors"
# sampler and how its steps are spread, by what the table calls them
SPREADS = {name: (name, STEPS[name]) for name in SAMPLERS if name != "ddpm"} | {"2m early": ("dpmpp_2m", "early{}")}
REFERENCE, PAPERS = "ddim250", "ddim25"
REFERENCE_BEFORE = 5  # frames between a frame and the one whose crop is its reference
SEED = 7

Batch = dict[str, Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", help="folder of videos with their own sound")
    parser.add_argument("--model_path", default=str(DEMO), help="checkpoint; default the demo's")
    parser.add_argument("--frames", type=int, default=6, help="of each clip")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 5, 6, 7, 8, 10])
    parser.add_argument("--engine", default="torch", choices=ENGINES)
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--face_detector", default="dlib", choices=DETECTORS)
    arguments = parser.parse_args(argv)
    checkpoint = load_checkpoint(arguments.model_path)
    config = checkpoint.config
    engine = choose_engine(arguments.engine, arguments.precision, choose_device(arguments.device))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        prepare = Preparation(cache, config.image_size, front_end(config), arguments.face_detector, 720, "cpu")
        clips, _ = prepare_clips(arguments.clips, prepare, workers=1, flag="CLIPS")
        denoiser = load_denoiser(checkpoint, file_digest(arguments.model_path), engine, cache)
        batches = batches_of(clips, arguments.frames, config, largest_batch(config, engine), engine.device)
        print(f"{sum(len(batch['noise']) for batch in batches)} frames of {len(clips)} clips; {engine}")
        print_table(*measure(denoiser, config, batches, arguments.steps), arguments.steps)
    return 0


def batches_of(
    clips: Sequence[Clip], n_frames: int, config: ModelConfig, size: int, device: torch.device
) -> list[Batch]:
    """The network's inputs for frames spread over each clip, with the crop of some frames before as reference."""
    crops, refs, mels = [], [], []
    for clip in clips:
        for index in np.linspace(REFERENCE_BEFORE, len(clip.frames) - 1, n_frames).astype(int):
            crops.append(face_view(clip.crops[index], config.image_size))
            refs.append(face_view(clip.crops[index - REFERENCE_BEFORE], config.image_size))
            mels.append(mel_window(clip, index))
    noise = sampling_noise(len(crops), config.image_size, SEED)
    parts = [slice(start, start + size) for start in range(0, len(crops), size)]
    return [
        tfg_process_batch(
            crops[part], refs[part] if config.use_ref else None, np.stack(mels[part]), noise[part], 0.5, device
        )
        for part in parts
    ]


def measure(
    denoiser: Denoiser, config: ModelConfig, batches: Sequence[Batch], steps: Sequence[int]
) -> tuple[float, dict[str, list[float]]]:
    """dB of PAPERS, and by SPREADS of these numbers of steps."""

    def samples(sampler: str, respacing: str) -> Tensor:
        loop = partial(SAMPLERS[sampler], create_gaussian_diffusion(config, respacing))
        with torch.inference_mode():
            return torch.cat([sample(denoiser, loop, batch).cpu() for batch in batches])

    reference = samples("ddim", REFERENCE)
    mask = torch.cat([batch["mask"].cpu() for batch in batches])
    near = {
        name: [nearness(samples(sampler, spread.format(n)), reference, mask) for n in steps]
        for name, (sampler, spread) in SPREADS.items()
    }
    return nearness(samples("ddim", PAPERS), reference, mask), near


def nearness(samples: Tensor, reference: Tensor, mask: Tensor) -> float:
    """PSNR in dB of the generated parts as they are shown, the mean over images.

    :param samples: [N x 3 x h x w] in [-1, 1], as `reference`. mask: [N x 1 x h x w], 1 where it was generated.
    """
    error = (samples.clamp(-1, 1) - reference.clamp(-1, 1)) ** 2 * mask
    mean = error.sum(dim=(1, 2, 3)) / (3 * mask.sum(dim=(1, 2, 3)))
    return float((10 * torch.log10(4 / mean)).mean())


def print_table(papers: float, near: dict[str, list[float]], steps: Sequence[int]) -> None:
    print("sampler  " + "".join(f"{n:>7}" for n in steps))
    for sampler, values in near.items():
        print(f"{sampler:9}" + "".join(f"{value:7.1f}" for value in values))
    print(f"{PAPERS}: {papers:.1f} dB; as near:")
    for sampler, values in near.items():
        enough = [n for n, value in zip(steps, values, strict=True) if value >= papers]
        print(f"  {sampler}: {f'{min(enough)} steps' if enough else f'none of {list(steps)}'}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"benchmark_steps.py: error: {error}", file=sys.stderr)
        sys.exit(2)
