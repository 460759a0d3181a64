"""What is stored and continued: lists, two processes, stored samples and faces, a run that is killed."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import black, decoded, result_of, write_video

import generate
from audio.hparams import DEFAULT
from face_detection.api import Detection
from face_detection.tracks import voxceleb2_box
from face_detection.video_faces import VideoFaces
from generate import Clip, Tools, WorkFiles, find_track, main
from guided_diffusion.dist_util import Ranks
from guided_diffusion.logger import Timings
from guided_diffusion.options import Options
from guided_diffusion.sampling import Crops, DiffusionSampler, SampleBatch
from guided_diffusion.script_util import ModelConfig
from guided_diffusion.streams import Box
from guided_diffusion.video_util import open_video

ROOT = Path(__file__).parent.parent


@pytest.fixture
def filelist(job: list[str], plain_path: Path, video: Path, speech: Path, tmp_path: Path) -> list[str]:
    """Three lines: names without .mp4, a missing video, a sound file by its full name."""
    folder = tmp_path / "test videos"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.mp4").write_bytes(video.read_bytes())
    (folder / "b.mp4").write_bytes(plain_path.read_bytes())
    (folder / "c d.wav").write_bytes(speech.read_bytes())
    (tmp_path / "list.txt").write_text("b sub/a\n\nb missing\nc d.wav\tsub/a\n")
    return [
        *job, "--generate_from_filelist", "True", "--filelist", str(tmp_path / "list.txt"),
        "--test_video_dir", str(folder), "--sample_path", str(tmp_path / "results"),
    ]  # fmt: skip


RESULTS = ["b_sub.a.mp4", "c d.wav_sub.a.mp4"]


def test_filelist_reports_a_bad_line_and_goes_on(
    filelist: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(filelist) == 1
    said = capsys.readouterr()
    assert "3 lines: 2 made, 0 existed, 1 failed" in said.out
    assert "missing.mp4' does not exist" in said.err
    results = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert results == RESULTS
    before = {name: (tmp_path / "results" / name).stat().st_mtime_ns for name in RESULTS}
    assert main([*filelist, "--skip_existing", "True"]) == 1
    assert "0 made, 2 existed, 1 failed" in capsys.readouterr().out
    assert before == {name: (tmp_path / "results" / name).stat().st_mtime_ns for name in RESULTS}


def run_ranks(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(ROOT / "generate.py"), *arguments],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_two_ranks_take_lines_in_turn(filelist: list[str], tmp_path: Path) -> None:
    done = run_ranks(filelist)
    assert "3 lines: 2 made, 0 existed, 1 failed" in done.stdout
    assert done.returncode == 1
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == RESULTS


def test_two_ranks_share_one_video(job: list[str], plain: np.ndarray, tmp_path: Path) -> None:
    work_dir = ["--work_dir", str(tmp_path / "work")]
    done = run_ranks([*job, *work_dir])
    assert done.returncode == 0, done.stderr
    out_path = Path(job[job.index("--out_path") + 1])
    np.testing.assert_array_equal(decoded(out_path), plain)


def count_samples(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches that are sampled from here on, by their first frames."""
    numbers: list[int] = []
    plain = DiffusionSampler.__call__

    def counting(self: DiffusionSampler, batch: SampleBatch) -> Crops:
        numbers.append(batch.first)
        return plain(self, batch)

    monkeypatch.setattr(DiffusionSampler, "__call__", counting)
    return numbers


