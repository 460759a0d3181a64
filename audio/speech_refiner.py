"""What another denoiser made of noisy speech, refined: some of the speech that it took comes back, and of other voices
some goes.

A small network of our own hears the noisy and the denoised sound and says, at each time and frequency, by what factor
either is to be taken. Its weights come with the project (checkpoints/README.md);
scripts/train_speech_refiner.py trains such.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from .blocks import in_pairs
from .spectra import Spectra

HOP = 256  # samples between frames, which are twice as long
BINS = HOP + 1
LEVEL = 0.05  # root mean square that the louder moments of a sound are brought to
WEIGHTS = Path(__file__).parent.parent / "checkpoints" / "speech_refiner.safetensors"

_BANDS, _BINS_OF_BAND = 64, 4  # all bins but the offset's
_WIDTH, _NARROW = 64, 32  # channels of a band, and of those in which all bands are mixed
_DILATIONS = (1, 2, 4, 8, 16, 32) * 2
_SILENCE = 1e-6  # power
_OWN_SHARE = 0.9  # of what comes out; the rest is the denoiser's, which has heard more music and errs in other places
_HEARD_AT_ONCE = 512  # frames: 8 s


class SpeechRefiner(nn.Module):
    """Convolutions over neighbouring bands and over time, dilated ever further; after each of them all bands of a
    frame are mixed (as by SpatialNet's full-band module, Quan & Li 2024), since a voice's harmonics are in many.
    `reach` frames are heard on either side."""

    def __init__(self) -> None:
        super().__init__()
        n_bins = 2 * _BINS_OF_BAND  # the noisy sound's and the denoised one's
        self.into_bands = nn.Parameter(torch.randn(_BANDS, n_bins, _WIDTH) / n_bins**0.5)
        self.of_band = nn.Parameter(torch.zeros(_BANDS, _WIDTH))
        self.layers = nn.ModuleList(_Layer(dilation) for dilation in _DILATIONS)
        self.norm = nn.LayerNorm(_WIDTH)
        self.out_of_bands = nn.Parameter(0.1 * torch.randn(_BANDS, _WIDTH, n_bins) / _WIDTH**0.5)
        self.bias = nn.Parameter(torch.full((_BANDS, n_bins), -1.1))  # at first about half of either sound
        self.reach = sum(_DILATIONS)

    def forward(self, noisy: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """Spectra of speech, complex64 [N, n, BINS] as those given, of sound at LEVEL or within 10 dB of it."""
        given = torch.stack([noisy, denoised], 2)
        power = given.real**2 + given.imag**2
        factors = self._factors(torch.log10(power[..., 1:] + _SILENCE) / 2)
        factors = torch.cat([factors[..., :1], factors], 3)  # the offset's is the next bin's
        return (given * factors).sum(2)

    def _factors(self, level: torch.Tensor) -> torch.Tensor:
        """For both sounds, float32 [N, n, 2, BINS - 1] in (0, 2): above 1 where noise took some of the speech.

        :param level: half the logarithm to base 10 of the power, of this shape, too.
        """
        x = level.unflatten(3, (_BANDS, _BINS_OF_BAND)).transpose(2, 3).flatten(3)
        x = torch.einsum("ntfi,fic->ntfc", x, self.into_bands) + self.of_band
        for layer in self.layers:
            x = layer(x)
        x = torch.einsum("ntfc,fci->ntfi", self.norm(x), self.out_of_bands) + self.bias
        return 2 * torch.sigmoid(x).unflatten(3, (2, _BINS_OF_BAND)).transpose(2, 3).flatten(3)


class _Layer(nn.Module):
    """A convolution over what is near in time and frequency, then one frame's bands from all of them, each on top of
    what is there already; float32 [N, n, _BANDS, _WIDTH] to the same."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.near_norm = nn.LayerNorm(_WIDTH)
        self.near = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=(dilation, 1), dilation=(dilation, 1))
        self.near_out = nn.Linear(_WIDTH, _WIDTH)
        self.far_norm = nn.LayerNorm(_WIDTH)
        self.far_in = nn.Linear(_WIDTH, _NARROW)
        self.far = nn.Parameter(torch.randn(_NARROW, _BANDS, _BANDS) / _BANDS**0.5)
        self.far_out = nn.Linear(_NARROW, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = self.near(self.near_norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.near_out(nn.functional.gelu(near))
        far = torch.einsum("ntfc,cfg->ntgc", nn.functional.gelu(self.far_in(self.far_norm(x))), self.far)
        return x + self.far_out(far)


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
    """Noisy frames, and what the network makes of them with _OWN_SHARE, their denoised ones with the rest:
    complex64 [n, BINS] each.

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
        mixed = _OWN_SHARE * shaped[n_out:n_known] + (1 - _OWN_SHARE) * held[1, n_out:n_known]
        yield held[0, n_out:n_known], mixed
        first = max(n_known - refiner.reach, 0)
        held, n_out = held[:, first:], n_known - first
