"""Which source frame is shown when, and who is in it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

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
    playback = played(track={"has_face": np.arange(N) != 0})
    assert playback.reference("gt", None) is None
    first = playback.reference("first_frame", None)
    assert first is not None
    assert first.shape == (6, 4, 3)
    assert (first == 1).all()
    levels = {int(crop[0, 0, 0]) for seed in range(30) if (crop := playback.reference("random", seed)) is not None}
    assert levels == {1, 2, 3, 4, 5}


def test_motion_comes_with_the_face_where_it_is_known() -> None:
    motion = np.full((N, 2, 3), np.nan, np.float32)
    motion[3] = np.eye(2, 3)
    track = played(track={"motion": motion}).track
    before, known = (track.face(source, source, is_cut=False) for source in (2, 3))
    assert before is not None
    assert before.motion is None
    assert known is not None
    np.testing.assert_array_equal(known.motion, motion[3])


@pytest.mark.parametrize(("order", "is_frozen"), [("loop", False), ("cut", True)])
def test_the_source_of_an_output_frame_is_the_one_that_is_shown(order: str, is_frozen: bool) -> None:
    playback = played(14, order=order, is_frozen=is_frozen, track={"has_face": np.arange(N) > 1})
    shown = [int(item.frame[0, 0, 0]) for item in playback.items(0, playback.n_output)]
    assert [playback.source(index) for index in range(playback.n_output)] == shown
