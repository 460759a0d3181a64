"""The talking portrait: speech to shapes of the mouth, shapes to lips, lips to pictures whose truth is known."""

import ctypes
import json
from pathlib import Path

import make_sample
import numpy as np
import pytest
from make_sample import (
    INNER_LOWER,
    INNER_UPPER,
    MOUTH,
    SMALLEST_GAP,
    VISEMES,
    Camera,
    Light,
    Phoneme,
    Pose,
    Puppet,
    Viseme,
    blinks,
    look,
    mouth_of,
    poses,
    training_script,
    viseme_track,
)

from face_detection.api import FaceAlignment
from face_detection.lip_metrics import mouth_opening
from guided_diffusion.errors import InputError
from guided_diffusion.video_util import open_video

SAMPLES = Path(__file__).parent.parent / "samples"


@pytest.fixture(scope="module")
def puppet() -> Puppet:
    return Puppet()


def gap(shape: Viseme) -> float:
    mouth = mouth_of(shape)
    return float((mouth.inner_lower[4] - mouth.inner_upper[4])[1])


def test_lips_close_between_vowels() -> None:
    """A closure of 30 ms lies between two frames of 40 ms: it is held long enough to be seen in one."""
    for start in np.arange(0.4, 0.48, 0.01):
        phonemes = [Phoneme(0.1, "aI"), Phoneme(start, "b"), Phoneme(start + 0.03, "A:"), Phoneme(0.8, "_")]
        track = viseme_track(phonemes, 25)
        gaps = [gap(Viseme(*row)) for row in track]
        assert min(gaps[9:15]) < 0.35 * gaps[7]
        assert gaps[7] > 4


def test_the_mouth_rests_in_silence() -> None:
    track = viseme_track([Phoneme(0.1, "A:"), Phoneme(0.5, "_")], 40)
    assert track.shape == (40, 5)
    assert track[8, 0] > 0.8
    assert np.abs(track[20:]).max() < 0.01


def test_every_shape_is_a_viseme() -> None:
    for shapes in VISEMES.values():
        for jaw, width, *others in shapes:
            assert 0 <= jaw <= 1
            assert -1 <= width <= 1
            assert all(0 <= value <= 1 for value in others)


def test_lips_part_with_the_jaw_and_never_cross() -> None:
    gaps = [gap(Viseme(jaw)) for jaw in np.linspace(0, 1, 9)]
    assert np.all(np.diff(gaps) > 1)
    assert gaps[0] == pytest.approx(SMALLEST_GAP)
    assert gap(Viseme(0.9, press=1)) < SMALLEST_GAP
    for width in (-1.0, 0.0, 1.0):
        mouth = mouth_of(Viseme(0.5, width))
        assert np.all(mouth.inner_lower[1:-1, 1] > mouth.inner_upper[1:-1, 1])
    rounded, spread = (np.ptp(mouth_of(Viseme(0.3, width)).inner_upper[:, 0]) for width in (-1, 1))
    assert rounded < 0.75 * spread


def test_only_the_mouths_surroundings_change(puppet: Puppet) -> None:
    before = puppet.canvas.copy()
    result = puppet.with_mouth(mouth_of(Viseme(0.8)), tongue=0.0)
    assert np.array_equal(puppet.canvas, before)
    rows, columns = make_sample._canvas_slices(MOUTH)
    changed = np.abs(result - before).max(axis=2)
    assert changed[rows, columns].max() > 60
    changed[rows, columns] = 0
    assert changed.max() == 0
    # the border of the warped part stays where it was: no seam
    part = np.abs(result - before)[rows, columns].max(axis=2)
    assert max(part[0].max(), part[-1].max(), part[:, 0].max(), part[:, -1].max()) < 6


