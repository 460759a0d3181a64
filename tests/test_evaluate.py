"""The report of one result: ideal values for a video against itself, known faults in the right direction, bad input."""

import json
from functools import cache
from pathlib import Path

import cv2
import evaluate
import numpy as np
import pytest
import soundfile
from conftest import write_video
from skimage import data

import openings
from face_detection.api import FaceAlignment
from face_detection.lip_metrics import mouth_opening
from face_detection.tracks import build_track
from face_detection.video_faces import find_faces
from guided_diffusion.video_util import open_video

FPS = 25
N_FRAMES = 50
N_SHORT = 16  # for what needs no lip-sync; flicker needs five in a row
IDEAL = {
    "psnr_face": 100, "psnr_lower": 100, "psnr_lips": 100, "ssim_face": 1, "ssim_lower": 1, "ssim_lips": 1,
    "seam_mask": 1, "seam_box": 1,
    "delta_e_excess": 0, "delta_e_deviation": 0, "skin_delta_e": 0, "skin_drift": 0, "skin_histogram": 0,
    "flicker_brightness": 1, "flicker_texture": 1, "warp_error": 1,
    "lmd": 0, "lip_sharpness": 1, "outside_difference": 0,
}  # fmt: skip


@cache
def swaying_face() -> np.ndarray:
    """A face that sways by a few pixels, with camera noise: uint8 [F, 256, 256, 3]."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(N_FRAMES):
        shift = np.array([[1, 0, -128 + 4 * np.sin(k / 6)], [0, 1, 2 * np.cos(k / 8)]])
        frame = cv2.warpAffine(data.astronaut(), shift, (256, 256), flags=cv2.INTER_CUBIC)
        frames.append(np.clip(frame + rng.normal(0, 1.5, frame.shape), 0, 255).astype(np.uint8))
    return np.stack(frames)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of the source, of its first frames, and of the sound: bursts at 3 Hz."""
    folder = tmp_path_factory.mktemp("clip")
    t = np.arange(2 * 16000) / 16000
    noise = np.random.default_rng(0).normal(0, 0.1, len(t))
    soundfile.write(folder / "speech.wav", (1 + np.sin(2 * np.pi * 3 * t)) * noise, 16000)
    soundfile.write(folder / "silence.wav", np.zeros(2 * 16000), 16000)
    return {
        "source": str(write_video(folder / "source.mp4", swaying_face(), crf=0)),
        "short": str(write_video(folder / "short.mp4", swaying_face()[:N_SHORT], crf=0)),
        "audio": str(folder / "speech.wav"),
        "silence": str(folder / "silence.wav"),
    }


def values_of(result: str, clip: dict[str, str], folder: Path, *more: str) -> dict:
    arguments = [result, "--source", clip["source"], "--audio", clip["audio"], "--json", str(folder / "v.json"), *more]
    assert evaluate.main(arguments) == 0
    return json.loads((folder / "v.json").read_text())


@pytest.fixture(autouse=True)
def nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "WEIGHTS", tmp_path / "alexnet_features.pth")
    monkeypatch.setattr(openings, "MESH_WEIGHTS", tmp_path / "face_landmark.tflite")


