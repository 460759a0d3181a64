"""The sounds that the noise meter learns from, and that it learns."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import train_noise_meter
from make_sample import synthesize
from safetensors.torch import load_file, save
from train_noise_meter import (
    LOWEST_TRUTH,
    Cast,
    Examples,
    begun,
    decibel_ratio,
    decoded,
    examples,
    hum,
    losses,
    main,
    music,
    noise,
    recorded,
    rms,
    signal_to_noise,
    spoken_hops,
    steady,
    train,
    varying,
)

from audio.noise_level import BANDS, HIGHEST_SNR, NoiseMeter, load_noise_meter
from audio.voice_activity import HOP, RATE
from guided_diffusion.errors import InputError

SAMPLES = Path(__file__).parent.parent / "samples"


@pytest.fixture(scope="module")
def cast() -> Cast:
    """A person, and a voice of tones."""
    t = np.arange(RATE) / RATE
    tones = np.sin(2 * np.pi * 150 * t) * (np.sin(2 * np.pi * 4 * t) > 0)
    return Cast([[decoded(SAMPLES / "speech.wav")]], [[tones.astype(np.float32)]])


def test_speech_is_of_one_speaker_and_as_long_as_asked(cast: Cast) -> None:
    rng = np.random.default_rng(0)
    made = [cast.speech(rng, 2 * RATE) for _ in range(20)]
    assert {len(sound) for sound, _ in made} == {2 * RATE}
    assert {is_recorded for _, is_recorded in made} == {True, False}
    assert all(sound.any() for sound, _ in made)
    assert not any(is_recorded for _, is_recorded in (Cast([], [[made[0][0]]]).speech(rng, RATE) for _ in range(9)))


def test_voices_are_faster_and_higher_up_to_the_paces() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(20 * RATE) / RATE).astype(np.float32)

    def heights(paces: float) -> np.ndarray:
        cast, rng = Cast([], [[tone]], paces), np.random.default_rng(0)
        heard = (cast.speech(rng, 2 * RATE)[0][RATE:] for _ in range(30))
        return np.log([np.abs(np.fft.rfft(sound)).argmax() / 1000 for sound in heard])

    assert np.abs(heights(0)).max() < 0.002
    assert 0.15 < np.abs(heights(0.2)).max() < 0.202


@pytest.mark.parametrize("made_by", [steady, varying, hum, music])
def test_noise_is_never_the_same(made_by: object) -> None:
    one, same, other = (made_by(np.random.default_rng(seed), RATE) for seed in (1, 1, 2))  # type: ignore[operator]
    assert one.shape == (RATE,)
    assert np.isfinite(one).all()
    assert one.std() > 0
    assert np.array_equal(one, same)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


def test_all_kinds_of_noise_are_made_with_power_1(cast: Cast) -> None:
    rng = np.random.default_rng(0)
    made = [noise(rng, cast, RATE) for _ in range(60)]
    assert {kind for _, kind in made} == {"steady", "varying", "hum", "music", "babble", "talkers", "two"}
    assert all(rms(sound) == pytest.approx(1, abs=1e-3) for sound, _ in made)


def test_an_example_is_the_sum_of_what_it_says(cast: Cast) -> None:
    """Speech and noise do not go together, so their powers add up, on average."""
    rng = np.random.default_rng(3)
    clips = [clip for _ in range(12) for clip in examples(rng, cast, 2 * RATE)]
    for power, speech, added, speaks in clips:
        assert power.shape == (2 * RATE // HOP, BANDS)
        assert speech.shape == added.shape == speaks.shape == (len(power),)
        assert power.sum() == pytest.approx(speech.sum() + added.sum(), rel=0.4)
        assert set(np.unique(speaks)) <= {0, 1}
        assert speech[speaks == 0].sum() <= 0.05 * speech.sum() + 1e-12
        if speaks.any():
            assert -46 < 10 * np.log10(speech[speaks == 1].mean()) < -11
    assert any(not speaks.any() for *_, speaks in clips)  # nobody speaks
    ratios = [10 * np.log10(speech.sum() / added.sum()) for _, speech, added, speaks in clips if speaks.any()]
    assert min(ratios) < 5
    assert max(ratios) > 20


def test_recordings_are_not_called_clean() -> None:
    """They have noise of their own."""
    rng = np.random.default_rng(0)
    assert max(signal_to_noise(rng, "steady", True) for _ in range(300)) < 29
    assert max(signal_to_noise(rng, "steady", False) for _ in range(300)) > HIGHEST_SNR
    assert min(signal_to_noise(rng, "talkers", True) for _ in range(300)) > 0


def test_somebody_speaks_where_it_is_loud_and_beside_it() -> None:
    power = np.array([0, 0, 1, 1, 1e-4, 1e-4, 1e-4, 1])
    assert spoken_hops(power).tolist() == [False, True, True, True, True, False, True, True]


def test_a_batch_is_of_one_length(cast: Cast) -> None:
    batch = next(iter(Examples(cast, 0)))
    assert [one.dtype for one in batch] == [torch.float32] * 4
    assert len({one.shape[:2] for one in batch}) == 1


def test_what_the_loss_is_least_for() -> None:
    """Right shares have no loss but that of the hops' presence; the error is in dB."""
    power = torch.full((1, 50, BANDS), 1 / BANDS)
    speech, added, speaks = torch.full((1, 50), 10 / 11), torch.full((1, 50), 1 / 11), torch.ones(1, 50)

    def told(ratio: float) -> tuple[float, float]:
        def meter(_power: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.full((1, 50), ratio * np.log(10) / 10), torch.full((1, 50), 30.0)

        loss, error = losses(meter, [power, speech, added, speaks])  # type: ignore[arg-type]
        return float(loss), float(error)

    assert told(10) == pytest.approx((0, 0), abs=1e-4)
    assert told(13)[1] == pytest.approx(3, abs=1e-3)
    assert told(13)[0] > told(11)[0] > told(10)[0]


def test_where_nobody_speaks_no_ratio_of_the_whole_is_asked_for() -> None:
    power, nothing, added = torch.full((1, 50, BANDS), 1 / BANDS), torch.zeros(1, 50), torch.ones(1, 50)

    def meter(_power: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((1, 50), -30 * np.log(10) / 10), torch.full((1, 50), -30.0)

    loss, error = losses(meter, [power, nothing, added, nothing])  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(0, abs=1e-4)
    assert error.isnan().all()
    assert decibel_ratio(torch.tensor(0.0), torch.tensor(1.0)) < LOWEST_TRUTH


def test_training_moves_the_weights(cast: Cast) -> None:
    meter = NoiseMeter()
    first = {name: weight.clone() for name, weight in meter.state_dict().items()}
    trained = train(meter, cast, 0.02, seed=0).state_dict()
    assert all((trained[name] - weight).abs().max() > 0 for name, weight in first.items())


def test_recordings_of_any_format_are_read(tmp_path: Path) -> None:
    """At RATE, mono; the rest of a folder is left alone."""
    sound = np.stack([np.sin(np.arange(44100) / 9), np.zeros(44100)], axis=1)
    (tmp_path / "são").mkdir()
    soundfile.write(tmp_path / "são" / "1.flac", sound, 44100)
    soundfile.write(tmp_path / "short.wav", sound[:99], 44100)
    (tmp_path / "notes.txt").write_text("no sound")
    (piece,) = recorded(str(tmp_path))
    assert len(piece) == pytest.approx(RATE, abs=50)
    assert piece.std() > 0.1
    with pytest.raises(InputError, match="no sound files of speech"):
        recorded(str(tmp_path / "nowhere"))


def test_tags_in_another_encoding_do_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "old.wav"
    soundfile.write(path, np.sin(np.arange(RATE)) / 2, RATE)
    title = "Голос".encode("cp1251") + b"\0"
    chunk = b"INFOINAM" + len(title).to_bytes(4, "little") + title
    path.write_bytes(path.read_bytes() + b"LIST" + len(chunk).to_bytes(4, "little") + chunk)
    assert [len(piece) for piece in recorded(str(tmp_path))] == [RATE]


def test_the_command_writes_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        synthesize("a", "en")
    except InputError:
        pytest.skip("libespeak-ng is not installed")
    out = tmp_path / "meter.safetensors"
    monkeypatch.setattr("sys.argv", ["train_noise_meter.py", str(out), "--sentences", "2", "--minutes", "0.01"])
    monkeypatch.setattr(train_noise_meter, "BATCH_SECONDS", 8)
    assert main() == 0
    first = {name: weight.clone() for name, weight in load_noise_meter(str(out)).state_dict().items()}
    monkeypatch.setattr(
        "sys.argv",
        ["x", str(out), "--sentences", "1", "--minutes", "1e-4", "--init", str(out), "--seed", "1"],
    )
    assert main() == 0
    for name, weight in load_file(out).items():
        torch.testing.assert_close(weight.float(), first[name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    "content", [None, b"x", save({"first.weight": torch.zeros(1)})], ids=["missing", "no weights", "other weights"]
)
def test_other_weights_are_no_start(content: bytes | None, tmp_path: Path) -> None:
    """They ended in a traceback, after minutes."""
    path = tmp_path / "other.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="no weights of this network"):
        begun(str(path), load_noise_meter, NoiseMeter)
