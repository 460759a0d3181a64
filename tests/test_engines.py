"""Engines: which one options mean, OpenVINO against PyTorch, its cache, memory that does not suffice."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guided_diffusion import engines
from guided_diffusion.engines import (
    Engine,
    InParts,
    MeansNorm,
    PixelConvolution,
    choose_engine,
    example_inputs,
    largest_batch,
    load_denoiser,
)
from guided_diffusion.errors import InputError
from guided_diffusion.script_util import Checkpoint, ModelConfig, load_checkpoint, load_model
from guided_diffusion.unet import GroupNorm32

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "precision", "use_fp16", "taken"),
    [
        (CUDA, "auto", True, "float16"),
        (CUDA, "auto", False, "float32"),
        (CUDA, "bfloat16", True, "bfloat16"),
        (CUDA, "float32", True, "float32"),
        (CPU, "auto", True, "float32"),
        (torch.device("mps"), "auto", True, "float32"),
    ],
)
def test_precisions_of_pytorch(device: torch.device, precision: str, use_fp16: bool, taken: str) -> None:
    assert choose_engine("torch", precision, device, use_fp16) == Engine("torch", taken, device)


def test_openvino_takes_bfloat16_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AVX512-BF16 or AMX it is emulated, and far slower than float32."""

    def with_capabilities(*names: str) -> Callable[[], object]:
        core = type("Core", (), {"get_property": lambda *_: list(names)})
        return lambda: type("openvino", (), {"Core": core})

    monkeypatch.setattr(engines, "import_openvino", with_capabilities("FP32", "BF16"))
    assert choose_engine("openvino", "auto", CPU).precision == "bfloat16"
    assert choose_engine("openvino", "float32", CPU).precision == "float32"
    monkeypatch.setattr(engines, "import_openvino", with_capabilities("FP32", "INT8"))
    assert choose_engine("openvino", "auto", CPU).precision == "float32"
    with pytest.raises(InputError, match="this CPU has neither AVX512-BF16 nor AMX; give float32"):
        choose_engine("openvino", "bfloat16", CPU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("torch", "float16", CPU), "--precision float16: needs --device cuda; here give float32"),
        (("torch", "bfloat16", CPU), "needs --device cuda or --engine openvino"),
        (("torch", "bfloat16", torch.device("mps")), "needs --device cuda; here give float32"),
        (("torch", "auto", CPU, True, True), "--compile True: compiles for cuda, not for cpu"),
        (("openvino", "auto", CUDA), "--engine openvino: runs on the CPU, not on cuda; give --device cpu"),
        (("openvino", "float16", CPU), "--precision float16: OpenVINO has float32 and bfloat16"),
    ],
)
def test_engines_that_cannot_be_had(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_engine(*arguments)


def test_memory_is_in_the_order_that_is_quickest_there() -> None:
    """On an H200 channels_last took up to 1.5 times as long, but for compiled kernels."""
    assert choose_engine("torch", "auto", CUDA).memory_format == torch.contiguous_format
    assert choose_engine("torch", "auto", CUDA, is_compiled=True).memory_format == torch.channels_last
    assert choose_engine("torch", "auto", CPU).memory_format == torch.channels_last


def test_load_denoiser_keeps_that_order(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "memory_format", torch.contiguous_format)
    denoiser = load_denoiser(load_checkpoint(str(checkpoint)), "digest", choose_engine("torch", "auto", CPU), tmp_path)
    assert isinstance(denoiser, InParts)
    assert denoiser.model.input_blocks[0][0].weight.is_contiguous()


def test_without_openvino_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="install it with: pip install openvino"):
        choose_engine("openvino", "auto", CPU)


def test_nobody_is_told_of_a_conversion() -> None:
    """OpenVINO's converter reports to Google Analytics where that package is installed."""
    engines.import_openvino()
    assert sys.modules["openvino_telemetry"] is None


# ----------------------------------------------------------------------------------------------------------- OpenVINO


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(checkpoint))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def openvino_float32() -> Engine:
    return choose_engine("openvino", "float32", CPU)


def random_inputs(checkpoint: Checkpoint, n: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)
    inputs = example_inputs(load_model(checkpoint, "cpu"), checkpoint.config, n)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in inputs.items()}


@torch.inference_mode()
def test_openvino_is_pytorch_at_any_batch_size(loaded: Checkpoint, cache: Path) -> None:
    ours = load_model(loaded, "cpu")
    theirs = load_denoiser(loaded, "digest", openvino_float32(), cache)
    mels = torch.randn(2, 80, 16)
    assert torch.equal(theirs.encode_audio(mels), ours.encode_audio(mels))
    for n in (1, 3):
        inputs = random_inputs(loaded, n)
        expected = ours.denoise(**inputs)
        first = theirs.denoise(**inputs)
        error = (first - expected).pow(2).mean() / expected.pow(2).mean()
        assert error < 1e-8  # 80 dB
        assert torch.equal(theirs.denoise(**inputs), first)
        alone = theirs.denoise(**{name: tensor[-1:] for name, tensor in inputs.items()})
        assert torch.equal(alone, first[-1:])  # an image is the same in any batch


