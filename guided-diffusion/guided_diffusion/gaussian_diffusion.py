"""Gaussian diffusion and its samplers, for inference.

Ho et al. 2020 (arXiv 2006.11239), Nichol & Dhariwal 2021 (arXiv 2102.09672, learned variance) and
Song et al. 2021 (DDIM, arXiv 2010.02502).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ModelFn = Callable[[Tensor, Tensor], Tensor]
DenoisedFn = Callable[[Tensor], Tensor]
CondFn = Callable[[Tensor, Tensor], Tensor]

NOISE_SCHEDULES = ("linear", "cosine")


def get_named_beta_schedule(noise_schedule: str, diffusion_steps: int) -> np.ndarray:
    """Betas, float64 [diffusion_steps].

    "linear" is Ho et al.'s 1e-4..0.02 for 1000 steps, scaled to other counts; "cosine" is Nichol & Dhariwal's.
    """
    if noise_schedule == "linear":
        scale = 1000 / diffusion_steps
        return np.linspace(scale * 1e-4, scale * 0.02, diffusion_steps, dtype=np.float64)
    if noise_schedule == "cosine":
        t = np.arange(diffusion_steps + 1) / diffusion_steps
        alpha_bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    raise ValueError(f"noise schedule {noise_schedule!r}: choose from {', '.join(NOISE_SCHEDULES)}")


@dataclass(frozen=True)
class Prediction:
    """What the model says about step t: x_0 and the Gaussian p(x_{t-1} | x_t), each [N x C x H x W]."""

    pred_xstart: Tensor
    mean: Tensor
    log_variance: Tensor | float


class GaussianDiffusion:
    """A diffusion process of T = len(betas) steps; step indices i run from T-1 (noise) to 0 (image).

    The model is called as `model(x, timesteps)` with timesteps [N] as it was trained on, and gives epsilon or x_0
    (`predict_xstart`), followed along the channels by the variance interpolation when `learn_sigma`.

    :param betas: float64 [T].
    :param rescale_timesteps: hand the model timesteps scaled to 0..1000 whatever the number of training steps.
    """

    def __init__(
        self, betas: np.ndarray, *, predict_xstart: bool, learn_sigma: bool, rescale_timesteps: bool = False
    ) -> None:
        self.betas = betas
        self.predict_xstart = predict_xstart
        self.learn_sigma = learn_sigma
        self.num_timesteps = len(betas)
        self.timestep_map = np.arange(len(betas))
        self.timestep_scale = 1000.0 / len(betas) if rescale_timesteps else 1.0

        self.alphas_cumprod = np.cumprod(1.0 - betas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.posterior_variance = betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)
        # the variance at i = 0 is zero, its logarithm is taken from the next step
        clipped = np.append(self.posterior_variance[1], self.posterior_variance[1:])
        self.posterior_log_variance_clipped = np.log(clipped)
        self.fixed_large_log_variance = np.log(np.append(self.posterior_variance[1], betas[1:]))

    def model_timesteps(self, i: int, x: Tensor) -> Tensor:
        """The timestep [N] that the model was trained with for step i."""
        timestep = self.timestep_map[i] * self.timestep_scale
        return torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)

    def predict_xstart_from_eps(self, x_t: Tensor, i: int, eps: Tensor) -> Tensor:
        a = self.alphas_cumprod[i]
        return math.sqrt(1 / a) * x_t - math.sqrt(1 / a - 1) * eps

    def predict_eps_from_xstart(self, x_t: Tensor, i: int, pred_xstart: Tensor) -> Tensor:
        a = self.alphas_cumprod[i]
        return (math.sqrt(1 / a) * x_t - pred_xstart) / math.sqrt(1 / a - 1)

    def q_posterior_mean(self, x_start: Tensor, x_t: Tensor, i: int) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        a, a_prev, beta = self.alphas_cumprod[i], self.alphas_cumprod_prev[i], self.betas[i]
        return beta * math.sqrt(a_prev) / (1 - a) * x_start + (1 - a_prev) * math.sqrt(1 - beta) / (1 - a) * x_t

    def p_mean_variance(
        self, model: ModelFn, x: Tensor, i: int, clip_denoised: bool = True, denoised_fn: DenoisedFn | None = None
    ) -> Prediction:
        """Run the model at step i.

        :param denoised_fn: applied to the x_0 prediction before it is clamped.
        :param clip_denoised: clamp the x_0 prediction to [-1, 1].
        """
        output = model(x, self.model_timesteps(i, x))
        log_variance: Tensor | float = float(self.fixed_large_log_variance[i])
        if self.learn_sigma:
            output, interpolation = output.chunk(2, dim=1)
            low, high = float(self.posterior_log_variance_clipped[i]), math.log(self.betas[i])
            log_variance = low + (interpolation + 1) / 2 * (high - low)
        pred_xstart = output if self.predict_xstart else self.predict_xstart_from_eps(x, i, output)
        if denoised_fn is not None:
            pred_xstart = denoised_fn(pred_xstart)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)
        return Prediction(pred_xstart, self.q_posterior_mean(pred_xstart, x, i), log_variance)

    def _steps(self) -> Iterator[int]:
        return iter(range(self.num_timesteps - 1, -1, -1))

    def p_sample_loop(
        self,
        model: ModelFn,
        noise: Tensor,
        *,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Ancestral sampling (Ho et al. 2020, algorithm 2).

        :param noise: x_T, [N x C x H x W].
        :param cond_fn: (x, timesteps) -> gradient of a log probability; moves the mean (Dhariwal & Nichol 2021, alg. 1)
        :param generator: CPU generator of the steps' noise, so that every device draws the same; None: the global one.
        :return: x_0, [N x C x H x W].
        """
        x = noise
        for i in self._steps():
            p = self.p_mean_variance(model, x, i, clip_denoised, denoised_fn)
            log_variance = torch.as_tensor(p.log_variance, device=x.device)
            mean = p.mean
            if cond_fn is not None:
                mean = mean + torch.exp(log_variance) * cond_fn(x, self.model_timesteps(i, x))
            step_noise = torch.randn(x.shape, generator=generator).to(x.device)
            x = mean + torch.exp(0.5 * log_variance) * step_noise if i > 0 else mean
        return x

    def ddim_sample_loop(
        self,
        model: ModelFn,
        noise: Tensor,
        *,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        generator: torch.Generator | None = None,  # noqa: ARG002 - samplers share one signature
    ) -> Tensor:
        """Deterministic DDIM (Song et al. 2021, eq. 12 with sigma = 0); parameters as in `p_sample_loop`.

        `cond_fn` moves epsilon (Dhariwal & Nichol 2021, alg. 2).
        """
        x = noise
        for i in self._steps():
            pred_xstart = self.p_mean_variance(model, x, i, clip_denoised, denoised_fn).pred_xstart
            eps = self.predict_eps_from_xstart(x, i, pred_xstart)
            if cond_fn is not None:
                eps = eps - math.sqrt(1 - self.alphas_cumprod[i]) * cond_fn(x, self.model_timesteps(i, x))
                pred_xstart = self.predict_xstart_from_eps(x, i, eps)
            a_prev = self.alphas_cumprod_prev[i]
            x = math.sqrt(a_prev) * pred_xstart + math.sqrt(1 - a_prev) * eps
        return x
