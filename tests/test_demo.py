"""The checkpoint that the repository brings: what scripts/demo.sh promises, on the sample."""

import json
from pathlib import Path

import numpy as np
import pytest

from face_detection.api import FaceAlignment
from face_detection.lip_metrics import mouth_opening
from generate import main
from guided_diffusion.script_util import load_checkpoint
from guided_diffusion.video_util import open_video

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
CHECKPOINT = ROOT / "checkpoints" / "demo.safetensors"


def opening_of(name: str) -> np.ndarray:
    return np.array(json.loads((SAMPLES / name).read_text(encoding="utf-8"))["opening"])


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The mouth's opening in each frame of a result with another sentence."""
    folder = tmp_path_factory.mktemp("demo")
    flags = {
        "video_path": SAMPLES / "astronaut.mp4", "audio_path": SAMPLES / "speech.wav", "out_path": folder / "demo.mp4",
        "model_path": CHECKPOINT, "save_orig": False, "is_voxceleb2": False, "face_detector": "dlib",
        "sampling_seed": 7, "use_ddim": True, "timestep_respacing": "ddim5",
    }  # fmt: skip
    assert main([f"--{name}={value}" for name, value in flags.items()]) == 0
    detector = FaceAlignment("dlib")
    faces = detector.detect(list(open_video(str(folder / "demo.mp4")).frames()))
    return np.array([mouth_opening(found[0].landmarks) for found in faces if found[0].landmarks is not None])


def test_the_mouth_says_the_new_sentence(said: np.ndarray) -> None:
    """r 0.85 with the new sentence, 0.24 with the old."""
    assert len(said) == 130
    new, old = (np.corrcoef(said, opening_of(name)[: len(said)])[0, 1] for name in ("speech.json", "astronaut.json"))
    assert new > 0.8
    assert old < 0.3


def test_the_checkpoint_is_small_and_carries_its_configuration() -> None:
    assert CHECKPOINT.stat().st_size < 15e6
    checkpoint = load_checkpoint(str(CHECKPOINT))
    assert checkpoint.source == "the configuration inside demo.safetensors"
    assert checkpoint.config.predict_xstart
