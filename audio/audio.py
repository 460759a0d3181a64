"""Speech to the mel windows that the network hears."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain

import librosa
import numpy as np
import scipy.signal

from guided_diffusion.audio_util import open_sound
from guided_diffusion.errors import InputError

from .blocks import resampled
from .hparams import DEFAULT, HParams, mel_basis, mel_map

# (blocks of sound, their rate, the rate wanted) to blocks at that rate, the same time to the sample
Prepare = Callable[[Iterable[np.ndarray], int, int], Iterator[np.ndarray]]

BLOCK_STEPS = 4096
ENVELOPE_BAND = (1000.0, 3000.0)  # Hz
ENVELOPE_CUTOFF = 10.0  # Hz; mouths move at 2 to 7 Hz
ENVELOPE_RATE = 200  # RMS values per second before the low-pass


def load_speech(path: str, hparams: HParams = DEFAULT) -> np.ndarray:
    """Sound of an audio or video file as float32 mono [n] at `hparams.sample_rate`, in [-1, 1].

    Decoded at the file's own rate, channels averaged, then resampled as `librosa.load` does (soxr_hq).

    :raises InputError: when there is no sound to read, or less than one mel window of it.
    """
    blocks, rate = open_sound(path)
    wav = np.concatenate(list(resampled(blocks, rate, hparams.sample_rate)))
    _check_length(path, Fraction(len(wav), hparams.sample_rate), hparams)
    return wav


def speech_mel(
    path: str, hparams: HParams = DEFAULT, pad_audio: bool = False, prepare: Prepare = resampled,
    analysis: HParams | None = None,
) -> tuple[np.ndarray, Fraction]:  # fmt: skip
    """`melspectrogram(load_speech(path))` to the last bit, in memory of the mel alone: 25 KB for each second.

    :param pad_audio: let the mel go on for one window of silence, so that all frames until the end of the sound have
        a window. Measured on five recordings cut at 240 places: the audio codes of the last 0.2 s are 0.34 (cut in a
        pause) and 0.49 (in a word) from those of the uncut sound; with the last full window repeated, as Wav2Lip does,
        0.65 and 0.68; 1 is the distance between any two codes of a recording.
    :param prepare: what brings the sound to the front end's rate; with another one the mel is that of its result.
    :param analysis: another front end that hears the sound; what it hears is mapped to `hparams` (`mel_map`).
    :return: float32 [num_mels, steps] in [-max_abs_value, max_abs_value], and the length of the sound in seconds.
    :raises InputError: as `load_speech`.
    """
    analysis = analysis or hparams
    blocks, rate = open_sound(path)
    n_samples = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal n_samples
        for block in blocks:
            n_samples += len(block)
            yield block

    padding = hparams.window_steps * hparams.hop_size if pad_audio else 0
    silence = np.zeros(padding * analysis.sample_rate // hparams.sample_rate, np.float32)
    heard = chain(prepare(counted(), rate, analysis.sample_rate), [silence])
    if analysis == hparams:
        mel = _mel(heard, hparams)
    else:
        # steps until after the end, of which those stay that `hparams` has
        mel = _mapped_mel(chain(heard, [np.zeros(analysis.n_fft, np.float32)]), analysis, hparams)
        padded = math.ceil(Fraction(n_samples, rate) * hparams.sample_rate) + padding
        mel = mel[:, : 1 + padded // hparams.hop_size]
    seconds = Fraction(n_samples, rate)
    if not pad_audio:
        _check_length(path, seconds, hparams)
    return mel, seconds


def _check_length(path: str, seconds: Fraction, hparams: HParams) -> None:
    shortest = Fraction(hparams.window_steps * hparams.hop_size, hparams.sample_rate)
    if seconds < shortest:
        raise InputError(
            f"--audio_path {path}: {float(seconds):.2f} s of sound; the network needs {float(shortest):g} s or more"
        )


def melspectrogram(wav: np.ndarray, hparams: HParams = DEFAULT) -> np.ndarray:
    """Mel spectrogram of speech (REFERENCE.md: Audio).

    :param wav: float32 [n] at `hparams.sample_rate`.
    :return: float32 [num_mels, 1 + n // hop_size] in [-max_abs_value, max_abs_value].
    """
    return _mel([wav], hparams)


def _mel(blocks: Iterable[np.ndarray], hparams: HParams) -> np.ndarray:
    return _scaled(_magnitudes(blocks, hparams), hparams)


def _mapped_mel(blocks: Iterable[np.ndarray], analysis: HParams, hparams: HParams) -> np.ndarray:
    """`_mel` of `hparams` from what `analysis` hears (METHODS: Audio), in steps half as long.

    Between steps of its own length the straight line is above sound that sets in or ends. Mean error on the +-4 scale,
    eight recordings: 0.040 to 0.071 with its own steps, 0.026 to 0.046 with halves; with steps in the target's places
    0.028 to 0.057, as the windows are 46 ms long in place of 50 and the line between two of them is longer.
    """
    analysis = replace(analysis, hop_size=analysis.hop_size // 2)
    matrix = mel_map(analysis, hparams)
    mapped = (np.maximum(matrix @ magnitude, 0) for magnitude in _magnitudes(blocks, analysis))
    return _scaled(_at_rate(mapped, analysis.mel_steps_per_sec / hparams.mel_steps_per_sec), hparams)


def _magnitudes(blocks: Iterable[np.ndarray], hparams: HParams) -> Iterator[np.ndarray]:
    """Blocks of mel magnitudes [num_mels, steps]."""
    basis = mel_basis(hparams)
    for block in _blocks_of_steps(_emphasised(blocks, hparams.preemphasis), hparams):
        yield basis @ np.abs(librosa.stft(block, n_fft=hparams.n_fft, hop_length=hparams.hop_size, center=False))


def _at_rate(blocks: Iterable[np.ndarray], pace: float) -> Iterator[np.ndarray]:
    """Blocks of steps [bands, n] read every `pace` steps from the first one on, linearly between the nearest two."""
    first = n_read = 0
    last = None
    for block in blocks:
        steps = block if last is None else np.concatenate([last, block], axis=1)
        stop = math.floor((first + steps.shape[1] - 1) / pace) + 1
        places = np.arange(n_read, stop) * pace - first
        before = places.astype(int)
        after = np.minimum(before + 1, steps.shape[1] - 1)
        yield steps[:, before] + (steps[:, after] - steps[:, before]) * (places - before)
        first, n_read, last = first + steps.shape[1] - 1, stop, steps[:, -1:]


def _scaled(magnitudes: Iterable[np.ndarray], hparams: HParams) -> np.ndarray:
    # grows step by step in one piece of memory: an hour's mel is 90 MB, too much to hold twice
    steps = bytearray()
    for magnitude in magnitudes:
        steps += _scale(magnitude, hparams).astype(np.float32).T.tobytes()
    return np.frombuffer(steps, np.float32).reshape(-1, hparams.num_mels).T


def _emphasised(blocks: Iterable[np.ndarray], preemphasis: float) -> Iterator[np.ndarray]:
    """Sound after the pre-emphasis, float64."""
    last = np.zeros(1, np.float32)
    for block in blocks:
        joined = np.concatenate([last, block])
        yield scipy.signal.lfilter(np.array([1, -preemphasis], np.float32), [1], joined)[1:]
        last = joined[-1:]


def _blocks_of_steps(blocks: Iterable[np.ndarray], hparams: HParams) -> Iterator[np.ndarray]:
    """Sound with n_fft // 2 zeros at both ends, in blocks for BLOCK_STEPS steps of the STFT, the last for fewer.

    The sizes are fixed because a matrix product's last bits depend on them. A block is good until the next one.
    """
    overlap = hparams.n_fft - hparams.hop_size
    edge = np.zeros(hparams.n_fft // 2)
    buffer = np.empty(BLOCK_STEPS * hparams.hop_size + overlap)
    filled = 0
    for block in chain([edge], blocks, [edge]):
        while len(block):
            n = min(len(block), len(buffer) - filled)
            buffer[filled : filled + n] = block[:n]
            filled, block = filled + n, block[n:]
            if filled == len(buffer):
                yield buffer
                buffer[:overlap] = buffer[len(buffer) - overlap :].copy()
                filled = overlap
    steps = (filled - overlap) // hparams.hop_size
    if steps:
        yield buffer[: steps * hparams.hop_size + overlap]


def _scale(magnitude: np.ndarray, hparams: HParams) -> np.ndarray:
    db = 20 * np.log10(np.maximum(hparams.min_level, magnitude)) - hparams.ref_level_db
    unit = (db - hparams.min_level_db) / -hparams.min_level_db
    return np.clip((2 * unit - 1) * hparams.max_abs_value, -hparams.max_abs_value, hparams.max_abs_value)


def window_start(frame: int, fps: Fraction | float, hparams: HParams = DEFAULT) -> int:
    """First mel step of the window of output frame `frame` (0-based): int(80 * max(frame - 1, 0) / fps)."""
    return int(hparams.mel_steps_per_sec * max(frame - 1, 0) / fps)


def count_windows(mel: np.ndarray, fps: Fraction | float, hparams: HParams = DEFAULT) -> int:
    """Number of frames that have a complete window: frames stop at the first incomplete one, there is no padding."""
    last_start = mel.shape[1] - hparams.window_steps
    if last_start < 0:
        return 0
    frames = 1 + int((last_start + 1) * fps / hparams.mel_steps_per_sec)
    # the closed form can be off by one where window_start truncates
    while window_start(frames, fps, hparams) <= last_start:
        frames += 1
    while window_start(frames - 1, fps, hparams) > last_start:
        frames -= 1
    return frames


def frames_of_sound(seconds: Fraction, fps: Fraction | float) -> int:
    """Number of frames that last as long as the sound: those that begin before its end. They need `pad_audio`."""
    return math.ceil(seconds * Fraction(fps))


def mel_window(mel: np.ndarray, frame: int, fps: Fraction | float, hparams: HParams = DEFAULT) -> np.ndarray:
    """Window of output frame `frame`: float32 [num_mels, window_steps]."""
    start = window_start(frame, fps, hparams)
    return np.ascontiguousarray(mel[:, start : start + hparams.window_steps])


def louder(mel: np.ndarray, gain: float, hparams: HParams = DEFAULT) -> np.ndarray:
    """The mel of the sound made louder by `gain` dB, float32, another array. The floor, silence, stays where it is."""
    limit = hparams.max_abs_value
    shifted = mel + gain * 2 * limit / -hparams.min_level_db
    return np.where(mel > -limit, np.clip(shifted, -limit, limit), mel).astype(np.float32)


def hushed(mel: np.ndarray, share: float, hparams: HParams = DEFAULT) -> np.ndarray:
    """The mel on its way to silence: 0 as it is, 1 at the floor; float32, another array."""
    return ((1 - share) * mel - share * hparams.max_abs_value).astype(np.float32)


def rms_envelope(wav: np.ndarray, sample_rate: int, n_frames: int, fps: Fraction | float) -> np.ndarray:
    """Loudness of speech at the centres of video frames, (n + 0.5) / fps seconds (METHODS: Lip-sync metrics).

    The RMS of ENVELOPE_BAND over 1 / ENVELOPE_RATE seconds, then a Butterworth low-pass run forwards and backwards:
    zero phase, -6 dB at ENVELOPE_CUTOFF. Frames after the end of the sound are silent.

    The band is that of the second formant, whose loudness follows the lips best (Grant & Seitz, JASA 2000;
    Chandrasekaran et al., PLoS Comput Biol 2009). Measured on four clips of 5 to 10 s in sync, the mouth's opening
    correlates most with it at lags of -45, 40, 40 and -33 ms; with the whole spectrum at -90, 600, -240 and 400 ms.

    :param wav: float32 [n] at `sample_rate` Hz (8000 or more), in [-1, 1].
    :param n_frames: at least 1.
    :return: float32 [n_frames], full scale 1, not negative.
    """
    block = sample_rate // ENVELOPE_RATE
    rate = sample_rate / block
    samples = max(len(wav), int(np.ceil(n_frames * sample_rate / fps)))
    padded = np.pad(wav, (0, samples - len(wav) + -samples % block))
    # once forwards: its delay is below 1 ms, and float32 halves the memory of an hour
    band = scipy.signal.butter(4, ENVELOPE_BAND, "bandpass", fs=sample_rate, output="sos").astype(np.float32)
    blocks = scipy.signal.sosfilt(band, padded).reshape(-1, block)
    rms = np.sqrt(np.einsum("ij,ij->i", blocks, blocks) / block)
    low_pass = scipy.signal.butter(4, ENVELOPE_CUTOFF, fs=rate, output="sos")
    reflected = min(len(rms) - 1, int(rate / ENVELOPE_CUTOFF))
    smooth = scipy.signal.sosfiltfilt(low_pass, rms, padtype="even", padlen=reflected)
    frame_centres = (np.arange(n_frames) + 0.5) / float(fps)
    block_centres = (np.arange(len(rms)) + 0.5) / rate
    # the filter swings below zero beside sudden sounds
    return np.maximum(np.interp(frame_centres, block_centres, smooth), 0).astype(np.float32)
