"""How far speech stands above the noise under it, with pauses or without: told by a small network of our own.

They are told apart by how they go on in time and frequency, so noise needs no pause to be heard in, may vary, and may
be other people's speech. scripts/train_noise_meter.py made the weights, which come with the project.
"""

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import librosa
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from .voice_activity import HOP, RATE

BANDS = 40
MIN_HOPS = 3  # of speech
PIECE = 312  # hops for which one level of noise is found: 10 s
LOWEST_SNR, HIGHEST_SNR = -20.0, 60.0  # dB
WEIGHTS = Path(__file__).parent.parent / "checkpoints" / "noise_meter.safetensors"

_WIDTH = 80  # channels
_DILATIONS = (1, 2, 4, 8, 16, 32) * 2
_HEARD_AT_ONCE = 2048  # hops: 65 s
_PAUSE = 0.1  # probability that somebody speaks: below it nobody does
_FEW = 8  # hops of pauses that count as much as what is told of the noise under speech
_OTHER_SCENE = 10.0  # times louder or softer
_LOUDEST = 0.1  # mean square that the loudest hop is brought to: the network knows speech from -45 to -12 dB
_SILENCE = 1e-10  # mean square; below the steps of 16 bits


def _band_edges() -> np.ndarray:
    """First bin of each band: of equal width in mels, but at least a bin wide; the offset's bin is in none."""
    edges = [1]
    for frequency in librosa.mel_frequencies(BANDS + 1, fmin=0, fmax=RATE / 2, htk=True)[1:-1]:
        edges.append(max(edges[-1] + 1, round(float(frequency) * HOP / RATE)))
    return np.array(edges)


BAND_EDGES = _band_edges()


def band_power(block: np.ndarray) -> np.ndarray:
    """Mean square of each HOP of a sound in BANDS of equal width in mels, float32 [n // HOP, BANDS].

    An offset, which nobody hears, does not count.

    :param block: at RATE, float32 [n]; what is left of a hop at its end is left out.
    """
    hops = block[: len(block) - len(block) % HOP].reshape(-1, HOP)
    window = np.hanning(HOP)
    offset = hops @ window / window.sum()
    spectra = np.fft.rfft((hops - offset[:, None]) * window)
    power = (spectra.real**2 + spectra.imag**2) * 2 / (HOP * (window @ window))
    return np.add.reduceat(power, BAND_EDGES, axis=1).astype(np.float32)


class NoiseMeter(nn.Module):
    """Of each hop, how its power is shared between speech and noise, and whether somebody speaks.

    Convolutions over time, dilated ever further (as in Bai et al. 2018, but hearing what comes next, too), each on top
    of what is there already. `reach` hops are heard on either side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(BANDS, _WIDTH, 3, padding=1)
        self.dilated = nn.ModuleList(nn.Conv1d(_WIDTH, _WIDTH, 3, padding=d, dilation=d) for d in _DILATIONS)
        self.mixed = nn.ModuleList(nn.Conv1d(_WIDTH, _WIDTH, 1) for _ in _DILATIONS)
        self.last = nn.Conv1d(_WIDTH, 2, 1)
        self.reach = 1 + sum(_DILATIONS)

    def forward(self, power: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """:param power: float32 [N, n, BANDS].
        :return: float32 [N, n] each: the natural logarithm of speech's power over noise's, and the log-odds that
            somebody speaks.
        """
        x = self.first(((torch.log10(power + _SILENCE) + 6) / 2).transpose(1, 2))
        for dilated, mixed in zip(self.dilated, self.mixed, strict=True):
            x = x + mixed(nn.functional.gelu(dilated(_normalized(x))))
        ratio, presence = self.last(_normalized(x)).unbind(1)
        return ratio, presence


def _normalized(x: torch.Tensor) -> torch.Tensor:
    """Of each hop over the channels, float32 [N, channels, n]."""
    return nn.functional.layer_norm(x.transpose(1, 2), x.shape[1:2]).transpose(1, 2)


def shared_power(power: torch.Tensor, ratio: torch.Tensor, presence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Power of speech and of noise while somebody speaks, summed over the hops, float32 [N] each.

    :param power: float32 [N, n], of each hop.
    """
    speaking = power * torch.sigmoid(presence)
    return (speaking * torch.sigmoid(ratio)).sum(1), (speaking * torch.sigmoid(-ratio)).sum(1)


@cache
def load_noise_meter(path: Path | str = WEIGHTS) -> NoiseMeter:
    meter = NoiseMeter().eval()
    meter.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return meter


def speech_to_noise(powers: Iterable[np.ndarray]) -> float | None:
    """Signal-to-noise ratio in dB: power of the speech while somebody speaks over that of the noise under it.

    :param powers: float32 [n, BANDS] each, `band_power` of the sound's blocks.
    :return: in [LOWEST_SNR, HIGHEST_SNR]; None with fewer than MIN_HOPS of speech.
    """
    power = np.concatenate([np.zeros((0, BANDS), np.float32), *powers])
    loudest = power.sum(axis=1).max(initial=_SILENCE)
    heard = torch.from_numpy(power * np.float32(_LOUDEST / loudest))
    ratio, presence = _told(heard)
    if (presence > 0).sum() < MIN_HOPS:
        return None
    speech = noise = 0.0
    hops = torch.stack([heard.sum(1), ratio, presence])
    for piece in hops.tensor_split(max(1, round(len(power) / PIECE)), dim=1):
        of_speech, of_noise = shared_power(*piece[:, None])
        speech += float(of_speech)
        noise += float(of_noise) * _pauses_say(piece[0], piece[2], float(of_noise))
    return min(max(10 * math.log10((speech + 1e-14) / (noise + 1e-14)), LOWEST_SNR), HIGHEST_SNR)


def _told(power: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network says of each hop, heard in pieces: float32 [n] each, as of `NoiseMeter.forward`."""
    meter, told = load_noise_meter(), [torch.zeros(2, 0)]
    with torch.inference_mode():
        for start in range(0, len(power), _HEARD_AT_ONCE):
            before = min(start, meter.reach)
            heard = power[start - before : start + _HEARD_AT_ONCE + meter.reach]
            told.append(torch.cat(meter(heard[None]))[:, before : before + _HEARD_AT_ONCE])
    ratio, presence = torch.cat(told, dim=1)
    return ratio, presence


def _pauses_say(power: torch.Tensor, presence: torch.Tensor, under_speech: float) -> float:
    """Factor by which a piece's noise is as the pauses say, too, where it can be measured: the more of them there are
    the more it is their mean.

    :param power, presence: float32 [n] of the hops of one piece.
    :param under_speech: power of the noise summed over its speech.
    """
    under_speech /= float(torch.sigmoid(presence).sum())
    pauses = power[torch.sigmoid(presence) < _PAUSE]
    # what is far from the noise under speech is another scene, or digital silence
    pauses = pauses[(pauses > under_speech / _OTHER_SCENE) & (pauses < under_speech * _OTHER_SCENE)]
    if not len(pauses):
        return 1.0
    return (float(pauses.mean()) / under_speech) ** (len(pauses) / (len(pauses) + _FEW))