def test_stored_samples_are_composited_again(
    job: list[str], plain: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = count_samples(monkeypatch)
    stored = [*job, "--work_dir", str(tmp_path / "work")]
    np.testing.assert_array_equal(result_of(stored), plain)
    assert sampled == [0, 5, 10]
    np.testing.assert_array_equal(result_of(stored), plain)
    assert sampled == [0, 5, 10]
    result_of(stored, "--crf", "30")
    assert sampled == [0, 5, 10]
    blended = result_of(stored, "--blur_kernel_size", "10", "--sharpening_strength", "0.5")
    assert sampled == [0, 5, 10]
    assert np.abs(blended.astype(int) - plain).max() > 10
    np.testing.assert_array_equal(result_of(stored), plain)
    # a lost batch is made again, alone
    (lost,) = (tmp_path / "work").glob("samples-*/000005.npy")
    lost.unlink()
    np.testing.assert_array_equal(result_of(stored), plain)
    assert sampled == [0, 5, 10, 5]
    assert len(list((tmp_path / "work").glob("samples-*"))) == 1
    # anything that changes the samples makes them anew, under another key
    result_of(stored, "--sampling_seed", "8")
    assert len(list((tmp_path / "work").glob("samples-*"))) == 2


def test_guidance_by_the_flow_knows_no_batches(job: list[str], tmp_path: Path) -> None:
    """A head that moves by a pixel per frame: whatever the batches, and when one of them is made again."""
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8), (0, 0), 2)
    clip = write_video(tmp_path / "moving.mp4", np.stack([np.roll(picture, k, axis=1) for k in range(8)]))
    job = [*job, "--video_path", str(clip)]
    guided = [*job, "--flow_guidance", "1", "--work_dir", str(tmp_path / "work")]
    batches_of_five = result_of(guided)
    assert np.abs(result_of(job).astype(int) - batches_of_five).max() > 10
    one_batch = result_of(guided, "--sampling_batch_size", "3").astype(int)
    assert np.abs(one_batch - batches_of_five).max() <= 3
    (lost,) = (tmp_path / "work").glob("samples-*/000005.npy")
    lost.unlink()
    np.testing.assert_array_equal(result_of(guided), batches_of_five)

@dataclass(frozen=True)
class Detector:
    """Sees one face, whose landmarks shake by a pixel, and counts the frames that it looks at."""

    seen: list[int]

    def detect(self, images: list[np.ndarray], with_landmarks: bool) -> list[list[Detection]]:
        assert with_landmarks
        found = []
        for _ in images:
            landmarks = np.full((68, 2), 60 + len(self.seen) % 2, np.float32)
            self.seen.append(1)
            found.append([Detection((20.0, 20.0, 100.0, 100.0), 1.0, landmarks)])
        return found


def test_faces_of_a_longer_speech_continue_those_of_a_shorter_one(video: Path, tmp_path: Path) -> None:
    """And landmarks are steadied for the mask, but not stored so."""
    options = Options(
        video_path="v", audio_path="a", model_path="m", sampling_seed=7, is_voxceleb2=False, landmark_mask=True
    )
    detector = Detector([])
    tools = Tools(ModelConfig(), black, 10, detector, {}, {}, Ranks())  # type: ignore[arg-type]
    files = WorkFiles(tmp_path / "faces.npz", tmp_path / "motion.npy", tmp_path / "samples")
    source = open_video(str(video))
    for n_windows, looked_at in ((5, 5), (4, 5), (9, 9), (30, 12), (40, 12)):
        clip = Clip(source, np.zeros((80, 400), np.float32), DEFAULT, Fraction(2), n_windows)
        track = find_track(clip, options, tools, files, Ranks(), Timings())
        assert len(track.boxes) == min(n_windows, 12)
        assert len(detector.seen) == looked_at
        assert track.landmarks is not None
        np.testing.assert_allclose(track.landmarks[2:-2], 60.5)
    stored = VideoFaces.load(files.faces)
    assert {float(faces[0].landmarks[0, 0]) for faces in stored.faces} == {60.0, 61.0}  # type: ignore[index]


