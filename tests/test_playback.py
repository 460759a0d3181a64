"""Which source frame is shown when, and who is in it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from face_detection import playback
from face_detection.playback import Playback
from face_detection.tracks import fixed_track

N = 6


@dataclass(frozen=True)
class Frames:
    """A video whose frame k is of level k."""

    is_image: bool = False

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        return (np.full((8, 8, 3), k, np.uint8) for k in range(start, N if stop is None else stop))


TRACK = fixed_track(N, (1, 7, 2, 6))


def played(n_windows: int = N, **more: object) -> Playback:
    return Playback(Frames(), replace(TRACK, **more.pop("track", {})), n_windows, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("order", "starts"), [("cut", []), ("loop", [6, 12]), ("pingpong", [])])
def test_the_jump_of_a_loop_begins_a_shot(order: str, starts: list[int]) -> None:
    assert played(14, order=order).shot_starts == starts


def test_a_frozen_frame_has_no_cuts_and_is_the_first_with_the_face() -> None:
    track = {"has_face": np.arange(N) > 1, "is_cut": np.arange(N) == 4}
    frozen = played(track=track, is_frozen=True)
    assert frozen.shot_starts == []
    items = list(frozen.items(1, 4))
    assert [int(item.frame[0, 0, 0]) for item in items] == [2, 2, 2]
    assert [item.face.index for item in items if item.face] == [1, 2, 3]


def test_the_result_is_as_long_as_the_sound_only_where_the_source_can_be() -> None:
    assert played(20).n_output == N
    assert played(20, order="loop").n_output == 20
    assert Playback(Frames(is_image=True), TRACK, 20).n_output == 20


def test_the_reference_is_a_crop_of_a_frame_with_the_face() -> None:
    with_gap = played(track={"has_face": np.arange(N) != 0})
    assert with_gap.reference("gt", None) is None
    first = with_gap.reference("first_frame", None)
    assert first is not None
    assert first.shape == (6, 4, 3)
    assert (first == 1).all()
    levels = {int(crop[0, 0, 0]) for seed in range(30) if (crop := with_gap.reference("random", seed)) is not None}
    assert levels == {1, 2, 3, 4, 5}


def test_motion_comes_with_the_face_where_it_is_known() -> None:
    motion = np.full((N, 2, 3), np.nan, np.float32)
    motion[3] = np.eye(2, 3)
    motions = [item.face.motion for item in played(track={"motion": motion}).items(2, 5) if item.face]
    assert [motion is None for motion in motions] == [True, False, True]
    np.testing.assert_array_equal(motions[1], motion[3])


@pytest.mark.parametrize("start", [0, 7])
def test_motion_is_from_the_frame_shown_before(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played backwards it is the inverse; a still picture's face stays where it is; the jump of a loop is none."""
    motion = np.full((N, 2, 3), np.nan, np.float32)
    motion[1:] = np.array([[0.9, -0.1, 3], [0.1, 0.9, 0]])
    motion[1:, 1, 2] = np.arange(1, N)
    track = {"motion": motion}
    shown = [*range(6), *range(4, -1, -1)]
    forward_and_back = iter([(source, np.zeros((8, 8, 3), np.uint8)) for source in shown[start:]])
    with monkeypatch.context() as patched:
        patched.setattr(playback, "ordered_frames", lambda *_, **__: forward_and_back)
        items = list(played(11, order="pingpong", track=track).items(start, 11))
    for item, source in zip(items, shown[start:], strict=True):
        assert item.face is not None
        if item.face.index == 0:
            assert item.face.motion is None
        elif item.face.index <= 5:
            np.testing.assert_array_equal(item.face.motion, motion[source])
        else:
            assert item.face.motion is not None
            back_and_there = np.vstack([motion[source + 1], [0, 0, 1]]) @ np.vstack([item.face.motion, [0, 0, 1]])
            np.testing.assert_allclose(back_and_there, np.eye(3), atol=1e-5)
    picture = Playback(Frames(is_image=True), replace(fixed_track(1, (1, 7, 2, 6)), motion=motion[:1]), 11)
    for still in (played(11, is_frozen=True, track=track), picture):
        for item in list(still.items(max(start, 1), 11)):
            np.testing.assert_array_equal(item.face.motion, np.eye(2, 3))  # type: ignore[union-attr]
    looped = list(played(11, order="loop", track=track).items(0, 11))
    assert [item.face.index for item in looped if item.face and item.face.motion is None] == [0, 6]


@pytest.mark.parametrize(("order", "is_frozen"), [("loop", False), ("cut", True)])
def test_the_source_of_an_output_frame_is_the_one_that_is_shown(order: str, is_frozen: bool) -> None:
    playback = played(14, order=order, is_frozen=is_frozen, track={"has_face": np.arange(N) > 1})
    shown = [int(item.frame[0, 0, 0]) for item in playback.items(0, playback.n_output)]
    assert [playback.source(index) for index in range(playback.n_output)] == shown


def test_no_motion_from_a_frame_without_the_face() -> None:
    """Tracked by its movement a face may lose frames whose movement is known; they were taken for its context."""
    motion = np.tile(np.eye(2, 3, dtype=np.float32), (N, 1, 1))
    track = {"motion": motion, "has_face": np.arange(N) != 3}
    known = [item.face.motion is not None for item in played(track=track).items(0, N) if item.face]
    assert known == [False, *[True] * 2, False, *[True] * (N - 5)]


def test_a_shot_starts_at_its_first_frame_in_the_source() -> None:
    shots = played(14, order="pingpong", track={"is_cut": np.arange(N) == 4})
    assert [shots.shot_start(source) for source in range(N)] == [4 if source >= 4 else 0 for source in range(N)]
