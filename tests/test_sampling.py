"""Samplers on batches: what they are given, what they draw, what is stored, and who waits for whom."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import fill_
from hypothesis import given
from hypothesis import strategies as st

from guided_diffusion import sampling
from guided_diffusion.gaussian_diffusion import X0Fn
from guided_diffusion.sampling import (
    ByResolution,
    Crops,
    DiffusionSampler,
    Rested,
    Retrying,
    SampleBatch,
    Sampler,
    StoredSampler,
    WhiteBalanced,
    determine_optimal_resolution,
    first_frame,
    generate_crops,
    plan_batches,
    shot_resolutions,
    when_used,
)
from guided_diffusion.script_util import create_gaussian_diffusion, create_model, model_config
from guided_diffusion.store import ChunkStore
from guided_diffusion.streams import Face, Item
from guided_diffusion.tfg_data_util import to_levels


@given(st.integers(1, 60), st.integers(1, 9), st.sets(st.integers(1, 59), max_size=6))
def test_batches_are_full_but_at_the_ends_of_shots(n_frames: int, size: int, cuts: set[int]) -> None:
    starts = sorted(cut for cut in cuts if cut < n_frames)
    batches = plan_batches(n_frames, size, starts)
    assert [frame for batch in batches for frame in batch] == list(range(n_frames))
    assert all(set(batch[1:]).isdisjoint(starts) for batch in batches)
    for batch in batches:
        assert len(batch) <= size
        assert len(batch) == size or batch.stop in (*starts, n_frames)


def batch_of(n: int, first: int = 0, size: int = 80, seed: int = 0, **more: int) -> SampleBatch:
    rng = np.random.default_rng(seed)
    crops = list(rng.integers(0, 256, (n, size, size - 10, 3), dtype=np.uint8))
    references = list(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8))
    mels = rng.uniform(-4, 4, (n, 80, 16)).astype(np.float32)
    faces = [Face(first + k, (0, size, 0, size - 10)) for k in range(n)]
    return SampleBatch(first, faces, crops, references, mels, **more)


@pytest.fixture(scope="module")
def ancestral(small_config: dict) -> DiffusionSampler:
    config = model_config(small_config, "test")
    model = fill_(create_model(config)).eval()
    diffusion = create_gaussian_diffusion(config, "3")
    return DiffusionSampler(model, diffusion, config, torch.device("cpu"), "ddpm", True, 7, 0.5)


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a[:, 32:].astype(int) - b[:, 32:]).mean() > 1)


def test_a_sampler_is_a_function_of_its_batch(ancestral: DiffusionSampler) -> None:
    once = ancestral(batch_of(2))()
    assert (once.shape, once.dtype) == ((2, 64, 64, 3), np.uint8)
    torch.manual_seed(1)  # nothing is drawn from the global generator
    np.testing.assert_array_equal(ancestral(batch_of(2))(), once)
    assert differ(once, ancestral(batch_of(2, seed=1))())


def test_step_noise_differs_between_batches_attempts_and_seeds(ancestral: DiffusionSampler) -> None:
    """With (seed << 20) + batch, batch 2^20 of one seed drew what batch 0 of the next one did."""
    plain = ancestral(batch_of(1))()
    assert differ(plain, ancestral(batch_of(1, first=10))())
    assert differ(plain, ancestral(batch_of(1, attempt=1))())
    far = ancestral(batch_of(1, first=1 << 20))()
    assert differ(far, replace(ancestral, sampling_seed=8)(batch_of(1))())


def test_ddim_starts_from_one_noise_for_all_frames_and_from_another_one_at_another_attempt(
    ancestral: DiffusionSampler,
) -> None:
    ddim = replace(ancestral, sampler="ddim")
    plain = ddim(batch_of(1))()
    np.testing.assert_array_equal(ddim(batch_of(1, first=10))(), plain)
    assert differ(plain, ddim(batch_of(1, attempt=1))())


def test_samplers_are_told_apart(ancestral: DiffusionSampler) -> None:
    results = [replace(ancestral, sampler=name)(batch_of(1))() for name in sampling.SAMPLERS]
    assert differ(results[0], results[1])
    assert differ(results[1], results[2])
    np.testing.assert_array_equal(replace(ancestral, sampler="dpmpp_2m")(batch_of(1, first=9))(), results[2])


def test_context_is_sampled_along_and_thrown_away(ancestral: DiffusionSampler) -> None:
    whole = replace(ancestral, sampler="ddim")(batch_of(3))()
    np.testing.assert_array_equal(replace(ancestral, sampler="ddim")(batch_of(3, context=2))(), whole[2:])


def test_each_sampled_crop_is_given_its_own_face() -> None:
    """Not those of the context, whose crops are thrown away."""

    def levels(batch: SampleBatch) -> Crops:
        return lambda: np.stack([np.full((4, 4, 3), face.index, np.uint8) for face in batch.faces[batch.context :]])

    def rest(face: Face, crop: np.ndarray) -> np.ndarray:
        assert (crop == face.index).all()
        return crop + 100 if face.index > 5 else crop

    made = Rested(levels, rest)(batch_of(4, first=3, context=2))()
    assert made[:, 0, 0, 0].tolist() == [5, 106]


def test_without_a_seed_every_frame_has_its_own_noise(ancestral: DiffusionSampler) -> None:
    batch = batch_of(1)
    twice = replace(batch, faces=batch.faces * 2, crops=batch.crops * 2, references=batch.references * 2,
                    mels=np.repeat(batch.mels, 2, axis=0))  # fmt: skip
    unseeded = replace(ancestral, sampler="ddim", sampling_seed=None)(twice)()
    assert differ(unseeded[:1], unseeded[1:])


# ------------------------------------------------------------------------------------------------- streams of crops


def items_of(faces: str) -> list[Item]:
    """A letter is a frame with a face, "." one without; frame k is of level k."""
    return [
        Item(np.full((20, 20, 3), k, np.uint8), None if letter == "." else Face(k, (2, 12, 3, 11)))
        for k, letter in enumerate(faces)
    ]


def of_levels(batch: SampleBatch) -> Crops:
    """Each crop's own level, at the network's size."""
    return lambda: np.stack([np.full((4, 4, 3), crop[0, 0, 0], np.uint8) for crop in batch.crops])


@given(st.text("a.", min_size=1, max_size=20), st.integers(1, 6))
def test_every_face_gets_its_own_crop(faces: str, size: int) -> None:
    items = items_of(faces)
    batches = plan_batches(len(items), size, [])
    made = list(generate_crops(iter(items), batches, of_levels, lambda _: np.zeros((80, 16), np.float32), None))
    assert len(made) == len(items)
    for k, (item, letter) in enumerate(zip(made, faces, strict=True)):
        assert item.frame is items[k].frame
        assert (item.crop is None) == (letter == ".")
        if item.crop is not None:
            assert item.crop.dtype == np.float32
            np.testing.assert_allclose(item.crop, k / 255)
            assert item.crop_size == 4


def test_a_batch_begins_before_the_last_ones_crops_are_called_for() -> None:
    events = []

    def note(batch: SampleBatch) -> Crops:
        events.append(f"begin {batch.first}")
        return lambda: (events.append(f"fetch {batch.first}"), of_levels(batch)())[1]

    batches = plan_batches(6, 2, [])
    list(generate_crops(iter(items_of("aaaaaa")), batches, note, lambda _: np.zeros((80, 16), np.float32), None))
    assert events == ["begin 0", "begin 2", "fetch 0", "begin 4", "fetch 2", "fetch 4"]


def test_a_batch_without_a_face_is_not_sampled() -> None:
    def fail(batch: SampleBatch) -> Crops:
        raise AssertionError(f"sampled {batch.first}")

    items = generate_crops(iter(items_of("....")), [range(4)], fail, lambda _: np.zeros(0), None)
    assert [item.crop for item in items] == [None] * 4


def test_one_reference_for_all() -> None:
    seen: list[Sequence[np.ndarray]] = []
    reference = np.zeros((5, 5, 3), np.uint8)

    def note(batch: SampleBatch) -> Crops:
        seen.append(batch.references)
        return of_levels(batch)

    list(generate_crops(iter(items_of("aaa")), [range(3)], note, lambda k: np.full((80, 16), k, np.float32), reference))
    assert all(one is reference for one in seen[0])


# --------------------------------------------------------------------------------------------------- another attempt


class Levels:
    """A judge of crops by their mean level: one that is 20 or more from the batch's median is faulty."""

    def measures(self, batch: SampleBatch, crops: np.ndarray) -> np.ndarray:
        assert len(batch.faces) == len(crops)
        return crops.mean(axis=(1, 2, 3))[:, None]

    def scores(self, measures: np.ndarray) -> np.ndarray:
        return np.abs(measures - np.median(measures, axis=0))[:, 0] / 20


