"""How many faults `FaultMeter` finds that are put into finished samples: `python scripts/fault_benchmark.py ITEMS...`.

ITEMS are files with a pickled `list[Item]` each, as pass 2 gives them to the stages: `--keep ITEMS FLAGS` makes one by
generate.py's FLAGS. Read only your own: unpickling runs what a file says. They are composited with --blur_kernel_size
15. --rounds times each kind of fault is put into one of them at a random place; a fault is found when one of its frames
is flagged. With --checkpoint, faults are put into batches instead, and --retry_flagged 2 is tried on them: for items
that were sampled with --sampling_ref_type gt.
"""

import argparse
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch

import _path  # noqa: F401
import generate
from audio.audio import mel_window, speech_mel
from audio.hparams import HParams, front_end
from face_detection.api import FaceAlignment
from generate import build_stages
from guided_diffusion.engines import choose_engine
from guided_diffusion.faults import CropJudge, Fault, FaultMeter
from guided_diffusion.jobs import Job
from guided_diffusion.lip_util import mouth_area
from guided_diffusion.networks import load_sampler
from guided_diffusion.options import Options
from guided_diffusion.sampling import Crops, DiffusionSampler, Retrying, SampleBatch, of_rows
from guided_diffusion.store import replace_when_complete
from guided_diffusion.streams import Item
from guided_diffusion.tfg_data_util import crop_in_frame, face_crop, to_levels
from guided_diffusion.video_util import VideoSource
from post_processing import at_box, composite, generated_alpha

FPS = 25
MOST_KEPT = 60  # frames of a clip
HIDDEN = 0.5

Random = np.random.Generator


def lower(crop: np.ndarray) -> slice:
    """Rows of the generated part."""
    return slice(int(len(crop) * (1 - HIDDEN)), len(crop))


def changed(item: Item, change: Callable[[np.ndarray], np.ndarray]) -> Item:
    """The item, its generated part changed."""
    assert item.crop is not None
    crop = item.crop.copy()
    crop[lower(crop)] = change(crop)[lower(crop)].clip(0, 1)
    return replace(item, crop=crop)


def blurred(items: Sequence[Item], random: Random) -> list[Item]:
    sigma = random.uniform(1.2, 2.5)
    return [changed(item, lambda crop: cv2.GaussianBlur(crop, (0, 0), sigma)) for item in items]


def noisy(items: Sequence[Item], random: Random) -> list[Item]:
    sigma = random.uniform(6, 14) / 255
    return [changed(item, lambda crop: crop + random.normal(0, sigma, crop.shape).astype(np.float32)) for item in items]


def cast(items: Sequence[Item], random: Random) -> list[Item]:
    """A colour cast: one channel up by 6 to 10 %, another down by 4 to 7 %."""
    gains = np.ones(3, np.float32)
    up, down = random.permutation(3)[:2]
    gains[up] += random.uniform(0.06, 0.10)
    gains[down] -= random.uniform(0.04, 0.07)
    return [changed(item, lambda crop: crop * gains) for item in items]


def flickering(items: Sequence[Item], random: Random) -> list[Item]:
    gain = np.float32(1 + random.choice([-1, 1]) * random.uniform(0.05, 0.10))
    return [changed(item, lambda crop: crop * gain) for item in items]


def without_mouth(items: Sequence[Item], random: Random) -> list[Item]:
    """The mouth is painted over from its surroundings, by one colour, or by garbage."""
    how = random.choice(["skin", "dark", "garbage"])

    def drop(item: Item) -> Item:
        face = item.face
        assert face is not None

        def change(crop: np.ndarray) -> np.ndarray:
            mask = mouth_area(face, len(crop), len(crop)).astype(np.uint8)
            if how == "skin":
                levels = np.rint(crop * 255).astype(np.uint8)
                return cv2.inpaint(levels, mask, 3, cv2.INPAINT_TELEA).astype(np.float32) / 255
            if how == "dark":
                return np.where(mask[..., None] > 0, np.float32(0.5) * crop.mean(axis=(0, 1)), crop)
            garbage = cv2.resize(random.uniform(0, 1, (8, 8, 3)).astype(np.float32), crop.shape[1::-1])
            return np.where(mask[..., None] > 0, garbage, crop)

        return changed(item, change)

    return [drop(item) for item in items]


