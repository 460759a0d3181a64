"""generate.py with the true crop in place of the network's: `python scripts/oracle.py --oracle_size 128 FLAGS...`.

FLAGS are generate.py's. The generated part is the source's own, at the resolution that the size says and slightly
blurred: what a perfect network of that size would give. So what comes after the network is judged against real pixels.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np

import _path  # noqa: F401
import generate
from guided_diffusion.dist_util import Ranks
from guided_diffusion.errors import InputError
from guided_diffusion.options import Options, parse_options
from guided_diffusion.sampling import Crops, SampleBatch
from guided_diffusion.tfg_data_util import resize_crop

BLUR = 0.4  # sigma in pixels of the crop: lips come out about as sharp as real64 paints them
GAIN_JITTER = 0.02
NOISE = 4.0  # levels


def oracle(batch: SampleBatch, size: int, face_hide_percentage: float, flicker: int | None = None) -> np.ndarray:
    """What the oracle makes of a batch, uint8 [N - context, size, size, 3].

    The true crops, reduced to `size`, their generated part blurred by BLUR.

    :param flicker: a seed: the generated part also gets, anew in each frame, a gain of 1 ± GAIN_JITTER and noise of
        NOISE levels (standard deviations).
    """
    start = int(size * (1 - face_hide_percentage))
    crops = []
    for face, crop in list(zip(batch.faces, batch.crops, strict=True))[batch.context :]:
        small = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
        generated = cv2.GaussianBlur(small, (0, 0), BLUR)[start:]
        if flicker is not None:
            rng = np.random.default_rng((flicker, face.index))
            generated = generated * rng.normal(1, GAIN_JITTER) + rng.normal(0, NOISE, generated.shape)
        known = resize_crop(crop, size, size)[:start]
        crops.append(np.concatenate([known, np.rint(generated.clip(0, 255)).astype(np.uint8)]))
    return np.stack(crops)


def with_oracle(tools: generate.Tools, options: Options, size: int, flicker: int | None) -> generate.Tools:
    """The tools of a run with the oracle in the network's place."""
    hidden = options.face_hide_percentage

    def sampler(batch: SampleBatch) -> Crops:
        return partial(oracle, batch, size, hidden, flicker)

    key = {"oracle": [size, BLUR, flicker, GAIN_JITTER, NOISE]} if tools.sampler_key else {}
    config = dataclasses.replace(tools.config, image_size=size)
    return dataclasses.replace(tools, config=config, sampler=sampler, sampler_key=key, larger=None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--oracle_size", type=int, required=True, help="side of the crop, 64, 128 or 256 px")
    parser.add_argument("--oracle_flicker", type=int, metavar="SEED", help="let the generated part flicker")
    arguments, flags = parser.parse_known_args(argv)
    try:
        options, model_flags = parse_options(flags)
        tools = generate.load_tools(options, model_flags, Ranks())
        tools = with_oracle(tools, options, arguments.oracle_size, arguments.oracle_flicker)
        result = generate.lip_sync(generate.single_job(options), options, tools)
    except InputError as error:
        print(f"oracle.py: error: {error}", file=sys.stderr)
        return 2
    if options.stats and result is not None:
        generate.save_stats(options, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
