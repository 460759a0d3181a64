"""Searching for faces: in batches, continued, kept in a file."""

import weakref
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from scripted_faces import HEIGHT, NO_PADS, SOME_FACES, WIDTH, Frame, counting, face, faces_of, scripted, video_of

from face_detection.api import Detection
from face_detection.tracks import check_face_index
from face_detection.video_faces import VideoFaces, find_faces
from guided_diffusion.errors import InputError


def assert_equal_faces(a: VideoFaces, b: VideoFaces) -> None:
    assert [len(faces) for faces in a.faces] == [len(faces) for faces in b.faces]
    for one, other in zip(chain(*a.faces), chain(*b.faces), strict=True):
        assert (one.box, one.score) == (other.box, other.score)
        np.testing.assert_array_equal(one.landmarks, other.landmarks)  # None too
    np.testing.assert_array_equal(a.is_cut, b.is_cut)
    assert (a.size, a.is_complete) == (b.size, b.is_complete)


@pytest.mark.parametrize("first", range(8))
def test_continued_search_finds_what_one_search_finds(first: int) -> None:
    """Also a cut that is the first frame of the second part."""
    cuts = [2, 5]
    whole = faces_of(SOME_FACES, cuts)
    assert whole.is_complete
    assert whole.size == (HEIGHT, WIDTH)
    assert np.flatnonzero(whole.is_cut).tolist() == cuts
    begun = find_faces(video_of(SOME_FACES, cuts), scripted(SOME_FACES), 2, n_frames=first)
    assert len(begun.faces) == first
    assert not begun.is_complete
    rest = video_of(SOME_FACES, cuts, start=begun.next_start)
    assert_equal_faces(find_faces(rest, scripted(SOME_FACES[first:]), 3, begun), whole)
    assert len(begun.faces) == first  # what was known is not changed


def test_search_for_some_frames_reads_no_more() -> None:
    frames = video_of(SOME_FACES)
    found = find_faces(frames, scripted(SOME_FACES), 2, n_frames=3)
    assert len(list(frames)) == len(SOME_FACES) - 3
    assert found.suffices(3)
    assert not found.suffices(4)
    ended = find_faces(video_of(SOME_FACES), scripted(SOME_FACES), 2, n_frames=8)
    assert len(ended.faces) == 7
    assert ended.suffices(1000)


def test_what_is_known_is_checked_before_anything_is_read() -> None:
    def fail(_batch: Sequence[np.ndarray]) -> list[list[Detection]]:
        pytest.fail("detected")

    known = find_faces(video_of(SOME_FACES), scripted(SOME_FACES), 2, n_frames=4)
    check = partial(check_face_index, pads=NO_PADS, face_index=1)
    with pytest.raises(InputError, match="--face_index 1"):
        find_faces(video_of(SOME_FACES, start=3), fail, 2, known, check=check)


def test_only_one_batch_is_held() -> None:
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    most: list[int] = []
    sizes: list[int] = []

    def detect(batch: Sequence[np.ndarray]) -> list[list[Detection]]:
        sizes.append(len(batch))
        return [[face(10)] for _ in batch]

    known = find_faces(counting(10, alive, most), detect, batch_size=4)
    assert sizes == [4, 4, 2]
    find_faces(counting(9, alive, most), detect, 4, known)
    assert sizes[3:] == [4, 4]
    assert max(most) == 4


@pytest.mark.parametrize("script", [SOME_FACES, [[]], []])
def test_faces_file_round_trip(tmp_path: Path, script: list[list[Detection]]) -> None:
    faces = faces_of(script)
    faces.save(tmp_path / "Gesichter für später.faces")
    assert_equal_faces(VideoFaces.load(tmp_path / "Gesichter für später.faces"), faces)
    begun = find_faces(video_of(script), scripted(script), 2, n_frames=1)
    begun.save(tmp_path / "begun")
    assert_equal_faces(VideoFaces.load(tmp_path / "begun"), begun)
