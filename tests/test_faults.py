"""Faults that are put into a steady clip are found, as what they are and where they are; the clip itself has none."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import cv2
import fault_benchmark
import numpy as np
import pytest
from conftest import mouth
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from guided_diffusion.faults import (
    COLOUR,
    KINDS,
    CropJudge,
    FaultMeter,
    excess,
    frame_scores,
    frozen_scores,
    measure_lips,
    residuals,
    runs,
    spikes,
    sync_scores,
    unchanged_scores,
    upright,
)
from guided_diffusion.lip_util import LIP
from guided_diffusion.sampling import SampleBatch
from guided_diffusion.seam_util import box_contour, seam_ratio
from guided_diffusion.streams import Face, Item
from guided_diffusion.tfg_data_util import crop_box, to_levels
from post_processing import generated_alpha, paste_stage

N, SIDE, BOX = 36, 100, (10, 90, 14, 86)
HEIGHT, WIDTH = BOX[1] - BOX[0], BOX[3] - BOX[2]
SKIN = cv2.GaussianBlur(np.random.default_rng(0).normal(150, 60, (SIDE, SIDE, 3)), (0, 0), 2.5)


def picture(opening: float, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """A face with a mouth that is this far open, and its landmarks in frame pixels."""
    points = mouth(BOX[2] + WIDTH / 2, BOX[0] + 0.78 * HEIGHT, 0.45 * WIDTH, opening)
    frame = np.roll(SKIN, shift, axis=1).clip(60, 230).astype(np.uint8)
    cv2.fillConvexPoly(frame, cv2.convexHull(np.rint(points).astype(np.int32)), (170, 70, 80))
    cv2.fillConvexPoly(frame, cv2.convexHull(np.rint(points[12:]).astype(np.int32)), (40, 15, 20))
    landmarks = np.full((68, 2), 50, np.float32)
    landmarks[36:42, 0], landmarks[42:48, 0] = 35, 65
    landmarks[LIP] = points
    return frame, landmarks


def sampled(n: int = N) -> list[Item]:
    """Frames, and for each the crop of another mouth, softer."""
    items = []
    for index in range(n):
        shift = index % 3
        frame, landmarks = picture(0.15 + 0.1 * np.sin(index), shift)
        other = crop_box(picture(0.2 + 0.08 * np.sin(1.7 * index), shift)[0], BOX)
        crop = cv2.GaussianBlur(cv2.resize(other, (64, 64), interpolation=cv2.INTER_AREA), (0, 0), 0.5)
        items.append(Item(frame, Face(index, BOX, landmarks), crop.astype(np.float32) / 255, 64))
    return items


def pasted(items: Sequence[Item]) -> list[Item]:
    paste = paste_stage(partial(generated_alpha, face_hide_percentage=0.5, blur_kernel_size=9))
    return [new if old.picture is None else old for old, new in zip(items, paste(iter(items)), strict=True)]


def no_lips(crops: Sequence[np.ndarray]) -> list[np.ndarray | None]:
    return [None] * len(crops)


def meter_of(items: Sequence[Item], envelope: np.ndarray | None = None) -> FaultMeter:
    meter = FaultMeter(25, envelope, no_lips)
    for item in items:
        meter.update(item)
    return meter


@pytest.fixture(scope="module")
def clean() -> list[Item]:
    return pasted(sampled())


def test_a_steady_clip_has_no_faults(clean: list[Item]) -> None:
    assert meter_of(clean).faults() == []


@pytest.mark.parametrize("how", ["blur", "noise", "colour", "seam"])
def test_what_is_wrong_with_all_frames_is_the_networks_look(how: str) -> None:
    make, _ = fault_benchmark.KINDS[how]
    assert meter_of(pasted(make(sampled(), np.random.default_rng(0)))).faults() == []


@pytest.mark.parametrize("kind", fault_benchmark.KINDS)
def test_a_fault_is_found_as_what_it_is_and_where_it_is(kind: str, clean: list[Item]) -> None:
    make, (_, longest) = fault_benchmark.KINDS[kind]
    first, last = 12, 11 + longest
    bad = pasted(make(sampled()[first : last + 1], np.random.default_rng(2)))
    found = [fault for fault in meter_of([*clean[:first], *bad, *clean[last + 1 :]]).faults() if fault.kind == kind]
    assert len(found) == 1
    (fault,) = found
    assert first <= fault.first <= fault.worst <= fault.last <= last + 1
    assert last - fault.last <= 1
    assert (fault.seconds, fault.helps) == (fault.first / 25, KINDS[kind].helps)
    assert fault.score > 1


def test_the_sources_own_mouth_is_a_fault(clean: list[Item]) -> None:
    untouched = [replace(item, picture=item.frame) for item in clean[5:8]]
    faults = meter_of([*clean[:5], *untouched, *clean[8:]]).faults()
    assert [(fault.first, fault.last) for fault in faults if fault.kind == "unchanged"] == [(5, 7)]


def test_the_last_frames_are_scored_as_if_there_were_no_others(clean: list[Item]) -> None:
    first, n = 10, N - 10
    cut = [replace(item, face=replace(item.face, is_cut=item.face.index == first)) for item in clean if item.face]
    cut[30] = replace(cut[30], picture=cut[30].frame)
    speech = np.random.default_rng(0).uniform(0.5, 1, N - 2)
    whole = meter_of(cut, speech)
    alone = meter_of(cut[first:], speech[first:]).scores()
    for kind, scores in whole.scores(n).items():
        np.testing.assert_array_equal(scores, alone[kind])
    in_a_shot = whole.scores(9)
    assert {len(scores) for scores in in_a_shot.values()} == {9}
    assert np.flatnonzero(in_a_shot["unchanged"] > 1).tolist() == [30 - (N - 9)]
    assert whole.scores(1000).keys() == whole.scores().keys()


def test_a_mouth_may_stand_still_while_nobody_speaks(clean: list[Item]) -> None:
    make, _ = fault_benchmark.KINDS["frozen"]
    still = [*clean[:10], *pasted(make(sampled()[10:24], np.random.default_rng(0))), *clean[24:]]
    speech = np.ones(N, np.float32)
    assert "frozen" in {fault.kind for fault in meter_of(still, speech).faults()}
    speech[8:26] = 0
    assert "frozen" not in {fault.kind for fault in meter_of(still, speech).faults()}
    # of sound that ends before the video the rest is silence
    assert "frozen" not in {fault.kind for fault in meter_of(still, speech[:10]).faults()}


def test_what_the_camera_blurred_is_no_fault(clean: list[Item]) -> None:
    item = sampled()[12]
    assert item.crop is not None
    soft = replace(item, frame=cv2.GaussianBlur(item.frame, (0, 0), 2), crop=cv2.GaussianBlur(item.crop, (0, 0), 1.5))
    assert "blur" not in {fault.kind for fault in meter_of([*clean[:12], *pasted([soft]), *clean[13:]]).faults()}


def test_what_stands_still_is_told_by_the_head() -> None:
    """Garbage in three frames of a short clip made all that moves less look still."""
    motion, head = np.full(27, 0.2), np.full(27, 0.5)
    motion[0] = head[0] = np.nan
    motion[12:16] = 20
    shots = [slice(0, 27)]
    assert not frozen_scores(motion, head, None, 25, shots).any()
    motion[16:] = 0.03
    assert np.flatnonzero(frozen_scores(motion, head, None, 25, shots) > 1).tolist() == list(range(16, 27))


def test_a_bright_frame_is_flicker_and_no_colour(clean: list[Item]) -> None:
    (bright,) = sampled(1)
    (bright,) = pasted([replace(bright, crop=(bright.crop * np.float32(1.2)).clip(0, 1))])
    (fault,) = meter_of([*clean[:12], replace(bright, face=clean[12].face), *clean[13:]]).faults()
    assert (fault.kind, fault.first, fault.last) == ("flicker", 12, 12)


def test_another_colour_is_a_fault_within_a_shot_and_none_at_a_cut() -> None:
    warm = [replace(item, crop=(item.crop * np.float32([1.1, 1, 0.9])).clip(0, 1)) for item in sampled()[20:]]
    whole = pasted([*sampled()[:20], *warm])
    (fault,) = meter_of(whole).faults()
    assert (fault.kind, fault.first) == ("colour", 20)
    whole[20] = replace(whole[20], face=replace(whole[20].face, is_cut=True))
    assert meter_of(whole).faults() == []


def test_frames_without_a_face_count_and_end_a_shot(clean: list[Item]) -> None:
    make, _ = fault_benchmark.KINDS["noise"]
    bad = pasted(make(sampled()[20:21], np.random.default_rng(0)))
    gap = [Item(clean[0].frame, picture=clean[0].frame)] * 5
    outside = [replace(clean[0], face=replace(clean[0].face, box=(200, 280, 0, 80)))]
    meter = meter_of([*gap, *clean[:20], *bad, *clean[21:], *outside])
    assert [(fault.kind, fault.first) for fault in meter.faults()] == [("noise", 25)]
    assert len(meter.openings) == N + 6


def test_nothing_is_said_of_no_frames_and_of_one() -> None:
    assert meter_of([]).faults() == meter_of(pasted(sampled(1))).faults() == []


def test_openings_are_those_of_the_lips(clean: list[Item]) -> None:
    lips = mouth(30, 60, 30, 0.3)
    assert meter_of([replace(clean[0], lips=lips), clean[1]]).openings == pytest.approx([0.3, np.nan], nan_ok=True)


def test_a_mouth_at_another_place_is_no_mouth() -> None:
    landmarks = np.zeros((68, 2), np.float32)
    landmarks[33] = 60, 86
    landmarks[36:42], landmarks[42:48] = (40, 50), (80, 50)
    face = Face(0, (20, 120, 10, 110), landmarks)
    rows = [measure_lips(mouth(50, 70, 40, 0.1 + 0.02 * (n % 4)), face) for n in range(20)]
    rows[7] = measure_lips(mouth(65, 70, 40, 0.1), face)
    rows[12] = measure_lips(mouth(50, 70, 60, 0.1), face)
    assert rows[0] == pytest.approx({"opening": 0.1, "lip_width": 0, "lip_x": 0, "lip_y": 0}, abs=0.05)
    measured = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    steady = dict.fromkeys(("light", "green_red", "blue_yellow"), np.zeros(20))
    scores = frame_scores({**measured, **steady}, [slice(0, 20)])
    assert np.flatnonzero(scores["mouth"] > 1).tolist() == [7, 12]


def test_a_stretch_that_goes_its_own_way_is_out_of_sync() -> None:
    random = np.random.default_rng(0)
    sound = cv2.GaussianBlur(random.uniform(0, 1, (600, 1)), (1, 9), 2)[:, 0]
    sound -= sound.min()
    openings = np.roll(sound, 2) + random.normal(0, 0.05, 600)
    assert (sync_scores(openings, sound, 25) <= 1).all()
    openings[200:350] = openings[200:350][::-1].copy()
    found = np.flatnonzero(sync_scores(openings, sound, 25) > 1)
    assert len(found) >= 75
    assert 150 <= found.min() <= 250
    assert 300 <= found.max() <= 400
    # a clip that follows nowhere does not say what a stretch should be
    assert not sync_scores(random.uniform(0, 1, 600), sound, 25).any()


# --------------------------------------------------------------------------------------------------------- the judge


def batch(items: Sequence[Item]) -> tuple[SampleBatch, np.ndarray]:
    faces = [item.face for item in items if item.face is not None]
    crops = [crop_box(item.frame, BOX) for item in items]
    made = np.stack([to_levels(item.crop) for item in items if item.crop is not None])
    return SampleBatch(0, faces, crops, crops, np.zeros((len(items), 80, 16), np.float32)), made


@pytest.mark.parametrize("kind", ["blur", "noise", "mouth", "flicker", "colour"])
def test_the_judge_finds_the_frame_in_a_batch(kind: str) -> None:
    judge = CropJudge(no_lips, 0.5)
    good = sampled(10)
    make, _ = fault_benchmark.KINDS[kind]
    assert (judge.scores(judge.measures(*batch(good))) <= 1).all()
    scores = judge.scores(judge.measures(*batch([*good[:6], *make(good[6:7], np.random.default_rng(2)), *good[7:]])))
    assert np.flatnonzero(scores > 1).tolist() == [6]


# ---------------------------------------------------------------------------------------------------- what stands out

series = arrays(np.float64, st.integers(1, 60), elements=st.floats(-100, 100, allow_subnormal=False))


@given(series, st.floats(-50, 50))
def test_the_level_of_a_series_does_not_count(values: np.ndarray, level: float) -> None:
    shots = [slice(0, len(values))]
    np.testing.assert_allclose(residuals(values[:, None] + level, shots), residuals(values[:, None], shots), atol=1e-9)
    np.testing.assert_allclose(spikes(values + level, shots), spikes(values, shots), atol=1e-9)
    assert not residuals(np.full_like(values, level)[:, None], shots).any()


@given(series, st.floats(0.1, 10))
def test_no_deviation_below_the_least_one_is_a_fault(values: np.ndarray, least: float) -> None:
    scores = excess(np.abs(values), values, least)
    assert (scores[np.abs(values) < least] <= 1).all()


def test_a_face_without_measurable_skin_hides_no_flicker_elsewhere() -> None:
    """The mouth filled its lower part: the median of scores with one NaN was NaN, and nothing was flagged any more."""
    measured = {name: np.random.default_rng(0).normal(0, 0.1, 200) for name in COLOUR}
    measured["light"][100] += 8
    for values in measured.values():
        values[20] = np.nan
    scores = frame_scores(measured, [slice(0, 200)])
    assert np.isfinite([*scores.values()]).all()
    assert scores["flicker"][100] > 1


def test_a_spike_is_one_frame_and_a_step_is_none() -> None:
    values = np.r_[np.zeros(5), 3.0, np.zeros(5), np.full(5, 2.0)]
    assert np.flatnonzero(spikes(values, [slice(0, 16)])).tolist() == [5]
    for end in (0, 15):
        values = np.zeros(16)
        values[end] = 3
        assert np.flatnonzero(spikes(values, [slice(0, 16)])).tolist() == [end]


def test_a_change_on_the_way_to_a_lasting_one_is_no_spike() -> None:
    assert not spikes(np.array([0.0, 0, 0, 2, 4, 4, 4]), [slice(0, 7)]).any()


def test_a_mouth_at_rest_as_the_sources_is_no_fault_while_nobody_speaks() -> None:
    change, envelope = np.full(20, 0.1), np.repeat([1.0, 0.0], 10)
    assert (unchanged_scores(change, envelope) > 1).tolist() == [True] * 10 + [False] * 10
    assert (unchanged_scores(change, None) > 1).all()


@pytest.mark.parametrize("turn", [0, 15, 25])
def test_seams_are_seen_of_crops_that_are_turned(turn: float) -> None:
    """Looked for along the upright box, a hard step at a turned crop's edge was none."""
    noise = np.random.default_rng(0).normal(128, 3, (160, 160, 3)).astype(np.uint8)
    to_frame = cv2.getRotationMatrix2D((29.5, 29.5), turn, 1)
    to_frame[:, 2] += 50
    face = Face(0, (50, 110, 50, 110), placement=to_frame.astype(np.float32))
    patch = cv2.warpAffine(np.full((60, 60, 3), 40, np.uint8), to_frame, (160, 160))
    picture, box = upright(cv2.add(noise, patch), face)
    frame, _ = upright(noise, face)
    assert seam_ratio(picture, box_contour(box)) > 5 * seam_ratio(frame, box_contour(box))


def test_unknown_values_say_nothing() -> None:
    values = np.r_[np.zeros(9), np.nan, 5.0, np.full(3, np.nan)][:, None]
    away = residuals(values, [slice(0, 11), slice(11, 14)])[:, 0]
    assert np.flatnonzero(away).tolist() == [10]


def test_runs_end_with_their_shots() -> None:
    where = np.array([0, 1, 1, 0, 1, 1, 0, 0, 0, 1], bool)
    shots = [slice(0, 5), slice(5, 10)]
    assert list(runs(where, shots)) == [(1, 2), (4, 4), (5, 5), (9, 9)]
    assert list(runs(where, shots, join=1)) == [(1, 4), (5, 5), (9, 9)]
