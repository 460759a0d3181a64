"""Checkpoints and their configurations: what loads, what is refused and how."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from guided_diffusion.errors import InputError
from guided_diffusion.script_util import (
    ModelConfig,
    create_model,
    load_checkpoint,
    load_model,
    model_config,
    save_checkpoint,
)

REAL64 = Path(__file__).parent.parent.parent / "shared" / "checkpoints" / "real64.pt"

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def weights(checkpoint: Path) -> Weights:
    return torch.load(checkpoint, weights_only=True)


def save_bare(folder: Path, weights: Weights, config: dict | None) -> Path:
    torch.save(weights, folder / "weights.pt")
    if config is not None:
        (folder / "weights.json").write_text(json.dumps(config))
    return folder / "weights.pt"


def save_embedded(folder: Path, weights: Weights, config: dict) -> Path:
    torch.save({"config": config, "state_dict": weights}, folder / "weights.pt")
    return folder / "weights.pt"


def save_safetensors(folder: Path, weights: Weights, config: dict) -> Path:
    save_file(weights, folder / "weights.safetensors", {"config": json.dumps(config)})
    return folder / "weights.safetensors"


def refused(path: Path, flags: Mapping[str, Any] = {}) -> str:
    """The message, without the folder, of the one-line error that loading gives."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(str(path), flags)
    message = str(caught.value)
    assert "\n" not in message
    assert path.stem in message
    return message.replace(f"{path.parent}/", "")


# ------------------------------------------------------------------------------------------------------- what loads


@pytest.mark.parametrize("save", [save_bare, save_embedded, save_safetensors])
def test_formats_load_the_same(
    save: Callable[[Path, Weights, dict], Path], weights: Weights, small_config: dict, tmp_path: Path
) -> None:
    loaded = load_checkpoint(str(save(tmp_path, weights, small_config)))
    assert loaded.config == model_config(small_config, "test")
    assert loaded.state_dict.keys() == weights.keys()
    assert all(torch.equal(loaded.state_dict[name], weights[name]) for name in weights)
    assert ("weights.json" if save is save_bare else "inside weights") in loaded.source


@pytest.mark.parametrize("save", [save_embedded, save_safetensors])
def test_embedded_configuration_wins_over_the_sidecar(
    save: Callable[[Path, Weights, dict], Path], weights: Weights, small_config: dict, tmp_path: Path
) -> None:
    (tmp_path / "weights.json").write_text("not looked at")
    path = save(tmp_path, weights, small_config)
    assert "inside weights" in load_checkpoint(str(path)).source


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("save", [save_bare, save_safetensors])
def test_half_precision_loads_as_float32(
    save: Callable[[Path, Weights, dict], Path],
    dtype: torch.dtype, weights: Weights, small_config: dict, tmp_path: Path,
) -> None:  # fmt: skip
    halves = {name: tensor.to(dtype) for name, tensor in weights.items()}
    loaded = load_checkpoint(str(save(tmp_path, halves, small_config))).state_dict
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[name], halves[name].float()) for name in weights)


