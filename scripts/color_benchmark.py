"""What --color_match and --denoise take back of a cast and of noise: `python scripts/color_benchmark.py ITEMS...`.

ITEMS are files that `scripts/fault_benchmark.py --keep` makes. A cast is put on what the network generated (red up by
8 %, blue down by 6 %: steady, or coming and going in DRIFT_SECONDS), or noise of NOISE levels with --noise. Of every
--every-th frame, mean over the clips:

plain paste   ring: what the paste adds to the ΔE2000 between the rings on either side of the box, its size, and its
              standard deviation over time; skin: ΔE2000 of the lower face's skin from the source's
blended       (--blur_kernel_size 15) skin; lips likewise; PSNR of the lower half against the source. The latter two
              say something where the source is the truth: a clip with its own speech
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import skimage.color
from fault_benchmark import FPS, HIDDEN, changed, composited, read_items

import _path  # noqa: F401
from guided_diffusion.color_util import COLOR_MATCHES, to_lab
from guided_diffusion.lip_util import mouth_area
from guided_diffusion.quality import compared_regions, psnr, ring_delta_e, skin_difference
from guided_diffusion.streams import Item
from guided_diffusion.tfg_data_util import face_crop, to_float

CAST = np.array([0.08, 0, -0.06], np.float32)
DRIFT_SECONDS = 2.0
NOISE = 6.0  # levels, standard deviation

Amount = Callable[[int], float]
"""How much of CAST lies on a frame."""

CASTS: dict[str, Amount] = {
    "none": lambda _: 0.0,
    "steady": lambda _: 1.0,
    "drift": lambda frame: 0.5 - 0.5 * float(np.cos(2 * np.pi * frame / (DRIFT_SECONDS * FPS))),
}


def with_cast(items: Sequence[Item], amount: Amount) -> list[Item]:
    def spoilt(frame: int, item: Item) -> Item:
        gains = (1 + amount(frame) * CAST).astype(np.float32)
        return changed(item, lambda crop: crop * gains)

    return [spoilt(frame, item) for frame, item in enumerate(items)]


def with_noise(items: Sequence[Item]) -> list[Item]:
    random = np.random.default_rng(0)

    def noisy(crop: np.ndarray) -> np.ndarray:
        return crop + random.normal(0, NOISE / 255, crop.shape).astype(np.float32)

    return [changed(item, noisy) for item in items]


def shown(item: Item) -> np.ndarray:
    assert item.picture is not None
    return item.picture


def lower_psnr(items: Sequence[Item], true: Sequence[np.ndarray]) -> float:
    """dB, in the lower half of the box, of the mean square difference from true pictures."""
    errors = []
    for item, picture in zip(items, true, strict=True):
        assert item.face is not None
        region = compared_regions(item.face, picture.shape)["lower"]
        errors.append(np.mean((shown(item)[region].astype(np.float32) - picture[region]) ** 2))
    return float(psnr(float(np.mean(errors))))


def lips_delta_e(item: Item) -> float:
    """ΔE2000 of the mean colours around the lips."""
    assert item.face is not None
    crops = [to_float(face_crop(picture, item.face)) for picture in (item.frame, shown(item))]
    mouth = mouth_area(item.face, *crops[0].shape[:2])
    return float(skimage.color.deltaE_ciede2000(*(to_lab(crop)[mouth].mean(axis=0) for crop in crops)))


def skin_delta_e(item: Item) -> float:
    assert item.face is not None
    return skin_difference(item.frame, shown(item), item.face, HIDDEN).get("skin_delta_e", np.nan)


def ring_excess(item: Item) -> float:
    assert item.face is not None
    return ring_delta_e(shown(item), item.face.box) - ring_delta_e(item.frame, item.face.box)


def color_measures(items: Sequence[Item], color_match: str, every: int) -> dict[str, float]:
    """Of one clip."""
    plain = composited(items, 0, color_match=color_match)[::every]
    blended = composited(items, color_match=color_match)[::every]
    ring = np.array([ring_excess(item) for item in plain])
    return {
        "ring, plain paste": float(np.nanmean(np.abs(ring))),
        "its deviation": float(np.nanstd(ring)),
        "skin, plain paste": float(np.nanmean([skin_delta_e(item) for item in plain])),
        "skin, blended": float(np.nanmean([skin_delta_e(item) for item in blended])),
        "lips, blended": float(np.mean([lips_delta_e(item) for item in blended])),
        "PSNR, lower half": lower_psnr(blended, [item.frame for item in blended]),
    }


def noise_measures(items: Sequence[Item], every: int) -> dict[str, float]:
    """PSNR of the lower half, noisy and denoised, against the same sample without noise."""
    clean, noisy = [shown(item) for item in composited(items)[::every]], with_noise(items)
    return {
        name: lower_psnr(composited(noisy, denoise=strength)[::every], clean)
        for name, strength in (("noisy", 0.0), ("--denoise 0.5", 0.5), ("--denoise 1", 1.0))
    }


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """rows: by the name of the row the values by the column's."""
    columns = list(next(iter(rows.values())))
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (1 + len(columns)) + "|")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{values[column]:.2f}' for column in columns)} |")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="+", type=Path, help="pickled list[Item]")
    parser.add_argument("--every", type=int, default=2, help="measure every so many frames")
    parser.add_argument("--noise", action="store_true", help="noise and --denoise in place of casts and --color_match")
    arguments = parser.parse_args(argv)
    clips = {path.stem: [item for item in read_items(path) if item.crop is not None] for path in arguments.items}
    if arguments.noise:
        print_table({name: noise_measures(items, arguments.every) for name, items in clips.items()})
        return 0
    rows = {}
    for cast, amount in CASTS.items():
        spoilt = [with_cast(items, amount) for items in clips.values()]
        for match in COLOR_MATCHES:
            measured = [color_measures(items, match, arguments.every) for items in spoilt]
            rows[f"{cast}, {match}"] = {name: float(np.mean([of[name] for of in measured])) for name in measured[0]}
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
