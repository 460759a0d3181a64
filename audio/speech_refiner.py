"""What another denoiser made of noisy speech, refined: some of the speech that it took comes back, and of other voices
some goes.

A small network of our own hears the noisy and the denoised sound and says, at each time and frequency, how much of
either is speech. Its weights come with the project (checkpoints/README.md);
scripts/train_speech_refiner.py trains such.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from .blocks import in_pairs
from .dilated import DilatedNetwork
from .spectra import Spectra

HOP = 256  # samples between frames, which are twice as long
BINS = HOP + 1
LEVEL = 0.05  # root mean square that the louder moments of a sound are brought to
WEIGHTS = Path(__file__).parent.parent / "checkpoints" / "speech_refiner.safetensors"

_WIDTH = 256
_DILATIONS = (1, 2, 4, 8, 16, 32) * 2
_SILENCE = 1e-6  # power
_HEARD_AT_ONCE = 512  # frames: 8 s


class SpeechRefiner(DilatedNetwork):
    def __init__(self) -> None:
        super().__init__(2 * BINS, _WIDTH, _DILATIONS, 2 * BINS)

    def forward(self, noisy: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """Spectra of speech, complex64 [N, n, BINS] as those given, of sound at LEVEL or within 10 dB of it."""
        given = torch.cat([noisy, denoised], 2)
        power = given.real**2 + given.imag**2
        shares = torch.sigmoid(self.convolved(torch.log10(power + _SILENCE) / 2).float())
        return (given * shares).unflatten(2, (2, BINS)).sum(2)


@cache
def load_speech_refiner(path: Path | str = WEIGHTS) -> SpeechRefiner:
    refiner = SpeechRefiner().eval()
    refiner.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return refiner


def refined(
    noisy: Iterable[np.ndarray], denoised: Iterable[np.ndarray], gain: float, strength: float = 1.0
) -> Iterator[np.ndarray]:
    """Speech as blocks of float32, in time with the noisy sound.

    :param noisy, denoised: float32 [n] each, at voice_activity's RATE.
    :param gain: factor that brings its louder moments to LEVEL; the result is as loud as what was given.
    :param strength: 0 to 1, share of the decibels (and of the phase) by which the noisy sound is changed.
    """
    spectra, sound = (Spectra(HOP), Spectra(HOP)), Spectra(HOP)
    n_left = 0  # samples that are not out

    def heard() -> Iterator[np.ndarray]:
        nonlocal n_left
        for pair in in_pairs(noisy, denoised, _HEARD_AT_ONCE * HOP):
            n_left += len(pair[0])
            padded = np.pad(pair, ((0, 0), (0, -len(pair[0]) % HOP))) * np.float32(gain)
            yield np.array([one.of(samples) for one, samples in zip(spectra, padded, strict=True)], np.complex64)
        silence = np.zeros(HOP, np.float32)  # in which the last frame ends
        yield np.array([one.of(silence) for one in spectra], np.complex64)

    late = HOP
    for before, after in _shaped(heard()):
        changed = before * (after / (before + 1e-12)) ** strength
        block = sound.sound(changed)[late:][:n_left] / np.float32(gain)
        late = 0
        n_left -= len(block)
        yield block


def _shaped(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Noisy frames, and the mean of their denoised ones and what the network makes of both: complex64 [n, BINS] each.

    The mean as the denoiser has heard more music, and the two err in other places (measured).

    :param blocks: noisy and denoised frames, complex64 [2, n, BINS] each.
    """
    refiner = load_speech_refiner()
    held = np.zeros((2, 0, BINS), np.complex64)
    n_out = 0  # frames of these that went out
    for block in chain(blocks, [None]):
        held = held if block is None else np.concatenate([held, block], axis=1)
        n_known = held.shape[1] - (0 if block is None else refiner.reach)
        if n_known <= n_out:
            continue
        with torch.inference_mode():
            shaped = refiner(*torch.from_numpy(held)[:, None])[0].numpy()
        yield held[0, n_out:n_known], (held[1, n_out:n_known] + shaped[n_out:n_known]) / 2
        first = max(n_known - refiner.reach, 0)
        held, n_out = held[:, first:], n_known - first
