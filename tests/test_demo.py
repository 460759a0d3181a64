"""The checkpoint that the repository brings: what scripts/demo.sh promises, on the sample; and that it stays so."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from face_detection.api import FaceAlignment
from face_detection.lip_metrics import mouth_opening
from face_detection.tracks import FaceTrack, build_track
from face_detection.video_faces import VideoFaces
from generate import build_stages, main
from guided_diffusion.logger import Timings, peak_memory
from guided_diffusion.options import parse_options
from guided_diffusion.quality import QualityMeter
from guided_diffusion.script_util import load_checkpoint
from guided_diffusion.streams import Item
from guided_diffusion.tfg_data_util import to_float
from guided_diffusion.video_util import open_video
from super_resolution import LipSuperResolver
from temporal_consistency import head_motion

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
CHECKPOINT = ROOT / "checkpoints" / "demo.safetensors"
N_FRAMES = 130
N_MEASURED = 12  # frames through the stages and the meter


def opening_of(name: str) -> np.ndarray:
    return np.array(json.loads((SAMPLES / name).read_text(encoding="utf-8"))["opening"])


@dataclass(frozen=True)
class Run:
    """A result with another sentence, and what stayed in its work folder.

    :param samples: as the network made them, uint8 [F, 64, 64, 3].
    :param memory: MiB that the process grew by at most, None where that cannot be told.
    """

    video: Path
    track: FaceTrack
    samples: np.ndarray
    ms_per_frame: dict[str, float]
    memory: float | None


@pytest.fixture(scope="module")
def detector() -> FaceAlignment:
    return FaceAlignment("dlib")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("demo")
    flags = {
        "video_path": SAMPLES / "astronaut.mp4", "audio_path": SAMPLES / "speech.wav", "out_path": folder / "demo.mp4",
        "model_path": CHECKPOINT, "save_orig": False, "is_voxceleb2": False, "face_detector": "dlib",
        "sampling_seed": 7, "use_ddim": True, "timestep_respacing": "ddim3", "work_dir": folder / "work",
        "stats": folder / "stats.json",
    }  # fmt: skip
    before = forget_the_peak()
    with cpu_time():
        assert main([f"--{name}={value}" for name, value in flags.items()]) == 0
    (faces,) = (folder / "work").glob("faces-*.npz")
    batches = sorted((folder / "work").glob("samples-*/*.npy"))
    return Run(
        folder / "demo.mp4",
        build_track(VideoFaces.load(faces), N_FRAMES, pads=(0, 0, 0, 0)),
        np.concatenate([np.load(path) for path in batches]),
        json.loads((folder / "stats.json").read_text())["ms_per_frame"],
        None if before is None else peak_memory()["rss"] - before,
    )


@contextmanager
def cpu_time() -> Iterator[None]:
    """Lets `Timings` count a thread's own time, which does not depend on what else the machine does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", time.thread_time)
        yield


def forget_the_peak() -> float | None:
    """Lets the peak of this process's memory begin anew: MiB that are in use now, or None where Linux does not."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return peak_memory()["rss"]
    return None


@pytest.fixture(scope="module")
def said(run: Run, detector: FaceAlignment) -> np.ndarray:
    """The mouth's opening in each frame."""
    shown = zip(open_video(str(run.video)).frames(), run.track.boxes, strict=True)
    landmarks = [detector.get_landmarks_from_image(frame, tuple(map(int, box))) for frame, box in shown]
    return np.array([mouth_opening(points) for points in landmarks if points is not None])


def test_the_mouth_says_the_new_sentence(said: np.ndarray) -> None:
    """r 0.85 with the new sentence, 0.24 with the old."""
    assert len(said) == N_FRAMES
    new, old = (np.corrcoef(said, opening_of(name)[: len(said)])[0, 1] for name in ("speech.json", "astronaut.json"))
    assert new > 0.8
    assert old < 0.3


