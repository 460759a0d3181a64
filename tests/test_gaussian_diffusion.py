"""Schedules and samplers against numbers of the reference implementation; the training loss."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import named_randn
from hypothesis import given
from hypothesis import strategies as st

from guided_diffusion.gaussian_diffusion import discretized_log_likelihood, exact_weights, get_named_beta_schedule
from guided_diffusion.respace import (
    SpacedDiffusion,
    choose_timesteps,
    early_in_log_snr,
    even_in_log_snr,
    late_in_log_snr,
    space_timesteps,
)

GOLDEN = np.load(Path(__file__).parent / "data" / "diffusion.npz")
LOOPS = ("ddim_sample_loop", "p_sample_loop", "dpmpp_2m_sample_loop", "dpmpp_3m_sample_loop")
RESPACINGS = ("ddim10", "ddim25", "ddim50", "ddim100", "20")
KINDS = {
    "eps_learned": {"predict_xstart": False, "learn_sigma": True},
    "eps_fixed": {"predict_xstart": False, "learn_sigma": False},
    "x0": {"predict_xstart": True, "learn_sigma": False},
}


def spaced(respacing: str, **kind: bool) -> SpacedDiffusion:
    return SpacedDiffusion(space_timesteps(1000, respacing), get_named_beta_schedule("linear", 1000), **kind)


def toy_model(learn_sigma: bool):
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        s = (t / 1000)[:, None, None, None]
        e = torch.tanh(0.7 * x + 0.3 * torch.sin(5 * s) + 0.1 * x.flip(-1))
        return torch.cat([e, 0.5 * torch.cos(x)], 1) if learn_sigma else e

    return model


@pytest.mark.parametrize("respacing", RESPACINGS)
def test_respacing(respacing: str) -> None:
    diffusion = spaced(respacing, predict_xstart=False, learn_sigma=True)
    np.testing.assert_array_equal(diffusion.timestep_map, GOLDEN[f"{respacing}/timestep_map"])
    np.testing.assert_allclose(diffusion.alphas_cumprod, GOLDEN[f"{respacing}/alphas_cumprod"], rtol=1e-10)


@pytest.mark.parametrize("key", [k for k in GOLDEN.files if k.endswith(("/ddim", "/ancestral"))])
def test_sampling_loops(key: str) -> None:
    respacing, kind, loop = key.split("/")
    diffusion = spaced(respacing, **KINDS[kind])
    sample = diffusion.ddim_sample_loop if loop == "ddim" else diffusion.p_sample_loop
    generator = torch.Generator().manual_seed(3)
    result = sample(toy_model(diffusion.learn_sigma), named_randn("noise", (2, 3, 8, 8)), generator=generator)
    np.testing.assert_allclose(result.numpy(), GOLDEN[key], atol=1e-4)


@pytest.mark.parametrize("loop", LOOPS)
def test_hooks_act_on_the_sample(loop: str) -> None:
    sample = getattr(spaced("ddim10", predict_xstart=False, learn_sigma=False), loop)
    noise = named_randn("noise", (2, 3, 8, 8))
    constant = sample(toy_model(False), noise, denoised_fn=lambda x: torch.full_like(x, 0.25))
    torch.testing.assert_close(constant, torch.full_like(noise, 0.25))
    clipped = sample(toy_model(False), noise, denoised_fn=lambda x: torch.full_like(x, 3.0))
    torch.testing.assert_close(clipped, torch.ones_like(noise))

    def plain(**hooks):
        return sample(toy_model(False), noise, generator=torch.Generator().manual_seed(0), **hooks)

    towards_plus = plain(cond_fn=lambda x, _: torch.ones_like(x))
    assert (towards_plus - plain()).mean() > 0.01


def gaussian_model(diffusion: SpacedDiffusion, spread: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The perfect model of data that are normal with this standard deviation, of every kind that there is."""
    alphas_cumprod = np.cumprod(1 - get_named_beta_schedule("linear", 1000))

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = alphas_cumprod[int(t[0])]
        x0 = np.sqrt(a) * spread**2 / (a * spread**2 + 1 - a) * x
        output = x0 if diffusion.predict_xstart else (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
        return torch.cat([output, torch.zeros_like(x)], 1) if diffusion.learn_sigma else output

    return model


def logsnr(count: int, **kind: bool) -> SpacedDiffusion:
    betas = get_named_beta_schedule("linear", 1000)
    return SpacedDiffusion(choose_timesteps(betas, f"logsnr{count}"), betas, **kind)


def error_of(loop: str, count: int, kind: str = "x0", spread: float = 0.5) -> float:
    """How far a sampler ends from the exact solution, relative, of the probability flow of a normal distribution.

    Along it x / sqrt(a spread^2 + 1 - a) is constant (Song et al. 2021, arXiv 2011.13456, eq. 13); at the last step x_0
    is predicted from there.
    """
    diffusion = logsnr(count, **KINDS[kind])
    noise = named_randn("noise", (2, 3, 8, 8)).double()
    result = getattr(diffusion, loop)(gaussian_model(diffusion, spread), noise, clip_denoised=False)
    deviation = np.sqrt(diffusion.alphas_cumprod * spread**2 + 1 - diffusion.alphas_cumprod)
    end = noise * deviation[0] / deviation[-1]
    exact = np.sqrt(diffusion.alphas_cumprod[0]) * spread**2 / deviation[0] ** 2 * end
    return float((result - exact).norm() / exact.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_dpm_solver_is_near_the_exact_solution(kind: str) -> None:
    assert error_of("dpmpp_2m_sample_loop", 10, kind) < 0.04
    assert error_of("dpmpp_2m_sample_loop", 30, kind) < 0.008
    assert error_of("dpmpp_3m_sample_loop", 30, kind) < 0.002


def test_dpm_solver_is_of_second_order_and_ddim_of_first() -> None:
    """Half the step, a quarter of the error against half of it."""
    few, many = ({loop: error_of(f"{loop}_sample_loop", n) for loop in ("dpmpp_2m", "ddim")} for n in (15, 30))
    assert few["dpmpp_2m"] / many["dpmpp_2m"] > 3
    assert 1.8 < few["ddim"] / many["ddim"] < 2.2
    assert few["dpmpp_2m"] < few["ddim"] / 5


@pytest.mark.parametrize("loop", ["dpmpp_2m_sample_loop", "dpmpp_3m_sample_loop"])
def test_dpm_solvers_first_order_is_ddim(loop: str) -> None:
    """Two steps: the first has no memory yet, the second gives x_0."""
    diffusion = logsnr(2, **KINDS["eps_learned"])
    noise = named_randn("noise", (2, 3, 8, 8))
    results = [sample(toy_model(True), noise) for sample in (getattr(diffusion, loop), diffusion.ddim_sample_loop)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("h", [0.01, 0.5, 3.0])
def test_exact_weights_integrate_parabolas(h: float) -> None:
    known = np.array([0.0, -0.7, -2.0])
    u = np.linspace(0, h, 20001)
    for power in range(3):
        integral = np.trapezoid(np.exp(u - h) * u**power, u)
        for n in range(power + 1, 4):
            assert exact_weights(h, known[:n]) @ known[:n] ** power == pytest.approx(integral, rel=1e-6)


def test_the_third_order_is_exact_where_x0_is_a_parabola() -> None:
    """A model that answers with a parabola over log-SNR: from the third step on none errs."""
    betas = get_named_beta_schedule("linear", 1000)
    alphas_cumprod = np.cumprod(1 - betas)
    log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod)) / 2
    use = choose_timesteps(betas, "late6")
    diffusion = SpacedDiffusion(use, betas, predict_xstart=True, learn_sigma=False)
    seen: list[float] = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(x.mean()))
        return torch.full_like(x, float(np.polyval([0.3, -0.2, 0.1], log_snr[int(t[0])])))

    noise = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    diffusion.dpmpp_3m_sample_loop(model, noise, clip_denoised=False)
    sigma = np.sqrt(1 - alphas_cumprod)
    for step in (3, 4):  # from where the step before began
        start, end = use[::-1][step - 1], use[::-1][step]
        u = np.linspace(log_snr[start], log_snr[end], 20001)
        gained = sigma[end] * np.trapezoid(np.exp(u) * np.polyval([0.3, -0.2, 0.1], u), u)
        assert seen[step] == pytest.approx(sigma[end] / sigma[start] * seen[step - 1] + gained, abs=1e-6)