def frozen(items: Sequence[Item], _: Random) -> list[Item]:
    """The generated part of the first frame goes on."""
    first = items[0].crop
    assert first is not None
    return [changed(item, lambda _: first) for item in items]


def seamed(items: Sequence[Item], random: Random) -> list[Item]:
    """The generated part a pixel or two of the network's aside and with hard edges; as pictures."""
    shift = int(random.choice([-2, -1, 1, 2]))
    pasted = []
    for item in items:
        face = item.face
        assert face is not None
        moved = changed(item, lambda crop: np.roll(crop, shift, axis=1))
        crop = at_box(moved)
        alpha = generated_alpha(item, crop.shape[:2], HIDDEN, 0)
        shown = crop_in_frame(face, crop, alpha, item.frame.shape)
        pasted.append(replace(moved, picture=composite(item.frame, *shown)))
    return pasted


KINDS: dict[str, tuple[Callable[[Sequence[Item], Random], list[Item]], tuple[int, int]]] = {
    "blur": (blurred, (1, 3)), "noise": (noisy, (1, 3)), "seam": (seamed, (1, 3)), "colour": (cast, (2, 10)),
    "mouth": (without_mouth, (1, 3)), "flicker": (flickering, (1, 1)), "frozen": (frozen, (10, 15)),
}  # fmt: skip
AROUND = 2  # frames beside a fault that may be flagged along


def read_items(path: Path) -> list[Item]:
    """What --keep wrote."""
    items: list[Item] = pickle.loads(path.read_bytes())
    return items


def composited(items: Sequence[Item], blur_kernel_size: int = 15, **flags: Any) -> list[Item]:
    """The items with their pictures, as generate.py's flags make them; those that have one keep it."""
    options = Options(model_path="-", video_path="-", audio_path="-", blur_kernel_size=blur_kernel_size, **flags)
    stream: Iterator[Item] = iter(items)
    for _, stage in build_stages(options, None):
        stream = stage(stream)
    return [new if old.picture is None else old for old, new in zip(items, stream, strict=True)]


def faults_of(items: Sequence[Item], detector: FaceAlignment) -> list[Fault]:
    meter = FaultMeter(FPS, lip_landmarks=detector.lip_landmarks)
    for item in items:
        meter.update(item)
    return meter.faults()


def flagged(faults: Sequence[Fault]) -> set[int]:
    return {frame for fault in faults for frame in range(fault.first, fault.last + 1)}


def save_sheet(path: Path, items: Sequence[Item], frames: Sequence[int]) -> None:
    """A row of faces: of these frames, and above them the sources'."""
    faces = [
        [cv2.resize(face_crop(picture, item.face), (160, 200)) for picture in (item.frame, item.picture)]
        for item in (items[frame] for frame in frames)
        if item.face is not None and item.picture is not None
    ]
    sheet = np.hstack([np.vstack(pair) for pair in faces])
    cv2.imwrite(str(path), sheet[..., ::-1])


def clean_rate(clips: dict[str, list[Item]], detector: FaceAlignment, sheets: Path | None) -> None:
    """Print how many frames of the samples, and of the sources, are flagged (the latter but for being unchanged)."""
    for name, of in (("samples", lambda item: item), ("sources", lambda item: replace(item, picture=item.frame))):
        n = total = 0
        for clip, items in clips.items():
            faults = [fault for fault in faults_of([of(item) for item in items], detector) if fault.kind != "unchanged"]
            for fault in faults:
                print(f"  {name} {clip}: {fault.kind} {fault.first}-{fault.last}, score {fault.score:.2f}")
                if sheets is not None:
                    around = range(max(0, fault.worst - 2), min(len(items), fault.worst + 3))
                    save_sheet(sheets / f"clean_{clip}_{name}_{fault.kind}_{fault.first}.png", items, around)
            n, total = n + len(flagged(faults)), total + len(items)
        print(f"clean {name}: {n} of {total} frames flagged, {100 * n / total:.1f} %")


