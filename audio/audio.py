"""Speech to the mel windows that the network hears."""

from fractions import Fraction

import librosa
import numpy as np
import scipy.signal

from guided_diffusion.audio_util import read_audio
from guided_diffusion.errors import InputError

from .hparams import DEFAULT, HParams

BLOCK_STEPS = 4096
ENVELOPE_BAND = (1000.0, 3000.0)  # Hz
ENVELOPE_CUTOFF = 10.0  # Hz; mouths move at 2 to 7 Hz
ENVELOPE_RATE = 200  # RMS values per second before the low-pass


def load_speech(path: str, hparams: HParams = DEFAULT) -> np.ndarray:
    """Sound of an audio or video file as float32 mono [n] at `hparams.sample_rate`, in [-1, 1].

    Decoded at the file's own rate, channels averaged, then resampled as `librosa.load` does (soxr_hq).

    :raises InputError: when there is no sound to read, or less than one mel window of it.
    """
    samples, rate = read_audio(path)
    wav = librosa.resample(samples, orig_sr=rate, target_sr=hparams.sample_rate, res_type="soxr_hq")
    shortest = hparams.window_steps / hparams.mel_steps_per_sec
    seconds = len(wav) / hparams.sample_rate
    if seconds < shortest:
        raise InputError(f"--audio_path {path}: {seconds:.2f} s of sound; the network needs {shortest} s or more")
    return wav


def melspectrogram(wav: np.ndarray, hparams: HParams = DEFAULT) -> np.ndarray:
    """Mel spectrogram of speech (REFERENCE.md: Audio).

    :param wav: float32 [n] at `hparams.sample_rate`.
    :return: float32 [num_mels, 1 + n // hop_size] in [-max_abs_value, max_abs_value].
    """
    emphasised = scipy.signal.lfilter(np.array([1, -hparams.preemphasis], dtype=wav.dtype), [1], wav)
    padded = np.pad(emphasised, hparams.n_fft // 2)
    basis = librosa.filters.mel(
        sr=hparams.sample_rate, n_fft=hparams.n_fft, n_mels=hparams.num_mels, fmin=hparams.fmin, fmax=hparams.fmax
    )
    steps = 1 + len(wav) // hparams.hop_size
    mel = np.empty((hparams.num_mels, steps), dtype=np.float32)
    # in blocks: the complex spectrogram of an hour of speech would take a gigabyte
    for start in range(0, steps, BLOCK_STEPS):
        stop = min(start + BLOCK_STEPS, steps)
        block = padded[start * hparams.hop_size : (stop - 1) * hparams.hop_size + hparams.n_fft]
        magnitude = np.abs(librosa.stft(block, n_fft=hparams.n_fft, hop_length=hparams.hop_size, center=False))
        mel[:, start:stop] = _scale(basis @ magnitude, hparams)
    return mel


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


def mel_windows(
    mel: np.ndarray, start: int, stop: int, fps: Fraction | float, hparams: HParams = DEFAULT
) -> np.ndarray:
    """Windows of output frames start..stop-1: float32 [stop - start, num_mels, window_steps]."""
    starts = [window_start(frame, fps, hparams) for frame in range(start, stop)]
    return np.stack([mel[:, s : s + hparams.window_steps] for s in starts])


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
