"""Where in a sound the mouth may rest: long spans in which nobody speaks, eased in and out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from .audio import Prepare, window_start
from .blocks import resampled
from .hparams import DEFAULT, HParams
from .preprocess import stored
from .voice_activity import RATE, speech_probability, speech_spans

Spans = Sequence[tuple[float, float]]
"""(start, end) in seconds, in order."""

SHORTEST_SILENCE = 0.5
"""Seconds. Pauses between the words and phrases of a sentence were 0.13 to 0.42 s in eight recordings; and a shorter
one is over before a mouth that hears 0.2 s at once could close and open again."""

EASE = 0.16  # seconds; lips take 0.1 to 0.2 to close
# Seconds by which the detector says that speech ends before it does, and begins after it does: the most in eight
# recordings with silence cut in.
END_EARLY, ONSET_LATE = 0.06, 0.1


class SpeechListener:
    """A `Prepare` that listens for speech in what another one makes: in what the network hears.

    :param spans: where somebody speaks, once all of a sound went through.
    """

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self.spans: Spans = []

    def __call__(self, blocks: Iterable[np.ndarray], rate: int, target: int) -> Iterator[np.ndarray]:
        with stored(self._prepare(blocks, rate, target)) as read:
            self.spans = speech_spans(speech_probability(resampled(read(), target, RATE)))
            yield from read()


def rest_shares(speech: Spans, n_frames: int, fps: Fraction | float, hparams: HParams = DEFAULT) -> np.ndarray:
    """How far the mouth is at rest in each output frame: float32 [n_frames], 0 where it speaks to 1.

    It is more than 0 where all of the frame's mel window lies in a span of SHORTEST_SILENCE or more without speech,
    and rises and falls in EASE seconds (smoothstep). At the sound's own ends it need not.

    :param speech: where somebody speaks.
    """
    starts = np.array([window_start(frame, fps, hparams) for frame in range(n_frames)]) / hparams.mel_steps_per_sec
    ends = starts + hparams.window_steps / hparams.mel_steps_per_sec
    inside = np.zeros(n_frames)
    edges = [-np.inf, *np.ravel(speech), np.inf]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end - start >= SHORTEST_SILENCE:
            inside = np.maximum(inside, np.minimum(starts - start - END_EARLY, end - ONSET_LATE - ends))
    share = np.clip(inside / EASE, 0, 1)
    return (share * share * (3 - 2 * share)).astype(np.float32)