@torch.inference_mode()
def test_layers_that_keep_channels_last_are_the_networks_own(loaded: Checkpoint) -> None:
    model = load_model(loaded, "cpu")
    inputs = random_inputs(loaded, 2)
    expected = model.denoise(**inputs)
    torso = torch.nn.ModuleList(getattr(model, name) for name in engines.TORSO)
    before = [sum(isinstance(module, kind) for module in torso.modules()) for kind in (GroupNorm32, torch.nn.Linear)]
    engines._keep_channels_last(torso)
    error = (model.denoise(**inputs) - expected).pow(2).mean() / expected.pow(2).mean()
    assert error < 1e-10  # 100 dB
    after = [sum(isinstance(module, kind) for module in torso.modules()) for kind in (MeansNorm, PixelConvolution)]
    assert after == before
    assert min(after) > 0


def test_the_conversion_has_no_norms_over_planes(loaded: Checkpoint) -> None:
    converted = engines._converted(load_model(loaded, "cpu"), loaded.config)
    assert not {"GroupNormalization", "MVN"} & {layer.get_type_name() for layer in converted.get_ops()}


@settings(deadline=None)
@given(mean=st.floats(-100, 100), spread=st.floats(0.01, 100), seed=st.integers(0, 99))
@torch.inference_mode()
def test_means_norm_is_group_norm(mean: float, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = GroupNorm32(64)
    norm.weight[:], norm.bias[:] = torch.randn(2, 64, generator=generator)
    x = mean + spread * torch.randn(2, 64, 5, 7, generator=generator)
    before = x.clone()
    expected = torch.nn.functional.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    tolerance = 1e-5 + 1e-6 * abs(mean) / spread  # what float32 rounds off x itself, over its spread
    assert (MeansNorm(norm)(x) - expected).abs().max() < 10 * tolerance
    assert torch.equal(x, before)


def test_the_conversion_is_kept(loaded: Checkpoint, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_denoiser(loaded, "digest", openvino_float32(), cache)

    def fail(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(engines, "_converted", fail)
    load_denoiser(loaded, "digest", openvino_float32(), cache)
    with pytest.raises(AssertionError, match="converted again"):
        load_denoiser(loaded, "of another checkpoint", openvino_float32(), cache)
    other = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, dropout=0.1))
    with pytest.raises(AssertionError, match="converted again"):
        load_denoiser(other, "digest", openvino_float32(), cache)
    digest = engines.file_digest
    for changed in (engines.unet.__file__, engines.__file__):
        monkeypatch.setattr(engines, "file_digest", lambda path, of=changed: "other" if path == of else digest(path))
        with pytest.raises(AssertionError, match="converted again"):
            load_denoiser(loaded, "digest", openvino_float32(), cache)


@pytest.fixture
def quick_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's file is another one, of nothing but its input."""

    def converted(*_: object) -> object:
        from openvino import Model, opset13

        x = opset13.parameter([-1, 3], np.float32)
        return Model([opset13.relu(x)], [x])

    monkeypatch.setattr(engines, "_converted", converted)


@pytest.mark.usefixtures("quick_conversion")
def test_a_conversion_that_is_killed_leaves_nothing(
    loaded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("guided_diffusion.store.os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        load_denoiser(loaded, "digest", openvino_float32(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick_conversion")
def test_a_damaged_conversion_is_made_anew(loaded: Checkpoint, tmp_path: Path) -> None:
    load_denoiser(loaded, "digest", openvino_float32(), tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damaged)
        assert engines._intact(path) is None
        load_denoiser(loaded, "digest", openvino_float32(), tmp_path)
        assert engines._intact(path) is not None


# ------------------------------------------------------------------------------------------------------------ memory


def test_a_full_gpu_is_given_fewer_images_at_once(loaded: Checkpoint) -> None:
    model = load_model(loaded, "cpu")
    asked: list[int] = []

    def of_three_at_most(x: Tensor, *others: Tensor) -> Tensor:
        asked.append(len(x))
        if len(x) > 3:
            raise torch.cuda.OutOfMemoryError
        return model.denoise(x, *others)

    denoiser = InParts(model, of_three_at_most)
    inputs = random_inputs(loaded, 7)
    with torch.inference_mode():
        torch.testing.assert_close(denoiser.denoise(**inputs), model.denoise(**inputs), atol=1e-5, rtol=1e-4)
        assert asked == [7, 3, 3, 1]
        denoiser.denoise(**inputs)
        assert asked[4:] == [3, 3, 1]


def test_memory_that_does_not_suffice_for_one_image(loaded: Checkpoint) -> None:
    def full(*_: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(InputError, match="does not suffice for one image"):
        InParts(load_model(loaded, "cpu"), full).denoise(**random_inputs(loaded, 2))


def test_the_largest_batch_fits_the_gpu_and_is_whole_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_memory(gib: float) -> Callable[[object], object]:
        return lambda _: type("Properties", (), {"total_memory": int(gib * 2**30)})

    config = ModelConfig()
    assert largest_batch(config, Engine("torch", "float32", CPU)) == 2 * config.nframes
    sizes = []
    for gib in (0.1, 4, 8, 80):
        monkeypatch.setattr(torch.cuda, "get_device_properties", with_memory(gib))
        sizes.append(largest_batch(config, Engine("torch", "float16", CUDA)))
    assert sizes == [5, 25, 55, 60]
    large = dataclasses.replace(config, image_size=256)
    monkeypatch.setattr(torch.cuda, "get_device_properties", with_memory(8))
    assert largest_batch(large, Engine("torch", "float32", CUDA)) == 10