def injected(
    clips: dict[str, list[Item]], kind: str, detector: FaceAlignment, random: Random, sheets: Path | None
) -> tuple[bool, bool, int]:
    """Put one fault into one clip: whether it is found, and as what it is; how many other frames are flagged anew."""
    clip = str(random.choice(list(clips)))
    items = clips[clip]
    make, (shortest, longest) = KINDS[kind]
    n = int(random.integers(shortest, longest + 1))
    first = int(random.integers(1, len(items) - n))
    bad = composited(make([replace(item, picture=None) for item in items[first : first + n]], random))
    result = [*items[:first], *bad, *items[first + n :]]
    faults = faults_of(result, detector)
    there = [fault for fault in faults if fault.last >= first and fault.first < first + n]
    others = flagged(faults) - flagged(faults_of(items, detector)) - set(range(first - AROUND, first + n + AROUND))
    said = ", ".join(f"{fault.kind} {fault.score:.2f}" for fault in there) or "nothing"
    print(f"  {kind} in {clip}, frames {first}-{first + n - 1}: {said}", f"and at {sorted(others)}" if others else "")
    if sheets is not None and not there:
        save_sheet(sheets / f"missed_{clip}_{kind}_{first}.png", result, range(first - 1, first + 2))
    return bool(there), any(fault.kind == kind for fault in there), len(others)


# ---------------------------------------------------------------------------------------------------- another attempt

BATCH, ATTEMPTS = 8, 2
MENDABLE = ("blur", "noise", "mouth", "flicker", "colour")


def load(checkpoint: str) -> DiffusionSampler:
    """The network with its front end, as --quality_preset turbo --sampling_seed 7 runs it."""
    options = Options(
        model_path=checkpoint, video_path="-", audio_path="-", sampler="turbo", sampling_seed=7
    )
    return load_sampler(checkpoint, {}, options, choose_engine("torch", "float32", torch.device("cpu")), lambda _: None)


def batch_of(items: Sequence[Item], mel: np.ndarray, hparams: HParams) -> SampleBatch:
    faces = [item.face for item in items if item.face is not None]
    crops = [face_crop(item.frame, face) for item, face in zip(items, faces, strict=True)]
    mels = np.stack([mel_window(mel, face.index, FPS, hparams) for face in faces])
    return SampleBatch(faces[0].index, faces, crops, crops, mels)


def levels(items: Sequence[Item]) -> np.ndarray:
    return np.stack([to_levels(item.crop) for item in items if item.crop is not None])


def retried(
    items: list[Item], mel: np.ndarray, sampler: DiffusionSampler, judge: CropJudge, kind: str, random: Random
) -> tuple[bool, bool, bool, float, float]:
    """Spoil a frame or two of a batch and try them again: whether they are flagged, whether another seed can mend them,
    whether they are mended; how far they are from what was sampled, in levels, before and after."""
    start = int(random.integers(0, len(items) - BATCH))
    good = items[start : start + BATCH]
    bad = sorted(random.choice(BATCH, size=int(random.integers(1, 3)), replace=False).tolist())
    spoilt = list(good)
    for row in bad:
        (spoilt[row],) = KINDS[kind][0]([good[row]], random)
    batch = batch_of(good, mel, front_end(sampler.config))

    def spoiling(asked: SampleBatch) -> Crops:
        return sampler(asked) if asked.attempt else lambda: levels(spoilt)

    def scores(crops: np.ndarray) -> np.ndarray:
        return judge.scores(judge.measures(batch, crops))[bad]

    possible = []
    for attempt in range(1, ATTEMPTS + 1):
        crops = levels(spoilt)
        crops[bad] = sampler(replace(of_rows(batch, bad), attempt=attempt))()
        possible.append(scores(crops))
    result = Retrying(spoiling, judge, ATTEMPTS)(batch)()
    away = [float(cv2.absdiff(crops, levels(good))[bad, BATCH:].mean()) for crops in (levels(spoilt), result)]
    can_be_mended = bool((np.min(possible, axis=0) <= 1).all())
    return bool((scores(levels(spoilt)) > 1).any()), can_be_mended, bool((scores(result) <= 1).all()), away[0], away[1]


def tried(
    items: list[Item], mel: np.ndarray, first: Callable[[Sequence[Item], SampleBatch], np.ndarray],
    sampler: DiffusionSampler, judge: CropJudge,
) -> tuple[int, int, int]:  # fmt: skip
    """Frames in batches, how many of them are flagged when they are `first` made, and how many after retries."""
    n = before = after = 0
    for start in range(0, len(items) - BATCH + 1, BATCH):
        part = items[start : start + BATCH]
        batch = batch_of(part, mel, front_end(sampler.config))
        crops = first(part, batch)

        def given_first(asked: SampleBatch, crops: np.ndarray = crops) -> Crops:
            return sampler(asked) if asked.attempt else lambda: crops

        result = Retrying(given_first, judge, ATTEMPTS)(batch)()
        n += BATCH
        before += int((judge.scores(judge.measures(batch, crops)) > 1).sum())
        after += int((judge.scores(judge.measures(batch, result)) > 1).sum())
    return n, before, after