def test_the_checkpoint_is_small_and_carries_its_configuration() -> None:
    assert CHECKPOINT.stat().st_size < 15e6
    checkpoint = load_checkpoint(str(CHECKPOINT))
    assert checkpoint.source == "the configuration inside demo.safetensors"
    assert checkpoint.config.predict_xstart


# -------------------------------------------------------------------------------- no worse than when this was written

# The best value, the one when this was written, and how much further from the best it may be.
QUALITY = {
    "r of the opening": (1, 0.854, 0.02), "lip_sharpness": (1, 0.907, 0.08),
    "seam_mask": (1, 1.000, 0.02), "seam_box": (1, 1.000, 0.02), "flicker_brightness": (1, 0.746, 0.1),
    "flicker_texture": (1, 0.835, 0.1), "warp_error": (1, 9.193, 2), "delta_e_excess": (0, 0.015, 0.05),
    "delta_e_deviation": (0, 0.017, 0.03), "outside_difference": (0, 0, 0),
}  # fmt: skip
# A stage's processor time over that of sampling with three steps, and the MiB of the run.
COSTS = {"smooth": 0.012, "super-resolution": 0.17, "sharpen": 0.006, "paste": 0.009}
COST_FACTOR = 3
MEMORY, MEMORY_TOLERANCE = 520, 250


@pytest.fixture(scope="module")
def measured(run: Run, said: np.ndarray, detector: FaceAlignment) -> dict[str, float]:
    """The first frames composited from the samples with the usual enhancements: quality, and each stage's cost."""
    options, _ = parse_options([
        "--video_path=v", "--audio_path=a", f"--model_path={CHECKPOINT}", "--blur_kernel_size=9",
        "--temporal_smoothing=0.3", "--super_resolution=True", "--sharpening_strength=0.1",
    ])  # fmt: skip
    meter = QualityMeter(detector.get_landmarks_from_image)
    with cpu_time():
        timings = Timings()
        items = timings.iterate(None, sampled(run))
        for name, stage in build_stages(options, None, LipSuperResolver()):
            items = timings.iterate(name, stage(items))
        for item in items:
            meter.update(item)
    costs = {name: 1000 * s / N_MEASURED / run.ms_per_frame["sample"] for name, s in timings.seconds.items()}
    r = np.corrcoef(said, opening_of("speech.json")[: len(said)])[0, 1]
    return {**meter.scores().metrics, **costs, "r of the opening": float(r)}


def sampled(run: Run) -> Iterator[Item]:
    """The source's frames with the faces and samples of the run."""
    before = None
    for index, frame in enumerate(open_video(str(SAMPLES / "astronaut.mp4")).frames(stop=N_MEASURED)):
        face = run.track.face(index, index, False)
        assert face is not None
        if before is not None:
            face = replace(face, motion=head_motion(before, frame, face.box))
        yield Item(frame, face, to_float(run.samples[index]), run.samples.shape[1])
        before = frame


def test_quality_is_no_worse(measured: dict[str, float]) -> None:
    lines, worse = [], []
    for name, (best, value, tolerance) in QUALITY.items():
        lines.append(f"{name:20} {measured[name]:8.3f}  was {value:.3f}, may be {tolerance:g} further from {best}")
        if abs(measured[name] - best) > abs(value - best) + tolerance:
            worse.append(name)
    assert not worse, "\n".join([f"worse: {', '.join(worse)}", *lines])


def test_stages_cost_no_more(run: Run, measured: dict[str, float]) -> None:
    lines = [
        f"{name:20} {measured[name]:8.4f} of sampling ({run.ms_per_frame['sample']:.0f} ms a frame), was {cost:.4f}"
        for name, cost in COSTS.items()
    ]
    dear = [name for name, cost in COSTS.items() if measured[name] > COST_FACTOR * cost]
    assert not dear, "\n".join([f"dearer: {', '.join(dear)}", *lines])


def test_a_run_needs_no_more_memory(run: Run) -> None:
    if run.memory is None:
        pytest.skip("the peak of the memory cannot be reset here")
    assert run.memory < MEMORY + MEMORY_TOLERANCE, f"{run.memory:.0f} MiB, was {MEMORY}"
