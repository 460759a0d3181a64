"""From options to networks: which are loaded, of which sizes, and what stored samples know of them."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import UPSTREAM_FLAGS, FakeVideo, result_of, saved_network, write_video
from fill import fill_

import generate
from face_detection.playback import Playback
from face_detection.tracks import fixed_track, voxceleb2_box
from generate import load_tools, main
from guided_diffusion import networks, respace
from guided_diffusion.dist_util import Ranks
from guided_diffusion.options import TURBO, Options
from guided_diffusion.sampling import SampleBatch, Sampler
from guided_diffusion.script_util import create_model, model_config


def test_weights_and_arithmetic_are_in_the_samplers_key(checkpoint: Path, small_config: dict, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    state_dict = torch.load(checkpoint, weights_only=True)
    torch.save({name: tensor + 0.01 for name, tensor in state_dict.items()}, other)
    other.with_suffix(".json").write_text(json.dumps(small_config))
    options = Options(
        video_path="v", audio_path="a", model_path=str(checkpoint), sampling_seed=7, work_dir=str(tmp_path),
        device="cpu",
    )  # fmt: skip
    one, two = (load_tools(replace(options, model_path=str(path)), {}, Ranks()) for path in (checkpoint, other))
    assert one.sampler_key != two.sampler_key
    assert one.sampler_key == load_tools(options, {}, Ranks()).sampler_key
    assert one.sampler_key["arithmetic"] == {"device": "cpu", "precision": "float32", "is_compiled": False}
    assert load_tools(replace(options, engine="openvino"), {}, Ranks()).sampler_key != one.sampler_key
    assert load_tools(replace(options, sampling_batch_size=None), {}, Ranks()).batch_size == one.batch_size


@pytest.mark.parametrize(("predict_xstart", "steps"), [(True, 5), (False, 8)])
def test_turbo_takes_the_steps_that_the_kind_of_network_needs(
    predict_xstart: bool, steps: int, small_config: dict, tmp_path: Path
) -> None:
    path = str(saved_network(tmp_path, {**small_config, "predict_xstart": predict_xstart}))
    options = Options(video_path="v", audio_path="a", model_path=path, sampler="turbo", device="cpu")
    tools = load_tools(options, {}, Ranks())
    assert tools.sampler.diffusion.num_timesteps == steps
    sampler, respacing = TURBO[predict_xstart]
    assert tools.sampler.sampler == sampler
    assert tools.sampler_key["sampler"] == sampler
    spelled_out = load_tools(replace(options, sampler=sampler, timestep_respacing=respacing), {}, Ranks())
    assert spelled_out.sampler_key == tools.sampler_key


def test_steps_of_the_same_name_at_other_times_have_a_key_of_their_own(
    small_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A work folder of an earlier version whose `late5` was spaced otherwise was gone on with."""
    path = str(saved_network(tmp_path, {**small_config, "predict_xstart": True}))
    options = Options(video_path="v", audio_path="a", model_path=path, sampler="turbo", device="cpu")
    key = load_tools(options, {}, Ranks()).sampler_key
    monkeypatch.setattr(respace, "LATE_POWER", 2.0)
    assert load_tools(options, {}, Ranks()).sampler_key != key


