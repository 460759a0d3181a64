"""A plan before the work: frames here and there, what a run would cost, and what is said of it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_video
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from face_detection.api import Detection
from generate import main
from guided_diffusion import dry_run
from guided_diffusion.color_util import light_gains
from guided_diffusion.dry_run import Unfinished, Work, impatient, look, places, scene_changes, sheet_path
from guided_diffusion.jobs import Job
from guided_diffusion.options import Options
from guided_diffusion.plan import X264_DELAY, Cost, Plan, Seen, advice, estimate_seconds, plan_lines
from guided_diffusion.sampling import SampleBatch
from guided_diffusion.script_util import create_gaussian_diffusion, model_config
from guided_diffusion.streams import Face, Item
from guided_diffusion.video_util import open_video

OPTIONS = Options(video_path="v", audio_path="a", model_path="m", sampling_seed=7, is_voxceleb2=False)
FACE = (100, 200, 300, 400)


@given(st.integers(1, 300), st.integers(1, 300))
def test_places_are_spread_however_few_are_taken(n: int, count: int) -> None:
    assert sorted(places(n)) == list(range(n))
    taken = sorted(islice(places(n), count))
    assert max(np.diff([*taken, n])) <= 2 * n / len(taken) + 1


class Finder:
    """A detector that finds a face where the picture is bright."""

    def __init__(self) -> None:
        self.n_images = 0

    def detect(self, images: list[np.ndarray], with_landmarks: bool = False) -> list[list[Detection]]:  # noqa: ARG002
        self.n_images += len(images)
        return [[Detection((30, 20, 90, 90), 1.0, None)] if image.mean() > 100 else [] for image in images]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, a face in the last third, and a keyframe at every twelfth only."""
    frames = np.zeros((60, 120, 120, 3), np.uint8)
    frames[40:] = np.random.default_rng(0).integers(100, 256, (120, 120, 3))
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames)


