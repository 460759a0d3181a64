"""Whom to follow: choice, others, after a loss and after a cut."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_faces import NO_PADS, WIDTH, face, faces_of, plain, track_of

from face_detection.api import Detection
from face_detection.following import MAX_GAP, Identify
from face_detection.tracks import build_track, check_face_index
from face_detection.video_faces import find_faces
from guided_diffusion.errors import InputError


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(1, 7))
def test_two_people_are_not_mixed_up(swapped: list[bool], batch_size: int) -> None:
    """The detections' order, and whose score is the best, change from frame to frame."""
    left = [face(10 + n, score=0.9) for n in range(6)]
    right = [face(120 - n, score=0.8 + 0.1 * n) for n in range(6)]
    script = [[b, a] if swap else [a, b] for a, b, swap in zip(left, right, swapped, strict=True)]
    for face_index, first in ((0, 10), (1, 120), (-1, 10)):
        track = track_of(script, batch_size=batch_size, face_index=face_index)
        step = 1 if first == 10 else -1
        assert track.boxes[:, 2].tolist() == [first + step * n for n in range(6)]
        assert track.has_face.all()


def test_another_person_does_not_replace_a_missing_one() -> None:
    """The bystander is only seen while the followed person is not."""
    track = track_of([[face(10)]] * 3 + [[face(120)]] * 3 + [[face(16)]])
    assert track.boxes[:, 2].tolist() == [10, 10, 10, 11, 13, 14, 16]
    assert track.is_interpolated.tolist() == [False] * 3 + [True] * 3 + [False]


def test_face_index_out_of_range() -> None:
    script: list[list[Detection]] = [[], [], [face(10)], [face(10)]]
    with pytest.raises(InputError, match=r"--face_index 3: the first frame with faces \(frame 2\) has 1 face; give 0"):
        track_of(script, face_index=3)
    with pytest.raises(InputError, match=r"--face_index -2.*has 2 faces; give 0 to 1, or -1"):
        track_of([[face(10), face(100)]], face_index=-2)


def test_bad_face_index_is_found_without_reading_the_whole_video() -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from [plain()] * 4
        pytest.fail("read on")

    check = partial(check_face_index, pads=NO_PADS, face_index=1)
    with pytest.raises(InputError, match=r"--face_index 1: the first frame with faces \(frame 0\) has 1 face; give 0"):
        find_faces(frames(), lambda batch: [[face(10)]] * len(batch), 2, check=check)


def test_later_shot_with_too_few_faces_passes_through() -> None:
    track = track_of([[face(10), face(100)]] * 3 + [[face(10)]] * 3, cuts=[3], face_index=1)
    assert track.has_face.tolist() == [True] * 3 + [False] * 3
    assert not track.boxes[3:].any()


# --- one person only: --face_index


