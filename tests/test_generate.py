"""The program: its loop against the reference, its command line, bad input, keys, real faces."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import UPSTREAM_FLAGS, FakeVideo, black, decoded, mouth, result_of, write_video
from fill import fill_

import generate
from audio.audio import louder, speech_mel
from audio.hparams import DEFAULT, ENHANCED_AUDIO_CONFIG, HParams
from audio.preprocess import WEIGHTS as DENOISER_WEIGHTS
from audio.preprocess import preprocess
from face_detection import playback
from face_detection.api import Detection
from face_detection.playback import Playback
from face_detection.tracks import build_track, fixed_track, voxceleb2_box
from face_detection.video_faces import find_faces
from generate import Tools, build_stages, main, open_clip, white_balanced, work_files
from guided_diffusion import streams
from guided_diffusion.color_util import light_gains
from guided_diffusion.dist_util import Ranks
from guided_diffusion.errors import InputError
from guided_diffusion.jobs import Job
from guided_diffusion.options import Options, parse_options
from guided_diffusion.sampling import Crops, DiffusionSampler, SampleBatch, Sampler, generate_crops, plan_batches
from guided_diffusion.script_util import ModelConfig, create_gaussian_diffusion, create_model, model_config
from guided_diffusion.streams import Face, Item, Stages, per_face
from guided_diffusion.video_util import source_index
from post_processing import paste_stage
from super_resolution import LipSuperResolver

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
CLIPS = ROOT.parent / "shared" / "clips"


# ------------------------------------------------------------------------------------------------ the loop itself


@dataclass(frozen=True)
class Loop:
    """Pass 2 on the golden frames, with everything but the pixels' way through it."""

    frames: np.ndarray
    playback: Playback
    options: Options
    sampler: Sampler
    mels: np.ndarray
    expected: np.lib.npyio.NpzFile

    def items(self, batch_size: int = 10, first_batch: int = 0) -> Iterator[Item]:
        batches = plan_batches(self.playback.n_output, batch_size, self.playback.shot_starts)[first_batch:]
        shown = self.playback.items(batches[0].start, self.playback.n_output)
        return generate_crops(shown, batches, self.sampler, self.mels.__getitem__, self.reference())

    def reference(self) -> np.ndarray | None:
        return self.playback.reference(self.options.sampling_ref_type, self.options.sampling_seed)

    def pictures(self, stages: Stages | None = None, first_batch: int = 0) -> list[np.ndarray]:
        items = self.items(first_batch=first_batch)
        for _, stage in stages or build_stages(self.options, None):
            items = stage(items)
        return [item.picture for item in items]

    def changed(self, **track: np.ndarray | None) -> "Loop":
        """With other values in the track."""
        before = self.playback
        playback = Playback(
            before.video, replace(before.track, **track), before.n_output, before.order, before.is_frozen
        )
        return replace(self, playback=playback)


def golden_loop(small_config: dict, **flags: object) -> Loop:
    golden = np.load(DATA / "loop.npz")
    config = model_config(small_config, "test")
    options = Options(
        video_path="v", audio_path="a", model_path="m", is_voxceleb2=False, sampling_seed=7, use_ddim=True, **flags
    )
    boxes = iter(golden["boxes"])

    def detect(images: list[np.ndarray]) -> list[list[Detection]]:
        return [[Detection(tuple(map(float, next(boxes))), 1.0, None)] for _ in images]

    faces = find_faces(golden["frames"], detect, batch_size=4)
    track = build_track(faces, len(golden["frames"]), pads=(0, 0, 0, 0))
    model = fill_(create_model(config)).eval().to(memory_format=torch.channels_last)
    diffusion = create_gaussian_diffusion(config, "ddim10")
    sampler = DiffusionSampler(model, diffusion, config, torch.device("cpu"), "ddim", True, 7, 0.5)
    is_frozen = options.sampling_input_type == "first_frame"
    played = Playback(FakeVideo(golden["frames"]), track, len(golden["frames"]), options.audio_longer, is_frozen)
    return Loop(golden["frames"], played, options, sampler, golden["mels"], golden)


@pytest.mark.parametrize(
    ("name", "flags", "first_batch"),
    [
        ("gt", {}, 0),
        # their reference is the first batch's too: the last three frames suffice
        ("first_frame", {"sampling_input_type": "first_frame", "sampling_ref_type": "first_frame"}, 1),
        ("random", {"sampling_ref_type": "random"}, 1),
    ],
)
def test_loop_equals_the_reference(name: str, flags: dict, first_batch: int, small_config: dict) -> None:
    loop = golden_loop(small_config, **flags)
    output = np.stack(loop.pictures(first_batch=first_batch))
    expected = loop.expected[f"out_{name}"][10 * first_batch :]
    assert output.shape == expected.shape
    difference = np.abs(output.astype(int) - expected)
    assert (difference > 2).mean() < 1e-3