@dataclass
class Spoiling:
    """A sampler of level-100 crops; `levels` says what else an attempt makes of a frame. It notes what it is given."""

    levels: dict[tuple[int, int], int]  # (attempt, frame)
    batches: list[SampleBatch] = field(default_factory=list)

    def __call__(self, batch: SampleBatch) -> Crops:
        self.batches.append(batch)
        levels = [self.levels.get((batch.attempt, face.index), 100) for face in batch.faces[batch.context :]]
        return lambda: np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])


def levels_of(crops: np.ndarray) -> list[int]:
    return crops[:, 0, 0, 0].tolist()


def test_nothing_is_sampled_twice_when_nothing_is_faulty() -> None:
    sampler = Spoiling({(0, 2): 110})
    batch = batch_of(5)
    assert levels_of(Retrying(sampler, Levels(), 3)(batch)()) == [100, 100, 110, 100, 100]
    assert len(sampler.batches) == 1
    assert sampler.batches[0] is batch


def test_faulty_frames_alone_are_sampled_again_until_they_are_good() -> None:
    sampler = Spoiling({(0, 11): 200, (0, 13): 0, (0, 14): 0, (1, 13): 10, (1, 14): 101, (2, 13): 105})
    batch = batch_of(6, first=10)
    motion = np.eye(2, 3, dtype=np.float32)
    batch = replace(batch, faces=[replace(face, motion=motion) for face in batch.faces])
    crops = Retrying(sampler, Levels(), 5)(batch)()
    assert crops.dtype == np.uint8
    assert levels_of(crops) == [100, 100, 100, 105, 101, 100]
    first, again, third = sampler.batches
    assert [[face.index for face in each.faces] for each in (again, third)] == [[11, 13, 14], [13]]
    assert [each.attempt for each in sampler.batches] == [0, 1, 2]
    assert again.first == first.first == 10
    assert [face.motion is not None for face in again.faces] == [False, False, True]
    for row, index in enumerate((1, 3, 4)):
        assert again.crops[row] is batch.crops[index]
        assert again.references[row] is batch.references[index]
        np.testing.assert_array_equal(again.mels[row], batch.mels[index])


