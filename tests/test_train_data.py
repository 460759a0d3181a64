"""Training data: stored crops, drawn examples, their changes, worker processes."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as with_any
from hypothesis import settings
from hypothesis import strategies as st
from skimage import data

import train_data
from face_detection.lip_metrics import mouth_opening
from face_detection.tracks import FaceTrack
from guided_diffusion.tfg_data_util import resize_crop
from train_data import Clip, augmented, crop_with_margin, draw_examples, face_view, openings_of, other_voice, split

SIZE = 64


def test_the_stored_crops_middle_is_what_inference_makes_of_the_box() -> None:
    frame = data.astronaut()
    box = np.array([60, 184, 176, 275])
    stored = crop_with_margin(frame, box, SIZE)
    crop = resize_crop(frame[60:184, 176:275], SIZE, SIZE)
    # beside the border, where inference has no pixel beyond the box
    assert np.abs(face_view(stored, SIZE)[1:-1, 1:-1].astype(int) - crop[1:-1, 1:-1]).max() <= 2


def test_a_reference_is_another_frame_of_the_same_clip(clips: list[Clip]) -> None:
    crops, refs, mels = draw_examples(clips, 60, SIZE, np.random.default_rng(1), augment=None, mel_augment=0)
    assert mels.shape == (60, 80, 16)
    for crop, ref in zip(crops, refs, strict=True):
        assert crop.shape == (SIZE, SIZE, 3)
        assert crop[0, 0, 0] == ref[0, 0, 0]
        assert crop[-1, 0, 0] != ref[-1, 0, 0]
    assert len({int(crop[0, 0, 0]) for crop in crops}) == 2


def test_openings_are_of_the_frames_seen_and_their_neighbours() -> None:
    landmarks = np.random.default_rng(0).random((6, 68, 2)).astype(np.float32)
    yes, no = np.ones(6, bool), np.zeros(6, bool)
    track = FaceTrack(np.zeros((6, 4), np.int64), landmarks, yes, no, no)
    frames = np.array([1, 3])
    expected = [
        [mouth_opening(landmarks[f + n]) if 0 <= f + n < 6 else np.nan for n in range(-2, 3)] for f in frames
    ]
    np.testing.assert_allclose(openings_of(track, frames), expected)
    assert np.isnan(openings_of(track, frames)[:, 0]).tolist() == [True, False]
    unknown = dataclasses.replace(track, landmarks=None)
    assert np.isnan(openings_of(unknown, frames)).all()


def test_augmentation_keeps_what_belongs_together() -> None:
    """Flip and colour are those of the reference; strength 0 changes neither."""
    stored = np.zeros((80, 80, 3), np.uint8)
    stored[:, :40] = (180, 90, 60)
    flips = set()
    for seed in range(12):
        crop, ref = augmented([stored, stored], SIZE, np.random.default_rng(seed), strength=1.0)
        assert np.array_equal(crop[32, 2], ref[32, 2])
        flips.add(crop[32, 2].sum() > crop[32, -3].sum())
    assert flips == {True, False}
    (plain,) = augmented([stored], SIZE, np.random.default_rng(0), strength=0.0)
    assert np.array_equal(plain[30:34], face_view(stored, SIZE)[30:34])


def test_the_place_of_the_eyes_tells_little_of_the_jaw() -> None:
    """Boxes end at the chin: a network read the old mouth's opening from the framing, and its lips said that."""
    stored = np.zeros((80, 80, 3), np.uint8)
    stored[18:21] = stored[48:51] = 255  # two lines a fixed distance apart
    distances, places = set(), set()
    for seed in range(20):
        (view,) = augmented([stored], SIZE, np.random.default_rng(seed), strength=0.0)
        lines = np.flatnonzero(view[:, 32, 0] > 200)
        distances.add(int(lines[-1] - lines[0]))
        places.add(int(lines[0]))
    assert min(distances) < 31
    assert max(distances) > 34
    assert max(places) - min(places) > 5


@settings(deadline=None)
@with_any(st.integers(0, 1000), st.floats(0, 1))
def test_another_voice_is_a_mel_window_still(seed: int, strength: float) -> None:
    mel = np.random.default_rng(seed).uniform(-4, 4, (80, 16)).astype(np.float32)
    kept = mel.copy()
    other = other_voice(mel, np.random.default_rng(seed), strength)
    assert (other.shape, other.dtype) == (mel.shape, mel.dtype)
    assert np.abs(other).max() <= 4
    assert np.array_equal(mel, kept)
    np.testing.assert_allclose(other_voice(mel, np.random.default_rng(seed), 0), mel, atol=1e-5)


def test_another_voice_has_its_formants_elsewhere_at_the_same_time() -> None:
    mel = np.full((80, 16), -4, np.float32)
    mel[39:42, 5] = 2
    places, levels = [], []
    for seed in range(40):
        other = other_voice(mel, np.random.default_rng(seed), 1)
        assert np.argmax(other.max(axis=0)) == 5
        places.append(np.argmax(other[:, 5]))
        levels.append(other.max())
        silent = other_voice(np.full((80, 16), -4, np.float32), np.random.default_rng(seed), 1)
        assert silent.max() == -4  # no louder silence
    assert min(places) < 36
    assert max(places) > 44
    assert np.std(levels) > 0.2


def test_validation_takes_the_last_clips_or_the_ends_of_a_few(clips: list[Clip]) -> None:
    few, ends = split(clips, 0.2)
    assert [len(clip.frames) for clip in few] == [20, 20]
    assert [list(clip.frames) for clip in ends] == [[20, 21, 22, 23, 24]] * 2
    many, last = split(clips * 6, 0.1)
    assert (len(many), len(last)) == (11, 1)


PARENT = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
sys.path[:0] = {paths!r}
import train_data

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=train_data._begin_worker) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_run(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(paths=[str(Path(train_data.__file__).parent)]))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = Path("/proc", parent.stdout.readline().strip())
        assert worker.exists()
        parent.kill()
        deadline = time.monotonic() + 20
        while worker.exists() and (worker / "stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
            time.sleep(0.1)
    assert not worker.exists() or (worker / "stat").read_text().split()[2] == "Z"
