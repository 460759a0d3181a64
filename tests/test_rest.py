"""The picture of a mouth at rest: from which frame, where in the crop, how far."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from test_lip_metrics import face, moved

from face_detection.playback import Playback
from face_detection.rest import RestPictures, as_soft_as, rest_frames
from face_detection.tracks import fixed_track
from guided_diffusion.tfg_data_util import crop_box, resize_crop

N = 12
SILENT = np.float32([0, 0, 0, 0, 0.5, 1, 1, 1, 0.5, 0, 0, 0])
SIZE = 160
BOX = (10, 130, 20, 120)


def gaps(**of_frames: float) -> np.ndarray:
    """Landmarks of N frames, float32 [N, 68, 2]; the mouth is open by 12 but where told otherwise: f3=1."""
    opened = [of_frames.get(f"f{frame}", 12) for frame in range(N)]
    return np.stack([face(gap) for gap in opened])


@dataclass(frozen=True)
class Video:
    """Frame k shows a head that is moved by its own similarity, on a picture that is the same for all."""

    moves: tuple[tuple[float, float, float, float], ...] = ((1, 0, 0, 0),) * N
    is_image: bool = False
    height: int = SIZE
    width: int = SIZE

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        picture = cv2.GaussianBlur(rng.uniform(0, 255, (SIZE, SIZE, 3)), (0, 0), 5).astype(np.float32)
        picture = np.clip((picture - 127) * 4 + 127, 0, 255)
        for frame in range(start, N if stop is None else stop):
            size, angle, x, y = self.moves[frame]
            turn = size * np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
            yield cv2.warpAffine(picture, np.c_[turn, (x, y)], (SIZE, SIZE)).astype(np.uint8)


def played(landmarks: np.ndarray, video: Video | None = None, **more: object) -> Playback:
    order = more.pop("order", "cut")
    track = replace(fixed_track(N, BOX), landmarks=landmarks, **more)
    return Playback(video or Video(), track, N, order)  # type: ignore[arg-type]


def chosen(landmarks: np.ndarray, shares: np.ndarray = SILENT, **more: object) -> list[int]:
    frames = rest_frames(played(landmarks, **more), shares)
    assert ((frames >= 0) <= (shares > 0)).all()
    return sorted(set(frames[shares > 0].tolist()))


def test_it_is_the_frame_with_the_mouth_closed() -> None:
    assert chosen(gaps(f2=1, f9=3)) == [2]
    assert chosen(gaps(f2=1, f9=3), is_interpolated=np.arange(N) == 2) == [9]


def test_of_frames_that_are_as_closed_it_is_the_one_with_the_head_turned_most_alike() -> None:
    landmarks = gaps(f1=1.0, f10=1.2)
    landmarks[1, 27:36] += (8, 0)  # the nose points aside, as in no other frame
    assert chosen(landmarks) == [10]
    landmarks[5:8, 27:36] += (8, 0)
    assert chosen(landmarks) == [1]


def test_lips_that_are_pursed_are_not_at_rest() -> None:
    """For a p the lips are as closed; laid over a silence they pout."""
    landmarks = gaps(f1=1.0, f10=1.2)
    assert chosen(landmarks) == [1]
    middle = landmarks[1, [48, 54]].mean(axis=0)
    landmarks[1, [48, 54]] = middle + 0.8 * (landmarks[1, [48, 54]] - middle)
    assert chosen(landmarks) == [10]


def test_a_face_that_the_edge_cuts_off_does_not_lie_over_a_whole_one() -> None:
    """Its missing chin was filled with streaks of the last row; where there is no other, it must do."""
    boxes = np.tile(BOX, (N, 1))
    boxes[1] = 60, SIZE + 20, 20, 120
    assert chosen(gaps(f1=1, f10=3), boxes=boxes) == [10]
    assert chosen(gaps(f1=1), boxes=np.tile((60, SIZE + 20, 20, 120), (N, 1))) == [1]


def test_it_is_of_the_same_shot() -> None:
    """A loop shows two shots in one silence; another shot's light or person would show."""
    landmarks = gaps(f1=1, f9=4)
    assert chosen(landmarks, is_cut=np.arange(N) == 3) == [9]
    assert chosen(landmarks, is_cut=np.arange(N) == 7) == [1, 9]