def test_the_whole_video_is_looked_at_in_few_frames(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at the first frames alone says nothing of a face that comes later."""
    monkeypatch.setattr(dry_run, "MOST_LOOKS", 16)
    finder = Finder()
    looks = look(open_video(str(clip)), 60, finder)  # type: ignore[arg-type]
    indices = [each.index for each in looks]
    assert finder.n_images == len(looks) <= 16
    assert indices == sorted(set(indices))
    assert max(np.diff([*indices, 60])) <= 10
    assert [bool(each.faces) for each in looks] == [index >= 40 for index in indices]
    (cut,) = scene_changes(looks)
    assert cut == min(index for index in indices if index >= 40)


def test_without_time_one_frame_is_looked_at(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "LOOK_SECONDS", -1.0)
    assert len(look(open_video(str(clip)), 60, None)) == 1


def test_a_sample_that_takes_long_is_broken_off_with_what_there_is(
    small_config: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusion = create_gaussian_diffusion(model_config(small_config, "test"), "ddim5")
    face = Face(0, (0, 8, 0, 8))
    batch = SampleBatch(0, [face], [], [], np.zeros((1, 80, 16), np.float32))
    image, mask, x_0 = torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8), torch.full((1, 3, 8, 8), 0.5)
    double = impatient(lambda *_: lambda _step, x: 2 * x, diffusion)
    assert torch.equal(double(batch, image, mask)(0, x_0), 2 * x_0)
    monkeypatch.setattr(dry_run, "SAMPLE_SECONDS", -1.0)
    with pytest.raises(Unfinished) as broken:
        impatient(None, diffusion)(batch, image, mask)(1, x_0)
    assert (broken.value.steps, broken.value.of_steps) == (2, 5)
    assert set(broken.value.crops.flat) == {191}
    assert impatient(None, diffusion)(batch, image, mask)(4, x_0) is x_0  # the last step, which is the end anyway
    whole_batch = replace(batch, faces=[face, face])
    assert impatient(None, diffusion)(whole_batch, image, mask)(1, x_0) is x_0


class Recorder:
    """A sampler that keeps its batches and paints grey."""

    def __init__(self) -> None:
        self.batches: list[SampleBatch] = []

    def __call__(self, batch: SampleBatch) -> Callable[[], np.ndarray]:
        self.batches.append(batch)
        return lambda: np.full((len(batch.faces), 8, 8, 3), 127, np.uint8)


def work_on(path: Path, small_config: dict, **changes: object) -> Work:
    """A job with a detector that always finds the face, a little further down in each frame."""
    found = iter(range(100))

    def detect(images: list[np.ndarray], with_landmarks: bool = False) -> list[list[Detection]]:  # noqa: ARG001
        starts = [(30, 20 + next(found) * 3) for _ in images]
        return [[Detection((x, y, x + 60, y + 60), 1.0, None)] for x, y in starts]

    tools = SimpleNamespace(
        config=model_config(small_config, "test"), sampler=Recorder(), batch_size=2, larger=None,
        detector=SimpleNamespace(detect=detect),
    )  # fmt: skip
    clip = SimpleNamespace(video=open_video(str(path)), mel_window=lambda _frame: np.zeros((80, 16), np.float32))
    options = replace(OPTIONS, sampling_ref_type="first_frame", **changes)
    return Work(Job("v", "a", "o.mp4"), options, clip, tools, [], 0.0)  # type: ignore[arg-type]


def excerpt_of(work: Work) -> list[Item]:
    place = np.array([20, 80, 30, 90])
    return dry_run.excerpt(work, 40, plan(n_source=60), place, {})


def test_the_preview_has_steady_crops_where_they_are_asked_for(clip: Path, small_config: dict) -> None:
    """They were left out of it, without a word."""
    plain, stable = (
        [item.face for item in excerpt_of(work_on(clip, small_config, stable_crop=is_stable, blur_kernel_size=15))]
        for is_stable in (False, True)
    )
    assert all(face is not None and face.placement is None for face in plain)
    assert all(face is not None and face.placement is not None for face in stable)
    tops = [face.box[0] for face in stable if face is not None]
    assert set(np.diff(tops)) == {3}  # an even movement stays as it is: nothing else has smoothed it before


def test_the_preview_is_made_in_white_light_where_that_is_asked_for(clip: Path, small_config: dict) -> None:
    for is_asked in (False, True):
        work = work_on(clip, small_config, white_balance=is_asked)
        items = excerpt_of(work)
        dry_run.finish(work, items, {})
        recorder = work.tools.sampler
        assert isinstance(recorder, Recorder)
        expected = light_gains(items[0].frame) if is_asked else None
        for batch in recorder.batches:
            np.testing.assert_array_equal(batch.gains, expected)


def test_a_person_is_told_by_the_frames_that_were_looked_at(
    clip: Path, small_config: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was decoded once more for it, in a file without an index from the beginning, and all that untimed."""
    work = work_on(clip, small_config, face_index=0)
    described: list[float] = []

    def describe(image: np.ndarray, face: Detection) -> np.ndarray:  # noqa: ARG001
        described.append(float(image.mean()))
        return np.zeros(128)

    monkeypatch.setattr(dry_run, "MOST_LOOKS", 16)
    looks = look(work.clip.video, 60, Finder(), describe)  # type: ignore[arg-type]
    assert len(described) == sum(len(each.faces) for each in looks) > 1
    assert min(described) > 100
    monkeypatch.setattr(type(work.clip.video), "frames", None)
    assert dry_run.follow(looks, work).has_face.tolist() == [bool(each.faces) for each in looks]


def test_who_is_nobody_is_not_described() -> None:
    assert dry_run.describe_for(OPTIONS) is None
    assert dry_run.describe_for(replace(OPTIONS, face_index=1, is_voxceleb2=True)) is None


# ---------------------------------------------------------------------------------------------------- time and words


def test_the_slowest_part_makes_the_time() -> None:
    costs = {"decode": Cost(0.01, 0.01), "detect": Cost(0.02, 0.02), "sample": Cost(1.0, 1.0), "encode": Cost(0.1, 0.2)}
    many = estimate_seconds(costs, 1000, 1000, batch_size=10, cores=2, sound=5)
    assert many == pytest.approx(5 + 1000 * 0.03 + 1000 * 1.0 + 10 * 0.01 + X264_DELAY * 0.1)
    few = estimate_seconds(costs, 20, 20, batch_size=10, cores=2, sound=0)
    assert few == pytest.approx(20 * 0.03 + 20 + 0.1 + 20 * 0.1)  # all are encoded when all are sampled
    on_one_core = estimate_seconds({**costs, "encode": Cost(0.9, 0.9)}, 1000, 1000, 10, cores=1, sound=0)
    assert on_one_core == pytest.approx(30 + 1000 * (0.01 + 1.0 + 0.9))
    with_motion = estimate_seconds({**costs, "motion": Cost(0.05, 0.05)}, 1000, 1000, 10, 2, 5)
    assert with_motion == pytest.approx(many + 1000 * 0.06)
    encoded = {**costs, "encode": Cost(0.6, 0.6), "report": Cost(0.5, 0.5)}
    reported = estimate_seconds(encoded, 1000, 1000, batch_size=10, cores=8, sound=0)
    assert reported == pytest.approx(30 + 1000 * (0.6 + 0.5) + 10 * 0.01 + 10 * 1.0)  # one thread does both


def plan(**changes: object) -> Plan:
    whole = Plan(
        "v.mp4", "a.wav", "o.mp4", width=640, height=480, source_fps=25, fps=25, n_source=100, n_output=100,
        n_windows=100, sound_seconds=4.2, image_size=96, seen=[Seen(i, 1, FACE) for i in (0, 50)], shot_starts=[],
        sound=["good: nothing here should do the lips much harm"], steps=25,
    )  # fmt: skip
    return replace(whole, **changes)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"seen": [Seen(0, 0, None)]}, {}, "no face in any of the 1 frames looked at: another --face_detector"),
        ({"seen": [Seen(0, 0, None), Seen(9, 1, None)]}, {}, "faces in 1 of the 2 .*mouth outside the picture"),
        ({"seen": [Seen(0, 1, FACE), Seen(9, 1, None)]}, {}, "no face to follow in 50 %"),
        ({"seen": [Seen(0, 0, None)], "width": 3840}, {}, "--detection_size 1440, or another --face_detector"),
        ({"seen": [Seen(0, 1, FACE), Seen(9, 0, None)]}, {}, "no face in 50 %"),
        ({"seen": [Seen(0, 3, FACE)]}, {}, "up to 3 faces at once, .* --face_index 0 to 2"),
        ({"seen": [Seen(0, 0, None), Seen(5, 2, None)]}, {"face_index": 2}, r"frame 5\) has 2: --face_index 0 to 1"),
        ({"seen": [Seen(0, 1, None)]}, {"face_index": 1}, r"^--face_index 1: .* has 1: --face_index 0, or -1 for"),
        ({"image_size": 64}, {}, "100 px wide, the network paints 64: --super_resolution True"),
        ({"image_size": 256}, {}, "only 100 px wide"),
        ({"n_windows": 150}, {}, "2.0 s are cut off: --audio_longer pingpong"),
        ({"source_fps": 30.0}, {}, "30 frames/s become 25, .* --video_fps 0"),
        ({"sound": ["noise: --denoise_audio deep"]}, {}, "sound: noise: --denoise_audio deep"),
        ({"steps": 1000}, {}, "1000 steps .* --quality_preset turbo"),
        ({}, {"sampling_seed": None}, "--sampling_seed 7"),
        ({}, {"is_voxceleb2": True}, "--is_voxceleb2 False"),
    ],
)
def test_each_trouble_is_said_with_the_flag_that_helps(changes: dict, options: dict, words: str) -> None:
    assert advice(plan(), OPTIONS) == []
    (said,) = advice(plan(**changes), replace(OPTIONS, **options))
    assert re.search(words, said)