def test_late_steps_begin_late_and_shrink() -> None:
    betas = get_named_beta_schedule("linear", 1000)
    alphas_cumprod = np.cumprod(1 - betas)
    log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod)) / 2
    assert choose_timesteps(betas, "late5") == late_in_log_snr(alphas_cumprod, 5) == [0, 8, 54, 269, 702]  # measured
    for count in range(4, 10):
        steps = late_in_log_snr(alphas_cumprod, count)
        assert (len(steps), steps[0]) == (count, 0)
        assert log_snr[steps[-1]] == pytest.approx(-2.5, abs=0.01)
        gaps = -np.diff(log_snr[steps])
        assert gaps[0] < gaps[len(gaps) // 2] < gaps[-1]
    with pytest.raises(ValueError, match="give fewer"):
        late_in_log_snr(alphas_cumprod, 99)


def test_early_steps_end_early_and_are_even() -> None:
    betas = get_named_beta_schedule("linear", 1000)
    alphas_cumprod = np.cumprod(1 - betas)
    log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod)) / 2
    assert choose_timesteps(betas, "early8") == early_in_log_snr(alphas_cumprod, 8)
    for count in range(4, 13):
        steps = early_in_log_snr(alphas_cumprod, count)
        assert (len(steps), steps[0], steps[-1]) == (count, 7, 999)
        gaps = -np.diff(log_snr[steps])
        assert np.ptp(gaps) < 0.1 * gaps.mean() + 0.1
    noisy = np.cumprod(1 - get_named_beta_schedule("linear", 1000)[500:])
    assert early_in_log_snr(noisy, 4) == even_in_log_snr(noisy, 4)