def test_without_landmarks_of_the_shot_there_is_none() -> None:
    landmarks = gaps(f1=1)
    landmarks[4:9] = np.nan
    none = {"has_face": ~np.isnan(landmarks[:, 0, 0]), "is_cut": np.isin(np.arange(N), [4, 9])}
    assert chosen(landmarks, **none) == [-1]
    unknown = {"is_interpolated": np.arange(N) > 3, "is_cut": np.arange(N) == 4}
    assert chosen(gaps(f1=1), **unknown) == [-1]


def at_rest(playback: Playback, index: int, crop: np.ndarray) -> np.ndarray:
    shown = playback.track.face(index, index, is_cut=False)
    assert shown is not None
    return RestPictures(playback, SILENT, 0.5)(shown, crop)


def test_it_is_aligned_to_the_head_at_the_resolution_of_what_it_covers() -> None:
    """The pictures do not differ but in how the head is moved: aligned, the one at rest is the frame itself."""
    still, aside = (1, 0, 0, 0), (1.1, 0.1, 2, -5)
    moves = tuple(aside if frame == 1 else still for frame in range(N))
    upright = gaps(f1=1)
    upright[:, 48:] = upright[:, 48:] / 4 + (57, 88)
    landmarks = np.stack([moved(points, *move) for points, move in zip(upright, moves, strict=True)])
    playback = played(landmarks, Video(moves))
    made = at_rest(playback, 6, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert (made.shape, made.dtype) == ((64, 64, 3), np.uint8)
    own, other = (resize_crop(crop_box(playback.source_frame(source), BOX), 64, 64) for source in (6, 1))
    mouth = np.s_[46:51, 28:36]
    assert np.abs(made[mouth].astype(int) - own[mouth]).mean() < 2
    assert np.abs(made[mouth].astype(int) - other[mouth]).mean() > 10


def test_it_fades_within_the_generated_part_and_eases_in() -> None:
    playback = played(gaps(f1=1))
    crop = np.full((64, 64, 3), 200, np.uint8)
    rested, half, speaking = (at_rest(playback, index, crop).astype(int) for index in (5, 4, 3))
    assert (speaking == 200).all()
    assert (rested[:32] == 200).all()
    assert np.abs(rested - 200)[[32, 63], 24:40].mean() < 0.3 * np.abs(rested - 200)[40:55, 24:40].mean()
    np.testing.assert_allclose(half, (rested + 200) / 2, atol=1)
    assert (crop == 200).all()


def test_it_shows_on_the_mouth_and_leaves_the_jaw_to_the_network() -> None:
    """The jaw of a closed mouth lay as a second one over that of an open one."""
    landmarks = gaps(f1=1)
    landmarks[:, 48:] = landmarks[:, 48:] / 5 + (60, 90)
    made = at_rest(played(landmarks), 6, np.full((64, 64, 3), 200, np.uint8)).astype(int)
    assert np.abs(made - 200)[44:52, 28:36].mean() > 10
    assert (made[58:] == 200).all()


def test_it_is_no_sharper_than_what_it_covers() -> None:
    """Sharpened as the network's soft lips are, filmed ones got black and white rims."""
    sharp = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    soft = cv2.GaussianBlur(sharp, (0, 0), 0.7)
    weight = np.ones((64, 64), np.float32)
    as_soft = as_soft_as(sharp, soft, weight)
    assert np.abs(as_soft.astype(int) - soft).mean() < 3
    assert np.array_equal(as_soft_as(soft, sharp, weight), soft)


def test_a_face_without_a_picture_at_rest_stays_as_it_was_generated() -> None:
    crop = np.full((64, 64, 3), 200, np.uint8)
    assert at_rest(played(gaps(f1=1), is_interpolated=np.ones(N, bool)), 5, crop) is crop


def test_the_user_is_told_how_much_rests_and_where_the_mouth_cannot_close() -> None:
    def told(landmarks: np.ndarray, **more: object) -> str:
        return RestPictures(played(landmarks, **more), SILENT, 0.5).summary()

    assert told(gaps(f1=1)) == "silence: 5 frames at rest"
    assert told(gaps()) == "silence: 5 frames at rest, 5 of them open, as the mouth never closes there"
