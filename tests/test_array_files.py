"""Files of faces and of tracks: damaged ones, and saving that fails."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scripted_faces import SOME_FACES, face, faces_of, track_of

from face_detection.tracks import FaceTrack
from face_detection.video_faces import VideoFaces
from guided_diffusion.errors import InputError


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage")


def empty(path: Path) -> None:
    path.touch()


def truncated(path: Path) -> None:
    track_of([[face(10)]]).save(path)
    path.write_bytes(path.read_bytes()[:-100])


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, boxes=np.array([{}], dtype=object))


def other_names(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, boxes=np.zeros((1, 4), dtype=np.int64))


def other_shape(path: Path) -> None:
    flags = np.zeros(2, dtype=bool)
    with path.open("wb") as file:
        np.savez(file, boxes=np.zeros((2, 3), dtype=np.int64), has_face=flags, is_interpolated=flags, is_cut=flags)


def single_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def unknown_compression(path: Path) -> None:
    track_of([[face(10)]]).save(path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # in the list of contents, where zipfile looks
    content[entry + 10 : entry + 12] = (77).to_bytes(2, "little")
    path.write_bytes(content)


SPOILT = [garbage, empty, truncated, pickled, other_names, other_shape, single_array, unknown_compression]


@pytest.mark.parametrize("spoil", SPOILT)
def test_file_that_is_no_track(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "track.npz"
    spoil(path)
    with pytest.raises(InputError, match=r"track\.npz: not a face track") as caught:
        FaceTrack.load(path)
    assert "\n" not in str(caught.value)


def more_counts(path: Path) -> None:
    """Arrays of the right shapes, but more faces are counted than there are."""
    faces_of(SOME_FACES).save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["counts"][1] += 2
    with path.open("wb") as file:
        np.savez(file, **arrays)


def negative_count(path: Path) -> None:
    more_counts(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["counts"][3] -= 2
    with path.open("wb") as file:
        np.savez(file, **arrays)


def a_track(path: Path) -> None:
    track_of([[face(10)]]).save(path)


@pytest.mark.parametrize("spoil", [*SPOILT, more_counts, negative_count, a_track])
def test_file_that_is_no_videos_faces(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "faces.npz"
    spoil(path)
    with pytest.raises(InputError, match=r"faces\.npz: not the faces of a video") as caught:
        VideoFaces.load(path)
    assert "\n" not in str(caught.value)


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_args: object, **_kwargs: object) -> None:
        raise OSError("disk full")

    path = tmp_path / "track.npz"
    path.write_bytes(b"old")
    monkeypatch.setattr("numpy.savez", full_disk)
    with pytest.raises(OSError, match="disk full"):
        track_of([[face(10)]]).save(path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
