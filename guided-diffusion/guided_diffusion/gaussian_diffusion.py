"""Gaussian diffusion: its samplers and its training loss.

Ho et al. 2020 (arXiv 2006.11239), Nichol & Dhariwal 2021 (arXiv 2102.09672, learned variance) and
Song et al. 2021 (DDIM, arXiv 2010.02502).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .dist_util import to_device

ModelFn = Callable[[Tensor, Tensor], Tensor]
DenoisedFn = Callable[[Tensor], Tensor]
CondFn = Callable[[Tensor, Tensor], Tensor]
X0Fn = Callable[[int, Tensor], Tensor]

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
        # the variance at i = 0 is zero, its logarithm is taken from the next step; a process of one step has none, and
        # no use for it, since no noise is added at i = 0
        smallest = self.posterior_variance[1] if len(betas) > 1 else betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(smallest, self.posterior_variance[1:]))
        self.fixed_large_log_variance = np.log(np.append(smallest, betas[1:]))

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

    def _steps(self) -> Iterator[tuple[int, int]]:
        """(how many steps were made before, i)."""
        return enumerate(range(self.num_timesteps - 1, -1, -1))

    def p_sample_loop(
        self,
        model: ModelFn,
        noise: Tensor,
        *,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        x0_fn: X0Fn | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Ancestral sampling (Ho et al. 2020, algorithm 2).

        :param noise: x_T, [N x C x H x W].
        :param cond_fn: (x, timesteps) -> gradient of a log probability; moves the mean (Dhariwal & Nichol 2021, alg. 1)
        :param x0_fn: (step, x_0) -> the x_0 to go on with; step counts from 0, the first one. It gets the clamped
            prediction, and epsilon stays the prediction's own: derived anew from an edited x_0 it would take most of
            the edit back (METHODS.md: Temporal consistency).
        :param generator: CPU generator of the steps' noise, so that every device draws the same; None: the global one.
        :return: x_0, [N x C x H x W].
        """
        x = noise
        for step, i in self._steps():
            p = self.p_mean_variance(model, x, i, clip_denoised, denoised_fn)
            log_variance = torch.as_tensor(p.log_variance)  # a number stays on the CPU: no GPU waits for it
            mean = p.mean
            if x0_fn is not None:
                # with epsilon held, the mean moves with x_0 by sqrt(alphas_cumprod_prev)
                edit = x0_fn(step, p.pred_xstart) - p.pred_xstart
                mean = mean + math.sqrt(self.alphas_cumprod_prev[i]) * edit
            if cond_fn is not None:
                mean = mean + torch.exp(log_variance) * cond_fn(x, self.model_timesteps(i, x))
            step_noise = to_device(torch.randn(x.shape, generator=generator), x.device)
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
        x0_fn: X0Fn | None = None,
        generator: torch.Generator | None = None,  # noqa: ARG002 - samplers share one signature
    ) -> Tensor:
        """Deterministic DDIM (Song et al. 2021, eq. 12 with sigma = 0); parameters as in `p_sample_loop`.

        `cond_fn` moves epsilon (Dhariwal & Nichol 2021, alg. 2).
        """
        x = noise
        for step, i in self._steps():
            pred_xstart = self.p_mean_variance(model, x, i, clip_denoised, denoised_fn).pred_xstart
            eps = self.predict_eps_from_xstart(x, i, pred_xstart)
            if cond_fn is not None:
                eps = eps - math.sqrt(1 - self.alphas_cumprod[i]) * cond_fn(x, self.model_timesteps(i, x))
                pred_xstart = self.predict_xstart_from_eps(x, i, eps)
            if x0_fn is not None:
                pred_xstart = x0_fn(step, pred_xstart)
            a_prev = self.alphas_cumprod_prev[i]
            x = math.sqrt(a_prev) * pred_xstart + math.sqrt(1 - a_prev) * eps
        return x

    def dpmpp_2m_sample_loop(
        self,
        model: ModelFn,
        noise: Tensor,
        *,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        x0_fn: X0Fn | None = None,
        generator: torch.Generator | None = None,  # noqa: ARG002 - samplers share one signature
    ) -> Tensor:
        """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2); parameters as in `p_sample_loop`.

        Deterministic, of second order: it needs fewer steps than DDIM, which is its first order, where they are evenly
        spaced in log-SNR (`respace.even_in_log_snr`). The first step is of first order, the last one gives x_0.
        `cond_fn` moves epsilon, as in DDIM; the multistep memory keeps the model's own x_0.
        """
        return self._multistep(midpoint_weights, 2, model, noise, clip_denoised, denoised_fn, cond_fn, x0_fn)

    def dpmpp_3m_sample_loop(
        self,
        model: ModelFn,
        noise: Tensor,
        *,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        cond_fn: CondFn | None = None,
        x0_fn: X0Fn | None = None,
        generator: torch.Generator | None = None,  # noqa: ARG002 - samplers share one signature
    ) -> Tensor:
        """DPM-Solver++(3M) (Lu et al. 2022, arXiv 2211.01095, proposition 4.1 for k = 3); parameters as in
        `p_sample_loop`.

        As `dpmpp_2m_sample_loop`, of third order: for very few steps (`respace.late_in_log_snr`) of networks that
        predict x_0, whose predictions are smooth over log-SNR.
        """
        return self._multistep(exact_weights, 3, model, noise, clip_denoised, denoised_fn, cond_fn, x0_fn)

    def _multistep(
        self,
        weights: Callable[[float, np.ndarray], np.ndarray],
        order: int,
        model: ModelFn,
        noise: Tensor,
        clip_denoised: bool,
        denoised_fn: DenoisedFn | None,
        cond_fn: CondFn | None,
        x0_fn: X0Fn | None,
    ) -> Tensor:
        """DPM-Solver++ of the last `order` predictions of x_0, or of as many as there are.

        :param weights: `midpoint_weights` or `exact_weights`.
        """
        alpha, sigma = np.sqrt(self.alphas_cumprod), np.sqrt(1.0 - self.alphas_cumprod)
        log_snr = np.log(alpha / sigma)
        x, known = noise, list[Tensor]()
        for step, i in self._steps():
            x0 = self.p_mean_variance(model, x, i, clip_denoised, denoised_fn).pred_xstart
            if cond_fn is not None:
                eps = self.predict_eps_from_xstart(x, i, x0) - sigma[i] * cond_fn(x, self.model_timesteps(i, x))
                x0 = self.predict_xstart_from_eps(x, i, eps)
            edit = 0.0 if x0_fn is None else x0_fn(step, x0) - x0
            if i == 0:
                return x0 + edit
            known = [x0, *known[: order - 1]]
            weight = weights(log_snr[i - 1] - log_snr[i], log_snr[i : i + len(known)] - log_snr[i])
            x = sigma[i - 1] / sigma[i] * x + alpha[i - 1] * edit
            for share, prediction in zip(weight, known, strict=True):
                x = x + alpha[i - 1] * share * prediction
        raise AssertionError("a process has at least one step")

    def q_sample(self, x_start: Tensor, i: Tensor, noise: Tensor) -> Tensor:
        """x_t of q(x_t | x_0) (Ho et al. 2020, eq. 4): [N x C x H x W], at steps `i`, int64 [N]."""
        scale = _per_sample(np.sqrt(self.alphas_cumprod), i, x_start)
        return scale * x_start + _per_sample(np.sqrt(1.0 - self.alphas_cumprod), i, x_start) * noise

    def training_losses(self, model: ModelFn, x_start: Tensor, i: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
        """The loss of each sample, float [N], over the masked pixels only.

        Mean squared error of epsilon or x_0 (Ho et al. 2020, eq. 14); with a learned variance L_hybrid = L_simple +
        0.001 L_vlb (Nichol & Dhariwal 2021, section 3.1): one random step estimates the sum over all T, so its term, in
        bits per dimension, is weighted by T / 1000, and its mean is detached.

        :param x_start: x_0 [N x C x H x W] in [-1, 1].
        :param i: step of each sample, int64 [N].
        :param noise: epsilon, like x_start.
        :param mask: [N x 1 x H x W], 1 where the loss counts; at least one pixel of each sample.
        """
        x_t = self.q_sample(x_start, i, noise)
        timesteps = torch.as_tensor(self.timestep_map, device=i.device)[i] * self.timestep_scale
        output = model(x_t, timesteps.float())
        interpolation = None
        if self.learn_sigma:
            output, interpolation = output.chunk(2, dim=1)
        loss = (output - (x_start if self.predict_xstart else noise)) ** 2
        if interpolation is not None:
            vlb = self._vlb_bits(x_start, x_t, i, output.detach(), interpolation)
            loss = loss + self.num_timesteps / 1000 * vlb
        return (loss * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) * x_start.shape[1])

    def _vlb_bits(self, x_start: Tensor, x_t: Tensor, i: Tensor, output: Tensor, interpolation: Tensor) -> Tensor:
        """L_{i} of the variational bound in bits, elementwise (Nichol & Dhariwal 2021, eq. 4 to 7)."""
        steps = list(enumerate(i.tolist()))
        pred_xstart = output
        if not self.predict_xstart:
            pred_xstart = torch.stack([self.predict_xstart_from_eps(x_t[n], step, output[n]) for n, step in steps])
        mean = torch.stack([self.q_posterior_mean(pred_xstart[n], x_t[n], step) for n, step in steps])
        true_mean = torch.stack([self.q_posterior_mean(x_start[n], x_t[n], step) for n, step in steps])
        low = _per_sample(self.posterior_log_variance_clipped, i, x_start)
        log_variance = low + (interpolation + 1) / 2 * (_per_sample(np.log(self.betas), i, x_start) - low)
        kl = normal_kl(true_mean, low, mean, log_variance)
        nll = -discretized_log_likelihood(x_start, mean, log_variance)
        return torch.where((i == 0)[:, None, None, None], nll, kl) / math.log(2)


