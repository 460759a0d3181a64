"""The oracle: true crops at a network's resolution, and its flicker, which depends on seed and frame alone."""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_video

import oracle
from guided_diffusion.sampling import SampleBatch
from guided_diffusion.streams import Face
from guided_diffusion.tfg_data_util import resize_crop
from guided_diffusion.video_util import open_video


def batch(crops: list[np.ndarray], first: int = 0, context: int = 0) -> SampleBatch:
    faces = [Face(first + n, (0, 10, 0, 10)) for n in range(len(crops))]
    return SampleBatch(first, faces, crops, crops, np.zeros((len(crops), 80, 16), np.float32), context)


def noisy(n: int, height: int = 150, width: int = 130) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (n, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("hidden", [0.5, 0.3])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_known_part_as_the_network_leaves_it_and_the_rest_soft(size: int, hidden: float) -> None:
    crop = cv2.GaussianBlur(noisy(1)[0], (0, 0), 2)
    (made,) = oracle.oracle(batch([crop]), size, hidden)
    assert made.shape == (size, size, 3)
    assert made.dtype == np.uint8
    start = int(size * (1 - hidden))
    np.testing.assert_array_equal(made[:start], resize_crop(crop, size, size)[:start])
    reduced = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)[start:]
    assert 0 < np.abs(made[start:].astype(int) - reduced).mean() < 3
    assert cv2.Laplacian(made[start:], cv2.CV_32F).var() < cv2.Laplacian(reduced, cv2.CV_32F).var()


def test_context_is_left_out() -> None:
    crops = noisy(3)
    make = partial(oracle.oracle, size=64, face_hide_percentage=0.5, flicker=7)
    np.testing.assert_array_equal(make(batch(crops, context=1)), make(batch(crops))[1:])


def test_flicker_does_not_depend_on_the_batches() -> None:
    """What is continued, or sampled by several processes, must fit together."""
    crops = noisy(3)
    make = partial(oracle.oracle, size=64, face_hide_percentage=0.5)
    whole = make(batch(crops), flicker=7)
    parts = [make(batch([crop], first), flicker=7)[0] for first, crop in enumerate(crops)]
    np.testing.assert_array_equal(whole, parts)
    assert (whole[:, 32:] != make(batch(crops), flicker=8)[:, 32:]).any()
    np.testing.assert_array_equal(whole[:, :32], make(batch(crops))[:, :32])


def test_flicker_has_the_strength_that_is_said() -> None:
    grey = [np.full((64, 64, 3), 128, np.uint8)] * 400
    lower = oracle.oracle(batch(grey), 64, 0.5, flicker=7)[:, 32:].astype(float)
    gains = lower.mean(axis=(1, 2, 3)) / 128
    assert gains.std() == pytest.approx(0.02, rel=0.15)
    assert np.diff(gains).std() == pytest.approx(0.02 * np.sqrt(2), rel=0.15)  # anew in each frame
    assert (lower - lower.mean(axis=(1, 2, 3), keepdims=True)).std() == pytest.approx(4, rel=0.05)


def test_a_run_shows_the_true_lower_half(checkpoint: Path, speech: Path, tmp_path: Path) -> None:
    """The blend mask is of the oracle's size, and stored crops are not mistaken for those of another one."""
    picture = cv2.GaussianBlur(noisy(1, 224, 224)[0], (0, 0), 8)
    source = str(write_video(tmp_path / "source.mp4", np.stack([picture] * 12), crf=0))
    result = tmp_path / "result.mp4"
    flags = [
        "--video_path", source, "--audio_path", str(speech), "--out_path", str(result), "--crf", "0",
        "--model_path", str(checkpoint), "--work_dir", str(tmp_path / "work"), "--sampling_seed", "7",
        "--save_orig", "False", "--stats", str(tmp_path / "stats.json"), "--device", "cpu",
    ]  # fmt: skip
    differences = []
    for own in (["--oracle_size", "64"], ["--oracle_size", "128"], ["--oracle_size", "128", "--oracle_flicker", "3"]):
        assert oracle.main([*own, *flags]) == 0
        made, true = (next(iter(open_video(path).frames())).astype(float) for path in (str(result), source))
        differences.append(np.abs(made - true).mean())
    assert differences[1] < differences[0] < differences[2]
    assert json.loads((tmp_path / "stats.json").read_text())["ms_per_frame"]["paste"] > 0


def test_bad_size_is_one_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_path", str(checkpoint), "--video_path", "a", "--audio_path", "b", "--device", "cpu"]
    assert oracle.main(["--oracle_size", "100", *flags]) == 2
    (line,) = (text for text in capsys.readouterr().err.splitlines() if "error" in text)
    assert line.startswith("oracle.py: error: image_size is 100; choose from 64, 128, 256")
