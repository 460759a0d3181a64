"""Where somebody speaks."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio import voice_activity
from audio.blocks import in_blocks, resampled
from audio.voice_activity import HOP, RATE, speech_probability, speech_spans
from guided_diffusion.errors import InputError

SPEECH = Path(__file__).parent.parent / "samples" / "speech.wav"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    sound, rate = soundfile.read(SPEECH, dtype="float32")
    return np.concatenate(list(resampled([sound], rate, RATE)))


def spans(*values: float) -> list[tuple[float, float]]:
    """In hops."""
    found = speech_spans(np.repeat(np.array(values, np.float32), 10))
    return [(start * RATE / HOP / 10, end * RATE / HOP / 10) for start, end in found]


def test_spans_begin_at_the_onset_and_end_at_the_offset() -> None:
    assert spans(0.1, 0.4, 0.6, 0.4, 0.3, 0.4) == [(2, 4)]
    assert spans(0.9) == [(0, 1)]
    assert spans() == []


def test_clicks_are_no_speech_and_closures_are_no_pauses() -> None:
    probability = np.zeros(100, np.float32)
    probability[20:24] = 1
    probability[40:60], probability[50:52] = 1, 0
    probability[70:90], probability[78:84] = 1, 0
    found = [(round(start * RATE / HOP), round(end * RATE / HOP)) for start, end in speech_spans(probability)]
    assert found == [(40, 60), (70, 78)]


def test_speech_is_found_between_silence_and_noise(speech: np.ndarray) -> None:
    pytest.importorskip("silero_vad")
    noise = np.random.default_rng(0).normal(0, 0.02, 2 * RATE).astype(np.float32)
    sound = np.concatenate([np.zeros(RATE, np.float32), speech, noise])
    probability = speech_probability([sound])
    assert len(probability) == -(-len(sound) // HOP)
    assert probability.dtype == np.float32
    found = speech_spans(probability)
    assert found[0][0] == pytest.approx(1, abs=0.1)
    assert found[-1][1] == pytest.approx(1 + len(speech) / RATE, abs=0.3)
    assert sum(end - start for start, end in found) > 0.85 * len(speech) / RATE


def test_how_the_sound_is_cut_does_not_matter(speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor how many hops are heard at once: the network's state goes on."""
    pytest.importorskip("silero_vad")
    whole = speech_probability([speech])
    monkeypatch.setattr(voice_activity, "_BLOCK", 7)
    np.testing.assert_allclose(speech_probability(in_blocks([speech], 999)), whole, atol=1e-4)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_activity, "find_spec", lambda _name: None)
    voice_activity.load_speech_detector.cache_clear()
    with pytest.raises(InputError, match=r"silero-vad is not installed: pip install -r requirements-audio\.txt"):
        speech_probability([])
