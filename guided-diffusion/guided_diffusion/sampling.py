"""Samplers: from a batch of faces to generated crops. They compose, and know nothing of options or of the video."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, pairwise
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from .color_util import multiplied
from .engines import Denoiser
from .gaussian_diffusion import GaussianDiffusion, X0Fn
from .script_util import ModelConfig
from .store import ChunkStore
from .streams import Face, Item
from .tfg_data_util import (
    face_crop,
    resize_crop,
    sample_to_crops,
    sampling_noise,
    tfg_process_batch,
    to_float,
    to_tensor,
)

T = TypeVar("T")

SAMPLERS = {
    "ddpm": GaussianDiffusion.p_sample_loop,
    "ddim": GaussianDiffusion.ddim_sample_loop,
    "dpmpp_2m": GaussianDiffusion.dpmpp_2m_sample_loop,
    "dpmpp_3m": GaussianDiffusion.dpmpp_3m_sample_loop,
}
POLL_SECONDS = 0.05  # between looks for a batch that another process samples


@dataclass(frozen=True)
class SampleBatch:
    """Faces of consecutive output frames of one shot, and what they are generated from; N of each.

    :param first: the output frame that the batch begins with; it seeds what a sampler draws.
    :param faces: of frames that have one.
    :param crops: the source's, uint8 [h, w, 3], `face_crop` of each.
    :param references: another picture of the same person for each, uint8 [h, w, 3].
    :param mels: float32 [N, audio_dim, window_steps].
    :param context: so many of the first faces belong to the batch before: they are sampled along and thrown away.
    :param attempt: 0, or the number of times that this batch was sampled before: another one draws other noise.
    :param gains: float [3]: the network sees the colours multiplied by these, and what it makes is divided by them.
    :param reference_gains: float [3]: and those of the references by these.
    """

    first: int
    faces: Sequence[Face]
    crops: Sequence[np.ndarray]
    references: Sequence[np.ndarray]
    mels: np.ndarray
    context: int = 0
    attempt: int = 0
    gains: np.ndarray | None = None
    reference_gains: np.ndarray | None = None


Crops = Callable[[], np.ndarray]
"""uint8 [N - context, h, w, 3], h and w the network's size, when they are called for."""

Sampler = Callable[[SampleBatch], Crops]
"""Begins to sample a batch of N faces; a GPU goes on with it while the caller does something else."""


def plan_batches(n_frames: int, size: int, shot_starts: Sequence[int]) -> list[range]:
    """The output frames of each batch: `size` in a row or fewer, none across a cut.

    :param shot_starts: frames that a shot begins with, ascending; frame 0 need not be among them.
    """
    edges = sorted({0, n_frames, *shot_starts})
    return [
        range(start, min(start + size, stop))
        for shot_start, stop in pairwise(edges)
        for start in range(shot_start, stop, size)
    ]


def generate_crops(
    items: Iterator[Item],
    batches: Sequence[range],
    sampler: Sampler,
    mel_window: Callable[[int], np.ndarray],
    reference: np.ndarray | None,
    context: int = 0,
) -> Iterator[Item]:
    """The items of some batches in a row, those with a face with the crop that the sampler generates for it.

    A batch's crops are called for when the next batch has begun, so that a GPU does not wait.

    :param items: of the frames from `first_frame` on.
    :param mel_window: output frame -> float32 [audio_dim, window_steps].
    :param reference: of all faces, uint8 [h, w, 3]; None: each face is its own.
    :param context: each batch is sampled along with so many of the frames before it, or as far back as the head's
        movement is known.
    """
    before = deque(islice(items, batches[0].start - first_frame(batches, context)), maxlen=context)

    def begin(batch: range) -> tuple[list[Item], Crops | None]:
        shown = list(islice(items, len(batch)))
        crops = None
        if any(item.face is not None for item in shown):
            crops = sampler(_sample_batch(batch.start, before, shown, mel_window, reference))
        before.extend(shown)
        return shown, crops

    for shown, crops in _one_late(map(begin, batches)):
        generated = iter(()) if crops is None else iter(crops())
        shown.reverse()
        while shown:  # let go one by one: the next batch is read while the last of this one are on their way
            item = shown.pop()
            crop = None if item.face is None else to_float(next(generated))
            yield item if crop is None else replace(item, crop=crop, crop_size=len(crop))
        if next(generated, None) is not None:
            raise ValueError("more crops than faces in a batch")


