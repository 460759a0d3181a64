"""The sound that the benchmark is made of."""

import numpy as np
import pytest
from noise_benchmark import RATE
from silence_benchmark import LEVEL, SECONDS, SILENCES, with_silences


@pytest.mark.parametrize("fill", [None, "pink"])
def test_silences_are_cut_into_pauses_and_nothing_of_the_speech_is_lost(fill: str | None) -> None:
    speech = np.random.default_rng(0).normal(0, 0.1, 5 * RATE).astype(np.float32)
    pauses = [RATE * SECONDS // 3 + 1500, RATE * SECONDS * 2 // 3 - 2000]
    for pause in pauses:
        speech[pause : pause + 960] = 0
    sound = with_silences(speech, fill)
    assert len(sound) == (SECONDS + sum(SILENCES)) * RATE
    first, second = pauses[0] + 960, pauses[1] + SILENCES[0] * RATE + 960
    silences = [sound[first : first + RATE - 960], sound[second : second + 3 * RATE - 960]]
    for silence in silences:
        assert silence.std() == pytest.approx(LEVEL if fill else 0, rel=0.1)
    kept = np.concatenate([sound[: pauses[0]], sound[first + RATE :]])
    assert kept[: pauses[0]].tolist() == speech[: pauses[0]].tolist()
    assert kept[-RATE:].tolist() == speech[(SECONDS - 1) * RATE : SECONDS * RATE].tolist()