@pytest.mark.parametrize("half", [False, True])
def test_saved_checkpoint_loads(half: bool, small_config: dict, tmp_path: Path) -> None:
    config = model_config(small_config, "test")
    model = create_model(config).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "saved.safetensors", config, model.state_dict(), half)
    loaded = load_checkpoint(str(tmp_path / "saved.safetensors"))
    assert loaded.config == config
    assert loaded.source == "the configuration inside saved.safetensors"
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict[name], tensor.half().float() if half else tensor)
    size, n_values = (tmp_path / "saved.safetensors").stat().st_size, sum(p.numel() for p in model.parameters())
    assert size == pytest.approx((2 if half else 4) * n_values, rel=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["saved.safetensors"]


def test_model_is_ready_for_inference(checkpoint: Path, weights: Weights) -> None:
    model = load_model(load_checkpoint(str(checkpoint)), "cpu")
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    convolution = model.input_blocks[0][0].weight  # 32 x 9 x 3 x 3: the two layouts differ
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert not convolution.is_contiguous()


def test_half_precision_is_the_torsos(checkpoint: Path) -> None:
    model = load_model(load_checkpoint(str(checkpoint)), "cpu", torch.float16)
    assert {block[0].in_layers[2].weight.dtype for block in model.output_blocks} == {torch.float16}
    assert {parameter.dtype for parameter in model.audio_encoder.parameters()} == {torch.float32}


def test_paper_configuration_has_102_million_parameters() -> None:
    with torch.device("meta"):
        model = create_model(ModelConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(102e6, rel=0.01)


@pytest.mark.skipif(not REAL64.is_file(), reason="needs ../shared/checkpoints")
def test_trained_checkpoint_loads() -> None:
    loaded = load_checkpoint(str(REAL64))
    assert loaded.config.predict_xstart
    assert sum(tensor.numel() for tensor in loaded.state_dict.values()) == pytest.approx(5.8e6, rel=0.01)
    load_model(loaded, "cpu")


# --------------------------------------------------------------------------------------------- files that are refused


def test_bare_weights_mean_the_papers_configuration(weights: Weights, tmp_path: Path) -> None:
    message = refused(save_bare(tmp_path, weights, None))
    assert "time_embed.0.weight is (128, 32) in the file but (512, 128) by the paper's configuration" in message
    assert "there is no weights.json beside it" in message


def test_flags_are_the_configuration_of_bare_weights(weights: Weights, small_config: dict, tmp_path: Path) -> None:
    """As upstream's scripts pass them all; they were refused as not the paper's."""
    flags = {**small_config, "mel_steps_per_sec": 80.0, "syncnet_T": 5}
    loaded = load_checkpoint(str(save_bare(tmp_path, weights, None)), flags)
    assert loaded.config == model_config(small_config, "test")
    assert "the flags and the paper's configuration" in loaded.source


def test_flags_that_do_not_fit_bare_weights(weights: Weights, small_config: dict, tmp_path: Path) -> None:
    path = save_bare(tmp_path, weights, None)
    message = refused(path, {**small_config, "num_channels": 64})
    assert "time_embed.0.weight is (128, 32) in the file but (256, 64) by the flags and the paper's" in message
    with pytest.raises(InputError, match=r"^command line: image_size is 100; choose from"):
        load_checkpoint(str(path), {"image_size": 100})


@pytest.mark.parametrize("save", [save_bare, save_embedded, save_safetensors])
def test_flags_may_repeat_a_checkpoints_configuration_not_contradict_it(
    save: Callable[[Path, Weights, dict], Path], weights: Weights, small_config: dict, tmp_path: Path
) -> None:
    path = save(tmp_path, weights, small_config)
    load_checkpoint(str(path), small_config)
    load_checkpoint(str(path), {"image_size": 64, "mel_steps_per_sec": 80.0, "class_cond": False})
    for flags, words in (
        ({"num_channels": 64}, "--num_channels 64 contradicts the configuration in"),
        ({"hop_size": 160}, "--hop_size 160 contradicts the configuration in"),
        ({"mel_steps_per_sec": 100.0}, "which says 80.0; drop the flag"),
    ):
        assert words in refused(path, flags)
    with pytest.raises(InputError, match=r"^command line: class_cond is True; only False is supported"):
        load_checkpoint(str(path), {"class_cond": True})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("extra.weight", "extra.weight is (3,) in the file but absent by the configuration in weights.json"),
        ("out.2.bias", "out.2.bias is missing in the file but (3,) by the configuration in weights.json"),
    ],
)
def test_first_tensor_that_does_not_fit_is_named(
    name: str, words: str, weights: Weights, small_config: dict, tmp_path: Path
) -> None:
    changed = dict(weights)
    if changed.pop(name, None) is None:
        changed[name] = torch.zeros(3)
    assert words in refused(save_bare(tmp_path, changed, small_config))


