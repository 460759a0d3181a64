"""Parameters of the mel front end that the network was trained with (REFERENCE.md: Audio; Wav2Lip's front end)."""

import warnings
from dataclasses import dataclass

import librosa
import numpy as np

from guided_diffusion.errors import InputError
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


def mel_basis(hparams: HParams) -> np.ndarray:
    """Weights of the mel bands over the spectrum, float32 [num_mels, 1 + n_fft // 2]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Empty filters")  # `front_end` says it in a line
        return librosa.filters.mel(
            sr=hparams.sample_rate, n_fft=hparams.n_fft, n_mels=hparams.num_mels, fmin=hparams.fmin, fmax=hparams.fmax
        )
