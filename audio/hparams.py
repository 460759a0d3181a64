"""Parameters of the mel front end that the network was trained with (REFERENCE.md: Audio; Wav2Lip's front end)."""

from dataclasses import dataclass


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