def midpoint_weights(h: float, known: np.ndarray) -> np.ndarray:
    """What the last one or two predictions of x_0 weigh in a step of DPM-Solver++(2M).

    Their line over log-SNR, taken in the middle of the step.

    :param h: the step's length in log-SNR.
    :param known: where they were made in log-SNR, from the step's start: 0, then what lies behind. Float64 [1 or 2].
    """
    line = [1.0] if len(known) == 1 else [1 - h / (2 * known[1]), h / (2 * known[1])]
    return -math.expm1(-h) * np.array(line)


def exact_weights(h: float, known: np.ndarray) -> np.ndarray:
    """What the last predictions of x_0 weigh in a step; parameters as in `midpoint_weights`, float64 [n] for any n.

    The polynomial p over log-SNR through them, integrated exactly: that of e^(u - h) p(u) from 0 to h (Lu et al. 2022,
    eq. 8). For each power of u the weights have to give its integral.
    """
    integrals = [-math.expm1(-h)]
    for power in range(1, len(known)):
        integrals.append(h**power - power * integrals[-1])  # by parts
    return np.linalg.solve(np.vander(known, increasing=True).T, integrals)


def _per_sample(values: np.ndarray, i: Tensor, x: Tensor) -> Tensor:
    """values[i] as [N x 1 x 1 x 1], of x's dtype and on its device."""
    return torch.as_tensor(values, dtype=x.dtype, device=x.device)[i][:, None, None, None]


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of two Gaussians in nats, elementwise: of the first from the second."""
    ratio = torch.exp(log_variance1 - log_variance2)
    return 0.5 * (log_variance2 - log_variance1 - 1 + ratio + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability, in nats, of the 8-bit level around `x` in [-1, 1] under a Gaussian (Ho et al. 2020, eq. 13)."""
    precision = torch.exp(-0.5 * log_variance)
    upper, lower = (x - mean + 1 / 255) * precision, (x - mean - 1 / 255) * precision
    inside = torch.log((torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp(min=1e-12))
    # the outermost levels reach to infinity
    outer = torch.where(x < 0, torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower))
    return torch.where(x.abs() > 0.999, outer, inside)
