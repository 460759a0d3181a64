"""How near few steps are to many: a known error, a network that needs no more than one step, and one that does."""

import math
from dataclasses import dataclass
from pathlib import Path

import benchmark_steps
import numpy as np
import pytest
import torch
from benchmark_steps import Batch, batches_of, main, measure, nearness, print_table
from torch import Tensor

from guided_diffusion.errors import InputError
from guided_diffusion.script_util import ModelConfig
from train_data import Clip

CONFIG = ModelConfig(image_size=64, predict_xstart=True, learn_sigma=False)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Waves:
    """A network whose x_0 is a wave over x_t: grey with a slope of 0."""

    slope: float

    def encode_audio(self, indiv_mels: Tensor) -> Tensor:
        return indiv_mels

    def denoise(self, x: Tensor, *_: Tensor, **__: Tensor | None) -> Tensor:
        return torch.sin(self.slope * x)


def clip(n_frames: int = 12) -> Clip:
    """Each frame's crop is as bright as its number times 10."""
    crops = np.broadcast_to(10 * np.arange(n_frames, dtype=np.uint8)[:, None, None, None], (n_frames, 80, 80, 3))
    return Clip(crops, np.arange(n_frames), np.zeros((80, 100), np.float32), np.zeros((n_frames, 5), np.float32))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    monkeypatch.setattr(benchmark_steps, "REFERENCE", "ddim50")
    monkeypatch.setattr(benchmark_steps, "PAPERS", "ddim10")
    return batches_of([clip(), clip()], 3, CONFIG, 4, CPU)


def test_frames_of_all_clips_have_a_crop_of_some_frames_before_as_reference(batches: list[Batch]) -> None:
    assert [len(batch["noise"]) for batch in batches] == [4, 2]
    levels = {name: torch.cat([batch[name][:, 0, 0, 0] for batch in batches]) for name in ("image", "ref_img")}
    frames, references = (((level + 1) * 127.5 / 10).round().int().tolist() for level in levels.values())
    assert frames == [5, 8, 11] * 2
    assert references == [0, 3, 6] * 2


def test_nearness_is_the_psnr_of_what_was_generated() -> None:
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, 2:] = 1
    samples = torch.full((2, 3, 4, 4), 0.02)
    samples[:, :, :2] = 1
    assert nearness(samples, torch.zeros_like(samples), mask) == pytest.approx(40)
    assert nearness(3 * mask.expand(2, 3, 4, 4), torch.ones_like(samples), mask) == math.inf  # as it is shown


def test_a_network_that_does_not_change_its_mind_needs_any_number_of_steps(batches: list[Batch]) -> None:
    papers, near = measure(Waves(0), CONFIG, batches, [4, 6])
    assert papers > 100
    assert set(near) == {"ddim", "dpmpp_2m", "dpmpp_3m", "2m early"}
    assert all(len(values) == 2 and min(values) > 100 for values in near.values())


def test_the_fewest_steps_that_are_as_near_are_told(
    batches: list[Batch], capsys: pytest.CaptureFixture[str]
) -> None:
    papers, near = measure(Waves(1), CONFIG, batches, [4, 20])
    assert near["ddim"][0] < papers < near["ddim"][1]
    print_table(papers, near, [4, 20])
    assert "ddim: 20 steps" in capsys.readouterr().out
    print_table(1000, near, [4, 20])
    assert "ddim: none of [4, 20]" in capsys.readouterr().out


def test_a_network_is_measured_from_the_command_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_steps, "prepare_clips", lambda *_, **__: ([clip()], "key"))
    monkeypatch.setattr(benchmark_steps, "REFERENCE", "ddim4")
    monkeypatch.setattr(benchmark_steps, "PAPERS", "ddim2")
    assert main(["clips", f"--model_path={checkpoint}", "--frames=2", "--steps", "2", "--device=cpu"]) == 0
    said = capsys.readouterr().out
    assert "2 frames of 1 clips; torch, float32, cpu" in said
    assert "ddim: 2 steps" in said


def test_a_folder_without_clips_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^CLIPS .*no video in it"):
        main([str(tmp_path)])
