"""How far speech stands above the noise under it, with pauses or without."""

import math

import librosa
import numpy as np

from .voice_activity import HOP, OFFSET, ONSET, RATE

BANDS = 12
BAND_EDGES = librosa.mel_frequencies(BANDS + 1, fmin=0, fmax=RATE / 2, htk=True)[:-1]  # Hz
MIN_HOPS = 3  # of speech; of pauses, where their level is to count
PIECE = 312  # hops for which one level of noise is found: 10 s
LOWEST_SNR, HIGHEST_SNR = -20.0, 60.0  # dB
DIGITAL_SILENCE = 1e-10  # mean square; below the steps of 16 bits

_QUIETEST = 0.05  # share of the moments that are surely noise, in each band
_SPREAD = 2.5  # of the noise's mean, in power (4 dB): moments up to there are its own
_CLEAN_BY_GAPS = 10**1.8  # 18 dB: clean speech of a second and more has at least this over what fills its gaps
_OTHER_SCENE = 0.1  # of the noise under the speech: quieter pauses belong to another scene, or are digital silence


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
    return np.add.reduceat(power, np.ceil(BAND_EDGES * HOP / RATE).astype(int), axis=1).astype(np.float32)


def speech_to_noise(power: np.ndarray, probability: np.ndarray) -> float | None:
    """Signal-to-noise ratio in dB: what speech adds while somebody speaks over the noise under it.

    Noise is the least of two: its level in the pauses, by the median, which click and end of a word do not move; and
    what fills the gaps that speech leaves in each frequency band. The first is exact but may be missing, be speech that
    the network did not hear, or silence before a noisy scene: where the gaps are too full for clean speech, far quieter
    pauses do not count. Gaps need no pause, but soft speech adds to them: clean speech of a second and more without a
    pause comes out at 18 to 45 dB. A few other voices leave gaps themselves: there the ratio comes out too high.

    :param power: float32 [n, BANDS], `band_power` of the sound.
    :param probability: float [at least n], `speech_probability` of each hop.
    :return: None with fewer than MIN_HOPS of speech.
    """
    speaking = probability[: len(power)] >= ONSET
    if speaking.sum() < MIN_HOPS:
        return None
    pauses = probability[: len(power)] < OFFSET
    pieces = np.array_split(np.arange(len(power)), max(1, round(len(power) / PIECE)))
    levels = [_noise_power(power[piece], pauses[piece]) for piece in pieces]
    noise = float(np.average(levels, weights=[speaking[piece].sum() for piece in pieces]))
    speech = float(power.sum(axis=1)[speaking].mean()) - noise
    ratio = 10 * math.log10(max(speech, 1e-12) / max(noise, 1e-12))
    return min(max(ratio, LOWEST_SNR), HIGHEST_SNR)


def _noise_power(power: np.ndarray, pauses: np.ndarray) -> float:
    """Mean square of the noise in one piece of a sound.

    :param power: float [n, BANDS].
    :param pauses: bool [n].
    """
    whole = power.sum(axis=1)
    in_gaps = _under_speech(power[whole > DIGITAL_SILENCE])
    if pauses.sum() < MIN_HOPS:
        return in_gaps
    in_pauses = float(np.median(whole[pauses]))
    is_surely_noisy = not pauses.all() and whole[~pauses].mean() < _CLEAN_BY_GAPS * in_gaps
    is_elsewhere = is_surely_noisy and in_pauses < _OTHER_SCENE * in_gaps
    return in_gaps if is_elsewhere else min(in_gaps, in_pauses)


def _under_speech(power: np.ndarray) -> float:
    """Of what fills the gaps of speech: in each band the mean of the moments up to _SPREAD times that mean, beginning
    with the quietest. Noise varies by less in a band, and soft moments of speech are spread over far more."""
    if not len(power):
        return 0.0
    noise, before = np.quantile(power, _QUIETEST, axis=0), np.full(BANDS, np.nan)
    while (noise != before).any():  # it goes one way only, over ever more moments or ever fewer
        before, noise = noise, power.mean(axis=0, where=power <= _SPREAD * noise)
    return float(noise.sum())