def _one_late(stream: Iterator[T]) -> Iterator[T]:
    """The stream, each element when the next one has been made."""
    made: list[T] = []
    for element in stream:
        made.append(element)
        if len(made) == 2:
            yield made.pop(0)
    yield from made


def first_frame(batches: Sequence[range], context: int) -> int:
    """The first output frame that `generate_crops` needs for some batches in a row."""
    return max(0, batches[0].start - context)


def _sample_batch(
    first: int,
    before: Sequence[Item],
    shown: Sequence[Item],
    mel_window: Callable[[int], np.ndarray],
    reference: np.ndarray | None,
) -> SampleBatch:
    context: list[Item] = []
    for item, previous in zip((shown[0], *reversed(before)), reversed(before), strict=False):
        if item.face is None or item.face.motion is None:
            break
        context.insert(0, previous)
    pairs = [(item, item.face) for item in (*context, *shown) if item.face is not None]
    crops = [face_crop(item.frame, face) for item, face in pairs]
    return SampleBatch(
        first,
        faces=[face for _, face in pairs],
        crops=crops,
        references=crops if reference is None else [reference] * len(crops),
        mels=np.stack([mel_window(face.index) for _, face in pairs]),
        context=len(context),
    )


@dataclass(frozen=True)
class StoredSampler:
    """A `Sampler` that keeps what `sampler` makes, and does not make anew what is kept.

    :param of_others: first frames of the batches that other processes sample into the same store: they are waited for.
    """

    sampler: Sampler
    store: ChunkStore
    of_others: Container[int] = ()

    def __call__(self, batch: SampleBatch) -> Crops:
        stored = self._stored(batch)
        if stored is not None:
            return partial(np.asarray, stored)
        if batch.first in self.of_others:
            return partial(self._awaited, batch)
        return partial(self._saved, batch, self.sampler(batch))

    def _saved(self, batch: SampleBatch, crops: Crops) -> np.ndarray:
        made = crops()
        self.store.save(batch.first, made)
        return made

    def _awaited(self, batch: SampleBatch) -> np.ndarray:
        while (stored := self._stored(batch)) is None:
            time.sleep(POLL_SECONDS)
        return stored

    def _stored(self, batch: SampleBatch) -> np.ndarray | None:
        crops = self.store.load(batch.first)
        is_whole = crops is not None and len(crops) == len(batch.faces) - batch.context
        return crops if is_whole else None


# ------------------------------------------------------------------------------------------------ one of two networks

HYSTERESIS = 0.1
"""Share of the threshold, on either side of it."""


def determine_optimal_resolution(
    face_bbox: Sequence[int], resolution_threshold: float = 200, resolutions: tuple[int, int] = (128, 256)
) -> int:
    """Of two resolutions the higher one for a face that is wider than the threshold in pixels, else the lower one.

    :param face_bbox: (y1, y2, x1, x2), half open.
    """
    _, _, x1, x2 = face_bbox
    lower, higher = resolutions
    return higher if x2 - x1 > resolution_threshold else lower


def shot_resolutions(
    shots: Iterable[Sequence[Sequence[int]]], resolution_threshold: float, resolutions: tuple[int, int]
) -> list[int]:
    """The resolution of each shot: what most of its boxes ask for, the lower one at a tie.

    A face of about the threshold's size does not change its look at each cut: within HYSTERESIS of it the resolution
    of the shot before stays. So it does in a shot without a face.

    :param shots: the boxes of each, (y1, y2, x1, x2).
    """
    chosen: list[int] = []
    resolution, threshold = resolutions[0], resolution_threshold
    for boxes in shots:
        if len(boxes):
            votes = [determine_optimal_resolution(box, threshold, resolutions) for box in boxes]
            resolution = statistics.median_low(votes)
            away = HYSTERESIS if resolution == resolutions[0] else -HYSTERESIS
            threshold = resolution_threshold * (1 + away)
        chosen.append(resolution)
    return chosen