def test_landmarks_see_the_opening_that_the_truth_says(puppet: Puppet) -> None:
    detector = FaceAlignment("dlib")
    seen, true = [], []
    for jaw in np.linspace(0, 0.95, 7):
        mouth = mouth_of(Viseme(float(jaw)))
        picture = Light().on(look(puppet.with_mouth(mouth, 0.0), Pose(), Camera()))
        landmarks = detector.get_landmarks_from_image(picture)
        assert landmarks is not None
        seen.append(mouth_opening(landmarks))
        true.append(mouth_opening(puppet.truth(mouth)))
    assert np.corrcoef(seen, true)[0, 1] > 0.98
    assert np.abs(np.array(seen) - true).max() < 0.06


def test_the_portraits_own_lips_are_those_read_off_it(puppet: Puppet) -> None:
    """Lips whose shift is zero leave the portrait as it is."""
    lips = make_sample.Mouth(INNER_UPPER, INNER_LOWER, make_sample.OUTER_UPPER, make_sample.OUTER_LOWER, drop=0.0)
    rows, columns = make_sample._canvas_slices((200, 250, 152, 200))  # below the mouth's opening
    result = puppet.with_mouth(lips, 0.0)
    assert np.abs(result - puppet.canvas)[rows, columns].max() < 2


def test_a_blink_changes_the_eyes_only(puppet: Puppet) -> None:
    assert puppet.blinked(puppet.canvas, 0.0) is puppet.canvas
    changed = np.abs(puppet.blinked(puppet.canvas, 1.0) - puppet.canvas).max(axis=2)
    assert changed.max() > 40
    below_the_eyes = make_sample._canvas_slices((100, 350, 118, 250))[0]
    assert changed[below_the_eyes].max() == 0


def test_the_background_stands_still(puppet: Puppet) -> None:
    still, moved = (look(puppet.canvas, pose, Camera()) for pose in (Pose(), Pose(x=4, y=2, roll=0.05, turn=3)))
    difference = np.abs(still - moved).max(axis=2)
    assert difference[:40, :40].max() < 1
    assert difference[-40:].max() < 1
    assert difference[150:330, 150:330].max() > 40


def test_clips_are_functions_of_their_seed() -> None:
    voices = ["a", "b"]
    assert training_script(7, voices) == training_script(7, voices)
    assert training_script(7, voices).text != training_script(8, voices).text
    rng = np.random.default_rng
    assert poses(50, rng(1)) == poses(50, rng(1))
    assert all(pose == Pose() for pose in poses(50, rng(1), amount=0))
    closed = blinks(500, rng(1))
    assert len(closed) == 500
    assert 0.02 < np.mean(closed > 0.4) < 0.2


def test_trained_and_held_out_voices_differ() -> None:
    trained, held_out = (
        {voice.split("+")[1] for voice in voices} for voices in (make_sample.VOICES, make_sample.HELD_OUT_VOICES)
    )
    assert not trained & held_out


def test_without_espeak_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    make_sample._espeak.cache_clear()
    assert make_sample.main(["--training", str(tmp_path / "clips")]) == 2
    assert "apt-get install espeak-ng" in capsys.readouterr().err
    assert make_sample.main([]) == 2
    assert not list(tmp_path.iterdir())


def test_espeak_times_its_phonemes() -> None:
    try:
        make_sample._espeak.cache_clear()
        sound, rate, phonemes = make_sample.synthesize("My boat.", "en-us")
    except InputError:
        pytest.skip("libespeak-ng is not installed")
    names = [phoneme.name for phoneme in phonemes]
    assert [name for name in names if not name.startswith("_")] == ["m", "aI", "b", "oU", "t"]
    starts = [phoneme.start for phoneme in phonemes]
    assert starts == sorted(starts)
    assert starts[-1] <= len(sound) / rate


def test_the_sample_is_small_and_its_truth_is_true() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) < 1_000_000
    truth = np.array(json.loads((SAMPLES / "astronaut.json").read_text())["opening"])
    detector = FaceAlignment("dlib")
    frames = list(open_video(str(SAMPLES / "astronaut.mp4")).frames(stop=60))
    landmarks = [faces[0].landmarks for faces in detector.detect(frames)]
    seen = [mouth_opening(points) for points in landmarks if points is not None]
    assert np.corrcoef(seen, truth[:60])[0, 1] > 0.95