def test_the_better_crop_is_kept_and_no_attempt_more_than_allowed_is_made() -> None:
    sampler = Spoiling({(0, 1): 200, (1, 1): 250, (2, 1): 150, (3, 1): 100})
    assert levels_of(Retrying(sampler, Levels(), 2)(batch_of(5))()) == [100, 150, 100, 100, 100]
    assert [batch.attempt for batch in sampler.batches] == [0, 1, 2]


def test_a_crop_that_spoils_its_neighbours_is_not_kept() -> None:
    class Jealous(Levels):
        def scores(self, measures: np.ndarray) -> np.ndarray:
            return np.where(measures[2, 0] == 100, [0, 5, 0, 5, 0], super().scores(measures))

    sampler = Spoiling({(0, 2): 130})
    assert levels_of(Retrying(sampler, Jealous(), 1)(batch_of(5))()) == [100, 100, 130, 100, 100]
    assert len(sampler.batches) == 2


def test_context_is_neither_judged_nor_tried_again() -> None:
    sampler = Spoiling({(0, 0): 255, (0, 3): 0})
    assert levels_of(Retrying(sampler, Levels(), 1)(batch_of(6, context=2))()) == [100] * 4
    assert [(len(batch.faces), batch.context) for batch in sampler.batches] == [(6, 2), (1, 0)]


def test_what_was_mended_is_what_is_stored(tmp_path: Path) -> None:
    spoiling = Spoiling({(0, 1): 200})
    store = ChunkStore(tmp_path)
    sampler = StoredSampler(Retrying(spoiling, Levels(), 1), store)
    assert levels_of(sampler(batch_of(5))()) == levels_of(sampler(batch_of(5))()) == [100] * 5
    assert len(spoiling.batches) == 2
    (tmp_path / "000000.npy").unlink()
    assert levels_of(sampler(batch_of(5))()) == [100] * 5


# ------------------------------------------------------------------------------------------------ one of two networks


def shot(*widths: int) -> list[tuple[int, int, int, int]]:
    return [(5, 300, 40, 40 + width) for width in widths]


def test_the_plans_resolution_of_a_face() -> None:
    assert [determine_optimal_resolution(box) for box in shot(150, 200, 201)] == [128, 128, 256]
    assert determine_optimal_resolution(shot(150)[0], 149, (64, 512)) == 512


@pytest.mark.parametrize(
    ("widths", "resolutions"),
    [
        ([150, 250, 150], [128, 256, 128]),
        ([150, 215, 221, 195, 185, 179], [128, 128, 256, 256, 256, 128]),
        ([215, 195], [256, 256]),
        ([195, 215], [128, 128]),
    ],
)
def test_a_shot_near_the_threshold_keeps_the_resolution_of_the_one_before(
    widths: list[int], resolutions: list[int]
) -> None:
    assert shot_resolutions([shot(width, width) for width in widths], 200, (128, 256)) == resolutions


