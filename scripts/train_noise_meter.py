"""Trains the network that tells speech from the noise under it (audio/noise_level.py), on two cores in about an hour.

    python scripts/train_noise_meter.py checkpoints/noise_meter.safetensors --minutes 40 --speech FOLDER...

Each folder holds recordings of one speaker, in any format; sentences of espeak-ng in VOICES' variants are added, in
languages of which `noise_benchmark.py snr` takes none from it but English. Noise is made: of any colour, steady or
not, hums, music and other people who speak.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import scipy.signal
import torch
from make_sample import VARIANTS, VOICES, synthesize, training_script
from safetensors import SafetensorError
from safetensors.torch import save_file
from scipy.ndimage import maximum_filter1d
from torch import nn
from tqdm import tqdm

import _path  # noqa: F401
from audio.blocks import resampled
from audio.noise_level import HIGHEST_SNR, NoiseMeter, band_power, load_noise_meter, shared_power
from audio.voice_activity import HOP, RATE
from guided_diffusion.errors import InputError
from guided_diffusion.store import replace_when_complete

LANGUAGES = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029", "nb", "sk", "ru", "et", "lv", "lt", "hr", "sl", "bg",
             "id", "ms", "vi", "sw", "cy", "ga", "is", "ca", "af", "sq", "mt")  # fmt: skip
SECONDS = (2, 4, 6, 8)  # of a clip
BATCH_SECONDS = 32  # of speech in a batch, each in LEVELS_OF_ONE ratios
LEVELS_OF_ONE = 4
RECORDED_SHARE = 0.45  # of the clips
PACES = 0.12  # logarithm of the most
LOWEST_TRUTH = -10.0  # dB
SPEECH_RANGE = 25.0  # dB below the loud moments of speech
LEARNING_RATE = 2e-3
AVERAGE = 0.999  # of the weights, per step
TOLERANCE = 3.0  # dB; larger errors count in proportion, smaller ones less

Network = TypeVar("Network", bound=nn.Module)
# one speaker's pieces of speech, float32 [n] each at RATE
Speaker = Sequence[np.ndarray]


# ------------------------------------------------------------------------------------------------------------- speech


def recorded(folder: str) -> Speaker:
    """Sound files of a folder and those below it; what is too short or too quiet to be speech is left out.

    :raises InputError: there are none.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())
    pieces = [sound for sound in map(decoded, paths) if len(sound) > RATE // 4 and np.abs(sound).max() > 0.05]
    if not pieces:
        raise InputError(f"--speech {folder}: no sound files of speech there")
    return pieces


def decoded(path: Path) -> np.ndarray:
    """Of any format (audio_util takes the usual ones only), nothing where it is no sound."""
    resampler = av.AudioResampler("flt", "mono", RATE)
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    except (av.FFmpegError, IndexError):
        return np.zeros(0, np.float32)
    return np.concatenate([np.zeros(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)])


def synthetic(seed: int) -> Speaker:
    """Three sentences of one of espeak-ng's voices."""
    rng = np.random.default_rng(seed)
    script = training_script(seed, VOICES)
    sound, rate, _ = synthesize(
        script.text, f"{rng.choice(LANGUAGES)}+{rng.choice(VARIANTS)}", script.rate, script.pitch
    )
    return [np.concatenate(list(resampled([sound], rate, RATE)))]


class Cast:
    """Everybody who may speak.

    :param paces: all that they say is up to exp(paces) times as fast or slow, and as high or low.
    """

    def __init__(self, people: Sequence[Speaker], voices: Sequence[Speaker], paces: float = PACES) -> None:
        self._people, self._voices, self._paces = people, voices, paces

    def speech(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, bool]:
        """n samples of one of them, faster or slower, and whether it is a recording."""
        is_recorded = bool(self._people) and rng.random() < RECORDED_SHARE
        group = self._people if is_recorded else self._voices
        speaker = group[int(rng.integers(len(group)))]
        pace = np.exp(rng.uniform(-self._paces, self._paces))
        parts: list[np.ndarray] = [np.zeros(rng.integers(RATE // 2) if rng.random() < 0.5 else 0, np.float32)]
        while sum(map(len, parts)) < n * pace + 1:
            piece = speaker[int(rng.integers(len(speaker)))]
            if rng.random() < 0.3:
                piece = piece[rng.integers(len(piece) // 2) :]
            level = 0.05 * decibels(rng.uniform(-3, 3)) / (rms(piece) + 1e-6)
            pause = rng.uniform(0, 0.2) if rng.random() < 0.5 else rng.uniform(0.1, 0.8)
            parts += [piece * level, np.zeros(int(pause * RATE), np.float32)]
        sound = np.concatenate(parts)
        return np.interp(np.arange(n) * pace, np.arange(len(sound)), sound), is_recorded


# -------------------------------------------------------------------------------------------------------------- noise


def rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound))))


def decibels(level: float) -> float:
    """As a factor."""
    return float(10 ** (level / 20))


def colouring(rng: np.random.Generator, slope: float) -> Callable[[np.ndarray], np.ndarray]:
    """A filter of `slope` times -3 dB an octave, at times with a few bumps."""
    bumps = [(np.exp(rng.uniform(np.log(80), np.log(7000))), rng.uniform(-20, 20), rng.uniform(0.2, 1))
             for _ in range(rng.integers(1, 4) if rng.random() < 0.3 else 0)]  # fmt: skip

    def coloured(sound: np.ndarray) -> np.ndarray:
        frequency = np.maximum(np.fft.rfftfreq(len(sound), 1 / RATE), 20)
        level = -10 * slope * np.log10(frequency / 500)
        for centre, height, octaves in bumps:
            level += height * np.exp(-((np.log2(frequency / centre) / octaves) ** 2))
        return np.fft.irfft(np.fft.rfft(sound) * 10 ** (level / 20), len(sound))

    return coloured


def steady(rng: np.random.Generator, n: int) -> np.ndarray:
    noise = colouring(rng, rng.uniform(-0.6, 2.4))(rng.normal(size=n))
    if rng.random() < 0.25:
        edge, kind = (rng.uniform(1500, 7000), "lowpass") if rng.random() < 0.5 else (rng.uniform(50, 400), "highpass")
        noise = scipy.signal.sosfilt(scipy.signal.butter(4, edge, kind, fs=RATE, output="sos"), noise)
    return noise


def varying(rng: np.random.Generator, n: int) -> np.ndarray:
    points = rng.uniform(-25, 0, rng.integers(3, 40))
    return steady(rng, n) * 10 ** (np.interp(np.linspace(0, len(points) - 1, n), np.arange(len(points)), points) / 20)


def tone(rng: np.random.Generator, root: float, n_partials: int, t: np.ndarray) -> np.ndarray:
    """At most n_partials harmonics, with levels of their own."""
    orders = np.arange(1, 1 + min(n_partials, int(0.97 * RATE / 2 / root)))[:, None]
    level = orders ** -rng.uniform(0.3, 2) * rng.uniform(0.3, 1, orders.shape)
    phase = (2 * np.pi * root * orders * t + rng.uniform(0, 2 * np.pi, orders.shape)).astype(np.float32)
    return (np.sin(phase) * level.astype(np.float32)).sum(axis=0)


def hum(rng: np.random.Generator, n: int) -> np.ndarray:
    t = np.arange(n) / RATE
    root = rng.uniform(40, 130) if rng.random() < 0.7 else rng.uniform(130, 500)
    wobble = rng.uniform(0, 0.01) * np.sin(2 * np.pi * rng.uniform(0.1, 3) * t)
    return tone(rng, root, int(rng.integers(3, 60)), t * (1 + wobble))


def music(rng: np.random.Generator, n: int) -> np.ndarray:
    """One to three instruments on scales of their own, at times with drums."""
    sound, t = np.zeros(n, np.float32), np.arange(n) / RATE
    for _ in range(rng.integers(1, 4)):
        beat, root = rng.uniform(0.12, 0.6), np.exp(rng.uniform(np.log(55), np.log(330)))
        scale = (0, 2, 4, 5, 7, 9, 11, 12, 14, 16) if rng.random() < 0.5 else (0, 2, 3, 5, 7, 8, 10, 12, 14, 15)
        decay, attack = rng.uniform(0.08, 1), rng.uniform(0.002, 0.08)
        n_partials, n_strings, level = int(rng.integers(4, 24)), rng.integers(1, 4), decibels(rng.uniform(-12, 0))
        start = rng.uniform(0, beat)
        while start * RATE < n:
            first = int(start * RATE)
            after = t[: min(n - first, int(3 * decay * RATE))]
            envelope = level * np.exp(-after / decay) * np.minimum(after / attack, 1)
            for _ in range(n_strings):
                note = tone(rng, root * 2 ** (rng.choice(scale) / 12), n_partials, after)
                sound[first : first + len(after)] += note * envelope
            start += beat * rng.choice([0.5, 1, 1, 1, 2])
    if rng.random() < 0.4:
        level = 3 * rms(sound) * rng.uniform(0.3, 1.5)
        for start in np.arange(rng.uniform(0, 0.5), n / RATE, rng.uniform(0.2, 0.6)):
            after = t[: min(n - int(start * RATE), RATE // 6)]
            hit = rng.normal(size=len(after)) * np.exp(-after / rng.uniform(0.01, 0.06))
            sound[int(start * RATE) :][: len(after)] += level * hit
    return sound


def voices(rng: np.random.Generator, cast: Cast, n: int, least: int, most: int) -> np.ndarray:
    talkers = (cast.speech(rng, n)[0] * decibels(rng.uniform(-3, 3)) for _ in range(rng.integers(least, most + 1)))
    return np.sum(list(talkers), axis=0)


def noise(rng: np.random.Generator, cast: Cast, n: int) -> tuple[np.ndarray, str]:
    """float [n] of power 1, and its kind."""
    kinds: dict[str, tuple[float, Callable[[], np.ndarray]]] = {
        "steady": (0.23, lambda: steady(rng, n)),
        "varying": (0.09, lambda: varying(rng, n)),
        "hum": (0.09, lambda: hum(rng, n)),
        "music": (0.18, lambda: music(rng, n)),
        "babble": (0.20, lambda: voices(rng, cast, n, 3, 8)),
        "talkers": (0.14, lambda: voices(rng, cast, n, 1, 2)),
        "two": (0.07, lambda: noise(rng, cast, n)[0] + noise(rng, cast, n)[0] * rng.uniform(0.2, 1)),
    }  # fmt: skip
    kind = str(rng.choice(list(kinds), p=[share for share, _ in kinds.values()]))
    made = kinds[kind][1]()
    return made / (rms(made) + 1e-9), kind


# ----------------------------------------------------------------------------------------------------------- examples


def microphone(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """What it does to all that it hears."""
    chance = rng.random()
    if chance < 0.25:
        return colouring(rng, rng.uniform(-0.7, 0.7))
    if chance < 0.35:
        low_pass = scipy.signal.butter(6, rng.uniform(3000, 7000), fs=RATE, output="sos")
        return lambda sound: scipy.signal.sosfilt(low_pass, sound)
    return lambda sound: sound


def in_a_room(rng: np.random.Generator, sound: np.ndarray) -> np.ndarray:
    n = int(RATE * rng.uniform(0.05, 0.35))
    echoes = rng.normal(size=n) * np.exp(-6.9 * np.arange(n) / n)
    echoes *= rng.uniform(0.05, 0.5) / np.sqrt(np.sum(echoes**2))
    echoes[0] = 1
    return scipy.signal.fftconvolve(sound, echoes)[: len(sound)]


def spoken_hops(power: np.ndarray) -> np.ndarray:
    """Where somebody speaks in clean sound whose hops have this power, bool [n]: within SPEECH_RANGE of the loud
    moments, and the hops beside those. Its power there is within 0.2 dB of where silero-vad hears speech."""
    loud = np.quantile(power, 0.95) * 10 ** (-SPEECH_RANGE / 10)
    return maximum_filter1d((power > loud).astype(int), 3) > 0


# of a clip: power in bands [n, BANDS]; of speech, of noise [n]; whether somebody speaks [n]
Example = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def examples(rng: np.random.Generator, cast: Cast, n: int) -> Iterator[Example]:
    """LEVELS_OF_ONE mixtures of one piece of speech with one of noise."""
    speech, is_recorded = cast.speech(rng, n)
    if rng.random() < 0.25:
        speech = in_a_room(rng, speech)
    added, kind = noise(rng, cast, n)
    heard = microphone(rng)
    speech, added = heard(speech), heard(added)
    power = band_power(speech.astype(np.float32)).sum(axis=1)
    speaks = spoken_hops(power)
    if not power.any():
        return
    speech = speech / np.sqrt(power[speaks].mean())
    added /= rms(added)
    is_gated = rng.random() < 0.06  # nothing at all where nobody speaks for a while
    kept = np.repeat(maximum_filter1d(speaks.astype(int), 9), HOP) if is_gated else np.ones(len(speaks) * HOP)
    for _ in range(LEVELS_OF_ONE):
        yield mixture(rng, speech[: len(kept)], added[: len(kept)] * kept, speaks, kind, is_recorded)


def mixture(
    rng: np.random.Generator, speech: np.ndarray, added: np.ndarray, speaks: np.ndarray, kind: str, is_recorded: bool
) -> Example:
    """speech, added: of power 1, the first while somebody speaks."""
    is_silent = kind in ("steady", "varying", "hum", "music") and rng.random() < 0.05  # nobody speaks
    gain = decibels(rng.uniform(-45, -12))
    ratio = signal_to_noise(rng, kind, is_recorded)
    if rng.random() < 0.1:
        added = added + rng.normal(size=len(added)) * decibels(rng.uniform(-30, -3))
    heard_speech, heard_noise = 0 if is_silent else gain * speech, gain * decibels(-ratio) * added
    sound = heard_speech + heard_noise
    if rng.random() < 0.3:
        sound = np.round(sound * 32768) / 32768
    own = [band_power((one + np.zeros(len(sound))).astype(np.float32)) for one in (sound, heard_speech, heard_noise)]
    return own[0], own[1].sum(axis=1), own[2].sum(axis=1), (speaks & ~is_silent).astype(np.float32)


def signal_to_noise(rng: np.random.Generator, kind: str, is_recorded: bool) -> float:
    """dB. Recordings have noise of their own, so none is added that is more than 29 dB below them; of a few talkers the
    loudest is meant."""
    chance = rng.random()
    if is_recorded or chance < 0.75:
        ratio = rng.uniform(-4, 29)
    else:
        ratio = rng.uniform(30, HIGHEST_SNR) if chance < 0.93 else 200.0
    return 1 + 0.9 * abs(ratio) if kind == "talkers" else ratio


class Examples(torch.utils.data.IterableDataset):
    """Batches without end: each of `Example`'s arrays for all clips of one length, float32 [N, ...]."""

    def __init__(self, cast: Cast, seed: int) -> None:
        self._cast, self._seed = cast, seed

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        rng = np.random.default_rng(self._seed)
        while True:
            seconds = int(rng.choice(SECONDS))
            clips = [
                clip
                for _ in range(BATCH_SECONDS // seconds)
                for clip in examples(rng, self._cast, seconds * RATE)
            ]  # fmt: skip
            yield [torch.from_numpy(np.stack(arrays)) for arrays in zip(*clips, strict=True)]


# ----------------------------------------------------------------------------------------------------------- training


def decibel_ratio(speech: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return 10 * torch.log10((speech + 1e-14) / (noise + 1e-14))


def losses(meter: NoiseMeter, batch: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What to make small; and the error in dB of each clip, NaN where it is not to be judged."""
    power, speech, noise, speaks = batch
    ratio, presence = meter(power)
    found = decibel_ratio(*shared_power(power.sum(2), ratio, presence))
    spoken = speaks.sum(1) > 0
    true = decibel_ratio((speech * speaks).sum(1), (noise * speaks).sum(1)).clamp(LOWEST_TRUTH, HIGHEST_SNR)
    found = torch.where((true >= HIGHEST_SNR) & (found > true), true, found)
    # what is nearly clean need not be known so well
    weight = torch.where(true > 35, 0.2, torch.where(true > 28, 0.5, 1.0)) * spoken
    whole = (weight * nn.functional.smooth_l1_loss(found, true, reduction="none", beta=TOLERANCE)).mean()
    of_hops = (10 / math.log(10) * ratio - decibel_ratio(speech, noise).clamp(-30, 50)).abs().clamp(max=40).mean()
    told = nn.functional.binary_cross_entropy_with_logits(presence, speaks)
    judged = spoken & (true > -1) & (true < 26)
    return whole + 0.15 * of_hops + 2 * told, torch.where(judged, found - true, torch.nan).detach()


def train(meter: NoiseMeter, cast: Cast, minutes: float, seed: int) -> NoiseMeter:
    """The running mean of its weights, after so much time on one core; another one makes the clips."""
    average = copy.deepcopy(meter)
    optimizer = torch.optim.AdamW(meter.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    batches = torch.utils.data.DataLoader(Examples(cast, seed), batch_size=None, num_workers=1, prefetch_factor=4)
    coming = iter(batches)
    first = next(coming)  # takes a while, which does not count
    start, beyond = time.monotonic(), 1.0
    with tqdm(unit="step", disable=None) as bar:
        for step, batch in enumerate(chain([first], coming)):
            done = (time.monotonic() - start) / (60 * minutes)
            if done >= 1:
                break
            optimizer.param_groups[0]["lr"] = (
                LEARNING_RATE * min(1, (step + 1) / 200) * (0.01 + 0.5 + 0.5 * math.cos(math.pi * done))
            )
            loss, errors = losses(meter, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(meter.parameters(), 1)
            optimizer.step()
            keep = min(AVERAGE, (step + 1) / (step + 20))
            with torch.no_grad():
                for mean, weight in zip(average.parameters(), meter.parameters(), strict=True):
                    mean.lerp_(weight, 1 - keep)
            judged = errors[errors.isfinite()]
            if len(judged):
                beyond += 0.02 * ((judged.abs() > TOLERANCE).float().mean().item() - beyond)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.2f}, beyond {TOLERANCE:.0f} dB {100 * beyond:.1f} %")
    return average


def begun(path: str | None, load: Callable[[str], Network], new: Callable[[], Network]) -> Network:
    """A network of its own with the weights of a file, or anew.

    :raises InputError: it is no file of such weights.
    """
    if path is None:
        return new()
    try:
        return copy.deepcopy(load(path))
    except (OSError, RuntimeError, SafetensorError):
        raise InputError(f"--init {path}: no weights of this network; give a file that this script wrote") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="safetensors file to write, in float16")
    parser.add_argument("--speech", nargs="*", default=[], help="folders with recordings of one speaker each")
    parser.add_argument("--sentences", type=int, default=1000, help="voices of espeak-ng, three sentences each")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", help="weights to go on from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    meter = begun(arguments.init, load_noise_meter, NoiseMeter)
    people = [recorded(folder) for folder in arguments.speech]
    made = [synthetic(seed) for seed in tqdm(range(arguments.sentences), desc="espeak-ng", disable=None)]
    meter = train(meter, Cast(people, made), arguments.minutes, arguments.seed)
    with replace_when_complete(Path(arguments.out)) as part:
        save_file({name: weight.half() for name, weight in meter.state_dict().items()}, part)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"train_noise_meter.py: error: {error}", file=sys.stderr)
        sys.exit(2)
