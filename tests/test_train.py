"""Training: batches, loss, a run that continues, fine-tuning into another shape, the command line."""

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
import torch
import train
from fill import fill_
from skimage import data
from train import (
    Options,
    StopSignal,
    Training,
    Validation,
    draw_steps,
    learning_rate,
    main,
    make_batch,
    matching,
    new_training,
    parse_options,
    start_from,
    tensor_places,
    train_step,
    with_bands_of,
)

from audio.audio import mel_window, speech_mel
from audio.hparams import ENHANCED_AUDIO_CONFIG, front_end, model_options
from guided_diffusion.errors import InputError
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.script_util import (
    CHANNEL_MULT,
    ModelConfig,
    create_gaussian_diffusion,
    create_model,
    load_checkpoint,
    load_model,
)
from guided_diffusion.tfg_data_util import lower_half_mask
from guided_diffusion.video_util import VideoWriter
from train_data import OPENING_NEIGHBOURS, OPENINGS, Clip, draw_examples, draw_openings

SIZE = 64
CONFIG = ModelConfig(
    image_size=SIZE, num_channels=32, num_res_blocks=1, num_head_channels=32, attention_resolutions="-1",
    learn_sigma=False, predict_xstart=True,
)  # fmt: skip
MODEL_FLAGS = [
    "--image_size=64", "--num_channels=32", "--num_res_blocks=1", "--num_head_channels=32",
    "--attention_resolutions=-1", "--learn_sigma=False", "--predict_xstart=True",
]  # fmt: skip
CPU = torch.device("cpu")


def options(**given: object) -> Options:
    return Options(**{"data": "d", "out": "o", "steps": 10, "batch_size": 2, "warmup": 0, **given})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "VALIDATION_EXAMPLES", 8)
    monkeypatch.setattr(train, "SHEET_EXAMPLES", 2)
    monkeypatch.setattr(train, "OPENING_EXAMPLES", 8)


# --------------------------------------------------------------------------------------------------------- batches


def test_training_hears_other_voices_and_validation_does_not(clips: list[Clip]) -> None:
    def heard(strength: float) -> tuple[np.ndarray, ...]:
        _, _, mels = draw_examples(clips, 3, SIZE, np.random.default_rng(0), augment=None, mel_augment=strength)
        batch = train.training_batch(clips, 0, options(mel_augment=strength), CONFIG, CPU)
        alone, _ = draw_openings(clips, 3, np.random.default_rng(0), strength)
        return mels, batch.inputs["indiv_mels"].numpy(), alone

    for kept, other in zip(heard(0), heard(1), strict=True):
        assert np.abs(kept - other).max() > 0.1
    validation, plain = (Validation(clips, options(mel_augment=strength), CONFIG, CPU) for strength in (1, 0))
    assert np.array_equal(validation.examples[2], plain.examples[2])


def test_a_share_of_the_steps_is_noisy() -> None:
    rng = np.random.default_rng
    plain, noisy, mixed = (draw_steps(1000, 3000, share, rng(0)) for share in (0.0, 1.0, 0.5))
    assert (plain.min(), plain.max()) == (0, 999)
    assert (noisy.min(), noisy.max()) == (666, 999)
    assert np.mean(plain >= 666) == pytest.approx(1 / 3, abs=0.03)
    assert np.mean(mixed >= 666) == pytest.approx(2 / 3, abs=0.03)