@dataclass(frozen=True)
class ByResolution:
    """A `Sampler` that hands each batch to the one of its shot.

    :param choose: the sampler of a batch, the same for all batches of a shot.
    """

    choose: Callable[[SampleBatch], Sampler]

    def __call__(self, batch: SampleBatch) -> Crops:
        return self.choose(batch)(batch)


@dataclass(frozen=True)
class WhiteBalanced:
    """A `Sampler` that lets another one see each batch in white light.

    :param gains: a batch -> what its colours are multiplied by, float [3], the same for all batches of a shot.
    :param reference_gains: those of the reference's shot; None: each face is its own reference.
    """

    sampler: Sampler
    gains: Callable[[SampleBatch], np.ndarray]
    reference_gains: np.ndarray | None = None

    def __call__(self, batch: SampleBatch) -> Crops:
        gains = self.gains(batch)
        reference_gains = gains if self.reference_gains is None else self.reference_gains
        return self.sampler(replace(batch, gains=gains, reference_gains=reference_gains))


@dataclass(frozen=True)
class Rested:
    """A `Sampler` whose crops are changed one by one.

    :param rest: a face and the crop uint8 [h, w, 3] that was sampled for it -> the crop that takes its place.
    """

    sampler: Sampler
    rest: Callable[[Face, np.ndarray], np.ndarray]

    def __call__(self, batch: SampleBatch) -> Crops:
        sampled, faces = self.sampler(batch), batch.faces[batch.context :]
        return lambda: np.stack(list(map(self.rest, faces, sampled())))


def when_used(load: Callable[[], Sampler]) -> Sampler:
    """The `Sampler` that `load` gives, which is asked at the first batch, and not again."""
    loaded = cache(load)
    return lambda batch: loaded()(batch)


# ------------------------------------------------------------------------------------------------ another attempt


class Judge(Protocol):
    """Says which of a batch's crops are faulty, among each other."""

    def measures(self, batch: SampleBatch, crops: np.ndarray) -> np.ndarray:
        """What is measured of N crops uint8 [N, h, w, 3], one by one: float [N, n]."""

    def scores(self, measures: np.ndarray) -> np.ndarray:
        """How faulty the frames of these measures, which follow each other, are, float [N]: above 1 they are."""


@dataclass(frozen=True)
class Retrying:
    """A `Sampler` that samples faulty frames again, with other noise, and keeps what is better.

    All depends on the batch alone, so that resumed runs and ranks agree. A frame is judged with its neighbours as they
    are kept: one that another seed gives a look of its own does not replace one that fits.

    :param attempts: how often at most.
    """

    sampler: Sampler
    judge: Judge
    attempts: int

    def __call__(self, batch: SampleBatch) -> Crops:
        return partial(self._mended, batch, self.sampler(batch))

    def _mended(self, batch: SampleBatch, begun: Crops) -> np.ndarray:
        crops = list(begun())
        shown = of_rows(batch, range(batch.context, len(batch.faces)))
        measures = self.judge.measures(shown, np.stack(crops))
        scores = self.judge.scores(measures)
        for attempt in range(1, self.attempts + 1):
            faulty = np.flatnonzero(scores > 1)
            if not len(faulty):
                break
            again = replace(of_rows(shown, faulty), attempt=attempt)
            candidates = self.sampler(again)()
            for row, crop, measured in zip(faulty, candidates, self.judge.measures(again, candidates), strict=True):
                with_it = measures.copy()
                with_it[row] = measured
                rescored = self.judge.scores(with_it)
                if np.maximum(rescored, 1).sum() < np.maximum(scores, 1).sum():  # also in its neighbours
                    crops[row], measures, scores = crop, with_it, rescored
        return np.stack(crops)


def of_rows(batch: SampleBatch, rows: Iterable[int]) -> SampleBatch:
    """Some faces of a batch, without context. The head's movement is forgotten where the frame before is left out."""
    rows = list(rows)
    faces = [batch.faces[row] for row in rows]
    starts = [True, *(before.index + 1 != face.index for before, face in pairwise(faces))]
    return replace(
        batch,
        faces=[replace(face, motion=None) if start else face for face, start in zip(faces, starts, strict=True)],
        crops=[batch.crops[row] for row in rows],
        references=[batch.references[row] for row in rows],
        mels=batch.mels[rows],
        context=0,
    )