def test_a_shot_has_the_resolution_that_most_of_its_boxes_ask_for() -> None:
    """And one without a face that of the one before: nothing of it is generated."""
    assert shot_resolutions([shot(300, 300, 100), [], shot(300, 100, 100), shot(100, 300)], 200, (128, 256)) == [
        256, 256, 128, 128,
    ]  # fmt: skip
    assert shot_resolutions([[], shot(201)], 200, (64, 128)) == [64, 128]


@given(st.lists(st.lists(st.integers(1, 400), max_size=5), max_size=8), st.integers(2, 390))
def test_far_from_the_threshold_nothing_but_the_shot_counts(shots: list[list[int]], threshold: int) -> None:
    chosen = shot_resolutions([shot(*widths) for widths in shots], threshold, (128, 256))
    assert len(chosen) == len(shots)
    for widths, resolution in zip(shots, chosen, strict=True):
        if widths and min(widths) > 1.11 * threshold:
            assert resolution == 256
        if widths and max(widths) < 0.89 * threshold:
            assert resolution == 128


def test_a_batch_goes_to_the_sampler_that_is_chosen_and_only_that_one_is_loaded() -> None:
    loaded: list[int] = []

    def load(size: int) -> Sampler:
        loaded.append(size)
        return lambda batch: lambda: np.full((len(batch.crops), size, size, 3), batch.first, np.uint8)

    samplers = {size: when_used(lambda size=size: load(size)) for size in (4, 8, 16)}  # type: ignore[misc]
    sampler = ByResolution(lambda batch: samplers[4 if batch.first < 10 else 8])
    assert loaded == []
    for first, size in ((0, 4), (5, 4), (10, 8), (3, 4)):
        assert sampler(batch_of(2, first))().shape == (2, size, size, 3)
    assert loaded == [4, 8]


# --------------------------------------------------------------------------------------------------- white balance


def test_the_network_sees_white_light_and_its_crops_have_the_shots(ancestral: DiffusionSampler) -> None:
    """What is known stays as it was filmed, to the level."""
    ddim = replace(ancestral, sampler="ddim")
    gains = np.array([2, 1, 0.5])
    white = np.random.default_rng(0).integers(0, 30, (1, 64, 64, 3), dtype=np.uint8) * np.uint8(4)
    filmed = (white / gains).astype(np.uint8)
    in_white = replace(batch_of(1), crops=list(white), references=list(white))
    made = ddim(in_white)()
    crops = WhiteBalanced(ddim, lambda _: gains)(replace(in_white, crops=list(filmed), references=list(filmed)))()
    plain = ddim(replace(in_white, crops=list(filmed), references=list(filmed)))()
    np.testing.assert_array_equal(crops[:, :32], plain[:, :32])
    assert differ(crops, made)
    np.testing.assert_allclose(crops[:, 32:], np.minimum(made[:, 32:] / gains, 255), atol=2)


def test_no_gains_and_gains_of_1_are_the_same(ancestral: DiffusionSampler) -> None:
    np.testing.assert_array_equal(ancestral(replace(batch_of(1), gains=np.ones(3)))(), ancestral(batch_of(1))())


# ------------------------------------------------------------------------------------------------------- context


STEPS = range(1, 3)  # guided, of four


def drawn_to_the_row_before(batch: SampleBatch, _image: torch.Tensor, mask: torch.Tensor) -> X0Fn:
    """Half of the row before, where the movement is known."""
    known = torch.tensor([face.motion is not None for face in batch.faces])
    share = 0.5 * mask * (known & (torch.arange(len(known)) > 0))[:, None, None, None]

    def x0_fn(step: int, x_0: torch.Tensor) -> torch.Tensor:
        return x_0 + share * (x_0.roll(1, 0) - x_0) if step in STEPS else x_0

    return x0_fn


def moving_items(faces: str) -> list[Item]:
    """As `items_of`, but of noise. From letter to letter the movement is known, but for a "c", which begins a shot."""
    rng = np.random.default_rng(0)
    items = []
    for k, letter in enumerate(faces):
        is_known = k > 0 and letter == "a" and faces[k - 1] != "."
        face = Face(k, (2, 72, 3, 68), motion=np.eye(2, 3, dtype=np.float32) if is_known else None)
        items.append(Item(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8), None if letter == "." else face))
    return items


def mel_of(frame: int) -> np.ndarray:
    return np.random.default_rng(frame).uniform(-4, 4, (80, 16)).astype(np.float32)


