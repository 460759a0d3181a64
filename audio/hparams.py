"""Parameters of the mel front end that the network was trained with (REFERENCE.md: Audio; Wav2Lip's front end)."""

import warnings
from dataclasses import dataclass, replace

import librosa
import numpy as np

from guided_diffusion.errors import InputError
from guided_diffusion.options import AUDIO_PRESETS
from guided_diffusion.script_util import ModelConfig


@dataclass(frozen=True)
class HParams:
    """One front end. Rates and frequencies in Hz, levels in dB, lengths in samples or mel steps."""

    sample_rate: int = 16000
    preemphasis: float = 0.97
    n_fft: int = 800
    hop_size: int = 200
    num_mels: int = 80
    fmin: float = 55.0
    fmax: float = 7600.0
    min_level: float = 1e-5
    ref_level_db: float = 20.0
    min_level_db: float = -100.0
    max_abs_value: float = 4.0
    window_steps: int = 16

    @property
    def mel_steps_per_sec(self) -> float:
        return self.sample_rate / self.hop_size


DEFAULT = HParams()
ENHANCED_AUDIO_CONFIG = HParams(sample_rate=22050, n_fft=1024, hop_size=256, num_mels=128, window_steps=18)
PRESETS = dict(zip(AUDIO_PRESETS, (DEFAULT, ENHANCED_AUDIO_CONFIG), strict=True))


def front_end(config: ModelConfig) -> HParams:
    """The front end that a network of this configuration was trained with; the rest is as in Wav2Lip.

    :raises InputError: when a mel band would hold nothing: too many bands, too short a spectrum or too low a rate.
    """
    hparams = HParams(
        sample_rate=config.sample_rate,
        n_fft=config.n_fft,
        hop_size=config.hop_size,
        num_mels=config.audio_dim,
        window_steps=config.syncnet_mel_step_size,
    )
    if not mel_basis(hparams).any(axis=1).all():
        raise InputError(
            f"{hparams.num_mels} mel bands (audio_dim) up to {hparams.fmax:g} Hz cannot be had from {hparams.n_fft} "
            f"samples (n_fft) at {hparams.sample_rate} Hz (sample_rate): some would be empty; give fewer bands, more "
            "samples or a higher rate"
        )
    return hparams


def model_options(hparams: HParams) -> dict[str, int]:
    """What a network's configuration says of its front end, `front_end` backwards."""
    return {
        "sample_rate": hparams.sample_rate,
        "n_fft": hparams.n_fft,
        "hop_size": hparams.hop_size,
        "audio_dim": hparams.num_mels,
        "syncnet_mel_step_size": hparams.window_steps,
    }


def analysis_for(hparams: HParams, preset: str) -> HParams:
    """The front end that analyses the sound for a network that was trained with `hparams`.

    :param preset: of AUDIO_PRESETS, or "" for the network's own.
    :raises InputError: when the preset is another one, and cannot be mapped to the network's own.
    """
    analysis = PRESETS.get(preset, hparams)
    if analysis != hparams and (analysis, hparams) != (ENHANCED_AUDIO_CONFIG, DEFAULT):
        raise InputError(
            f"--audio_preset {preset}: the checkpoint was trained with {hparams.num_mels} mel bands of "
            f"{hparams.sample_rate} Hz sound in windows of {hparams.window_steps} steps of {hparams.hop_size} samples; "
            "drop the flag (only the enhanced analysis can be mapped, and to the standard one only)"
        )
    return analysis


def mel_map(source: HParams, target: HParams) -> np.ndarray:
    """Matrix from the mel magnitudes of one front end to those of another, float64 [target.num_mels, source.num_mels].

    Back to a spectrum by the pseudo-inverse, from one pre-emphasis to the other, and into the target's bands. The level
    is that of noise, whose magnitudes go with the root of window and rate (METHODS: Audio; 1.82 dB for the presets).
    """
    frequencies = np.arange(1 + source.n_fft // 2) * source.sample_rate / source.n_fft
    emphasis = _emphasis(target, frequencies) / _emphasis(source, frequencies)
    bands = mel_basis(replace(target, sample_rate=source.sample_rate, n_fft=source.n_fft))
    bin_width = source.sample_rate / source.n_fft / (target.sample_rate / target.n_fft)
    level = bin_width * np.sqrt(target.n_fft * target.sample_rate / (source.n_fft * source.sample_rate))
    return level * (bands * emphasis) @ np.linalg.pinv(mel_basis(source).astype(np.float64))


def _emphasis(hparams: HParams, frequencies: np.ndarray) -> np.ndarray:
    """By how much pre-emphasis raises these frequencies."""
    return np.abs(1 - hparams.preemphasis * np.exp(-2j * np.pi * frequencies / hparams.sample_rate))


def mel_basis(hparams: HParams) -> np.ndarray:
    """Weights of the mel bands over the spectrum, float32 [num_mels, 1 + n_fft // 2]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Empty filters")  # `front_end` says it in a line
        return librosa.filters.mel(
            sr=hparams.sample_rate, n_fft=hparams.n_fft, n_mels=hparams.num_mels, fmin=hparams.fmin, fmax=hparams.fmax
        )