@pytest.mark.parametrize("predict_xstart", [True, False])
def test_steps_that_are_not_meant_for_a_network_are_noticed(
    predict_xstart: bool, small_config: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(saved_network(tmp_path, {**small_config, "predict_xstart": predict_xstart}))
    options = Options(
        video_path="v", audio_path="a", model_path=path, sampler="dpmpp_3m", timestep_respacing="late5", device="cpu"
    )
    load_tools(options, {}, Ranks())
    assert ("predicts epsilon" in capsys.readouterr().err) == (not predict_xstart)


def test_a_network_with_another_front_end_runs(
    job: list[str], small_config: dict, tmp_path: Path
) -> None:
    """A checkpoint of scripts/train.py --audio_dim 128 ended in a traceback after pass 1."""
    config = model_config({**small_config, "audio_dim": 128}, "test")
    torch.save(fill_(create_model(config)).state_dict(), tmp_path / "wide.pt")
    (tmp_path / "wide.json").write_text(json.dumps({**small_config, "audio_dim": 128}))
    assert len(result_of(job, "--model_path", str(tmp_path / "wide.pt"))) == 12


def test_bare_weights_with_the_flags_that_describe_them(
    job: list[str], checkpoint: Path, plain: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "bare.pt").write_bytes(checkpoint.read_bytes())
    flags = [*UPSTREAM_FLAGS, "--save_orig", "False", "--sampling_batch_size", "1"]
    frames = result_of([*job, *flags], "--model_path", str(tmp_path / "bare.pt"))
    np.testing.assert_array_equal(frames, plain)


def test_a_network_of_256_px_runs(job: list[str], small_config: dict, tmp_path: Path) -> None:
    """Bare weights, and the flags that describe them."""
    clip = write_video(tmp_path / "short.mp4", np.full((2, 224, 224, 3), 90, np.uint8))
    path = saved_network(tmp_path, {**small_config, "image_size": 256})
    path.with_suffix(".json").unlink()
    flags = [*UPSTREAM_FLAGS, "--save_orig", "False", "--image_size", "256", "--work_dir", str(tmp_path / "work")]
    frames = result_of([*job, *flags], "--model_path", str(path), "--video_path", str(clip)).astype(int)
    assert np.load(next((tmp_path / "work").glob("samples-*/000000.npy"))).shape == (2, 256, 256, 3)
    y1, y2, x1, x2 = voxceleb2_box(224, 224)
    assert np.abs(frames[:, (y1 + y2) // 2 : y2, x1:x2] - 90).mean() > 5
    assert np.abs(frames[:, y2 + 4 :] - 90).max() <= 3


def test_each_shot_is_as_the_network_alone_makes_it_that_its_face_asks_for(
    job: list[str], checkpoint: Path, small_config: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With blending, whose kernel is in the network's pixels, of a crop that sharpening has enlarged."""
    from skimage import data

    monkeypatch.setattr(generate, "FaceAlignment", cache(generate.FaceAlignment))  # it takes a second to load
    face = data.astronaut()[20:250, 100:330]
    wide, narrow = cv2.resize(face, (240, 240)), cv2.resize(face[:, ::-1], (120, 120))
    narrow = cv2.copyMakeBorder(narrow, 60, 60, 60, 60, cv2.BORDER_CONSTANT)
    clip = write_video(tmp_path / "two.mp4", np.stack([narrow] * 2 + [wide] * 2), crf=0)
    both = [str(checkpoint), str(saved_network(tmp_path, {**small_config, "image_size": 128}))]
    flags = [
        *job, "--video_path", str(clip), "--is_voxceleb2", "False", "--face_detector", "dlib", "--work_dir",
        str(tmp_path / "work"), "--timestep_respacing", "ddim1", "--blur_kernel_size", "15",
        "--sharpening_strength", "0.5",
    ]  # fmt: skip
    small, large = (result_of([*flags, "--model_path", path]) for path in both)
    assert all((small[shot] != large[shot]).any() for shot in (slice(2), slice(2, 4)))
    flags += ["--model_path", both[0], "--model_path_256", both[1], "--adaptive_resolution", "True"]
    result = result_of(flags, "--resolution_threshold", "85")
    assert "resolution: 1 of 2 shots with 128 px, 1 with 64 px" in capsys.readouterr().out
    np.testing.assert_array_equal(result, np.concatenate([small[:2], large[2:]]))
    assert len(list((tmp_path / "work").glob("samples-*"))) == 3
    assert len(list((tmp_path / "work").glob("faces-*"))) == 1


@pytest.mark.parametrize(("threshold", "needed"), [(140, {64, 128}), (300, {64}), (50, {128})])
def test_only_needed_networks_are_loaded(
    threshold: float, needed: set[int], checkpoint: Path, small_config: dict, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Faces of 100, 200 and 140 px in three shots that are played back and forth."""
    loaded: list[int] = []

    def stub(path: str, *_: object, **__: object) -> Sampler:
        size = 128 if path.endswith("128.pt") else 64
        loaded.append(size)
        return lambda batch: lambda: np.zeros((len(batch.crops), size, size, 3), np.uint8)

    monkeypatch.setattr(networks, "load_sampler", stub)
    options = Options(
        video_path="v", audio_path="a", model_path=str(checkpoint), device="cpu", adaptive_resolution=True,
        resolution_threshold=threshold,
        model_path_256=str(saved_network(tmp_path, {**small_config, "image_size": 128})),
    )  # fmt: skip
    boxes = np.array([[0, 50, 0, width] for width in (100, 100, 200, 200, 140, 140)])
    track = replace(fixed_track(6, (0, 50, 0, 100)), boxes=boxes, is_cut=np.array([0, 0, 1, 0, 1, 0], bool))
    played = Playback(FakeVideo(np.zeros((6, 60, 220, 3), np.uint8)), track, 11, "pingpong")
    sampler = generate.job_sampler(options, load_tools(options, {}, Ranks()), played, None, is_told=False)
    assert loaded == []
    picture = np.zeros((9, 9, 3), np.uint8)
    sizes = [len(sampler(SampleBatch(first, [], [picture], [picture], np.zeros(0)))()[0]) for first in range(11)]
    expected = {140: [64, 64, 128, 128, 128, 128, 128, 128, 128, 64, 64], 300: [64] * 11, 50: [128] * 11}
    assert sizes == expected[threshold]
    assert set(loaded) == needed
    assert len(loaded) == len(needed)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"image_size": 64}, "is a network of 64 px, --model_path"),
        ({"image_size": 128, "audio_dim": 96}, "its audio_dim is 96, not 80"),
        ({"image_size": 128, "diffusion_steps": 1}, "--timestep_respacing 'ddim2': no integer stride"),
    ],
)
def test_networks_that_cannot_stand_in_for_each_other(
    config: dict, words: str, job: list[str], small_config: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(networks, "load_denoiser", None)
    path = saved_network(tmp_path, {**small_config, **config})
    assert main([*job, "--adaptive_resolution", "True", "--model_path_256", str(path)]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("notice:"))
    assert words in line


def test_both_networks_are_in_the_samplers_key(checkpoint: Path, small_config: dict, tmp_path: Path) -> None:
    path = saved_network(tmp_path, {**small_config, "image_size": 128})
    options = Options(
        video_path="v", audio_path="a", model_path=str(checkpoint), sampling_seed=7, work_dir=str(tmp_path),
        device="cpu", adaptive_resolution=True, model_path_256=str(path),
    )  # fmt: skip
    before = load_tools(options, {}, Ranks()).sampler_key
    torch.save({name: 2 * tensor for name, tensor in torch.load(path, weights_only=True).items()}, path)
    after = load_tools(options, {}, Ranks()).sampler_key
    assert before.pop("larger") != after.pop("larger")
    assert before == after


@pytest.mark.parametrize("flags", [["--timestep_respacing", "1"], ["--timestep_respacing", "ddim1"]])
@pytest.mark.parametrize("use_ddim", ["True", "False"])
def test_a_single_step_runs(flags: list[str], use_ddim: str, job: list[str]) -> None:
    assert len(result_of(job, *flags, "--use_ddim", use_ddim)) == 12


