"""Which face a benchmark looks at, and where it has none."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import painted
import pytest

from guided_diffusion.errors import InputError
from guided_diffusion.video_util import source_index


class Detector:
    """A face in each frame that is not black; its mouth is open as far as its box says."""

    def __init__(self, name: str) -> None:
        assert name == "dlib"

    def detect(self, images: Sequence[np.ndarray]) -> list[list[SimpleNamespace]]:
        return [[SimpleNamespace(box=(10, 20, 50, 40 + image.max()))] if image.any() else [] for image in images]

    def get_landmarks_from_image(self, _: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        marks = np.zeros((68, 2))
        marks[36:42] += (-50, 0)
        marks[42:48] += (50, 0)
        marks[65:68, 1] = box[1] - box[0]
        return marks


def test_a_face_is_looked_for_where_it_is_in_the_source_which_plays_to_and_fro(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the picture's own order alone, the boxes of frames beyond the source's end would be missing."""
    monkeypatch.setattr(painted, "FaceAlignment", Detector)
    source = [np.full((8, 8, 3), brightness, np.uint8) for brightness in (1, 0, 3)]
    monkeypatch.setattr(painted, "open_video", lambda _: SimpleNamespace(frames=lambda: iter(source)))
    boxes = painted.face_boxes("clip.mp4")
    assert boxes == [(20, 41, 10, 50), None, (20, 43, 10, 50)]
    found = painted.openings(np.zeros((7, 8, 8, 3), np.uint8), boxes)
    order = [source_index(index, 3, "pingpong") for index in range(7)]
    assert np.array_equal(np.isnan(found), [index == 1 for index in order])
    assert found[np.array(order) == 2] == pytest.approx(found[0] * 23 / 21)


def test_a_benchmark_ends_where_generate_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr("generate.main", lambda flags: given.extend(flags) or 2)
    with pytest.raises(InputError):
        painted.pictures("clip.mp4", "sound.wav", "out.mp4", ["--silence_gate", "1"])
    assert given[-2:] == ["--silence_gate", "1"]