def test_the_heads_movement_is_looked_for_when_asked_for_and_once(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(video_path="v", audio_path="a", model_path="m")
    tools = Tools(ModelConfig(), black, 10, None, {}, {}, Ranks())
    files = WorkFiles(tmp_path / "faces.npz", tmp_path / "motion.npy", tmp_path / "samples")
    clip = Clip(open_video(str(video)), np.zeros((80, 400), np.float32), DEFAULT, Fraction(2), 9)
    boxes = []

    def move(before: np.ndarray, frame: np.ndarray, box: Box) -> np.ndarray:
        assert frame.mean() > before.mean()  # the video grows brighter
        boxes.append(box)
        return np.array([[1, 0, len(boxes)], [0, 1, 0]])

    monkeypatch.setattr(generate, "head_motion", move)
    assert find_track(clip, options, tools, files, Ranks(), Timings()).motion is None
    options = replace(options, temporal_smoothing=0.5)
    for _ in range(2):  # the second time it is stored
        track = find_track(clip, options, tools, files, Ranks(), Timings())
        assert track.motion is not None
        np.testing.assert_array_equal(track.motion[1:, 0, 2], range(1, 9))
        assert boxes == [voxceleb2_box(224, 224)] * 8
    find_track(clip, options, tools, None, Ranks(), Timings())
    assert len(boxes) == 16


def test_processes_that_would_sample_differently_do_not_wait_for_each_other(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With batches by the device, two kinds of GPU wrote into two folders, and rank 0 polled one of them for ever."""
    monkeypatch.setattr(Ranks, "gather", lambda _self, value: [value, {**value, "batch_size": 60}])
    assert main([*job, "--work_dir", str(tmp_path / "work")]) == 2
    assert "would not make the same samples" in capsys.readouterr().err


def test_work_folder_needs_a_seed(job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = job.index("--sampling_seed")
    assert main([*job[:at], *job[at + 2 :], "--work_dir", str(tmp_path / "work")]) == 2
    assert "--sampling_seed" in capsys.readouterr().err


def test_killed_run_continues(
    job: list[str], plain: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL after the first complete batch: no half file at the target, the rest is sampled, the frames are equal."""
    out_path = Path(job[job.index("--out_path") + 1])
    stored = [*job, "--work_dir", str(tmp_path / "work")]
    process = subprocess.Popen([sys.executable, str(ROOT / "generate.py"), *stored], stderr=subprocess.DEVNULL)
    while not list((tmp_path / "work").glob("samples-*/000000.npy")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out_path.exists()
    sampled = count_samples(monkeypatch)
    np.testing.assert_array_equal(result_of(stored), plain)
    assert sampled in ([5, 10], [10])
    assert [path.name for path in out_path.parent.iterdir()] == ["result.mp4"]


def test_a_terminated_run_leaves_nothing(job: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "generate.py"), *job, "--timestep_respacing", "ddim100"], stderr=subprocess.DEVNULL
    )
    while not list(tmp_path.glob("out folder/.*.part")):
        assert process.poll() is None, "the run ended before it could be terminated"
        time.sleep(0.01)
    process.terminate()
    assert process.wait() == 143
    assert list((tmp_path / "out folder").iterdir()) == []


def test_spoilt_frames_are_mended_and_the_same_when_a_batch_is_made_again(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempts at both batches of five frames have noise in their second one."""
    sample = DiffusionSampler.__call__

    def spoiling(self: DiffusionSampler, batch: SampleBatch) -> Crops:
        crops = sample(self, batch)

        def spoilt() -> np.ndarray:
            made = crops().copy()
            if batch.attempt == 0 and len(made) == 5:
                made[1] = np.random.default_rng(0).integers(0, 256, made[1].shape)
            return made

        return spoilt

    monkeypatch.setattr(DiffusionSampler, "__call__", spoiling)
    spoiled = result_of(job).astype(int)
    retried = [*job, "--retry_flagged", "2", "--work_dir", str(tmp_path / "work")]
    result = result_of(retried)
    assert {1, 6} <= set(np.flatnonzero(np.abs(spoiled - result).max(axis=(1, 2, 3)) > 10).tolist())
    (lost,) = (tmp_path / "work").glob("samples-*/000005.npy")
    lost.unlink()
    np.testing.assert_array_equal(result_of(retried), result)


def test_crops_are_placed_when_asked_for_by_boxes_that_are_not_smoothed_before(video: Path) -> None:
    """Smoothed as upstream the box would grow two frames early, and smoothed once more."""

    class Growing:
        def detect(self, images: list[np.ndarray], with_landmarks: bool) -> list[list[Detection]]:
            del with_landmarks
            return [[Detection((20.0, 20.0, 100.0, 100.0 + 5 * k), 1.0, None)] for k in range(len(images))]

    options = Options(video_path="v", audio_path="a", model_path="m", is_voxceleb2=False, blur_kernel_size=15)
    tools = Tools(ModelConfig(), black, 10, Growing(), {}, {}, Ranks())  # type: ignore[arg-type]
    clip = Clip(open_video(str(video)), np.zeros((80, 400), np.float32), DEFAULT, Fraction(2), 9)
    for stable, ends in ((False, 110 + 5 * np.arange(5)), (True, 100 + 5 * np.arange(9))):
        track = find_track(clip, replace(options, stable_crop=stable), tools, None, Ranks(), Timings())
        assert (track.placements is not None) == stable
        np.testing.assert_allclose(track.boxes[: len(ends), 1], ends, atol=1)