@pytest.mark.parametrize("kept", [0, 1, 20, 1000, 0.5, -1])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(kept: float, kind: str, weights: Weights, tmp_path: Path) -> None:
    few = dict(list(weights.items())[:4])
    if kind == "safetensors":
        path = save_safetensors(tmp_path, few, {})
    else:
        path = tmp_path / "weights.pt"
        torch.save(few, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else int(kept)])
    words = "not a complete safetensors file" if kind == "safetensors" else "not a checkpoint (truncated"
    assert words in refused(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_text_is_refused(suffix: str, tmp_path: Path) -> None:
    path = (tmp_path / "page").with_suffix(suffix)
    path.write_text("<html>\nNot found\n</html>")
    refused(path)


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_checkpoint_is_not_run(new_format: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": Bomb(tmp_path / "boom")}, path, _use_new_zipfile_serialization=new_format)
    assert "not a checkpoint" in refused(path)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(3)], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"step": 3, "weight": torch.zeros(3)}, "holds no state dict"),
        ({"config": {}, "state_dict": {}}, "holds no state dict"),
        (torch.nn.Linear(2, 2), "not a checkpoint"),
        ({"config": "small", "state_dict": {"weight": torch.zeros(3)}}, "'config' is not a mapping"),
        ({"config": {"nrefer": torch.ones(2)}, "state_dict": {"weight": torch.zeros(3)}}, "'config' is not a mapping"),
    ],
)
def test_other_contents_are_refused(content: object, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    assert words in refused(tmp_path / "weights.pt")


# ------------------------------------------------------------------------------------- configurations that are refused


@pytest.mark.parametrize(
    "text", [b"", b"small", b"[1, 2]", b"3", b'{"image_size": 64', b"\xff\xfe", b"[" * 100_000, b"\x00"]
)
def test_sidecar_that_is_no_json_object(text: bytes, weights: Weights, tmp_path: Path) -> None:
    path = save_bare(tmp_path, weights, None)
    (tmp_path / "weights.json").write_bytes(text)
    assert "the configuration in weights.json: not a JSON object of options" in refused(path)


def test_safetensors_metadata_that_is_no_json_object(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(weights, path, {"config": "small"})
    assert "the configuration inside weights.safetensors: not a JSON object" in refused(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 3}, "unknown option 'depth'; known are attention_resolutions"),
        ({"use_audio": False}, "use_audio is False; only True is supported"),
        ({"class_cond": True}, "class_cond is True; only False is supported"),
        ({"audio_encoder_kwargs": {"a": 1}}, "audio_encoder_kwargs is {'a': 1}"),
        ({"use_ref": 1}, "use_ref is 1; it must be of type bool"),
        ({"image_size": "64"}, "image_size is '64'; it must be of type int"),
        ({"nframes": True}, "nframes is True; it must be of type int"),
        ({"attention_resolutions": 8}, "attention_resolutions is 8; it must be of type str"),
        ({"dropout": None}, "dropout is None; it must be of type float"),
        ({"image_size": 100}, "image_size is 100; choose from 64, 128, 256, 512"),
        ({"noise_schedule": "sqrt"}, "noise_schedule is 'sqrt'; choose from linear, cosine"),
        ({"num_channels": 48}, "num_channels is 48; it must be a multiple of 32"),
        ({"num_channels": 0}, "num_channels is 0; it must be from 1 to"),
        ({"num_channels": 32 * 10**9}, "it must be from 1 to"),
        ({"num_res_blocks": 10**6}, "num_res_blocks is 1000000; it must be from 1 to"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0; it must be from 1 to"),
        ({"nframes": -1}, "nframes is -1; it must be from 1 to"),
        ({"dropout": 1.5}, "dropout is 1.5; it must be from 0 to 1"),
        ({"nrefer": 0}, "nrefer is 0 with use_ref True"),
        ({"nrefer": 2}, "nrefer is 2 with use_ref True"),
        ({"use_ref": False}, "nrefer is 1 with use_ref False"),
        ({"attention_resolutions": ""}, "attention_resolutions is ''; give sizes in pixels"),
        ({"attention_resolutions": "8,x"}, "attention_resolutions is '8,x'"),
        ({"attention_resolutions": "8,-1"}, "attention_resolutions is '8,-1'"),
        ({"attention_resolutions": "0"}, "attention_resolutions is '0'"),
        ({"attention_resolutions": "256"}, "attention_resolutions is '256'"),
        ({"num_head_channels": 48}, "num_head_channels is 48; it must divide the 256 channels"),
        ({"num_head_channels": 0}, "num_head_channels is 0; it must divide"),
        ({"num_head_channels": -1, "num_heads": 0}, "num_heads is 0; it must divide"),
        ({"num_head_channels": -1, "num_heads_upsample": 3}, "num_heads_upsample is 3; it must divide"),
        ({"image_size": 512, "audio_as_style": False}, "audio_as_style is False at image_size 512"),
        ({"audio_dim": 10**6}, "audio_dim is 1000000; it must be from 1 to 1024"),
        ({"sample_rate": 0}, "sample_rate is 0; it must be from 1 to 192000"),
        ({"n_fft": 10**9}, "n_fft is 1000000000; it must be from 1 to 65536"),
        ({"n_fft": 801}, "n_fft is 801; it must be even"),
        ({"hop_size": 0}, "hop_size is 0; it must be from 1 to n_fft, 800"),
        ({"hop_size": 801}, "hop_size is 801; it must be from 1 to n_fft, 800"),
        ({"syncnet_mel_step_size": 10**6}, "syncnet_mel_step_size is 1000000; it must be from 1 to 1024"),
        ({"syncnet_mel_step_size": 1}, "syncnet_mel_step_size is 1; the network halves"),
        ({"syncnet_mel_step_size": 18, "audio_as_style": False}, "without audio_as_style it is 16"),
        ({"mel_steps_per_sec": 100.0}, "mel_steps_per_sec is 100.0; sample_rate 16000 / hop_size 200 makes it 80"),
    ],
)  # fmt: skip
def test_options_that_are_refused(options: dict[str, Any], words: str) -> None:
    """Each over the paper's values."""
    with pytest.raises(InputError) as caught:
        model_config(options, "here")
    assert str(caught.value).startswith("here: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_of_a_refused_sidecar_name_it(weights: Weights, small_config: dict, tmp_path: Path) -> None:
    path = save_bare(tmp_path, weights, {**small_config, "image_size": 100})
    assert "the configuration in weights.json: image_size is 100" in refused(path)


@pytest.mark.parametrize(
    "options",
    [
        {"use_fp16": True, "use_kl": False, "sample_rate": 16000, "audio_encoder_kwargs": {}},
        {"audio_encoder_kwargs": "{}", "mel_steps_per_sec": 80.0, "n_fft": 800, "hop_size": 200},
        {"num_head_channels": -1, "num_heads": 4, "num_heads_upsample": -1},
        {"dropout": 0},
    ],
)  # fmt: skip
def test_options_that_change_nothing(options: dict[str, Any]) -> None:
    config = model_config(options, "here")
    assert config == ModelConfig(num_head_channels=options.get("num_head_channels", 64))


@pytest.mark.parametrize(
    ("image_size", "sizes", "factors"),
    [(128, "32,16,8", (4, 8, 16)), (256, "32,8", (8, 32)), (64, "8", (8,)), (64, "64, 8", (1, 8)), (64, "-1", ())],
)
def test_attention_resolutions_become_factors(image_size: int, sizes: str, factors: tuple[int, ...]) -> None:
    assert ModelConfig(image_size=image_size, attention_resolutions=sizes).attention_ds == factors