def test_what_is_asked_for_is_not_advised() -> None:
    assert advice(plan(seen=[Seen(0, 2, FACE)]), replace(OPTIONS, face_index=1)) == []
    assert advice(plan(image_size=64), replace(OPTIONS, super_resolution=True)) == []
    assert advice(plan(width=224, height=224), replace(OPTIONS, is_voxceleb2=True)) == []
    assert "--device cuda" in advice(plan(), OPTIONS, gpu_is_idle=True)[0]


def test_the_plan_in_lines() -> None:
    repeated = plan(n_output=200, n_windows=200, shot_starts=[50], seconds=3000.0, steps_of_preview=3)
    lines = "\n".join(plan_lines(repeated, []))
    assert "00:00:08:00: the video is repeated until the sound ends" in lines
    assert "at least 2 scenes; another one by 00:00:02:00" in lines
    assert "about 50 min" in lines
    assert "after 3 of 25 steps" in lines
    assert "advice:  none" in lines


# ------------------------------------------------------------------------------------------------------ the program


def test_a_dry_run_writes_the_sheet_alone(
    video: Path, speech: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = tmp_path / "stats.json"
    arguments = [
        "--video_path", str(video), "--audio_path", str(speech), "--model_path", str(checkpoint),
        "--out_path", str(tmp_path / "new" / "result.mp4"), "--timestep_respacing", "ddim2", "--use_ddim", "True",
        "--sampling_seed", "7", "--device", "cpu", "--sampling_batch_size", "1", "--dry_run", "True",
        "--stats", str(stats), "--quality_report", str(tmp_path / "new" / "r.html"),
    ]  # fmt: skip
    assert main(arguments) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result_plan.png"]
    with Image.open(tmp_path / "new" / "result_plan.png") as sheet:
        assert sheet.width == dry_run.SHEET_WIDTH
    said = capsys.readouterr().out
    for words in ("about 12 frames", "not looked for", "time     about", "0.4 s are cut off", "memory   about"):
        assert words in said
    written = json.loads(stats.read_text())
    assert set(written["costs"]) == {"decode", "sample", "stages", "encode", "report"}
    assert written["seconds"] > 0
    assert written["n_output"] == 12


def test_a_video_without_a_face_has_a_plan_that_says_so(
    clip: Path, speech: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dlib")
    arguments = [
        "--video_path", str(clip), "--audio_path", str(speech), "--model_path", str(checkpoint), "--out_path",
        str(tmp_path / "r.mp4"), "--is_voxceleb2", "False", "--face_detector", "dlib", "--dry_run", "True",
        "--quality_preset", "turbo", "--device", "cpu",
    ]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "no face in any of the" in said
    assert "--sampling_seed 7" in said
    assert "time" not in said.split("advice")[0].replace("timecode", "")


def test_the_sheet_of_the_longest_name_has_a_shorter_one(tmp_path: Path) -> None:
    """A plan was refused for a name that a result may have."""
    assert sheet_path(str(tmp_path / "new" / "r.mp4")) == tmp_path / "new" / "r_plan.png"
    for stem in ("x" * 251, "é" * 125):
        name = sheet_path(str(tmp_path / f"{stem}.mp4")).name
        assert 254 <= len(name.encode()) <= 255
        assert stem.startswith(name.rsplit("_", 2)[0])


def test_long_names_of_a_list_that_end_differently_have_sheets_of_their_own(tmp_path: Path) -> None:
    names = {sheet_path(str(tmp_path / f"{'x' * 250}{end}.mp4")).name for end in "ab"}
    assert len(names) == 2


def test_a_sheet_that_cannot_be_written_costs_no_plan(
    video: Path, speech: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r_plan.png").mkdir()
    arguments = [
        "--video_path", str(video), "--audio_path", str(speech), "--model_path", str(checkpoint), "--out_path",
        str(tmp_path / "r.mp4"), "--timestep_respacing", "ddim2", "--use_ddim", "True", "--sampling_batch_size", "1",
        "--device", "cpu", "--dry_run", "True", "--stats", str(tmp_path / "stats.json"),
    ]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "time     about" in said.out
    assert "notice: the sheet could not be written: " in said.err
    assert json.loads((tmp_path / "stats.json").read_text())["sheet"] == ""


def test_each_line_of_a_list_has_its_plan(
    video: Path, speech: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v.mp4").write_bytes(video.read_bytes())
    (tmp_path / "a.wav").write_bytes(speech.read_bytes())
    (tmp_path / "list.txt").write_text("a.wav v.mp4\nnone v.mp4\n")
    arguments = [
        "--generate_from_filelist", "True", "--filelist", str(tmp_path / "list.txt"), "--test_video_dir", str(tmp_path),
        "--sample_path", str(tmp_path / "out"), "--model_path", str(checkpoint), "--dry_run", "True", "--device", "cpu",
        "--timestep_respacing", "ddim2", "--use_ddim", "True",
    ]  # fmt: skip
    assert main(arguments) == 1  # the second line's sound is not there
    assert "2 lines: 1 planned, 0 existed, 1 failed" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.wav_v.mp4_plan.png"]


def test_a_preview_that_takes_long_is_shown_unfinished(
    video: Path, speech: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """All 1000 steps, as upstream: the plan ended in a KeyError."""
    monkeypatch.setattr(dry_run, "SAMPLE_SECONDS", 0.05)
    arguments = [
        "--video_path", str(video), "--audio_path", str(speech), "--model_path", str(checkpoint), "--device", "cpu",
        "--out_path", str(tmp_path / "r.mp4"), "--dry_run", "True", "--stats", str(tmp_path / "stats.json"),
    ]  # fmt: skip
    assert main(arguments) == 0
    assert re.search(r"preview  after \d+ of 1000 steps", capsys.readouterr().out)
    plan = json.loads((tmp_path / "stats.json").read_text())
    assert plan["costs"]["sample"]["wall"] > 0.05 * 1000 / plan["steps_of_preview"]
    assert any("1000 steps" in line for line in plan["advice"])
