"""What is found in sounds that were spoilt on purpose."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio import assess, voice_activity
from audio.assess import Assessment, main
from audio.blocks import resampled
from guided_diffusion.errors import InputError

SPEECH = Path(__file__).parent.parent / "samples" / "speech.wav"
RATE = 22050
FULL_BAND = 48000


@pytest.fixture(autouse=True)
def _without_dnsmos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for each file."""
    monkeypatch.setattr(assess, "find_spec", lambda _name: None)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """The sample's speech with a second of silence after it, a tenth of full scale at its peak."""
    sound = soundfile.read(SPEECH, dtype="float32")[0]
    return np.concatenate([0.1 * sound, np.zeros(RATE, np.float32)])


def of(sound: np.ndarray, folder: Path, rate: int = RATE, subtype: str = "PCM_16") -> Assessment:
    soundfile.write(folder / "sound.wav", sound, rate, subtype=subtype)
    return assess.assess(str(folder / "sound.wav"))


def says(sound: Assessment, word: str) -> bool:
    return any(word in line for line in sound.verdict)


def test_good_speech_is_good(speech: np.ndarray, tmp_path: Path) -> None:
    sound = of(3 * speech, tmp_path)
    assert sound.verdict == ["good: nothing here should do the lips much harm"]
    assert (sound.sample_rate, sound.channels) == (RATE, "mono")
    assert sound.seconds == pytest.approx(len(speech) / RATE)
    assert sound.peak == pytest.approx(20 * np.log10(0.3), abs=0.1)
    assert sound.clipped < 1e-4
    assert sound.bandwidth > 9000


@pytest.mark.parametrize("snr", [0, 10, 25])
def test_noise_is_measured_within_3_db(snr: int, speech: np.ndarray, tmp_path: Path) -> None:
    spoken = speech[: -RATE]
    noise = np.random.default_rng(0).normal(0, spoken.std() / 10 ** (snr / 20), len(speech))
    sound = of(speech + noise, tmp_path)
    assert sound.snr == pytest.approx(snr, abs=3)
    assert says(sound, "--denoise_audio deep") == (snr < 20)


@pytest.mark.parametrize("share", [0.003, 0.03])
def test_clipping_is_found(share: float, speech: np.ndarray, tmp_path: Path) -> None:
    """Also when the level was lowered afterwards."""
    limit = np.quantile(np.abs(speech), 1 - share)
    sound = of(0.5 * np.clip(speech, -limit, limit), tmp_path)
    assert sound.clipped == pytest.approx(share, rel=0.3)
    assert says(sound, "clipped")


def test_a_telephones_band_is_found(speech: np.ndarray, tmp_path: Path) -> None:
    narrow = resampled(resampled([speech], RATE, 8000), 8000, FULL_BAND)
    sound = of(np.concatenate(list(narrow)), tmp_path, FULL_BAND)
    assert sound.bandwidth == pytest.approx(3800, abs=300)
    assert says(sound, "telephone")


def test_silence_is_found_where_it_is(speech: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("silero_vad")
    silence = np.zeros(2 * RATE, np.float32)
    spoken = len(speech) / RATE - 1
    sound = of(np.concatenate([silence, speech, silence]), tmp_path)
    assert sound.silences is not None
    (first, last) = sound.silences
    assert first == pytest.approx((0, 2), abs=0.2)
    assert last == pytest.approx((2 + spoken, 5 + spoken), abs=0.3)
    assert sound.silence == pytest.approx(5 / (5 + spoken), abs=0.1)


@pytest.mark.parametrize(("gain", "word"), [(0.02, "quiet"), (30.0, "loud")])
def test_the_level_is_judged(gain: float, word: str, speech: np.ndarray, tmp_path: Path) -> None:
    sound = of(gain * speech, tmp_path)
    assert says(sound, word)
    assert says(sound, "--compress_audio")


def test_nothing_but_silence(tmp_path: Path) -> None:
    sound = of(np.zeros(RATE, np.float32), tmp_path)
    assert (sound.loudness, sound.peak, sound.snr, sound.wada_snr, sound.bandwidth) == (None, None, None, None, 0)
    assert says(sound, "silence")
    json.dumps(sound.verdict)


def test_wada_needs_no_pauses(tmp_path: Path) -> None:
    """On what it is made for: gamma-distributed speech in Gaussian noise."""
    rng = np.random.default_rng(1)
    clean = rng.gamma(0.4, 1, 100000) * rng.choice([-1, 1], 100000)
    for snr in (0, 10, 20):
        noise = rng.normal(0, clean.std() / 10 ** (snr / 20), len(clean))
        sound = of((clean + noise) / 20, tmp_path, 16000, "FLOAT")
        assert sound.wada_snr == pytest.approx(snr, abs=1)


@pytest.mark.parametrize(("channels", "words"), [(2, "2 channels, averaged"), (6, "6 channels, mostly the centre")])
def test_the_mix_is_said(channels: int, words: str, speech: np.ndarray, tmp_path: Path) -> None:
    assert of(np.stack([speech] * channels, axis=1), tmp_path).channels == words


def test_what_is_not_installed_is_not_measured(
    speech: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voice_activity, "find_spec", lambda _name: None)
    voice_activity.load_speech_detector.cache_clear()
    sound = of(speech, tmp_path)
    assert set(sound.not_measured) == {"silence", "silences", "dnsmos"}
    assert "requirements-audio.txt" in sound.not_measured["silence"]
    assert sound.silence is sound.dnsmos is None
    assert sound.loudness is not None


def test_dnsmos_prefers_speech_to_noise(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("speechmos")
    monkeypatch.undo()
    rate = assess.load_rating()
    heard = np.concatenate(list(resampled([speech], RATE, voice_activity.RATE)))
    heard = np.resize(heard, assess.RATED_BLOCK)
    noise = np.random.default_rng(0).normal(0, heard.std(), len(heard)).astype(np.float32)
    assert 1 < rate(heard + noise) < rate(heard) < 5


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SPEECH), "--json", str(tmp_path / "sound.json")]) == 0
    assert "22050 Hz" in capsys.readouterr().out
    assert json.loads((tmp_path / "sound.json").read_text())["sample_rate"] == 22050
    assert main([str(tmp_path / "none.wav")]) == 2
    assert "none.wav" in capsys.readouterr().err
    with pytest.raises(InputError):
        assess.assess(str(tmp_path / "sound.json"))


def test_the_beginning_alone_can_be_heard(tmp_path: Path) -> None:
    """A plan of ten minutes has no time for all of them."""
    rate = 16000
    sound = np.random.default_rng(0).normal(0, 0.1, 5 * rate)
    sound[3 * rate :] = 1.0  # cut off
    path = str(tmp_path / "sound.wav")
    soundfile.write(path, sound, rate)
    assert assess.assess(path, 2).seconds == pytest.approx(2, abs=0.2)
    assert assess.assess(path, 2).clipped < assess.assess(path).clipped
    assert assess.assess(path, 60) == assess.assess(path)