class Looks:
    """Descriptors of the scripted people, who are told by the height at which their faces are; counts what it is asked.

    The first of 128 numbers is 1 for each 10 px of y1: people 10 px apart in height do not look the same.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def __call__(self, frame: int, face: Detection) -> np.ndarray:
        self.asked.append((frame, face.box[0]))
        return np.eye(128)[0] * face.box[1] / 10


def her(x1: float, score: float = 1.0) -> Detection:
    return face(x1, y1=20, score=score)


def him(x1: float, score: float = 1.0) -> Detection:
    return face(x1, y1=30, score=score)


GONE: list[list[Detection]] = [[] for _ in range(MAX_GAP + 1)]


@pytest.mark.parametrize("identify", [None, Looks()])
def test_who_stays_does_not_get_the_text_of_who_leaves(identify: Identify | None) -> None:
    """--face_index 0 and she leaves: the man spoke her text to the end."""
    script = [[her(10), him(120)]] * 3 + [[him(120)]] * (MAX_GAP + 10)
    track = track_of(script, face_index=0, identify=identify)
    assert track.has_face.tolist() == [True] * 3 + [False] * (MAX_GAP + 10)
    assert track.summary().endswith("3 detected, 0 interpolated, 0 without a face, 22 with other people only, 0 cuts")


def test_she_is_waited_for_at_the_place_where_she_was_lost() -> None:
    """Without a look at faces, one that comes up elsewhere is not hers."""
    script = [[her(10)], *GONE, [him(120)], [him(120)], [her(14), him(120)], [her(14), him(120)]]
    track = track_of(script, face_index=0)
    assert np.flatnonzero(track.has_face).tolist() == [0, 16, 17]
    assert track.boxes[16:, 2].tolist() == [14, 14]


def test_she_is_known_again_wherever_she_comes_back() -> None:
    script = [[her(10)], *GONE, [him(10)], [him(10)], [him(10), her(150)], [her(150)]]
    track = track_of(script, face_index=0, identify=Looks())
    assert np.flatnonzero(track.has_face).tolist() == [0, 16, 17]
    assert track.boxes[16:, 2].tolist() == [150, 150]


def test_after_a_cut_the_same_person_is_followed() -> None:
    """Not the one at the place of before, not the n-th from the left, not the best-scored: she."""
    first, second = [him(60, score=2), her(120)], [her(10), him(120, score=2)]
    track = track_of([first] * 3 + [second] * 3, cuts=[3], face_index=1, identify=Looks())
    assert track.boxes[:, 2].tolist() == [120] * 3 + [10] * 3
    assert track.has_face.all()


def test_a_shot_without_her_passes_through() -> None:
    script = [[her(10)]] * 3 + [[him(10)]] * 4 + [[her(90)]] * 2
    track = track_of(script, cuts=[3, 7], face_index=0, identify=Looks())
    assert track.has_face.tolist() == [True] * 3 + [False] * 4 + [True] * 2
    assert track.others_only is not None
    assert track.others_only.tolist() == [False] * 3 + [True] * 4 + [False] * 2
    assert "4 with other people only, 2 cuts" in track.summary()


def test_without_a_look_the_nth_from_the_left_is_followed_after_a_cut() -> None:
    track = track_of([[her(10), him(120)]] * 3 + [[him(30)], [him(30), her(140)]], cuts=[3], face_index=1)
    assert track.boxes[track.has_face][:, 2].tolist() == [120] * 3 + [140]


def test_each_face_that_comes_up_is_looked_at_once_at_its_best() -> None:
    looks = Looks()
    script = [[her(10, 0.5)], [her(11, 0.9)], [her(12, 0.7)]] + [[him(10 + n, n)] for n in range(9)] + [[her(90)]] * 3
    track_of(script, cuts=[3, 12], face_index=0, identify=looks)
    assert looks.asked == [(11, 18), (1, 11), (12, 90)]


@pytest.mark.parametrize("face_index", [-1, 0])
def test_nobody_is_looked_at_without_need(face_index: int) -> None:
    """It costs a network's weights and a seek in the video. -1 follows whoever is the best, as ever."""
    cuts = [3] if face_index == -1 else []
    looks = Looks()
    track = track_of([[her(10)]] * 3 + [[him(20)]] * 3, cuts=cuts, face_index=face_index, identify=looks)
    assert track.has_face.all()
    assert not looks.asked


# --- nothing to follow


def test_no_face_at_all() -> None:
    with pytest.raises(InputError, match=r"7 frames.*--face_detector"):
        track_of([[] for _ in range(7)])


@pytest.mark.parametrize(
    ("detection_size", "advice"),
    [(None, "a face, or try"), (WIDTH, "a face, or try"), (150, "--detection_size 200, else"), (60, "size 120, else")],
)
def test_no_face_in_shrunk_frames_names_the_flag_that_helps(detection_size: int | None, advice: str) -> None:
    """1080p with a face of 60 px: nothing is found at 720, and the error did not say that 1440 would."""
    with pytest.raises(InputError, match=advice) as caught:
        build_track(faces_of([[], []]), 2, pads=NO_PADS, detection_size=detection_size)
    assert "--face_detector" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_frames_at_all() -> None:
    with pytest.raises(InputError, match="0 frames"):
        track_of([])