def test_a_video_against_itself_is_ideal(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    said = values_of(clip["source"], clip, tmp_path, "--reference", clip["source"], "--html", str(page))
    metrics = {name: value for name, value in said["metrics"].items() if not name.startswith("sync")}
    assert metrics == pytest.approx(IDEAL, abs=1e-6)
    lines = capsys.readouterr().out.splitlines()
    for metric in evaluate.METRICS:
        assert sum(line.split()[1] == metric.name for line in lines if line.startswith(metric.group)) == 1
    assert {"lpips_face", "lse_c", "lse_d"} <= said["not_measured"].keys()
    assert "large enough" in said["not_measured"]["ms_ssim_lips"]
    text = page.read_text()
    assert "seam_box" in text
    assert text.count("data:image/") > 5
    assert 'src="http' not in text


@pytest.mark.parametrize("named", [True, False])
def test_lpips_of_three_regions(
    named: bool, clip: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AlexNet's file, named or in checkpoints/; the regions that are compared are the picture's."""
    weights = tmp_path / ("mine.pth" if named else "alexnet_features.pth")
    weights.touch()
    monkeypatch.setattr(evaluate, "load_lpips", lambda _path: lambda picture, _reference: picture.size)
    given = ["--lpips_weights", str(weights)] if named else []
    short = str(write_video(tmp_path / "short.mp4", swaying_face()[:3]))
    metrics = values_of(short, clip, tmp_path, "--reference", clip["source"], *given)["metrics"]
    assert metrics["lpips_face"] == pytest.approx(2 * metrics["lpips_lower"], rel=0.02)
    assert metrics["lpips_lower"] > metrics["lpips_lips"] > 0


def spoiled(name: str, source: str) -> np.ndarray:
    """The source with a known fault in the lower half of the face's box."""
    frames = np.stack(list(open_video(source).frames()))
    faces = find_faces(frames, FaceAlignment("dlib").detect, batch_size=8)
    track = build_track(faces, len(frames), pads=(0, 0, 0, 0))
    frames = frames.astype(np.float32)
    rng = np.random.default_rng(1)
    for frame, (y1, y2, x1, x2) in zip(frames, track.boxes, strict=True):
        lower = frame[(y1 + y2) // 2 : y2, x1:x2]
        if name == "gain":
            lower *= 1 + rng.normal(0, 0.02)
        elif name == "blur":
            lower[:] = cv2.GaussianBlur(lower, (0, 0), 2)
        elif name == "step":
            lower += 20
        elif name == "cast":
            lower += (16, 0, -16)
        elif name == "outside":
            frame[:20, :20] += np.where(frame[:20, :20] > 128, -60, 60)
    return np.clip(frames, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("fault", "metric", "low", "high"),
    [
        ("gain", "flicker_brightness", 2, 500),
        ("gain", "flicker_texture", 0.9, 1.15),
        ("blur", "flicker_texture", 0.2, 0.8),
        ("blur", "lip_sharpness", 0, 0.5),
        ("blur", "psnr_lower", 20, 40),
        ("step", "seam_box", 1.5, 9),
        ("step", "seam_mask", 1.5, 9),
        ("step", "psnr_lower", 20, 26),
        ("step", "psnr_lips", 20, 26),
        ("cast", "delta_e_excess", 1, 20),
        ("cast", "skin_delta_e", 3, 20),
        ("cast", "skin_histogram", 2, 20),
        ("cast", "skin_drift", 0, 1),
        # encoding twice halves the colour resolution twice
        ("step", "outside_difference", 0, 16),
        ("outside", "outside_difference", 50, 130),
    ],
)
def test_known_faults(
    fault: str, metric: str, low: float, high: float, clip: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert low < _spoiled_values(fault, clip, tmp_path_factory)[metric] + 1e-9 < high


_cache: dict[str, dict[str, float]] = {}


def _spoiled_values(fault: str, clip: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    if fault not in _cache:
        folder = tmp_path_factory.mktemp(fault)
        result = str(write_video(folder / "result.mp4", spoiled(fault, clip["short"]), crf=0))
        short = {**clip, "source": clip["short"]}
        _cache[fault] = values_of(result, short, folder, "--reference", clip["short"])["metrics"]
    return _cache[fault]


def test_a_shorter_result_is_noted(clip: dict[str, str], tmp_path: Path) -> None:
    result = write_video(tmp_path / "short.mp4", swaying_face()[:12])
    said = values_of(str(result), clip, tmp_path)
    assert "the first 12 are measured" in said["notes"][0]
    assert "12 of 12 frames show a face" in said["not_measured"]["sync_z"]
    assert said["not_measured"]["psnr_face"] == "needs --reference"


def test_silence_is_not_measured(clip: dict[str, str], tmp_path: Path) -> None:
    said = values_of(clip["source"], {**clip, "audio": clip["silence"]}, tmp_path)
    assert "lip-sync" in said["not_measured"]["sync_peak_r"]
    assert "seam_box" in said["metrics"]


def test_frames_without_a_face_are_left_out(clip: dict[str, str], tmp_path: Path) -> None:
    frames = swaying_face()[:N_SHORT].copy()
    frames[:6] = 128
    source = str(write_video(tmp_path / "late.mp4", frames))
    said = values_of(source, {**clip, "source": source}, tmp_path)
    assert "left out: 6 of 16 frames without a face" in said["notes"]
    assert said["metrics"]["seam_box"] == pytest.approx(1)


def test_a_mouth_is_compared_with_the_truth(clip: dict[str, str], tmp_path: Path) -> None:
    frames = list(open_video(clip["short"]).frames())
    detector = FaceAlignment("dlib")
    track = build_track(find_faces(frames, detector.detect, batch_size=8), len(frames), pads=(0, 0, 0, 0))
    boxes = [tuple(int(v) for v in box) for box in track.boxes]
    landmarks = [detector.get_landmarks_from_image(f, b) for f, b in zip(frames, boxes, strict=True)]  # type: ignore[arg-type]
    opening = np.array([mouth_opening(points) for points in landmarks if points is not None])
    truth = tmp_path / "truth.json"
    for values, r in ((opening, 1), (-3 * opening, -1), (opening[:9], 1)):
        truth.write_text(json.dumps({"opening": list(values)}))
        said = values_of(clip["short"], clip, tmp_path, "--truth", str(truth))
        assert said["metrics"]["truth_r"] == pytest.approx(r, abs=1e-6)
    truth.write_text(json.dumps({"opening": [0.1] * 50}))
    said = values_of(clip["short"], clip, tmp_path, "--truth", str(truth))
    assert said["not_measured"]["truth_r"] == "the mouth or the truth does not move"


def test_a_mouth_is_compared_with_the_one_before(
    clip: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which opened twice as far, at other times. A strip at the left says how far."""
    levels = np.array([0, 80, 40, 0, 160], np.uint8)
    paths = []
    for name, strip in (("result", 160 - levels // 2), ("before", levels)):
        frames = swaying_face()[: len(levels)].copy()
        frames[:, :, :8] = strip[:, None, None, None]
        paths.append(str(write_video(tmp_path / f"{name}.mp4", frames)))

    def opened(picture: np.ndarray, _box: object) -> np.ndarray:
        points = np.tile(np.linspace(0, 100, 68)[:, None], 2)
        points[65:68] += picture[:, :6].mean()
        return points

    monkeypatch.setattr(FaceAlignment, "get_landmarks_from_image", lambda _, *given: opened(*given))
    said = values_of(paths[0], clip, tmp_path, "--before", paths[1])
    assert said["metrics"]["opening_r"] == pytest.approx(-1, abs=0.01)
    assert said["metrics"]["opening_std"] == pytest.approx(0.5, abs=0.02)
    assert any(note.startswith("opening_r, opening_std: read by the landmarks alone") for note in said["notes"])


def test_cost_comes_from_stats(clip: dict[str, str], tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"ms_per_frame": {"sample": 12.5}, "peak_memory_mib": {"rss": 800}}))
    said = values_of(clip["short"], clip, tmp_path, "--stats", str(stats))
    assert said["cost"] == {"sample ms/frame": 12.5, "peak rss MiB": 800.0}


def test_the_masks_edge_is_where_the_result_was_hidden(clip: dict[str, str], tmp_path: Path) -> None:
    """A step at a fifth of the box's height, as of --face_hide_percentage 0.8."""
    frames = np.stack(list(open_video(clip["source"]).frames(stop=2)))
    faces = find_faces(frames, FaceAlignment("dlib").detect, batch_size=8)
    track = build_track(faces, 2, pads=(0, 0, 0, 0))
    for frame, (y1, y2, x1, x2) in zip(frames, track.boxes, strict=True):
        part = frame[y1 + int((1 - 0.8) * (y2 - y1)) : y2, x1:x2]
        part[:] = np.clip(part.astype(int) + 20, 0, 255)
    result = str(write_video(tmp_path / "result.mp4", frames, crf=0))
    stats = tmp_path / "stats.json"
    stats.write_text(
        json.dumps({"ms_per_frame": {}, "peak_memory_mib": {}, "options": {"face_hide_percentage": 0.8}})
    )
    given = ["--stats", str(stats)]
    hidden, flag_wins = (
        values_of(result, clip, tmp_path, *flags)["metrics"]["seam_mask"]
        for flags in (given, [*given, "--face_hide_percentage", "0.5"])
    )
    assert hidden > 1.3
    assert flag_wins < 1.1
    assert evaluate.read_stats(None) == ({}, 0.5)


def test_bad_input_is_one_line_and_status_2(
    clip: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = str(write_video(tmp_path / "small.mp4", swaying_face()[:5, :128, :128]))
    few = str(write_video(tmp_path / "few.mp4", swaying_face()[:3]))
    grey = str(write_video(tmp_path / "grey.mp4", np.full((5, 256, 256, 3), 128, np.uint8)))
    text = tmp_path / "stats.json"
    text.write_text("{}")
    for arguments, words in (
        ([small, "--source", clip["source"]], "videos of one size"),
        ([grey, "--source", grey], "no face"),
        ([few, "--source", "nothing.mp4"], "nothing.mp4"),
        ([few, "--source", few, "--reference", "nothing.mp4"], "nothing.mp4"),
        ([few, "--source", few, "--before", "nothing.mp4"], "nothing.mp4"),
        ([few, "--source", few, "--before", small], "videos of one size"),
        ([few, "--source", few, "--stats", str(text)], "--stats"),
        ([few, "--source", few, "--face_hide_percentage", "1.5"], "--face_hide_percentage 1.5"),
        ([few, "--source", few, "--truth", str(text)], "--truth"),
        ([few, "--source", few, "--lpips_weights", "no.pth"], "make it by python scripts/fetch"),
        ([few, "--source", few, "--mesh_weights", "no.tflite"], "make it by python scripts/fetch"),
        ([few, "--source", few, "--syncnet_weights", str(tmp_path)], "syncnet_v2.model"),
    ):
        assert evaluate.main([*arguments, "--audio", clip["audio"]]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("evaluate.py: error: ")
        assert words in line
