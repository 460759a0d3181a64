"""Side by side: sizes, lengths, the sheet, bad input."""

from pathlib import Path

import av
import compare
import cv2
import numpy as np
import pytest
from conftest import write_video
from skimage import data


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """A face of 10 frames, and a lighter one of 8 frames at half the size."""
    face = np.stack([data.astronaut()[:256, 128:384]] * 10)
    small = np.stack([cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA) for frame in face[:8]])
    return [
        str(write_video(tmp_path / "a.mp4", face)),
        str(write_video(tmp_path / "b b.mp4", np.clip(small.astype(int) + 30, 0, 255).astype(np.uint8))),
    ]


def test_side_by_side_with_zoom(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet = tmp_path / "ab.mp4", tmp_path / "ab.png"
    assert compare.main([*pair, "--labels", "one", "zwölf", "--out", str(out), "--sheet", str(sheet)]) == 0
    assert "10, 8 frames" in capsys.readouterr().err
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 8
    # label, frame, zoom of half the frame's height
    assert frames[0].shape == (28 + 256 + 128, 512, 3)
    left, right = frames[0][28:284, :256].astype(int), frames[0][28:284, 256:].astype(int)
    assert 20 < (right - left).mean() < 35
    zoom_left, zoom_right = frames[0][284:, :256].astype(int), frames[0][284:, 256:].astype(int)
    assert 20 < (zoom_right - zoom_left).mean() < 35
    # the zoom shows the mouth, which is redder than the rest of the face
    middle = zoom_left[40:88, 90:166].reshape(-1, 3).mean(axis=0)
    assert middle[0] - middle[1] > 30
    assert cv2.imread(str(sheet)).shape == (6 * frames[0].shape[0], 512, 3)


def test_without_a_face_there_is_no_zoom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = str(write_video(tmp_path / "grey.mp4", np.full((4, 64, 64, 3), 128, np.uint8)))
    assert compare.main([clip, clip, "--sheet", str(tmp_path / "s.png"), "--frames", "1"]) == 0
    assert "no zoom on the mouth" in capsys.readouterr().err
    assert cv2.imread(str(tmp_path / "s.png")).shape == (28 + 64, 128, 3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--labels", "one"], "1 for 2 videos"),
        ([], "--out"),
        (["--out", "result.gif"], ".mp4"),
        (["nothing.mp4", "--sheet", "s.png"], "nothing.mp4"),
        (["--sheet", "s.png", "--frames", "0"], "--frames 0"),
    ],
)
def test_bad_input(more: list[str], words: str, pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([*pair, *more]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("compare.py: error: ")
    assert words in line