def test_stages_get_float_crops_of_any_size(small_config: dict) -> None:
    loop = replace(
        golden_loop(small_config), sampler=lambda batch: lambda: np.full((len(batch.crops), 64, 64, 3), 51, np.uint8)
    )
    seen = []

    def double(crop: np.ndarray, face: Face) -> np.ndarray:
        seen.append((face.index, crop.dtype, crop.shape, float(crop.max())))
        return np.repeat(np.repeat(2 * crop, 2, axis=0), 2, axis=1)

    halve = per_face(lambda crop, face: crop / 4)  # noqa: ARG005
    shown = loop.pictures([("double", per_face(double)), ("halve", halve), ("paste", paste_stage())])
    assert seen == [(k, np.float32, (64, 64, 3), pytest.approx(0.2)) for k in range(13)]
    for source, picture, (y1, y2, x1, x2) in zip(loop.frames, shown, loop.playback.track.boxes, strict=True):
        assert (picture[y1:y2, x1:x2] == 26).all()
        outside = np.ones(picture.shape[:2], bool)
        outside[y1:y2, x1:x2] = False
        np.testing.assert_array_equal(picture[outside], source[outside])


def test_frames_without_a_face_pass_through(small_config: dict) -> None:
    loop = replace(golden_loop(small_config, sampling_ref_type="first_frame"), sampler=black)
    has_face = loop.playback.track.has_face.copy()
    has_face[[0, 5]] = False
    loop = loop.changed(has_face=has_face)
    for index, picture in enumerate(loop.pictures()):
        assert (picture == loop.frames[index]).all() == (index in (0, 5))
    # the reference is then the first crop that there is
    y1, y2, x1, x2 = loop.playback.track.boxes[1]
    np.testing.assert_array_equal(loop.reference(), loop.frames[1][y1:y2, x1:x2])