def try_again(
    clips: dict[str, list[Item]], sounds: Sequence[str], checkpoint: str, detector: FaceAlignment, rounds: int,
    random: Random,
) -> None:  # fmt: skip
    sampler = load(checkpoint)
    judge = CropJudge(detector.lip_landmarks, HIDDEN)
    mels = [speech_mel(sound, front_end(sampler.config))[0] for sound in sounds]
    heard = list(zip(clips.values(), mels, strict=True))
    print(f"{'fault':8} flagged  can be mended  mended  of these  levels away before, after")
    for kind in MENDABLE:
        rows = [retried(*heard[random.integers(len(heard))], sampler, judge, kind, random) for _ in range(rounds)]
        flagged_, can, mended = (np.array(column) for column in list(zip(*rows, strict=True))[:3])
        before, after = np.mean([row[3:] for row in rows], axis=0)
        of_these = f"{(flagged_ & can & mended).sum()} of {(flagged_ & can).sum()}"
        print(f"{kind:8} {flagged_.sum():7} {can.sum():14} {mended.sum():7}  {of_these:8}  {before:.1f}, {after:.1f}")
    unseeded = replace(sampler, sampling_seed=None)
    for name, first, again in (
        ("as sampled", lambda part, _: levels(part), sampler),
        ("without a seed", lambda _, batch: unseeded(batch)(), unseeded),
    ):
        counts = [tried(items, mel, first, again, judge) for items, mel in heard]
        n, before, after = (sum(column) for column in zip(*counts, strict=True))
        print(f"{name}: {before} of {n} frames flagged, {after} after retries")


def keep_items(path: Path, flags: Sequence[str]) -> int:
    """Keep what generate.py gives to its stages, up to MOST_KEPT frames, instead of a result. :return: its status."""

    def keep(_job: Job, _video: VideoSource, items: Iterator[Item], *_: object) -> None:
        with replace_when_complete(path) as part:
            part.write_bytes(pickle.dumps(list(islice(items, MOST_KEPT))))

    with patch("generate.write_result", keep):
        return generate.main(flags)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="*", type=Path, help="pickled list[Item]")
    parser.add_argument(
        "--keep", nargs=argparse.REMAINDER, metavar=("ITEMS", "FLAG"), help="make ITEMS by generate.py's flags"
    )
    parser.add_argument("--rounds", type=int, default=10, help="faults of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of places and strengths")
    parser.add_argument("--sheets", type=Path, help="write pictures of what was missed or wrongly flagged here")
    parser.add_argument("--checkpoint", help="try --retry_flagged, and nothing else, with the network of the items")
    parser.add_argument("--sounds", nargs="+", help="for --checkpoint: the speech of each of ITEMS")
    arguments = parser.parse_args(argv)
    if arguments.keep:
        return keep_items(Path(arguments.keep[0]), arguments.keep[1:])
    if not arguments.items:
        parser.error("give ITEMS, or --keep ITEMS and generate.py's flags")
    detector = FaceAlignment("dlib")
    clips = {path.stem: composited(read_items(path)) for path in arguments.items}
    random = np.random.default_rng(arguments.seed)
    if arguments.checkpoint:
        try_again(clips, arguments.sounds, arguments.checkpoint, detector, arguments.rounds, random)
        return 0
    clean_rate(clips, detector, arguments.sheets)
    table = []
    for kind in KINDS:
        rounds = [injected(clips, kind, detector, random, arguments.sheets) for _ in range(arguments.rounds)]
        table.append((kind, *(sum(column) for column in zip(*rounds, strict=True))))
    table.append(("all", *(sum(row[column] for row in table) for column in (1, 2, 3))))
    print(f"{'fault':8} found  as such  other frames flagged")
    for kind, found, right, others in table:
        print(f"{kind:8} {found:5}  {right:7}  {others}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
