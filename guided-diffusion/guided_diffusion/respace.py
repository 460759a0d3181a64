"""Diffusion over a subset of the training timesteps (Nichol & Dhariwal 2021, section 4; Song et al. 2021, DDIM)."""

import numpy as np

from .gaussian_diffusion import GaussianDiffusion

LOG_SNR, EARLY, LATE = "logsnr", "early", "late"
# Here, in half the logarithm of the signal-to-noise ratio, the noise is of 4.7 levels in 256.
EARLY_END = 3.3
# Up to here, in half the logarithm of the signal-to-noise ratio, networks that predict x_0 hardly change their minds.
LATE_START = -2.5
LATE_POWER = 0.77


def choose_timesteps(betas: np.ndarray, timestep_respacing: str) -> list[int]:
    """The training timesteps that a sampler visits, ascending.

    :param betas: float64 [T] of the unspaced process.
    :param timestep_respacing: as for `space_timesteps`; or "logsnrN", see `even_in_log_snr`, "earlyN", see
        `early_in_log_snr`, or "lateN", see `late_in_log_snr`.
    :raises ValueError: for anything else, or counts that do not fit.
    """
    spreads = {LOG_SNR: even_in_log_snr, EARLY: early_in_log_snr, LATE: late_in_log_snr}
    for name, spread in spreads.items():
        if timestep_respacing.startswith(name):
            return spread(np.cumprod(1.0 - betas), _positive(timestep_respacing[len(name) :], timestep_respacing))
    return space_timesteps(len(betas), timestep_respacing)


def space_timesteps(num_timesteps: int, timestep_respacing: str) -> list[int]:
    """The training timesteps of guided diffusion's respacings, ascending.

    :param timestep_respacing: "" is all of them; "ddimN" the first integer stride that yields exactly N;
        "a,b,c" splits the process into equal sections with a, b, c evenly spread steps each.
    :raises ValueError: for anything else, or counts that do not fit `num_timesteps`.
    """
    if not timestep_respacing:
        return list(range(num_timesteps))
    if timestep_respacing.startswith("ddim"):
        count = _positive(timestep_respacing[len("ddim") :], timestep_respacing)
        for stride in range(1, num_timesteps + 1):
            if len(range(0, num_timesteps, stride)) == count:
                return list(range(0, num_timesteps, stride))
        raise ValueError(f"{timestep_respacing!r}: no integer stride makes {count} of {num_timesteps} steps")
    counts = [_positive(part, timestep_respacing) for part in timestep_respacing.split(",")]
    base, extra = divmod(num_timesteps, len(counts))
    steps: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = base + int(section < extra)
        if count > size:
            raise ValueError(f"{timestep_respacing!r}: a section of {size} steps cannot give {count}")
        spread = (size - 1) / (count - 1) if count > 1 else 1.0
        steps += [start + round(k * spread) for k in range(count)]
        start += size
    return steps


def even_in_log_snr(alphas_cumprod: np.ndarray, count: int) -> list[int]:
    """The training timesteps nearest to `count` log-SNRs that are evenly spaced from noise to image, ascending.

    DPM-Solver++ is exact where its prediction is a line over log-SNR (Lu et al. 2022, section 4).

    :param alphas_cumprod: float [T] of the unspaced process.
    :raises ValueError: when so many do not fit.
    """
    return _nearest(alphas_cumprod, np.linspace(0, 1, count), -np.inf)


def early_in_log_snr(alphas_cumprod: np.ndarray, count: int) -> list[int]:
    """As `even_in_log_snr`, but they end early, with a little noise left, which the last prediction of x_0 takes away.

    For few steps of networks that predict epsilon: to the very end they make the picture too sharp, and steps that end
    earlier are shorter (measured: docs/benchmarks.md, Samplers).
    """
    return _nearest(alphas_cumprod, np.linspace(0, 1, count), -np.inf, EARLY_END)


def late_in_log_snr(alphas_cumprod: np.ndarray, count: int) -> list[int]:
    """The training timesteps of very few steps for networks that predict x_0, ascending.

    They begin late, with the noise as it is drawn, since their first guess is much the same at any stronger noise; and
    steps in log-SNR shrink towards the picture. Both measured (docs/benchmarks.md, Samplers); parameters as in
    `even_in_log_snr`.
    """
    return _nearest(alphas_cumprod, np.linspace(0, 1, count) ** LATE_POWER, LATE_START)


def _nearest(alphas_cumprod: np.ndarray, shares: np.ndarray, start: float, end: float = np.inf) -> list[int]:
    """The timesteps nearest to these shares, 0 to 1, of the way in log-SNR to the picture.

    :param start: they begin there, or at the strongest noise if that is later; `end`: there, or at the picture.
    """
    log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod)) / 2
    first, last = max(log_snr[-1], start), min(log_snr[0], end)
    steps = sorted({int(np.abs(log_snr - value).argmin()) for value in first + shares * (last - first)})
    if len(steps) < len(shares):
        raise ValueError(f"{len(shares)} steps spaced in log-SNR do not fit into {len(log_snr)}; give fewer")
    return steps


def _positive(text: str, timestep_respacing: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        names = "'', 'ddimN', 'logsnrN', 'earlyN', 'lateN'"
        raise ValueError(f"{timestep_respacing!r}: give {names} or counts like '10,10,5'")
    return int(text)


class SpacedDiffusion(GaussianDiffusion):
    """The process that visits only `use_timesteps` (ascending) of the one with `betas`, at the same noise levels."""

    def __init__(
        self,
        use_timesteps: list[int],
        betas: np.ndarray,
        *,
        predict_xstart: bool,
        learn_sigma: bool,
        rescale_timesteps: bool = False,
    ) -> None:
        kept = np.cumprod(1.0 - betas)[use_timesteps]
        super().__init__(
            1.0 - kept / np.append(1.0, kept[:-1]), predict_xstart=predict_xstart, learn_sigma=learn_sigma
        )
        self.timestep_map = np.array(use_timesteps)
        self.timestep_scale = 1000.0 / len(betas) if rescale_timesteps else 1.0