@pytest.mark.parametrize(
    ("order", "shots_begin"),
    [("cut", [4]), ("loop", [4, 13, 17, 26]), ("pingpong", [4, 21, 28])],  # 13 frames, of which 4 begins a shot
)
def test_a_shot_begins_where_it_is_played(
    order: str, shots_begin: list[int], small_config: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no batch goes on across it."""
    base = golden_loop(small_config, audio_longer=order)
    n_output = 13 if order == "cut" else 30

    def frames(_video: object, n_source: int, stop: int, _order: str, start: int) -> Iterator[tuple[int, np.ndarray]]:
        sources = (source_index(i, n_source, order) for i in range(start, stop))
        return ((source, base.frames[source]) for source in sources)

    monkeypatch.setattr(playback, "ordered_frames", frames)
    track = replace(base.playback.track, is_cut=np.arange(13) == 4)
    played = Playback(base.playback.video, track, n_output, order)
    assert played.shot_starts == shots_begin
    batches = []

    def note(batch: SampleBatch) -> Crops:
        batches.append([face.index for face in batch.faces])
        return black(batch)

    loop = replace(base, playback=played, sampler=note, mels=np.zeros((30, 80, 16), np.float32))
    items = list(loop.items(batch_size=10))
    assert [item.face.index for item in items if item.face and item.face.is_cut] == shots_begin
    assert all(set(batch[1:]).isdisjoint(shots_begin) for batch in batches)
    assert [index for batch in batches for index in batch] == list(range(n_output))


def test_a_batch_hears_and_sees_what_belongs_to_it(small_config: dict) -> None:
    loop = golden_loop(small_config)
    seen: list[SampleBatch] = []
    list(replace(loop, sampler=lambda batch: seen.append(batch) or black(batch)).items(batch_size=5))
    assert [batch.first for batch in seen] == [0, 5, 10]
    for batch in seen:
        for place, face in enumerate(batch.faces):
            assert face.index == batch.first + place
            y1, y2, x1, x2 = face.box
            assert face.box == tuple(loop.playback.track.boxes[face.index])
            np.testing.assert_array_equal(batch.crops[place], loop.frames[face.index][y1:y2, x1:x2])
            np.testing.assert_array_equal(batch.references[place], batch.crops[place])
            np.testing.assert_array_equal(batch.mels[place], loop.mels[face.index])


def test_no_flag_no_stage() -> None:
    """Only the plain paste, as upstream."""
    stages = build_stages(Options(video_path="v", audio_path="a", model_path="m"), None)
    assert [name for name, _ in stages] == ["paste"]


def test_noise_and_colour_are_mended_before_anything_looks_at_the_crop() -> None:
    options = Options(video_path="v", audio_path="a", model_path="m")
    flags = {"denoise": 0.5, "color_match": "lab", "temporal_smoothing": 0.3, "sharpening_strength": 0.5}
    names = [name for name, _ in build_stages(replace(options, **flags), None)]
    assert names == ["denoise", "colour", "smooth", "sharpen", "paste"]


@dataclass(frozen=True)
class FakeDetector:
    """Finds the same lips, in shares of the crop, in any."""

    lips: np.ndarray

    def lip_landmarks(self, face_crops: list[np.ndarray]) -> list[np.ndarray]:
        return [self.lips * crop.shape[1::-1] for crop in face_crops]


def test_blending_leaves_the_frame_outside_its_mask(small_config: dict) -> None:
    """Before encoding: the upper face always, and with a lip mask all but the mouth."""
    loop = replace(golden_loop(small_config), sampler=black)
    lips = mouth(0.5, 0.75, width=0.3)
    landmarks = np.zeros((len(loop.frames), 68, 2), np.float32)
    for source, (y1, y2, x1, x2) in enumerate(loop.playback.track.boxes):
        landmarks[source, 48:] = (x1, y1) + lips * (x2 - x1, y2 - y1)
    loop = loop.changed(landmarks=landmarks)
    for flags, left, right, top in (
        ({"blur_kernel_size": 10}, 0, 1, 0.5),
        ({"blur_kernel_size": 10, "temporal_smoothing": 0.5, "sharpening_strength": 0.5}, 0, 1, 0.5),
        ({"landmark_mask": True}, 0.28, 0.72, 0.6),
        ({"landmark_mask": True, "blur_kernel_size": 10, "adaptive_mask": True}, 0.26, 0.74, 0.58),
    ):
        stages = build_stages(replace(loop.options, **flags), FakeDetector(lips))  # type: ignore[arg-type]
        for source, picture, (y1, y2, x1, x2) in zip(
            loop.frames, loop.pictures(stages), loop.playback.track.boxes, strict=True
        ):
            changed = (picture != source).any(axis=2)
            rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
            assert y1 + int(top * (y2 - y1)) <= rows.min() < rows.max() < y2
            assert x1 + int(left * (x2 - x1)) <= columns.min() < columns.max() < x1 + right * (x2 - x1)
            assert (picture[y1 + int(0.75 * (y2 - y1)), (x1 + x2) // 2] == 0).all()


def test_super_resolution_comes_first_and_changes_the_lips_alone(small_config: dict) -> None:
    loop = replace(
        golden_loop(small_config),
        sampler=lambda batch: lambda: np.random.default_rng(0).integers(
            0, 256, (len(batch.crops), 64, 64, 3), dtype=np.uint8
        ),
    )
    resolver = LipSuperResolver()
    alone, with_all = (
        build_stages(replace(loop.options, **flags), None, resolver)
        for flags in ({}, {"sharpening_strength": 0.5, "blur_kernel_size": 9})
    )
    assert [name for name, _ in with_all] == ["super-resolution", "sharpen", "paste"]
    enhanced = loop.pictures(alone)
    for plain, picture, (y1, y2, x1, x2) in zip(
        loop.pictures(), enhanced, loop.playback.track.boxes, strict=True
    ):
        difference = np.abs(picture.astype(int) - plain).max(axis=2)
        middle = (slice(y1 + int(0.54 * (y2 - y1)), y2), slice(x1 + int(0.1 * (x2 - x1)), x2 - int(0.1 * (x2 - x1))))
        assert difference[middle].max() > 3
        difference[middle] = 0
        assert difference.max() <= 1  # of rounding once instead of twice
    assert any((a != b).any() for a, b in zip(enhanced, loop.pictures(with_all), strict=True))


# ------------------------------------------------------------------------------------------------ the command line


def test_all_of_upstreams_flags(job: list[str], video: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    frames = result_of([*job, *UPSTREAM_FLAGS], "--stats", str(stats), "--save_orig", "True")
    source = decoded(video)
    assert frames.shape == source.shape
    y1, y2, x1, x2 = voxceleb2_box(224, 224)
    assert np.abs(frames[:, y2 + 4 :].astype(int) - source[:, y2 + 4 :]).max() <= 3
    assert np.abs(frames[:, (y1 + y2) // 2 : y2, x1:x2].astype(int) - source[:, (y1 + y2) // 2 : y2, x1:x2]).mean() > 5
    assert np.abs(decoded(tmp_path / "out folder" / "result_orig.mp4").astype(int) - source).max() <= 3
    said = json.loads(stats.read_text())
    assert said["sound"]["sample_rate"] == 22050
    assert said["frames"] == 12
    assert {"decode", "sample", "paste", "encode"} <= said["ms_per_frame"].keys()
    assert said["options"]["sampling_seed"] == 7
    assert said["peak_memory_mib"]["rss"] > 100


@pytest.mark.parametrize("text", ["true", "1", "Yes", "True"])
def test_booleans(text: str) -> None:
    options, _ = parse_options(["--video_path=v", "--audio_path=a", "--model_path=m", "--use_ddim", text])
    assert options.use_ddim is True


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--use_ddim", "maybe"], "'maybe' is not a truth value"),
        (["--face_detector", "mtcnn"], "choose from sfd, blazeface, yunet, retinaface, dlib"),
        (["--sampling_ref_type", "last"], "choose from gt, first_frame, random"),
        (["--audio_longer", "stretch"], "choose from cut, loop, pingpong"),
        (["--device", "tpu"], "choose from auto, cuda, mps, cpu"),
        (["--crf", "52"], "from 0 to 51"),
        (["--pads", "0,0,0"], "four whole numbers"),
        (["--sampling_batch_size", "0"], "from 1"),
        (["--blur_kernel_size", "2"], "give 3 to 63 pixels, or 0"),
        (["--blur_kernel_size", "64"], "give 3 to 63 pixels, or 0"),
        (["--sharpening_strength", "1.5"], "from 0 to 1"),
        (["--sr_strength", "0.5"], "give --super_resolution True too"),
        (["--super_resolution", "True", "--face_hide_percentage", "0.1"], "give 0.2 or more"),
        (["--super_resolution", "True", "--sr_model", "span_x3"], "choose from realesr-general-wdn-x4v3, span_x2"),
        (["--sharpening_strength", "nan"], "from 0 to 1"),
        (["--mask_expansion", "1"], "from 1.01 to 3"),
        (["--mask_expansion", "1.5"], "--landmark_mask True too"),
        (["--landmark_mask", "True"], "give --is_voxceleb2 False"),
        (["--adaptive_mask", "True"], "give --landmark_mask True"),
        (["--use_ddim", "False", "--flow_guidance", "0.5"], "give --sampler ddim or turbo"),
        (["--flow_guidance", "1.5"], "from 0 to 1"),
        (["--motion_tracking", "True"], "give --is_voxceleb2 False"),
        (["--silence_gate", "1"], "give --is_voxceleb2 False"),
        (["--stable_crop", "True"], "give --is_voxceleb2 False"),
        (["--stable_crop", "True", "--is_voxceleb2", "False"], "give --blur_kernel_size 15 or --landmark_mask"),
        (["--timestep_respacing", "", "--quality_preset", "best"], "choose from turbo, fast, balanced, high, ultra"),
        (["--quality_preset", "fast"], "--quality_preset fast and --timestep_respacing ddim2: each says how"),
        (["--sampling_steps", "4"], "--sampling_steps 4 and --timestep_respacing ddim2: each says how many steps"),
        (["--timestep_respacing", "", "--sampler", "ddpm", "--quality_preset", "turbo"], "contradicts --sampler ddpm"),
        (["--timestep_respacing", "", "--sampler", "turbo", "--sampling_steps", "7"], "turbo has steps of its own"),
        (["--sampler", "euler"], "choose from ddpm, ddim, dpmpp_2m, dpmpp_3m, turbo"),
        (["--timestep_respacing", "logsnr99"], "99 steps spaced in log-SNR do not fit into 1000"),
        (["--timestep_respacing", "ddim999"], "ddim999"),
        (["--image_size", "128"], "--image_size 128 contradicts the configuration in"),
        (["--class_cond", "True"], "class_cond is True; only False is supported"),
        (["--sampling_seed", "x"], "invalid int value: 'x'"),
        (["--no_such_flag", "1"], "unrecognized arguments: --no_such_flag"),
        (["--out_path", "result.gif"], ".mp4"),
        (["--video_path", "nothing.mp4"], "--video_path 'nothing.mp4' does not exist"),
        (["--model_path", "nothing.pt"], "nothing.pt: no such file"),
        (["--generate_from_filelist", "1", "--filelist", "nothing.txt"], "nothing.txt"),
        (["--adaptive_resolution", "1"], "Train one with scripts/train.py --init"),
        (["--model_path_256", "b.pt"], "give --adaptive_resolution True too; for all of them"),
        (["--resolution_threshold", "100"], "chooses between two networks: give --adaptive_resolution True"),
        (["--adaptive_resolution", "1", "--model_path_256", "b.pt"], "--model_path_256 b.pt: no such file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    flags: list[str], words: str, job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*job, *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("notice:")]
    assert len(lines) == 1
    assert lines[0].startswith("generate.py: error: ")
    assert words in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("preset", "steps"), [("fast", 10), ("balanced", 25), ("high", 50), ("ultra", 100)])
def test_a_preset_is_the_flags_that_it_stands_for(preset: str, steps: int) -> None:
    """So that stored samples of one serve the other."""
    paths = ["--video_path=v", "--audio_path=a", "--model_path=m"]
    named, _ = parse_options([*paths, "--quality_preset", preset])
    assert named == parse_options([*paths, "--use_ddim", "True", "--timestep_respacing", f"ddim{steps}"])[0]
    assert named == parse_options([*paths, "--sampler", "ddim", "--sampling_steps", str(steps)])[0]
    assert parse_options([*paths, "--quality_preset", ""])[0] == parse_options(paths)[0]


@pytest.mark.parametrize(
    ("flags", "sampler", "respacing"),
    [
        ([], "ddpm", ""),
        (["--use_ddim", "True"], "ddim", ""),
        (["--sampling_steps", "9"], "ddpm", "9"),
        (["--use_ddim", "True", "--sampler", "dpmpp_2m", "--sampling_steps", "8"], "dpmpp_2m", "logsnr8"),
        (["--sampler", "dpmpp_3m", "--sampling_steps", "6"], "dpmpp_3m", "late6"),
        (["--use_ddim", "True", "--quality_preset", "turbo"], "turbo", ""),
    ],
)
def test_samplers_and_how_they_like_their_steps(flags: list[str], sampler: str, respacing: str) -> None:
    options, _ = parse_options(["--video_path=v", "--audio_path=a", "--model_path=m", *flags])
    assert (options.sampler_name, options.timestep_respacing) == (sampler, respacing)
    assert options.use_ddim == (sampler == "ddim")


def test_a_video_without_a_face(job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*job, "--is_voxceleb2", "False", "--face_detector", "dlib"]) == 2
    assert "é.mp4: no face in any of the 12 frames" in capsys.readouterr().err
    assert not (tmp_path / "out folder").exists()


def test_target_that_is_an_input(job: list[str], video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = video.read_bytes()
    assert main([*job, "--out_path", str(video)]) == 2
    assert "is one of the inputs" in capsys.readouterr().err
    assert video.read_bytes() == before


def test_fixed_crop_of_another_size_warns(
    job: list[str], speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "wide.mp4", np.full((3, 64, 96, 3), 90, np.uint8))
    assert main([*job, "--video_path", str(tmp_path / "wide.mp4")]) == 0
    assert "give --is_voxceleb2 False" in capsys.readouterr().err
    assert speech.exists()


@pytest.mark.parametrize(("mode", "order"), [("loop", [0, 1, 2, 0, 1]), ("pingpong", [0, 1, 2, 1, 0])])
def test_sound_that_outlasts_the_video(
    mode: str, order: list[int], job: list[str], short_speech: Path, tmp_path: Path
) -> None:
    levels = [60, 120, 180]
    clip = write_video(tmp_path / "short.mp4", np.stack([np.full((224, 224, 3), level, np.uint8) for level in levels]))
    sound = ["--audio_path", str(short_speech), "--audio_longer", mode]
    frames = result_of(job, "--video_path", str(clip), *sound)
    # windows of 0.2 s in 0.6 s of sound: see test_audio.py
    assert len(frames) == 12
    corner = frames[:5, -10:, -10:].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(corner, [levels[k] for k in order], atol=2)


def test_a_picture_as_video(job: list[str], short_speech: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "face.png"), np.full((224, 224, 3), 100, np.uint8))
    sound = ["--audio_path", str(short_speech)]
    assert len(result_of(job, "--video_path", str(tmp_path / "face.png"), *sound)) == 12


def test_the_sources_own_rate(job: list[str], tmp_path: Path) -> None:
    clip = write_video(tmp_path / "slow.mp4", np.full((4, 224, 224, 3), 100, np.uint8), fps=10)
    frames = result_of(job, "--video_path", str(clip), "--video_fps", "0")
    assert len(frames) == 4
    with av.open(job[job.index("--out_path") + 1]) as container:
        assert container.streams.video[0].average_rate == 10
        assert container.streams.audio[0].rate == 22050
        assert container.streams.audio[0].channels == 2
    assert len(result_of(job, "--video_path", str(clip))) == 10


def test_the_seed_decides_the_sample(job: list[str], plain: np.ndarray) -> None:
    np.testing.assert_array_equal(result_of(job), plain)
    assert np.abs(result_of(job, "--sampling_seed", "8").astype(int) - plain).max() > 10


def test_ancestral_sampling_with_a_seed_repeats(job: list[str]) -> None:
    flags = ["--use_ddim", "False", "--timestep_respacing", "2"]
    first = result_of(job, *flags)
    np.testing.assert_array_equal(result_of(job, *flags), first)



@pytest.mark.parametrize("reference", ["gt", "first_frame"])
def test_each_shot_has_a_white_balance_that_is_estimated_once_and_so_has_its_reference(reference: str) -> None:
    """The first frame was shown in the second shot's white balance."""
    frames = np.random.default_rng(0).integers(0, 160, (8, 40, 40, 3), dtype=np.uint8)
    frames[:4] = frames[:4] * np.array([1.4, 1, 0.6])
    track = replace(fixed_track(8, (5, 35, 5, 35)), is_cut=np.arange(8) == 4)
    options = Options(video_path="v", audio_path="a", model_path="m", sampling_ref_type=reference)
    seen: list[SampleBatch] = []

    def sampler(batch: SampleBatch) -> Crops:
        seen.append(batch)
        return black(batch)

    balanced = white_balanced(sampler, options, Playback(FakeVideo(frames), track, 8))  # type: ignore[arg-type]
    for first in (0, 2, 4, 6):
        balanced(SampleBatch(first, [], [], [], np.zeros((0, 80, 16))))
    gains = [batch.gains for batch in seen]
    assert gains[0] is gains[1]
    assert gains[2] is gains[3]
    first_shot, second_shot = light_gains(frames[0]), light_gains(frames[4])
    np.testing.assert_array_equal(gains[0], first_shot)
    np.testing.assert_array_equal(gains[2], second_shot)
    assert first_shot[2] > 1.3 * second_shot[2]
    np.testing.assert_array_equal(seen[3].reference_gains, second_shot if reference == "gt" else first_shot)


# Which part of a run each option changes first. Written out: read from the options it would agree with any of them.
AFFECTS = {
    "faces": {
        "video_fps": 30.0, "face_detector": "dlib", "detection_size": 640, "is_voxceleb2": False,
    },
    "sampling": {
        "audio_longer": "loop", "pad_audio": True, "face_index": 0, "pads": "0,10,0,0", "face_hide_percentage": 0.6,
        "sampling_seed": 8, "sampling_batch_size": 3, "sampling_ref_type": "random", "sampling_use_gt_for_ref": True,
        "sampling_input_type": "first_frame", "sampler": "dpmpp_2m", "use_ddim": True, "timestep_respacing": "ddim10",
        "clip_denoised": False, "adaptive_resolution": True, "resolution_threshold": 150.0, "flow_guidance": 0.5,
        "motion_tracking": True, "denoise_audio": "deep", "denoise_strength": 0.7, "compress_audio": True,
        "audio_preset": "enhanced", "mouth_gain": 6.0, "white_balance": True, "retry_flagged": 2,
        "silence_gate": 0.5, "stable_crop": True,
    },
    "nothing stored": {
        "video_path": "copy.mp4", "audio_path": "copy.wav", "model_path": "copy.pt", "model_path_256": "256.pt",
        "out_path": "other.mp4", "save_orig": False, "crf": 20, "x264_preset": "superfast",
        "generate_from_filelist": True, "filelist": "l.txt", "test_video_dir": "folder", "sample_path": "results",
        "sample_partition": "part", "skip_existing": True, "face_det_batch_size": 8, "use_fp16": False, "device": "cpu",
        "engine": "openvino", "precision": "float32", "compile": True, "blur_kernel_size": 15,
        "sharpening_strength": 0.5, "adaptive_mask": True, "mask_expansion": 1.5, "landmark_mask": True,
        "temporal_smoothing": 0.5, "stats": "stats.json", "work_dir": "elsewhere", "super_resolution": True,
        "sr_model": "f", "sr_strength": 0.5, "enhance": True, "color_match": "lab", "denoise": 0.5,
        "dry_run": True, "quality_report": "r.html",
    },
}  # fmt: skip
DRAWN_BY_LANDMARKS = ("landmark_mask", "color_match")
SAMPLED_BY_LANDMARKS = ("flow_guidance", "motion_tracking", "stable_crop", "retry_flagged", "silence_gate")


@dataclass(frozen=True)
class Fingerprint:
    """A detector that is only asked what detections depend on."""

    def fingerprint(self, with_landmarks: bool = False) -> dict[str, str]:
        return {"weights": "1", "landmarks": str(with_landmarks)}


@pytest.fixture
def keyed(video: Path, speech: Path, tmp_path: Path) -> tuple[Job, Options, Tools]:
    for source, name in ((video, "v.mp4"), (speech, "a.wav")):
        (tmp_path / name).write_bytes(source.read_bytes())
    job = Job(str(tmp_path / "v.mp4"), str(tmp_path / "a.wav"), "out.mp4")
    options = Options(video_path="v", audio_path="a", model_path="m", sampling_seed=7, work_dir="work")
    return job, options, Tools(ModelConfig(), black, 10, Fingerprint(), {"weights": "1"}, {"checkpoint": "1"}, Ranks())  # type: ignore[arg-type]


def keys(job: Job, options: Options, tools: Tools) -> tuple[str, str, str]:
    files = work_files(job, options, tools)
    return files.faces.name, files.motion.name, files.samples.name


@pytest.mark.parametrize("name", [f.name for f in fields(Options)])
def test_every_option_changes_the_keys_of_what_depends_on_it(name: str, keyed: tuple[Job, Options, Tools]) -> None:
    job, options, tools = keyed
    (part,) = (part for part, values in AFFECTS.items() if name in values)
    changed = copy(options)
    object.__setattr__(changed, name, AFFECTS[part][name])  # one alone, whatever the rules between options
    assert getattr(options, name) != getattr(changed, name)
    faces, motion, samples = keys(job, options, tools)
    new_faces, new_motion, new_samples = keys(job, changed, tools)
    # landmarks are stored with the faces of other detectors than dlib; a mask's do not change the samples
    by_landmarks = name in (*DRAWN_BY_LANDMARKS, *SAMPLED_BY_LANDMARKS)
    assert (new_faces != faces) == (part == "faces" or by_landmarks)
    assert (new_samples != samples) == (part in ("faces", "sampling"))
    assert (new_motion != motion) == (new_samples != samples)


@pytest.mark.parametrize("name", [*DRAWN_BY_LANDMARKS, *SAMPLED_BY_LANDMARKS])
def test_landmarks_are_in_the_key_of_the_samples_that_they_change(name: str, keyed: tuple[Job, Options, Tools]) -> None:
    class OtherLandmarks(Fingerprint):
        def fingerprint(self, with_landmarks: bool = False) -> dict[str, str]:
            return {"weights": "1", "landmarks": "other" if with_landmarks else "False"}

    job, options, tools = keyed
    object.__setattr__(options, name, True)
    (faces, _, samples), (new_faces, _, new_samples) = (
        keys(job, options, replace(tools, detector=detector)) for detector in (Fingerprint(), OtherLandmarks())
    )
    assert new_faces != faces
    assert (new_samples != samples) == (name in SAMPLED_BY_LANDMARKS)


def test_sound_is_prepared_as_the_options_say(video: Path, speech: Path) -> None:
    job = Job(str(video), str(speech), "out.mp4")
    plain = Options(video_path="v", audio_path="a", model_path="m")
    changed = replace(plain, denoise_audio="spectral", denoise_strength=0.7, compress_audio=True)
    prepare = partial(preprocess, denoise="spectral", strength=0.7, compress=True)
    for options, expected in ((plain, speech_mel(str(speech))), (changed, speech_mel(str(speech), prepare=prepare))):
        clip = generate.open_clip(job, options, DEFAULT)
        assert np.array_equal(clip.mel, expected[0])
    with pytest.raises(InputError, match="give --denoise_audio spectral or deep"):
        replace(plain, denoise_strength=0.7)


def test_every_input_changes_the_keys(keyed: tuple[Job, Options, Tools], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the digest of the sound or of the checkpoint out of the key, old samples came back with new inputs."""
    job, options, tools = keyed
    before = keys(job, options, tools)
    assert keys(job, options, tools) == before
    other_ear = replace(tools, config=replace(tools.config, sample_rate=22050, n_fft=1024, hop_size=256))
    assert work_files(job, options, other_ear).motion != work_files(job, options, tools).motion
    other_weights = replace(tools, sampler_key={"checkpoint": "2"})
    assert differing(keys(job, options, other_weights), before) == [False, False, True]
    other_detector = replace(tools, face_key={"weights": "2"})
    assert differing(keys(job, options, other_detector), before) == [True, True, True]
    for path, same_faces in ((job.audio_path, True), (job.video_path, False)):
        content = Path(path).read_bytes()
        Path(path).write_bytes(content + b"x")
        assert differing(keys(job, options, tools), before) == [not same_faces, True, True]
        Path(path).write_bytes(content)
    monkeypatch.setattr(generate, "versions", lambda: {"opencv-python": "0"})
    assert differing(keys(job, options, tools), before) == [True, True, True]


@pytest.mark.parametrize("denoise", DENOISER_WEIGHTS)
def test_a_denoisers_weights_are_in_the_key_of_the_samples(
    denoise: str, keyed: tuple[Job, Options, Tools], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --work_dir, samples of a former network came back with a new one."""
    job, options, tools = keyed
    options = replace(options, denoise_audio=denoise)
    before = keys(job, options, tools)
    (tmp_path / "other").write_bytes(b"")
    for number in range(len(DENOISER_WEIGHTS[denoise])):
        others = list(DENOISER_WEIGHTS[denoise])
        others[number] = tmp_path / "other"
        monkeypatch.setitem(DENOISER_WEIGHTS, denoise, others)
        assert differing(keys(job, options, tools), before) == [False, False, True]
        monkeypatch.undo()
    assert [path.name for path in DENOISER_WEIGHTS["deep"]] == ["noise_meter.safetensors", "speech_refiner.safetensors"]


def differing(keys: Sequence[str], others: Sequence[str]) -> list[bool]:
    return [key != other for key, other in zip(keys, others, strict=True)]


def test_what_goes_wrong_with_the_sound_afterwards_costs_nothing(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file missing in an installed package turned a finished job into a failed one, without --stats."""

    def fail(_path: str) -> None:
        raise FileNotFoundError("silero_vad_16k.safetensors")

    monkeypatch.setattr(generate, "assess", fail)
    result_of(job, "--stats", str(tmp_path / "stats.json"))
    assert json.loads((tmp_path / "stats.json").read_text())["sound"] == {
        "not_measured": "silero_vad_16k.safetensors"
    }


def test_sound_that_is_cut_off_is_said(
    job: list[str], short_speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = [*job, "--audio_path", str(short_speech)]
    clip = write_video(tmp_path / "short.mp4", np.full((3, 224, 224, 3), 90, np.uint8))
    result_of(job, "--video_path", str(clip))
    assert "0.4 s of it are cut off; with --audio_longer pingpong" in capsys.readouterr().err
    result_of(job, "--video_path", str(clip), "--audio_longer", "pingpong")
    assert "cut off" not in capsys.readouterr().err


def test_the_result_can_last_as_long_as_the_sound(job: list[str], short_speech: Path) -> None:
    flags = ["--audio_path", str(short_speech), "--audio_longer", "loop"]
    assert len(result_of(job, *flags)) == 12
    assert len(result_of(job, *flags, "--pad_audio", "True")) == 15


def test_the_network_hears_its_own_front_end_or_the_enhanced_one_mapped_to_it(speech: Path, video: Path) -> None:
    def heard(hparams: HParams, preset: str) -> np.ndarray:
        options = Options(video_path="v", audio_path="a", model_path="m", audio_preset=preset)
        return open_clip(Job(str(video), str(speech), "out.mp4"), options, hparams).mel_window(5)

    assert heard(ENHANCED_AUDIO_CONFIG, "enhanced").shape == (128, 18)
    plain, standard, mapped = (heard(DEFAULT, preset) for preset in ("", "standard", "enhanced"))
    assert np.array_equal(plain, standard)
    assert mapped.shape == plain.shape
    assert 0 < np.abs(mapped - plain).mean() < 0.5


def test_the_network_hears_the_speech_louder(speech: Path, video: Path) -> None:
    def heard(**given: float) -> np.ndarray:
        options = Options(video_path="v", audio_path="a", model_path="m", **given)  # type: ignore[arg-type]
        return open_clip(Job(str(video), str(speech), "out.mp4"), options, DEFAULT).mel_window(5)

    assert np.array_equal(heard(mouth_gain=6), louder(heard(), 6))


def test_a_full_disk_is_said_in_one_line(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "result.mp4")

    monkeypatch.setattr(generate.VideoWriter, "write", full)
    assert main(job) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("No space left on device: 'result.mp4'")
    assert list((tmp_path / "out folder").iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_a_run_that_ends_well_interrupts_no_thread(job: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise AssertionError("interrupted")

    monkeypatch.setattr(streams._Puller, "stop", fail)
    assert len(result_of(job)) == 12


# ---------------------------------------------------------------------------------------------------- from end to end


def test_command_line_on_a_real_face(speech: Path, checkpoint: Path, tmp_path: Path) -> None:
    """NASA's public-domain portrait, the dlib detector, the program as users start it."""
    from skimage import data

    clip = write_video(tmp_path / "astronaut.mp4", np.stack([np.roll(data.astronaut(), k, axis=1) for k in range(8)]))
    out_path = tmp_path / "out.mp4"
    done = subprocess.run(
        [sys.executable, str(ROOT / "generate.py"), "--video_path", str(clip), "--audio_path", str(speech),
         "--model_path", str(checkpoint), "--out_path", str(out_path), "--is_voxceleb2", "False",
         "--face_detector", "dlib", "--use_ddim", "True", "--timestep_respacing", "ddim2", "--sampling_seed", "7"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "8 frames" in done.stdout
    frames, source = decoded(out_path).astype(int), decoded(clip).astype(int)
    changed = np.abs(frames - source).mean(axis=(0, 3)) > 12
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    # the face lies at rows 60-190, columns 170-275
    assert 40 < rows.min() < rows.max() < 210
    assert 150 < columns.min() < columns.max() < 300


def test_lip_mask_on_a_real_face(speech: Path, checkpoint: Path, tmp_path: Path) -> None:
    """With everything on, compositing anew from stored samples: what changes is the mouth."""
    from skimage import data

    clip = write_video(tmp_path / "astronaut.mp4", np.stack([data.astronaut()] * 6), crf=0)
    flags = [
        "--video_path", str(clip), "--audio_path", str(speech), "--model_path", str(checkpoint), "--out_path",
        str(tmp_path / "out.mp4"), "--is_voxceleb2", "False", "--face_detector", "dlib", "--use_ddim", "True",
        "--timestep_respacing", "ddim2", "--sampling_seed", "7", "--crf", "0", "--work_dir", str(tmp_path / "work"),
        "--blur_kernel_size", "10", "--sharpening_strength", "0.5",
    ]  # fmt: skip
    changes = []
    for more in ([], ["--landmark_mask", "True"], ["--landmark_mask", "True", "--adaptive_mask", "True"]):
        result = result_of([*flags, *more]).astype(int)
        changed = np.abs(result - decoded(tmp_path / "out_orig.mp4")).max(axis=(0, 3)) > 0
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        changes.append((changed.sum(), rows.min(), rows.max(), columns.min(), columns.max()))
    (whole, top, bottom, left, right), *of_lips = changes
    assert 115 < top < bottom < 190
    for size, its_top, its_bottom, its_left, its_right in of_lips:
        assert size < 0.7 * whole
        assert top <= its_top < its_bottom < bottom
        assert left < its_left < its_right < right
    assert of_lips[0][0] < of_lips[1][0]
    assert len(list((tmp_path / "work").glob("samples-*"))) == 1
    steady = result_of([*flags, "--landmark_mask", "True", "--adaptive_mask", "True", "--stable_crop", "True"])
    assert np.abs(steady - result).max() <= 6  # in a still picture the box stands still anyway
    assert len(list((tmp_path / "work").glob("samples-*"))) == 2


def test_the_mouth_rests_in_silence_and_speaks_as_before_elsewhere(
    speech: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a batch is made again. The weights are random: they paint no mouth, the picture at rest does."""
    pytest.importorskip("silero_vad")
    from skimage import data

    silent = np.float32([0] * 5 + [0.5, 1, 1])
    monkeypatch.setattr(generate, "rest_shares", lambda _speech, n_frames, *_: np.resize(silent, n_frames))
    clip = write_video(tmp_path / "astronaut.mp4", np.stack([data.astronaut()] * 8), crf=0)
    flags = [
        "--video_path", str(clip), "--audio_path", str(speech), "--model_path", str(checkpoint), "--out_path",
        str(tmp_path / "out.mp4"), "--is_voxceleb2", "False", "--face_detector", "dlib", "--sampler", "ddim",
        "--sampling_steps", "2", "--sampling_seed", "7", "--crf", "0", "--work_dir", str(tmp_path / "work"),
        "--sampling_batch_size", "1",
    ]  # fmt: skip
    speaking, source = (result_of(flags), decoded(tmp_path / "out_orig.mp4").astype(int))
    before = set((tmp_path / "work").glob("samples-*/*"))
    rested = result_of([*flags, "--silence_gate", "1"])
    np.testing.assert_array_equal(rested[:5], speaking[:5])
    mouth = np.s_[:, 150:170, 210:240]
    apart = [np.abs(result[mouth] - source[mouth]).mean(axis=(1, 2, 3)) for result in (speaking, rested)]
    assert (apart[1][6:] < 0.5 * apart[0][6:]).all()
    assert (np.diff(apart[1][4:7]) < 0).all()
    made_again = next(path for path in (tmp_path / "work").glob("samples-*/000005.npy") if path not in before)
    made_again.unlink()
    np.testing.assert_array_equal(result_of([*flags, "--silence_gate", "1"]), rested)


def test_input_errors_are_of_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise InputError("what was given; what is allowed")

    monkeypatch.setattr(generate, "parse_options", fail)
    assert main([]) == 2
    assert capsys.readouterr().err == "generate.py: error: what was given; what is allowed\n"


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs ../shared/clips")
def test_half_a_second_of_a_real_clip(checkpoint: Path, short_speech: Path, tmp_path: Path) -> None:
    """A vertical 1080 x 1920 clip with a small face."""
    out_path = tmp_path / "out.mp4"
    assert main([
        "--video_path", str(CLIPS / "portrait_1080x1920_25fps.mp4"), "--audio_path", str(short_speech), "--out_path",
        str(out_path), "--model_path", str(checkpoint), "--is_voxceleb2", "False", "--face_detector", "dlib",
        "--use_ddim", "True", "--timestep_respacing", "ddim2", "--sampling_seed", "7", "--save_orig", "False",
    ]) == 0  # fmt: skip
    with av.open(str(out_path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (1080, 1920, 12)
