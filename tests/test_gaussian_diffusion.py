"""Schedules and samplers against numbers of the reference implementation."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fill import named_randn
from hypothesis import given
from hypothesis import strategies as st

from guided_diffusion.gaussian_diffusion import get_named_beta_schedule
from guided_diffusion.respace import SpacedDiffusion, space_timesteps

GOLDEN = np.load(Path(__file__).parent / "data" / "diffusion.npz")
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


@pytest.mark.parametrize("loop", ["ddim_sample_loop", "p_sample_loop"])
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
