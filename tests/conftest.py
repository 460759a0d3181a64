"""Small stand-ins: a random network, a short video, a speech file."""

import os

# one thread, here and in the processes that tests start: equal to the last bit, and no fight over two cores
os.environ["OMP_NUM_THREADS"] = "1"

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from fill import fill_

import generate
from guided_diffusion.sampling import Crops, SampleBatch
from guided_diffusion.script_util import create_model, model_config
from guided_diffusion.video_util import VideoWriter
from train_data import FPS, OPENING_NEIGHBOURS, OPENINGS, Clip

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def small_config() -> dict:
    return json.loads((DATA / "state_dicts.json").read_text())["small_64"]["config"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, small_config: dict) -> Path:
    """A bare state dict of random weights with its configuration beside it, as upstream's flags name it."""
    path = tmp_path_factory.mktemp("checkpoint") / "small 64.pt"
    torch.save(fill_(create_model(model_config(small_config, "test"))).state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(small_config))
    return path


def write_video(path: Path, frames: np.ndarray, fps: int = 25, crf: int = 18) -> Path:
    with VideoWriter(str(path), source=(frames.shape[2], frames.shape[1]), fps=Fraction(fps), crf=crf) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames of 224 x 224, as in VoxCeleb2: no detector is needed. Brightness grows with the frame's number."""
    ramp = np.linspace(40, 200, 224 * 224).reshape(224, 224, 1)
    frames = np.stack([np.repeat(ramp + 4 * k, 3, axis=2) for k in range(12)]).astype(np.uint8)
    return write_video(tmp_path_factory.mktemp("video") / "clip é.mp4", frames)


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of noise in bursts, stereo at 22050 Hz."""
    rng = np.random.default_rng(0)
    t = np.arange(22050) / 22050
    burst = (np.sin(2 * np.pi * 3 * t) > 0)[:, None] * rng.normal(0, 0.2, (len(t), 2))
    path = tmp_path_factory.mktemp("speech") / "some words.wav"
    soundfile.write(path, burst, 22050)
    return path


@pytest.fixture(scope="session")
def clips() -> list[Clip]:
    """Two clips of smooth pictures: lower half as bright, and mouth as far open, as their sound's lower bands are loud.

    The upper bands are as soft: the network normalizes the level of the whole away.
    """
    made = []
    for number in range(2):
        rising = np.linspace(0, 1, 30)
        loud = rising if number else rising[::-1]
        crops = np.full((30, 80, 80, 3), 90 + 40 * number, np.uint8)
        crops[:, 40:] = (90 + 160 * loud).astype(np.uint8)[:, None, None, None]
        # a mel window begins at its frame, at 80 steps per second
        heard = 8 * loud[np.arange(96) * FPS // 80] - 4
        mel = np.repeat([heard, -heard], 40, axis=0).astype(np.float32)
        around = np.pad(0.2 * loud, OPENING_NEIGHBOURS, constant_values=np.nan).astype(np.float32)
        openings = np.lib.stride_tricks.sliding_window_view(around, OPENINGS)
        made.append(Clip(crops, np.arange(25), mel, openings).part(0, 25))
    return made


def mouth(x: float = 50, y: float = 60, width: float = 30, opening: float = 0.2) -> np.ndarray:
    """Lip landmarks float32 [20, 2]: outer lips of the width, inner ones 2/3 as wide with a gap of `opening` widths."""
    half, gap = width / 2, opening * width
    upper = [(x + half * t, y - gap / 2 - 0.15 * width * (1 - t * t)) for t in np.linspace(-1, 1, 7)]
    lower = [(x + half * t, y + gap / 2 + 0.15 * width * (1 - t * t)) for t in np.linspace(1, -1, 7)[1:-1]]
    inner_upper = [(x + half * t, y - gap / 2) for t in np.linspace(-2 / 3, 2 / 3, 5)]
    inner_lower = [(x + half * t, y + gap / 2) for t in np.linspace(2 / 3, -2 / 3, 5)[1:-1]]
    points = np.array([*upper, *lower, *inner_upper, *inner_lower], np.float32)
    points[[0, 6], 1] = y
    return points


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def saved_network(folder: Path, config: dict) -> Path:
    """Random weights with their configuration beside them."""
    path = folder / f"{config['image_size']}.pt"
    torch.save(fill_(create_model(model_config(config, "test"))).state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(config))
    return path


# ------------------------------------------------------------------------------------------------ runs of generate.py

UPSTREAM_FLAGS = """--generate_from_filelist 0 --save_orig=False --use_fp16 True --face_hide_percentage 0.5
 --use_ref True --use_audio=True --audio_as_style yes --audio_as_style_encoder_mlp False --nframes 5 --nrefer 1
 --image_size 64 --syncnet_T 5 --syncnet_mel_step_size 16 --audio_frames_per_video 16 --audio_dim 80
 --is_voxceleb2 1 --video_fps 25 --sample_rate 16000 --mel_steps_per_sec 80. --clip_denoised true
 --sampling_batch_size 2 --use_ddim True --sample_path d2l_gen --sample_partition= --sampling_seed=7
 --sampling_use_gt_for_ref no --sampling_ref_type gt --sampling_input_type gt --face_det_batch_size 64 --pads 0,0,0,0
 --num_channels 32 --num_res_blocks 1 --num_heads 4 --num_heads_upsample -1 --num_head_channels 32
 --attention_resolutions 8 --dropout 0.0 --class_cond False --use_checkpoint False --use_scale_shift_norm False
 --resblock_updown True --learn_sigma False --diffusion_steps 1000 --noise_schedule linear
 --timestep_respacing ddim2 --use_kl False --predict_xstart True --rescale_timesteps False
 --rescale_learned_sigmas False --loss_variation 0 --audio_encoder_kwargs {}""".split()


def job_arguments(video: Path, speech: Path, checkpoint: Path, folder: Path) -> list[str]:
    return [
        "--video_path", str(video), "--audio_path", str(speech), "--model_path", str(checkpoint),
        "--out_path", str(folder / "out folder" / "result.mp4"), "--save_orig", "False", "--crf", "0",
        "--use_ddim", "True", "--timestep_respacing", "ddim2", "--sampling_seed", "7", "--device", "cpu",
        "--sampling_batch_size", "1",
    ]  # fmt: skip


@pytest.fixture
def job(video: Path, speech: Path, checkpoint: Path, tmp_path: Path) -> list[str]:
    """Arguments of a job that takes a second."""
    return job_arguments(video, speech, checkpoint, tmp_path)


def result_of(arguments: list[str], *more: str) -> np.ndarray:
    assert generate.main([*arguments, *more]) == 0
    return decoded(Path(arguments[arguments.index("--out_path") + 1]))


@pytest.fixture(scope="session")
def plain_path(video: Path, speech: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video that `job` makes."""
    job = job_arguments(video, speech, checkpoint, tmp_path_factory.mktemp("plain"))
    assert generate.main(job) == 0
    return Path(job[job.index("--out_path") + 1])


@pytest.fixture(scope="session")
def plain(plain_path: Path) -> np.ndarray:
    """Its frames."""
    return decoded(plain_path)


@pytest.fixture(scope="session")
def short_speech(speech: Path) -> Path:
    """Its first 0.6 s."""
    path = speech.with_name("few words.wav")
    samples, rate = soundfile.read(speech)
    soundfile.write(path, samples[: int(0.6 * rate)], rate)
    return path


@dataclass(frozen=True)
class FakeVideo:
    array: np.ndarray
    is_image: bool = False

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        return iter(self.array[start:stop])


def black(batch: SampleBatch) -> Crops:
    return lambda: np.zeros((len(batch.crops), 64, 64, 3), np.uint8)
