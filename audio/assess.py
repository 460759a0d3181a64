"""How good a sound is for lip-sync, and which flag helps: `python -m audio.assess FILE [--json F]`.

Measured of the mix that the network hears, in one pass, in memory of 5 kB per second, twice that at the end.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np

from guided_diffusion.audio_util import channel_mix, open_sound
from guided_diffusion.errors import InputError
from guided_diffusion.store import replace_when_complete

from . import voice_activity
from .blocks import in_blocks, resampled
from .loudness import LoudnessMeter
from .noise_level import band_power, speech_to_noise
from .voice_activity import HOP, load_speech_detector, speech_probability, speech_spans

SPECTRUM = 2048  # samples of which one spectrum is taken
BAND_FLOOR = -60.0  # dB below the loudest part of the spectrum: there is nothing any more
BAND_SMOOTHING = 200.0  # Hz
LEVELS = 4096  # bins of the levels' histogram
CLIPPED_RANGE = 0.01  # of the peak's level: samples that near to it were cut off, if there are many of them
LONG_SILENCE = 1.0  # seconds
RATED_SAMPLES = 144160  # that DNSMOS hears at once: 9.01 s
RATED_BLOCK = HOP * -(-RATED_SAMPLES // HOP)
RATED_EVERY = 7  # blocks: one a minute
# from what the network says to the overall rating (Reddy et al. 2022)
RATING = np.polynomial.Polynomial([0.04602535, 1.11546468, -0.06766283])

# WADA-SNR (Kim & Stern, Interspeech 2008): ln E|z| - E ln|z| of speech (a gamma distribution of shape 0.4) in Gaussian
# noise, for signal-to-noise ratios in dB. Made by drawing 4 million samples of each.
WADA_SNR = np.arange(-10, 51, 5)
WADA = np.array([
    0.4123, 0.4241, 0.4620, 0.5438, 0.6676, 0.8127, 0.9561, 1.0852, 1.1949, 1.2851, 1.3578, 1.4164, 1.4635
])  # fmt: skip

# What the verdict says something about
GOOD_SNR = 20.0  # dB
GOOD_LOUDNESS = (-36.0, -12.0)  # LUFS
GOOD_BANDWIDTH = 6500.0  # Hz; the paper's network hears up to 7600
MOST_CLIPPED = 1e-3  # share of the samples


@dataclass(frozen=True)
class Assessment:
    """Of one sound. None: not measured, `not_measured` says why."""

    sample_rate: int
    """Hz"""
    channels: str
    """Their layout, and how they are mixed."""
    seconds: float
    bandwidth: float
    """Hz, up to where there is sound; at most half the sample rate."""
    loudness: float | None
    """LUFS"""
    peak: float | None
    """dB of full scale"""
    clipped: float
    """Share of the samples that were cut off at the peak."""
    snr: float | None
    """dB, power of the speech while somebody speaks over that of the noise under it."""
    wada_snr: float | None
    """dB by WADA, which needs no voice activity, but misjudges sound with pauses of digital silence."""
    silence: float | None
    """Share of the time without speech."""
    silences: list[tuple[float, float]] | None
    """Spans of LONG_SILENCE or more without speech, in seconds."""
    dnsmos: float | None
    """Overall quality as listeners would rate it, 1 to 5 (Reddy et al. 2022)."""
    not_measured: dict[str, str]
    verdict: list[str]


def assess(path: str, seconds: int | None = None) -> Assessment:
    """:param seconds: about so many of its beginning are heard; None: all.
    :raises InputError: when there is no sound to read.
    """
    blocks, rate = open_sound(path)
    blocks = islice(blocks, seconds)  # of about a second
    not_measured: dict[str, str] = {}
    rating, silence, silences = None, None, None
    try:
        rating = load_rating()
    except InputError as error:
        not_measured["dnsmos"] = str(error)
    try:
        load_speech_detector()
    except InputError as error:
        not_measured |= dict.fromkeys(("silence", "silences"), str(error))
    raw, heard = _RawMeter(rate), _HeardMeter(rating)
    stream = heard.through(resampled(raw.through(blocks), rate, voice_activity.RATE))
    if "silence" in not_measured:
        deque(stream, maxlen=0)
    else:
        probability = speech_probability(stream)
        spans = speech_spans(probability)
        silence = max(0.0, 1 - sum(end - start for start, end in spans) / raw.seconds)
        silences = [gap for gap in _between(spans, raw.seconds) if gap[1] - gap[0] >= LONG_SILENCE]
    snr = speech_to_noise(heard.powers)
    if snr is None:
        not_measured["snr"] = "there is hardly any speech"
    measured = Assessment(
        sample_rate=rate, channels=channel_mix(path), seconds=raw.seconds, bandwidth=raw.bandwidth(),
        loudness=raw.loudness(), peak=raw.peak(), clipped=raw.clipped(), snr=snr, wada_snr=heard.wada_snr(),
        silence=silence, silences=silences, dnsmos=heard.dnsmos(), not_measured=not_measured, verdict=[],
    )  # fmt: skip
    return dataclasses.replace(measured, verdict=verdict(measured))


def _between(spans: Sequence[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    edges = [0.0, *(edge for span in spans for edge in span), seconds]
    return list(zip(edges[::2], edges[1::2], strict=True))


def load_rating() -> Callable[[np.ndarray], float]:
    """DNSMOS of sound at 16 kHz, float32 [at least RATED_SAMPLES] in [-1, 1].

    :raises InputError: speechmos or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        package = None
    else:
        package = find_spec("speechmos")  # not imported: it would need pandas and requests
    if package is None or package.origin is None:
        raise InputError("speechmos and onnxruntime are not installed: pip install speechmos onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = Path(package.origin).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def rate(sound: np.ndarray) -> float:
        (((_, _, overall),),) = session.run(None, {"input_1": np.clip(sound[None, :RATED_SAMPLES], -1, 1)})
        return float(RATING(overall))

    return rate


def verdict(sound: Assessment) -> list[str]:
    """In words: what may harm the lips, and what helps."""
    said = []
    if sound.silence == 1:
        said.append("nobody speaks: is this the right file?")
    snr = sound.wada_snr if sound.snr is None else sound.snr
    if snr is not None and snr < GOOD_SNR:
        said.append(
            f"noise, music or other voices under the speech ({snr:.0f} dB): --denoise_audio deep gives back a part of "
            "what noise and music take from the lips, less among other voices; separate the voice to have more"
        )
    if sound.loudness is None:
        said.append("silence")
    elif not GOOD_LOUDNESS[0] <= sound.loudness <= GOOD_LOUDNESS[1]:
        word = "quiet" if sound.loudness < GOOD_LOUDNESS[0] else "loud"
        said.append(f"{word} ({sound.loudness:.0f} LUFS), and the mouth follows the level: --compress_audio True")
    if sound.clipped > MOST_CLIPPED:
        said.append(
            f"clipped ({100 * sound.clipped:.1f} % of the samples): record it anew at a lower level; no flag brings "
            "back what was cut off"
        )
    if sound.bandwidth < GOOD_BANDWIDTH:
        said.append(
            f"nothing above {sound.bandwidth / 1000:.1f} kHz, as on a telephone: s and f are lost; take a better copy, "
            "no flag brings them back"
        )
    return said or ["good: nothing here should do the lips much harm"]


class _RawMeter:
    """What is measured at the file's own rate."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._n = 0
        self._peak = 0.0
        self._levels = np.zeros(LEVELS + 1, np.int64)
        self._spectrum = np.zeros(SPECTRUM // 2 + 1)
        self._loudness = LoudnessMeter(rate)

    def through(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in in_blocks(blocks, SPECTRUM << 5):
            self._n += len(block)
            level = np.abs(block)
            self._peak = max(self._peak, float(level.max()))
            self._levels += np.bincount((level * LEVELS).astype(int), minlength=LEVELS + 1)
            self._loudness.update(block)
            pieces = np.pad(block, (0, -len(block) % SPECTRUM)).reshape(-1, SPECTRUM)
            spectra = np.fft.rfft(pieces * np.hanning(SPECTRUM))
            self._spectrum += (spectra.real**2 + spectra.imag**2).sum(axis=0)
            yield block

    @property
    def seconds(self) -> float:
        return self._n / self._rate

    def loudness(self) -> float | None:
        loudness = self._loudness.integrated()
        return loudness if math.isfinite(loudness) else None

    def peak(self) -> float | None:
        return 20 * math.log10(self._peak) if self._peak else None

    def bandwidth(self) -> float:
        width = max(1, round(BAND_SMOOTHING * SPECTRUM / self._rate))
        smooth = np.convolve(self._spectrum, np.full(width, 1 / width), "same")
        heard = np.flatnonzero(smooth > smooth.max() * 10 ** (BAND_FLOOR / 10))
        return float(heard.max(initial=0)) * self._rate / SPECTRUM

    def clipped(self) -> float:
        """Few samples of natural sound come near its peak, so those that do beyond twice the share of the next lower
        levels were cut off."""
        top = int(self._peak * LEVELS)
        width = max(1, round(CLIPPED_RANGE * top))
        at_peak = self._levels[max(0, top + 1 - width) : top + 1].sum()
        below = self._levels[max(0, top + 1 - 5 * width) : max(0, top + 1 - width)].sum() / 4
        return float(max(0.0, at_peak - 2 * below)) / self._n if top else 0.0


class _HeardMeter:
    """What is measured at the rate of the voice activity. rating: DNSMOS, or None."""

    def __init__(self, rating: Callable[[np.ndarray], float] | None) -> None:
        self._rating = rating
        self._ratings: list[float] = []
        self._sums = np.zeros(3)  # of |z|, of ln |z|, of ones
        self.powers: list[np.ndarray] = []

    def through(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for number, block in enumerate(in_blocks(blocks, RATED_BLOCK)):
            self.powers.append(band_power(block))
            level = np.abs(block[block != 0]).astype(np.float64)  # digital silence is neither speech nor noise
            self._sums += level.sum(), np.log(level).sum(), len(level)
            if self._rating and number % RATED_EVERY == 0:
                self._ratings.append(self._rating(np.resize(block, RATED_BLOCK)))
            yield block

    def wada_snr(self) -> float | None:
        total, logs, n = self._sums
        return float(np.interp(math.log(total / n) - logs / n, WADA, WADA_SNR)) if n else None

    def dnsmos(self) -> float | None:
        return float(np.mean(self._ratings)) if self._ratings else None


# -------------------------------------------------------------------------------------------------------- command line


def table(sound: Assessment) -> str:
    """The measures in lines, the verdict last."""
    values = {
        "sample rate": f"{sound.sample_rate} Hz",
        "channels": sound.channels,
        "duration": f"{sound.seconds:.2f} s",
        "bandwidth": f"{sound.bandwidth:.0f} Hz",
        "loudness": _text(sound.loudness, "{:.1f} LUFS"),
        "peak": _text(sound.peak, "{:.1f} dB"),
        "clipped": f"{100 * sound.clipped:.2f} %",
        "SNR": _text(sound.snr, "{:.0f} dB", sound.not_measured.get("snr")),
        "SNR by WADA": _text(sound.wada_snr, "{:.0f} dB"),
        "without speech": _text(sound.silence and 100 * sound.silence, "{:.0f} %", sound.not_measured.get("silence")),
        "long silences": ", ".join(f"{start:.1f} to {end:.1f} s" for start, end in sound.silences or []) or "none",
        "DNSMOS": _text(sound.dnsmos, "{:.2f} of 5", sound.not_measured.get("dnsmos")),
    }
    lines = [f"{name:<16}{value}" for name, value in values.items()]
    return "\n".join([*lines, "", *sound.verdict])


def _text(value: float | None, form: str, reason: str | None = None) -> str:
    if value is None:
        return f"not measured: {reason}" if reason else "–"
    return form.format(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m audio.assess", description=__doc__)
    parser.add_argument("file", help="a sound file, or a video with sound")
    parser.add_argument("--json", help="write the measures to this file")
    arguments = parser.parse_args(argv)
    try:
        sound = assess(arguments.file)
        print(table(sound))
        if arguments.json:
            with replace_when_complete(Path(arguments.json)) as part:
                part.write_text(json.dumps(dataclasses.asdict(sound), indent=2), encoding="utf-8")
    except (InputError, OSError) as error:
        print(f"audio.assess: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