# --------------------------------------------------------------------------------------------------------- one network

Guide = Callable[[SampleBatch, Tensor, Tensor], X0Fn]
"""A batch of N faces, `image` and `mask` of its `tfg_process_batch` -> what edits x_0 while they are sampled. A row may
depend on the rows before, no further back than the batches have context."""


@dataclass(frozen=True)
class DiffusionSampler:
    """The `Sampler` of one network.

    :param sampler: of SAMPLERS.
    :param sampling_seed: of the noise that all frames start from; None draws it anew for each.
    :param guide: None: each frame is sampled on its own.
    """

    denoiser: Denoiser
    diffusion: GaussianDiffusion
    config: ModelConfig
    device: torch.device
    sampler: str
    clip_denoised: bool
    sampling_seed: int | None
    face_hide_percentage: float
    guide: Guide | None = None

    @torch.inference_mode()
    def __call__(self, batch: SampleBatch) -> Crops:
        size = self.config.image_size
        crops = [resize_crop(crop, size, size) for crop in batch.crops]
        references = [resize_crop(crop, size, size) for crop in batch.references] if self.config.use_ref else None
        noise_seed, generator = self._randomness(batch)
        noise = sampling_noise(len(crops), size, noise_seed)
        seen = _balanced(crops, batch.gains)
        seen_references = references and _balanced(references, batch.reference_gains)
        inputs = tfg_process_batch(seen, seen_references, batch.mels, noise, self.face_hide_percentage, self.device)
        sample_loop = partial(
            SAMPLERS[self.sampler],
            self.diffusion,
            clip_denoised=self.clip_denoised,
            x0_fn=self.guide(batch, inputs["image"], inputs["mask"]) if self.guide else None,
            generator=generator,
        )
        x_0, image = sample(self.denoiser, sample_loop, inputs), inputs["image"]
        if batch.gains is not None:
            x_0 = (x_0 + 1) / torch.from_numpy(batch.gains).to(x_0).view(1, 3, 1, 1) - 1
            image = to_tensor(crops, self.device)
        return fetched_later(sample_to_crops(x_0, image, inputs["mask"])[batch.context :])

    def _randomness(self, batch: SampleBatch) -> tuple[int | None, torch.Generator | None]:
        """The seed of the first noise, and the generator of the steps' noise.

        The steps' is seeded by the batch, so that a continued run draws what an uninterrupted one does.
        """
        if self.sampling_seed is None:
            return None, None
        noise_seed = self.sampling_seed
        if batch.attempt:
            noise_seed = _mixed_seed(self.sampling_seed, batch.attempt)
        return noise_seed, torch.Generator().manual_seed(_mixed_seed(self.sampling_seed, batch.first, batch.attempt))


def _balanced(crops: list[np.ndarray], gains: np.ndarray | None) -> list[np.ndarray]:
    return crops if gains is None else [multiplied(crop, gains) for crop in crops]


def _mixed_seed(*parts: int) -> int:
    """A seed of 63 bits that is another one for any other numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def fetched_later(tensor: Tensor) -> Callable[[], np.ndarray]:
    """The tensor as an array, when it is called for; from a GPU it is on its way while the program goes on."""
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))

    def fetch() -> np.ndarray:
        arrived.synchronize()
        return pinned.numpy()

    return fetch


def sample(denoiser: Denoiser, sample_loop: Callable[..., Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Run a sampling loop on a batch of `tfg_process_batch`: x_0, [N x 3 x h x w] in [-1, 1].

    The audio code does not depend on the step: it is computed once.
    """
    denoise = partial(
        denoiser.denoise,
        cond_img=batch["cond_img"],
        ref_img=batch.get("ref_img"),
        audio_code=denoiser.encode_audio(batch["indiv_mels"]),
        mask=batch["mask"],
    )
    return sample_loop(denoise, batch["noise"])
