"""The sounds that the benchmark is made of, and what they are held against."""

from types import SimpleNamespace

import librosa
import noise_benchmark
import numpy as np
import pytest
from make_sample import FPS
from noise_benchmark import (
    N_FITTED,
    RATE,
    TEXTS,
    at_loudness,
    benchmark_people,
    benchmark_snr,
    by_sentence,
    conditions,
    crowd,
    given_back,
    mixed,
    network,
    noise,
    opening_of_codes,
    opening_reader,
    truth,
)
from test_loudness import loudness

from audio.hparams import PRESETS, model_options
from guided_diffusion.script_util import ModelConfig


@pytest.mark.parametrize("kind", ["white", "pink", "hum", "music"])
def test_noise_has_its_power_and_its_kind(kind: str) -> None:
    made = noise(kind, 2 * RATE)
    assert np.mean(made**2) == pytest.approx(1)
    spectrum = np.abs(np.fft.rfft(made)) ** 2
    low = spectrum[: 2 * 1000].sum() / spectrum.sum()
    assert low == pytest.approx({"white": 0.125, "pink": 0.65, "hum": 1, "music": 0.95}[kind], abs=0.06)


def test_mixtures_have_their_ratio() -> None:
    speech = np.sin(np.arange(RATE)).astype(np.float32)
    for snr in (0, 10):
        added = mixed(speech, "white", snr) - speech
        assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(snr, abs=0.01)
    assert loudness(at_loudness(speech, -30), RATE) == pytest.approx(-30, abs=0.01)


def test_another_seed_is_another_noise() -> None:
    assert np.array_equal(noise("white", RATE, 1), noise("white", RATE, 1))
    assert abs(np.corrcoef(noise("white", RATE, 1), noise("white", RATE))[0, 1]) < 0.05


def test_babble_is_of_voices_that_say_more_than_a_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 0.39 s has no loudness: all of the noise was NaN, and counted as far off."""

    def sentence(seed: int, _voices: object) -> tuple[np.ndarray, None]:
        return np.sin((1 + seed % 7) * np.arange(RATE // 3 if seed % 2 else 2 * RATE)).astype(np.float32), None

    monkeypatch.setattr(noise_benchmark, "sentence", sentence)
    assert np.mean(noise("babble", RATE) ** 2) == pytest.approx(1)


def test_speech_that_is_not_found_is_beyond(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter([10.0] + 6 * [np.nan, 20.0, 15.0, 10.0, 5.0, 0.0])
    monkeypatch.setattr(noise_benchmark, "load_speech", lambda _: np.sin(np.arange(RATE)).astype(np.float32))
    monkeypatch.setattr(noise_benchmark, "spoken_power", lambda _: 0.5)
    monkeypatch.setattr(noise_benchmark, "noise", lambda _kind, n, _seed: np.ones(n))
    monkeypatch.setattr(noise_benchmark, "found_snr", lambda _: next(found))
    with pytest.warns(RuntimeWarning, match="All-NaN"):
        benchmark_snr(["a.wav"], [], [0])
    assert capsys.readouterr().out.count("| 1 of 6 |") == 6


def test_errors_of_the_ratio_are_held_against_the_noise_that_was_added(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here 7 dB are found in every sound: within 3 dB of 10 and 5 alone."""
    monkeypatch.setattr(noise_benchmark, "load_speech", lambda _: np.sin(np.arange(RATE)).astype(np.float32))
    monkeypatch.setattr(noise_benchmark, "spoken_power", lambda _: 0.5)
    monkeypatch.setattr(noise_benchmark, "noise", lambda _kind, n, _seed: np.ones(n))
    monkeypatch.setattr(noise_benchmark, "found_snr", lambda _: 7.0)
    benchmark_snr(["a.wav", "b.wav"], [], [0, 1, 2])
    said = capsys.readouterr().out
    assert "a 7 dB, b 7 dB" in said
    assert "| -18.0 to -18.0 | -13.0 to -13.0 | -8.0 to -8.0 | -3.0 to -3.0 | +2.0 to +2.0 | +7.0 to +7.0 |" in said
    assert "| 24 of 36 |" in said


def test_conditions_are_named_and_clean_speech_is_left_as_it_is() -> None:
    speech = np.sin(np.arange(RATE)).astype(np.float32)
    named = dict(conditions(["clean", "white"], [5, 0]))
    assert list(named) == ["clean | ", "white | 5", "white | 0"]
    assert named["clean | "](speech) is speech
    assert np.array_equal(named["white | 0"](speech), mixed(speech, "white", 0))
    assert np.array_equal(named["white | 0"](speech, seed=1), mixed(speech, "white", 0, seed=1))
    assert not np.array_equal(mixed(speech, "white", 0, seed=1), mixed(speech, "white", 0))