class QuickModel:
    """Its x_0 depends on noise, reference and sound."""

    def encode_audio(self, mels: torch.Tensor) -> torch.Tensor:
        return mels.mean(dim=(1, 2))[:, None, None, None]

    def denoise(self, x: torch.Tensor, _timesteps: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        return 0.3 * x + 0.5 * conditions["ref_img"] + conditions["audio_code"]


@pytest.fixture(params=["ddim", "dpmpp_2m", "dpmpp_3m"])
def guided(request: pytest.FixtureRequest, small_config: dict) -> DiffusionSampler:
    config = model_config(small_config, "test")
    diffusion = create_gaussian_diffusion(config, f"{'ddim' if request.param == 'ddim' else 'logsnr'}4")
    device, model = torch.device("cpu"), QuickModel()
    return DiffusionSampler(
        model, diffusion, config, device, request.param, True, 7, 0.5, drawn_to_the_row_before,  # type: ignore[arg-type]
    )  # fmt: skip


SHOT = "aaaaa.aaa"


def crops_of(sampler: Sampler, batches: Sequence[range], context: int) -> np.ndarray:
    """uint8 [N, h, w, 3], of the faces in these batches, which are all that is read of the video."""
    items = moving_items(SHOT)
    start = first_frame(batches, context)
    made = list(generate_crops(iter(items[start : batches[-1].stop]), batches, sampler, mel_of, None, context))
    assert [item.face.index for item in made if item.face] == [k for b in batches for k in b if SHOT[k] != "."]
    return np.stack([to_levels(item.crop) for item in made if item.crop is not None])


def largest(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_guides_across_frames_does_not_show_where_batches_begin(size: int, guided: DiffusionSampler) -> None:
    """G guided steps reach back G frames; one frame of context less shows. Also where another rank begins."""
    whole = crops_of(guided, [range(len(SHOT))], 0)
    batches = plan_batches(len(SHOT), size, [])
    assert largest(crops_of(guided, batches, len(STEPS)), whole) <= 1
    assert largest(crops_of(guided, batches[1:], len(STEPS)), whole[size:]) <= 1
    assert largest(crops_of(guided, batches, len(STEPS) - 1), whole) > 1
    assert largest(crops_of(replace(guided, guide=None), batches, 0), whole) > 1


def test_context_reaches_back_as_far_as_the_movement_is_known() -> None:
    seen = {}

    def note(batch: SampleBatch) -> Crops:
        seen[batch.first] = [face.index for face in batch.faces], batch.context
        return lambda: of_levels(batch)()[batch.context :]

    items = moving_items("aaaa.aaaaaca")
    made = list(generate_crops(iter(items), plan_batches(12, 2, [10]), note, mel_of, None, 3))
    assert [item.frame for item in made] == [item.frame for item in items]
    assert seen == {
        0: ([0, 1], 0), 2: ([0, 1, 2, 3], 2), 4: ([5], 0),
        6: ([5, 6, 7], 1), 8: ([5, 6, 7, 8, 9], 3), 10: ([10, 11], 0),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- stored samples


def test_what_is_stored_is_not_sampled_again(tmp_path: Path) -> None:
    sampled = []

    def note(batch: SampleBatch) -> Crops:
        sampled.append(batch.first)
        return lambda: np.full((len(batch.crops), 4, 4, 3), batch.first, np.uint8)

    sampler = StoredSampler(note, ChunkStore(tmp_path))
    for _ in range(2):
        for first in (0, 5):
            assert (sampler(batch_of(2, first))() == first).all()
    assert sampled == [0, 5]


def test_a_damaged_chunk_is_sampled_again(tmp_path: Path) -> None:
    """A file of no bytes after a power loss stopped the run for ever."""
    store = ChunkStore(tmp_path)
    sampler = StoredSampler(lambda _: lambda: np.full((2, 4, 4, 3), 9, np.uint8), store)
    sampler(batch_of(2, 5))()
    (path,) = tmp_path.iterdir()
    for content in (b"", b"\x93NUMPY", b"PK\x03\x04", path.read_bytes()[:-7]):
        path.write_bytes(content)
        assert (sampler(batch_of(2, 5))() == 9).all()
        assert store.load(5) is not None


def test_batches_of_others_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "POLL_SECONDS", 0.001)
    store = ChunkStore(tmp_path)

    def fail(batch: SampleBatch) -> Crops:
        raise AssertionError(f"sampled {batch.first}")

    def other() -> None:
        time.sleep(0.05)
        store.save(5, np.full((2, 4, 4, 3), 3, np.uint8))

    thread = threading.Thread(target=other)
    thread.start()
    assert (StoredSampler(fail, store, of_others={5})(batch_of(2, 5))() == 3).all()
    thread.join()