def test_the_hiding_noise_tells_nothing_of_the_noise_in_x_t(clips: list[Clip]) -> None:
    """With one noise for both, the network could read x_0 from their difference."""
    examples = draw_examples(clips, 4, SIZE, np.random.default_rng(0), augment=None, mel_augment=0)
    batch = make_batch(examples, torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(0), CPU)
    hidden = batch.inputs["cond_img"][:, :, SIZE // 2 :]
    noise = batch.noise[:, :, SIZE // 2 :]
    assert abs(torch.corrcoef(torch.stack([hidden.flatten(), noise.flatten()]))[0, 1]) < 0.05
    assert torch.equal(batch.inputs["cond_img"][:, :, : SIZE // 2], batch.inputs["image"][:, :, : SIZE // 2])


# --------------------------------------------------------------------------------------------------------- training


def steps(training: Training, clips: list[Clip], given: Options, n: int, config: ModelConfig = CONFIG) -> None:
    diffusion = create_gaussian_diffusion(config)
    for _ in range(n):
        train_step(training, diffusion, clips, given, config, CPU)


def test_the_loss_falls(clips: list[Clip]) -> None:
    given = options(steps=12, lr=2e-3, batch_size=4, ema_decay=0.8, mel_augment=0.0)
    training = new_training(CONFIG, given, None, CPU)
    validation = Validation(clips, dataclasses.replace(given, batch_size=32), CONFIG, CPU)
    diffusion = create_gaussian_diffusion(CONFIG)
    before = validation.loss(training.ema, diffusion)
    steps(training, clips, given, 12)
    after = validation.loss(training.ema, diffusion)
    assert after < 0.8 * before
    assert validation.loss(training.ema, diffusion) == after


def test_the_audio_code_learns_the_mouths_opening(clips: list[Clip]) -> None:
    given = options(steps=400, lr=2e-3, mel_augment=0.0, opening_weight=1.0, opening_steps=19, ema_decay=0.8)
    training = new_training(CONFIG, given, None, CPU)
    untouched = training.opening_head.weight.clone()
    steps(training, clips, dataclasses.replace(given, opening_weight=0.0, opening_steps=0), 1)
    assert torch.equal(training.opening_head.weight, untouched)
    steps(training, clips, given, 18)
    validation = Validation(clips, given, CONFIG, CPU)
    assert validation.opening_r(training) > 0.8
    mels, openings = validation.openings
    with torch.inference_mode():
        read = train.read_openings(training.ema, training.opening_head, torch.from_numpy(mels)).numpy()
    for neighbour in range(openings.shape[1]):
        known = np.isfinite(openings[:, neighbour])
        assert np.corrcoef(read[known, neighbour], openings[known, neighbour])[0, 1] > 0.8


def test_the_first_steps_can_be_for_the_audio_encoder_alone(clips: list[Clip]) -> None:
    given = options(opening_weight=1.0, opening_steps=2)
    training = new_training(CONFIG, given, None, CPU)
    before = {name: parameter.clone() for name, parameter in training.model.named_parameters()}

    def changed() -> set[str]:
        parameters = training.model.named_parameters()
        return {name.split(".")[0] for name, parameter in parameters if not torch.equal(parameter, before[name])}

    steps(training, clips, given, 2)
    assert changed() == {"audio_encoder", "audio_encoder_to_style"}
    steps(training, clips, given, 1)
    assert "out" in changed()


def test_the_log_says_how_well_the_opening_is_read(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    training = new_training(CONFIG, options(), None, CPU)
    validation = Validation(clips, options(), CONFIG, CPU)
    monkeypatch.setattr(training.ema, "encode_audio", lambda mels: mels[:, :1, 0])  # the loudness at the frame
    training.opening_head = torch.nn.Linear(1, OPENINGS)
    with torch.no_grad():
        training.opening_head.weight.zero_()[OPENING_NEIGHBOURS] = 3
    assert validation.opening_r(training) > 0.95
    with torch.no_grad():
        training.opening_head.weight[OPENING_NEIGHBOURS] = -3
    assert validation.opening_r(training) < -0.95


@pytest.mark.parametrize(("opening_weight", "opening_steps"), [(0.0, 0), (0.1, 0), (0.1, 3)])
def test_a_run_in_two_pieces_gives_the_same_numbers(
    opening_weight: float, opening_steps: int, clips: list[Clip], tmp_path: Path
) -> None:
    """Whatever was drawn from torch's global generator, which dropout uses, between the pieces."""
    given = options(steps=4, opening_weight=opening_weight, opening_steps=opening_steps)
    config = dataclasses.replace(CONFIG, dropout=0.1)
    run = train.identity(given, config, "data")
    straight = new_training(config, given, None, CPU)
    steps(straight, clips, given, 4, config)
    first = new_training(config, given, None, CPU)
    steps(first, clips, given, 2, config)
    train.save_state(tmp_path / "state.pt", first, run)
    second = new_training(config, given, None, CPU)
    train.load_state(tmp_path / "state.pt", second, run)
    torch.rand(5)
    steps(second, clips, given, 2, config)
    assert second.losses == straight.losses
    for name in ("model", "ema", "opening_head"):
        one, other = getattr(straight, name), getattr(second, name)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    moments = zip(straight.optimizer.state.values(), second.optimizer.state.values(), strict=True)
    assert all(torch.equal(one[key], other[key]) for one, other in moments for key in one)


def test_another_run_is_not_continued(clips: list[Clip], tmp_path: Path) -> None:
    del clips
    given = options()
    training = new_training(CONFIG, given, None, CPU)
    state = tmp_path / "state.pt"
    train.save_state(state, training, train.identity(given, CONFIG, "data"))
    for other, data_key, word in ((options(lr=1e-5), "data", "--lr"), (given, "else", "--data")):
        with pytest.raises(InputError, match=word):
            train.load_state(state, training, train.identity(other, CONFIG, data_key))
    train.load_state(state, training, train.identity(options(steps=99, log_every=3), CONFIG, "data"))
    state.write_bytes(b"else")
    with pytest.raises(InputError, match="not a state"):
        train.load_state(state, training, {})


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    given = options(steps=100, lr=1.0, warmup=10)
    training = new_training(CONFIG, given, None, CPU)
    rates = []
    for training.step in range(101):
        rates.append(learning_rate(training, given))
    assert rates[0] == pytest.approx(0.1, abs=0.01)
    assert max(rates) == rates[9] > 0.9
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    by_time = options(steps=None, minutes=2.0, lr=1.0, warmup=0)
    training.seconds = 60
    assert learning_rate(training, by_time) == pytest.approx(0.5)


def test_a_signal_saves_and_stops(clips: list[Clip], tmp_path: Path) -> None:
    given = options(steps=50, out=str(tmp_path), log_every=1)
    training = new_training(CONFIG, given, None, CPU)
    saved = []

    class Signalling(Validation):
        def loss(self, model: train.TFGModel, diffusion: GaussianDiffusion) -> float:
            del model, diffusion
            signal.raise_signal(signal.SIGTERM)
            return 0.0

    before = signal.getsignal(signal.SIGTERM)
    with StopSignal().watch() as stop:
        validation = Signalling(clips, given, CONFIG, CPU)
        train.train(training, clips, validation, given, CONFIG, lambda: saved.append(training.step), stop)
    assert stop.number == signal.SIGTERM
    assert saved == [1]
    assert signal.getsignal(signal.SIGTERM) == before


def test_minutes_end_with_a_line_a_sheet_and_a_checkpoint(clips: list[Clip], tmp_path: Path) -> None:
    """Slow validation that counted as training time let a run end behind the last check, without them."""
    given = options(steps=None, minutes=1e-3, out=str(tmp_path), log_every=1, sheet_every=1000)
    training, saved = new_training(CONFIG, given, None, CPU), []

    class Slow(Validation):
        def loss(self, model: train.TFGModel, diffusion: GaussianDiffusion) -> float:
            del model, diffusion
            time.sleep(0.06)
            return 0.0

    train.train(
        training, clips, Slow(clips, given, CONFIG, CPU), given, CONFIG, lambda: saved.append(training.step),
        StopSignal(),
    )  # fmt: skip
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == training.step == saved[-1]
    assert [path.name for path in tmp_path.glob("*.png")] == [f"sheet-{training.step:07d}.png"]


# ------------------------------------------------------------------------------------------------------ fine-tuning


def test_fine_tuning_says_what_starts_fresh() -> None:
    weights = create_model(CONFIG).state_dict()
    init = train.Checkpoint(CONFIG, weights, "test")
    wider = create_model(dataclasses.replace(CONFIG, audio_dim=128))
    said = start_from(wider, init)
    assert "1 start fresh" in said
    assert "audio_encoder.input_block.0.weight [64, 128, 3] (was [64, 80, 3])" in said
    name = "input_blocks.0.0.weight"
    assert torch.equal(wider.state_dict()[name], weights[name])
    with pytest.raises(InputError, match="--init"):
        start_from(create_model(CONFIG), train.Checkpoint(CONFIG, {"other": torch.zeros(1)}, "test"))


def test_a_larger_network_begins_with_the_picture_of_the_smaller_one() -> None:
    """Its levels were compared by name: a network of 128 px took three of four of the levels of 64 px for others.

    Exactly so where the convolutions next to the pixels see one pixel, which has the same neighbours at any size.
    """
    small = fill_(create_model(CONFIG)).eval()
    for convolution in (small.input_blocks[0][0], small.out[2]):
        centre = torch.zeros_like(convolution.weight)
        centre[:, :, 1, 1] = convolution.weight.detach()[:, :, 1, 1]
        convolution.weight = torch.nn.Parameter(centre)
    large = create_model(dataclasses.replace(CONFIG, image_size=128)).eval()
    said = start_from(large, train.Checkpoint(CONFIG, small.state_dict(), "test")).splitlines()
    assert ", 0 of the checkpoint's are left out" in said[0]
    assert said[1:4] == ["  level of 128 px: new", "  level of 64 px: from that of 64 px",
                         "  level of 32 px: from that of 32 px"]  # fmt: skip
    fresh = int(said[0].split(", ")[1].split()[0])
    assert sum(int(line.split(": ")[1].split()[0]) for line in said if line.endswith("tensors")) == fresh > 0
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(1, 3, SIZE, SIZE, generator=generator) for _ in range(3)]
    mask = lower_half_mask(1, SIZE, SIZE, 0.5)
    mels = torch.randn(1, 80, 16, generator=generator)

    def enlarged(image: torch.Tensor) -> torch.Tensor:
        return image.repeat_interleave(2, 2).repeat_interleave(2, 3)

    with torch.no_grad():
        x, *conditions = map(enlarged, images)
        picture = large(x, torch.tensor([300]), *conditions, mels, enlarged(mask))
        expected = small(images[0], torch.tensor([300]), *images[1:], mels, mask)
    assert expected.std() > 0.01
    torch.testing.assert_close(picture, enlarged(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "other_size", "said"),
    [(128, 256, "  level of 256 px: from that of 128 px"), (256, 128, "  level of 8 px: from that of 16 px")],
)
def test_levels_are_shifted_so_that_most_is_kept(size: int, other_size: int, said: str) -> None:
    config, other = (dataclasses.replace(CONFIG, image_size=side) for side in (size, other_size))
    with torch.device("meta"):
        init = train.Checkpoint(config, create_model(config).state_dict(), "test")
        model = create_model(other)
    _, matches = matching(model, init)
    assert len(matches) == min(len(init.state_dict), len(model.state_dict()))
    assert said in start_from(model, init)


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(image_size=256), CONFIG])
def test_every_tensor_has_its_own_place(config: ModelConfig) -> None:
    with torch.device("meta"):
        places = tensor_places(create_model(config))
    assert len(set(places.values())) == len(places)
    assert {level for level, _ in places.values()} == {None, *range(len(CHANNEL_MULT[config.image_size]))}


def test_other_mel_bands_are_heard_as_the_ones_before() -> None:
    """Fresh weights for them were as far off as two codes are from each other (1)."""
    sample = str(Path(__file__).parent.parent / "samples" / "astronaut.mp4")
    init = load_checkpoint(str(Path(__file__).parent.parent / "checkpoints" / "demo.safetensors"))
    config = dataclasses.replace(init.config, **model_options(ENHANCED_AUDIO_CONFIG))
    codes = []
    for checkpoint in (init, dataclasses.replace(with_bands_of(config, init), config=config)):
        hparams = front_end(checkpoint.config)
        mel, _ = speech_mel(sample, hparams)
        windows = np.stack([mel_window(mel, frame, 25, hparams) for frame in range(0, 170, 10)])
        codes.append(load_model(checkpoint, CPU).encode_audio(torch.from_numpy(windows)))
    apart = (codes[0] - codes[0].roll(5, 0)).norm(dim=1).mean()
    assert (codes[0] - codes[1]).norm(dim=1).mean() < 0.15 * apart


def test_the_front_end_in_one_word() -> None:
    _, flags = parse_options(["--data=d", "--out=o", "--steps=1", "--audio_preset=enhanced", "--hop_size=220"])
    expected = {"audio_dim": 128, "sample_rate": 22050, "n_fft": 1024, "hop_size": 220, "syncnet_mel_step_size": 18}
    assert flags == expected


# ----------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of a swaying face with noise as sound, and a text that is no video."""
    folder = tmp_path_factory.mktemp("clips é")
    rng = np.random.default_rng(0)
    soundfile.write(folder / "noise.wav", rng.normal(0, 0.1, 16000 * 2), 16000)

    def frames() -> Iterator[np.ndarray]:
        for k in range(30):
            shift = np.array([[1, 0, -128 + 3 * np.sin(k / 3)], [0, 1, 2 * np.cos(k / 4)]])
            yield cv2.warpAffine(data.astronaut(), shift, (256, 256))

    with VideoWriter(str(folder / "one.mp4"), (256, 256), 25, audio_path=str(folder / "noise.wav")) as writer:
        for frame in frames():
            writer.write(frame)
    (folder / "two.mp4").write_text("no video")
    return folder


def test_from_clips_to_a_checkpoint(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        f"--data={folder}", f"--out={tmp_path / 'run'}", "--batch_size=2", "--workers=1", "--device=cpu",
        "--log_every=1", "--sheet_every=2", "--half=True", *MODEL_FLAGS,
    ]  # fmt: skip
    assert main([*command, "--steps=2"]) == 0
    said = capsys.readouterr()
    assert "left out" in said.err
    assert "two.mp4" in said.err
    assert main([*command, "--steps=3"]) == 0
    assert "continues at step 2" in capsys.readouterr().out
    run = tmp_path / "run"
    assert len((run / "log.txt").read_text().splitlines()) == 3
    sheet = cv2.imread(str(run / "sheet-0000002.png"))
    assert sheet is not None
    assert sheet.shape == (2 * 128, 4 * 128, 3)
    checkpoint = load_checkpoint(str(run / "model.safetensors"))
    assert checkpoint.config == CONFIG
    assert not list(run.rglob("*.part"))
    tuned = [*command[:1], f"--out={tmp_path / 'tuned'}", *command[2:7], "--steps=1"]
    tuned += [f"--init={run / 'model.safetensors'}", "--audio_dim=96"]
    assert main(tuned) == 0
    said = capsys.readouterr()
    assert "of 80 mel bands, now has 96" in said.out
    assert " 0 start fresh" in said.out
    assert load_checkpoint(str(tmp_path / "tuned" / "model.safetensors")).config.audio_dim == 96


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps=5"], "--data is missing"),
        (["--data=x", "--out=y"], "either --steps or --minutes"),
        (["--data=x", "--out=y", "--steps=1", "--minutes=1"], "either --steps or --minutes"),
        (["--data=x", "--out=y", "--minutes=0"], "--minutes 0"),
        (["--data=x", "--out=y", "--steps=1", "--augment=2"], "--augment 2.0"),
        (["--data=x", "--out=y", "--steps=1", "--noisy_share=-1"], "--noisy_share -1.0"),
        (["--data=x", "--out=y", "--steps=1", "--opening_weight=-1"], "--opening_weight -1.0"),
        (["--data=x", "--out=y", "--steps=1", "--opening_weight=1", "--face_detector=sfd"], "sfd does not give"),
        (["--data=x", "--out=y", "--steps=1", "--mel_augment=2"], "--mel_augment 2.0"),
        (["--data=x", "--out=y", "--steps=1", "--opening_steps=5"], "give --opening_weight"),
        (["--data=nowhere", "--out={tmp}/run", "--steps=1"], "nowhere"),
        (["--data={tmp}", "--out={tmp}/run", "--steps=1"], "no video in it"),
        (["--data={tmp}", "--out={tmp}/run", "--steps=1", "--init=no.pt"], "--init no.pt"),
        (["--data={tmp}", "--out={tmp}/run", "--steps=1", "--image_size=65"], "image_size is 65"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([flag.format(tmp=tmp_path) for flag in flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: ")
    assert words in line


def test_flags_of_the_network_are_kept_apart() -> None:
    given, model_flags = parse_options(["--data", "x", "--out", "y", "--steps", "3", "--num_channels", "64"])
    assert given.steps == 3
    assert model_flags == {"num_channels": 64}


def test_the_program_crops_in_two_processes_saves_when_terminated_and_continues(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        f"--data={folder}", f"--out={tmp_path / 'run'}", "--batch_size=4", "--workers=2", "--device=cpu",
        "--log_every=1", "--sheet_every=100000", *MODEL_FLAGS,
    ]  # fmt: skip
    program = [sys.executable, str(Path(train.__file__)), *command, "--steps=100000"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 1 "):
                process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    logged = len((tmp_path / "run" / "log.txt").read_text().splitlines())
    assert main([*command, f"--steps={logged}"]) == 0
    assert f"continues at step {logged}" in capsys.readouterr().out
    assert load_checkpoint(str(tmp_path / "run" / "model.safetensors")).config == CONFIG