def test_the_opening_is_told_from_codes_by_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    weights = np.array([2.0, -1, 0.5])

    def sentence(seed: int, _voices: object) -> tuple[np.ndarray, np.ndarray]:
        sound = np.random.default_rng(seed).normal(40, 30, (9, 3))
        return sound, sound @ weights + 7

    monkeypatch.setattr(noise_benchmark, "sentence", sentence)
    monkeypatch.setattr(noise_benchmark, "network", lambda _: lambda sound: sound)
    found, constant = opening_of_codes("of a test")
    np.testing.assert_allclose(found, weights, rtol=0.1)
    all_codes = np.concatenate([sentence(seed, None)[0] for seed in range(N_FITTED)])
    assert all_codes.mean(0) @ found + constant == pytest.approx((all_codes @ weights + 7).mean())
    codes = rng.normal(4, 30, (5, 3))
    np.testing.assert_allclose(opening_reader("of a test")(codes), codes @ found + constant)


def test_each_sentence_is_held_against_its_own_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences in a row do not begin with a frame; of the second the mouth is read upside down here."""
    rng = np.random.default_rng(0)
    lengths = (RATE + 100, 2 * RATE + 7)
    pieces = [(np.zeros(n, np.float32), rng.random(n * FPS // RATE)) for n in lengths]
    monkeypatch.setattr(noise_benchmark, "held_out", lambda n: pieces[:n])
    numbers, opening = truth(2)
    assert np.bincount(numbers).tolist() == [FPS + 1, 2 * FPS - 1]
    assert opening[numbers == 0][:FPS].tolist() == pieces[0][1].tolist()
    read = np.where(numbers == 0, opening, -opening)
    read[3] = np.nan
    assert by_sentence(read, 2) == pytest.approx([1, -1])
    assert by_sentence(read[:-1], 2) == pytest.approx([1, -1])


def test_recordings_and_sentences_are_held_against_what_is_heard_in_them_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The opening is the sound's level here: upside down in noise, in every second frame after "spectral", in none
    after "deep". So about half and all of the loss come back."""
    rng = np.random.default_rng(0)
    level = np.repeat(rng.random(2 * FPS), RATE // FPS).astype(np.float32)
    monkeypatch.setattr(noise_benchmark, "load_speech", lambda _: level)
    monkeypatch.setattr(noise_benchmark, "in_languages", lambda names: dict.fromkeys(names, level))
    monkeypatch.setattr(noise_benchmark, "opening_reader", lambda: lambda sound: sound[:: RATE // FPS])
    monkeypatch.setattr(noise_benchmark, "mixed", lambda sound, seed, **_: sound if seed else -sound)
    sign = np.repeat(np.where(np.arange(4 * FPS) % 2, -1, 1), RATE // FPS).astype(np.float32)
    monkeypatch.setattr(noise_benchmark, "heard", lambda sound, method, _: sound * (sign if method != "deep" else -1))
    benchmark_people(["a.wav"], ["de"], ["white"], [5], [0], 0.5)
    none, spectral, deep = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:])
    assert none[3].startswith("-1.000 ±")
    assert none[5] == "0"
    assert 20 < int(spectral[5]) < 80
    assert deep[3].startswith("1.000 ±")
    assert deep[5:] == ["100", "100", "100 |"]
    benchmark_people(["a.wav"], ["de"], ["white"], [5], [0, 1], 0.5)
    none = capsys.readouterr().out.splitlines()[2].split(" | ")
    assert none[3].lstrip("-").startswith("0.000 ±")


def test_each_stands_in_a_crowd_of_all_the_others() -> None:
    tones = [
        np.sin(frequency * np.arange(n)).astype(np.float32) for frequency, n in ((0.1, 4000), (0.2, 9000), (0.4, 5000))
    ]
    pieces = [*tones[:2], np.zeros(6000, np.float32)]
    heard = np.split(crowd(pieces, tones, 0), np.cumsum([len(piece) for piece in pieces])[:-1])
    for piece, under, own in zip(pieces, heard, ((0.2, 0.4), (0.1, 0.4), (0.1, 0.2, 0.4)), strict=True):
        assert len(under) == len(piece)
        assert np.mean(under**2) == pytest.approx(1)
        power = np.abs(np.fft.rfft(under * np.hanning(len(under)))) ** 2
        frequency = 2 * np.pi * np.fft.rfftfreq(len(under))
        shares = [power[np.abs(frequency - one) < 0.03].sum() / power.sum() for one in (0.1, 0.2, 0.4)]
        assert [share > 0.1 for share in shares] == [one in own for one in (0.1, 0.2, 0.4)]
    assert np.array_equal(crowd(pieces, tones, 0), crowd(pieces, tones, 0))
    assert not np.array_equal(crowd(pieces, tones, 0), crowd(pieces, tones, 1))


def test_what_is_given_back_is_a_share_of_what_was_lacking() -> None:
    assert given_back(np.array([0.9, 0.7]), np.array([0.8, 0.4])) == "50"
    assert given_back(np.ones(2), np.ones(2)) == ""
    assert given_back(np.zeros(0), np.zeros(0)) == ""


def test_shares_are_of_recordings_and_of_sentences_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`deep` gives the recordings back here, and nothing of the sentence; the noise is a crowd."""
    rng = np.random.default_rng(0)
    level = [np.repeat(rng.random(2 * FPS), RATE // FPS).astype(np.float32) for _ in range(3)]
    monkeypatch.setattr(noise_benchmark, "load_speech", lambda path: level[int(path)])
    monkeypatch.setattr(noise_benchmark, "in_languages", lambda names: dict.fromkeys(names, level[2]))
    monkeypatch.setattr(noise_benchmark, "at_loudness", lambda sound: sound)
    monkeypatch.setattr(noise_benchmark, "opening_reader", lambda: lambda sound: sound[:: RATE // FPS])
    clean = np.concatenate(level)

    def heard(sound: np.ndarray, method: str, _: object) -> np.ndarray:
        return np.concatenate([clean[: 4 * RATE], sound[4 * RATE :]]) if method == "deep" else sound

    monkeypatch.setattr(noise_benchmark, "heard", heard)
    benchmark_people(["0", "1"], ["de"], ["crowd"], [5], [0], None)
    deep = capsys.readouterr().out.splitlines()[4].split(" | ")
    assert deep[6:] == ["100", "0 |"]


@pytest.mark.parametrize(
    "given",
    [
        ["noise", "--noises", "crowd"],
        ["people", "--noises", "crowd", "--recordings", "a.wav"],
        ["people", "--noises", "wind"],
    ],
)
def test_noises_that_cannot_be_made_are_said_at_once(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["noise_benchmark.py", *given])
    with pytest.raises(SystemExit) as stop:
        noise_benchmark.main()
    assert stop.value.code == 2
    assert "crowd" in capsys.readouterr().err


def test_sentences_of_the_languages_are_recordings_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []

    def spoken(text: str, voice: str) -> tuple[np.ndarray, None]:
        said.append((voice, text))
        return np.ones(RATE, np.float32), None

    monkeypatch.setattr(noise_benchmark, "spoken", spoken)
    monkeypatch.setattr(noise_benchmark, "spoken_power", lambda _: 1.0)
    monkeypatch.setattr(noise_benchmark, "noise", lambda _kind, n, _seed: np.ones(n))
    monkeypatch.setattr(noise_benchmark, "found_snr", lambda _: 7.0)
    benchmark_snr([], ["cs", "da"], [0])
    assert said == [(language, text) for language in ("cs", "da") for text in TEXTS[language]]
    assert "cs 1 7 dB, cs 2 7 dB, da 1 7 dB, da 2 7 dB" in capsys.readouterr().out


@pytest.mark.parametrize("preset", PRESETS)
def test_a_network_hears_by_its_own_front_end(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(**model_options(PRESETS[preset]))
    model = SimpleNamespace(encode_audio=lambda mels: mels)
    monkeypatch.setattr(noise_benchmark, "load_checkpoint", lambda _: SimpleNamespace(config=config))
    monkeypatch.setattr(noise_benchmark, "load_model", lambda *_: model)
    sound = np.sin(2 * np.pi * 1000 / RATE * np.arange(RATE)).astype(np.float32)
    codes = network.__wrapped__("checkpoint")(sound)
    windows = codes.reshape(-1, config.audio_dim, config.syncnet_mel_step_size)
    assert len(windows) in (21, 22)
    loudest = np.abs(librosa.mel_frequencies(config.audio_dim + 2, fmin=55, fmax=7600)[1:-1] - 1000).argmin()
    assert abs(windows[10].mean(axis=1).argmax() - loudest) <= 1