@given(st.integers(1, 20), st.sampled_from(["linear", "cosine"]))
def test_steps_are_evenly_spaced_in_log_snr(count: int, schedule: str) -> None:
    alphas_cumprod = np.cumprod(1 - get_named_beta_schedule(schedule, 1000))
    try:
        steps = even_in_log_snr(alphas_cumprod, count)
    except ValueError as error:
        assert "give fewer" in str(error)  # noqa: PT017
        return
    assert len(steps) == count
    assert steps == sorted(set(steps))
    assert steps[-1] == 999
    log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod))
    if count > 1:
        assert steps[0] == 0
        gaps = np.abs(np.diff(log_snr[steps]))
        spacing = np.ptp(log_snr) / (count - 1)
        assert np.abs(gaps - spacing).max() < np.abs(np.diff(log_snr)).max() + 1e-9


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_x0_moves_the_next_step_alone(loop: str, kind: str) -> None:
    """Epsilon is the model's own: an edit by d at a step moves that step's x by sqrt(alphas_cumprod_prev) d, whole.

    Derived anew from the edited x_0, epsilon took 70 to 80 % of the edit back.
    """
    diffusion = spaced("ddim10", **KINDS[kind])
    noise = named_randn("noise", (2, 3, 8, 8))
    edit = 0.1 * named_randn("edit", (2, 3, 8, 8))
    seen: dict[str, list[torch.Tensor]] = {"plain": [], "edited": []}
    given: list[int] = []

    def run(name: str, **hooks: Callable) -> None:
        def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            seen[name].append(x)
            return toy_model(diffusion.learn_sigma)(x, t)

        getattr(diffusion, loop)(model, noise, generator=torch.Generator().manual_seed(3), **hooks)

    def edited(step: int, x0: torch.Tensor) -> torch.Tensor:
        given.append(step)
        assert x0.abs().max() <= 1  # after the clamp
        return x0 + edit if step == 4 else x0

    run("plain")
    run("edited", x0_fn=edited)
    assert given == list(range(10))
    for step in range(5):
        torch.testing.assert_close(seen["edited"][step], seen["plain"][step])
    moved = seen["edited"][5] - seen["plain"][5]
    torch.testing.assert_close(moved, np.sqrt(diffusion.alphas_cumprod_prev[5]) * edit, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("respacing", ["1", "ddim1"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_single_step(respacing: str, kind: str, loop: str) -> None:
    """It ended in an IndexError."""
    diffusion = spaced(respacing, **KINDS[kind])
    result = getattr(diffusion, loop)(toy_model(diffusion.learn_sigma), named_randn("noise", (2, 3, 8, 8)))
    assert torch.isfinite(result).all()


def test_rescaled_timesteps_reach_the_model() -> None:
    betas = get_named_beta_schedule("linear", 100)
    diffusion = SpacedDiffusion(
        space_timesteps(100, "ddim10"), betas, predict_xstart=True, learn_sigma=False, rescale_timesteps=True
    )
    seen = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(t[0]))
        return x

    diffusion.ddim_sample_loop(model, torch.zeros(1, 3, 2, 2))
    assert seen == [900.0 - 100 * k for k in range(10)]


@given(st.integers(1, 400), st.integers(1, 400))
def test_ddim_respacing_gives_exactly_n_or_says_so(num_timesteps: int, n: int) -> None:
    if not any(len(range(0, num_timesteps, stride)) == n for stride in range(1, num_timesteps + 1)):
        with pytest.raises(ValueError, match="stride"):
            space_timesteps(num_timesteps, f"ddim{n}")
        return
    steps = space_timesteps(num_timesteps, f"ddim{n}")
    assert len(steps) == n
    assert steps[0] == 0
    assert len({b - a for a, b in pairwise(steps)}) <= 1


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_sections_are_ascending_and_complete(counts: list[int]) -> None:
    steps = space_timesteps(200, ",".join(map(str, counts)))
    assert len(steps) == sum(counts)
    assert steps == sorted(set(steps))
    assert 0 <= steps[0] <= steps[-1] < 200


@pytest.mark.parametrize("respacing", ["ddim", "ddim0", "fast", "10,,5", "-3", "600,600"])
def test_bad_respacing(respacing: str) -> None:
    with pytest.raises(ValueError, match=respacing):
        space_timesteps(1000, respacing)


def test_cosine_schedule_ends_in_noise() -> None:
    betas = get_named_beta_schedule("cosine", 1000)
    alphas_cumprod = np.cumprod(1 - betas)
    assert betas.min() > 0
    assert betas.max() <= 0.999
    assert alphas_cumprod[-1] < 1e-6 < 0.99 < alphas_cumprod[0]


# ------------------------------------------------------------------------------------------------------------ the loss


STEPS = torch.tensor([1, 300, 999])
X_START = torch.tanh(named_randn("x_start", (3, 3, 4, 4)))
EPS = named_randn("eps", (3, 3, 4, 4))
LOWER = torch.cat([torch.zeros(3, 1, 2, 4), torch.ones(3, 1, 2, 4)], dim=2)


def losses(output: torch.Tensor, steps: torch.Tensor = STEPS, **kind: bool) -> torch.Tensor:
    return spaced("", **kind).training_losses(lambda _x, _t: output, X_START, steps, EPS, LOWER)


def test_noised_images_have_the_golden_alphas() -> None:
    diffusion = spaced("ddim10", **KINDS["x0"])
    ones, i = torch.ones(10, 3, 2, 2), torch.arange(10)
    alphas = torch.from_numpy(GOLDEN["ddim10/alphas_cumprod"]).float()[:, None, None, None].expand_as(ones)
    torch.testing.assert_close(diffusion.q_sample(ones, i, 0 * ones) ** 2, alphas)
    torch.testing.assert_close(diffusion.q_sample(0 * ones, i, ones) ** 2, 1 - alphas)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_model_has_no_loss(kind: str) -> None:
    target = X_START if KINDS[kind]["predict_xstart"] else EPS
    # the true posterior's variance is at the lower end of the interpolation
    output = torch.cat([target, -torch.ones_like(target)], 1) if KINDS[kind]["learn_sigma"] else target
    torch.testing.assert_close(losses(output, **KINDS[kind]), torch.zeros(3), rtol=0, atol=1e-3)


def test_only_masked_pixels_count() -> None:
    wrong_above = X_START + 5 * (1 - LOWER)
    torch.testing.assert_close(losses(wrong_above, **KINDS["x0"]), torch.zeros(3))
    torch.testing.assert_close(losses(wrong_above + 2 * LOWER, **KINDS["x0"]), torch.full((3,), 4.0))


def test_model_gets_each_samples_own_step() -> None:
    seen = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((x, t))
        return x

    diffusion = spaced("", **KINDS["x0"])
    diffusion.training_losses(model, X_START, STEPS, EPS, LOWER)
    x_t, timesteps = seen[0]
    torch.testing.assert_close(timesteps, torch.tensor([1.0, 300.0, 999.0]))
    torch.testing.assert_close(x_t[2], diffusion.q_sample(X_START[2:], STEPS[2:], EPS[2:])[0])


@pytest.mark.parametrize("step", [1, 40, 999])
def test_variance_term_is_the_kl_divergence(step: int) -> None:
    """Against the integral of q log2(q / p) on a grid."""
    kind = {"predict_xstart": True, "learn_sigma": True}
    steps = torch.full((3,), step)
    guess, interpolation = X_START + 0.1, 0.3
    output = torch.cat([guess, torch.full_like(guess, interpolation)], 1)
    diffusion = spaced("", **kind)
    x_t = diffusion.q_sample(X_START, steps, EPS)
    variance = diffusion.posterior_variance[step] ** 0.35 * diffusion.betas[step] ** 0.65
    expected = torch.zeros_like(X_START)
    for index in np.ndindex(*X_START.shape):
        q = _normal(float(diffusion.q_posterior_mean(X_START, x_t, step)[index]), diffusion.posterior_variance[step])
        p = _normal(float(diffusion.q_posterior_mean(guess, x_t, step)[index]), variance)
        centre = float(diffusion.q_posterior_mean(X_START, x_t, step)[index])
        grid = np.linspace(centre - 10 * variance**0.5, centre + 10 * variance**0.5, 4001)
        density = np.exp(q(grid))
        expected[index] = float(np.trapezoid(density * (q(grid) - p(grid)), grid) / np.log(2))
    vlb = (expected * LOWER).sum(dim=(1, 2, 3)) / (3 * LOWER).sum(dim=(1, 2, 3))
    torch.testing.assert_close(losses(output, steps, **kind), 0.01 + vlb, rtol=2e-3, atol=1e-5)


def _normal(mean: float, variance: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))


def test_variance_term_leaves_the_mean_alone() -> None:
    mean, interpolation = (X_START + 0.1).requires_grad_(), torch.zeros_like(X_START).requires_grad_()
    losses(torch.cat([mean, interpolation], 1), predict_xstart=True, learn_sigma=True).sum().backward()
    torch.testing.assert_close(mean.grad, 2 * 0.1 * LOWER.expand_as(mean) / 24)
    assert interpolation.grad is not None
    assert interpolation.grad[:, :, 2:].abs().min() > 0


@pytest.mark.parametrize("mean", [-1.2, -0.99, 0.001, 0.5, 1.0])
@pytest.mark.parametrize("log_variance", [-12.0, -6.0, 0.0])
def test_the_256_levels_share_all_probability(mean: float, log_variance: float) -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    likelihood = discretized_log_likelihood(levels, torch.tensor(mean), torch.tensor(log_variance))
    assert float(likelihood.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_first_step_is_scored_by_likelihood() -> None:
    output = torch.cat([X_START, torch.zeros_like(X_START)], 1)
    kind = {"predict_xstart": True, "learn_sigma": True}
    diffusion = spaced("", **kind)
    log_variance = 0.5 * (diffusion.posterior_log_variance_clipped[0] + np.log(diffusion.betas[0]))
    nll = -discretized_log_likelihood(X_START, X_START, torch.tensor(log_variance)) / np.log(2)
    expected = (nll * LOWER).sum(dim=(1, 2, 3)) / 24
    torch.testing.assert_close(losses(output, torch.zeros(3, dtype=torch.int64), **kind), expected.float())
