"""Hard cuts: what is one, and what is none."""

from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest
from scripted_faces import plain

from face_detection.cuts import CutDetector

SHARED = Path(__file__).parents[2] / "shared"


def pictures() -> dict[str, np.ndarray]:
    skimage_data = pytest.importorskip("skimage.data")
    return {name: getattr(skimage_data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")}


def is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    detector = CutDetector()
    assert not detector.update(before)
    return detector.update(after)


def test_another_picture_is_a_cut() -> None:
    for before, after in permutations(pictures().values(), 2):
        assert is_cut(before, after)


@pytest.mark.parametrize("gain", [0.7, 1.3])
def test_flash_is_no_cut(gain: float) -> None:
    for image in pictures().values():
        flashed = np.clip(image * gain, 0, 255).astype(np.uint8)
        assert not is_cut(image, flashed)
        assert not is_cut(flashed, image)


def test_fast_motion_is_no_cut() -> None:
    for image in pictures().values():
        assert not is_cut(image, np.roll(image, image.shape[1] // 5, axis=1))


def test_plain_frames_are_no_cut_and_black_to_picture_is() -> None:
    assert not is_cut(plain(0), plain(0))
    assert is_cut(plain(0), pictures()["astronaut"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_joins_of_real_clips_are_the_only_cuts() -> None:
    av = pytest.importorskip("av")

    def clip(path: Path) -> list[np.ndarray]:
        frames = []
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                frames.append(cv2.resize(frame.to_ndarray(format="rgb24"), (160, 160)))
                if len(frames) == 20:
                    break
        return frames

    joined = [clip(path) for path in sorted((SHARED / "clips").glob("*.mp4"))]
    assert len(joined) == 4
    detector = CutDetector()
    found = [detector.update(frame) for frames in joined for frame in frames]
    assert np.flatnonzero(found).tolist() == [20, 40, 60]
