"""Engines: what runs a checkpoint's network, and in which precision."""

import dataclasses
import hashlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import unet
from .errors import InputError
from .script_util import Checkpoint, ModelConfig, load_model
from .store import content_key, file_digest, replace_when_complete
from .unet import GroupNorm32, TFGModel

ENGINES = ("torch", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
INSTALL_OPENVINO = "pip install openvino"
# MiB of activations of an image of 128 x 128 at 128 channels, as measured on a GPU (docs/benchmarks.md)
IMAGE_MIB = {"float32": 85, "bfloat16": 72, "float16": 72}
# more at once than this many images are hardly faster (docs/benchmarks.md)
LARGEST_BATCH = 64


class Denoiser(Protocol):
    """The network as `sampling.sample` calls it; see `TFGModel`."""

    def encode_audio(self, indiv_mels: Tensor) -> Tensor: ...

    def denoise(
        self, x: Tensor, timesteps: Tensor, cond_img: Tensor, ref_img: Tensor | None, audio_code: Tensor, mask: Tensor
    ) -> Tensor: ...


@dataclass(frozen=True)
class Engine:
    """How a network is run: `name` of ENGINES, and a `precision` of PRECISIONS that is not auto.

    :param is_compiled: by torch.compile, for batches of one size.
    """

    name: str
    precision: str
    device: torch.device
    is_compiled: bool = False

    def __str__(self) -> str:
        compiled = ", compiled" if self.is_compiled else ""
        return f"{self.name}, {self.precision}, {self.device.type}{compiled}"

    @property
    def memory_format(self) -> torch.memory_format:
        """The quickest for the network's weights (docs/benchmarks.md, Sampling by engine).

        channels_last takes 0.74 of the time on a CPU, and suits compiled kernels on CUDA. The others there turn it
        round for each norm, and take up to 1.5 times as long.
        """
        is_eager_cuda = self.device.type == "cuda" and not self.is_compiled
        return torch.contiguous_format if is_eager_cuda else torch.channels_last

    @property
    def key(self) -> dict[str, Any]:
        """What of this the last bits of a sample depend on."""
        if self.name == "openvino":
            openvino = import_openvino()
            cpu = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
            return {"engine": self.name, "precision": self.precision, "version": openvino.__version__, "cpu": cpu}
        return {"device": self.device.type, "precision": self.precision, "is_compiled": self.is_compiled}


def import_openvino() -> Any:
    """:raises InputError: with the command that installs it."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # it would report conversions to Google
    try:
        import openvino
    except ImportError as error:
        raise InputError(f"--engine openvino: {error}; install it with: {INSTALL_OPENVINO}") from None
    return openvino


def choose_engine(
    name: str, precision: str, device: torch.device, use_fp16: bool = True, is_compiled: bool = False
) -> Engine:
    """The engine that the options ask for; `precision` auto is the quickest one that pictures do not show.

    :param use_fp16: auto may take float16 on CUDA.
    :raises InputError: when it is not to be had here.
    """
    if is_compiled and device.type != "cuda":
        raise InputError(f"--compile True: compiles for cuda, not for {device.type}; drop it")
    if name == "openvino":
        return Engine(name, _openvino_precision(precision, device), device)
    if precision == "auto":
        precision = "float16" if use_fp16 and device.type == "cuda" else "float32"
    if precision != "float32" and device.type != "cuda":
        other = " or --engine openvino" if precision == "bfloat16" and device.type == "cpu" else ""
        raise InputError(f"--precision {precision}: needs --device cuda{other}; here give float32")
    return Engine(name, precision, device, is_compiled)


def _openvino_precision(precision: str, device: torch.device) -> str:
    if device.type != "cpu":
        raise InputError(f"--engine openvino: runs on the CPU, not on {device.type}; give --device cpu")
    has_bfloat16 = "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "auto":
        return "bfloat16" if has_bfloat16 else "float32"
    if precision == "float16":
        raise InputError("--precision float16: OpenVINO has float32 and bfloat16 on CPUs; give one of them")
    if precision == "bfloat16" and not has_bfloat16:
        raise InputError("--precision bfloat16: this CPU has neither AVX512-BF16 nor AMX; give float32")
    return precision


def load_denoiser(checkpoint: Checkpoint, digest: str, engine: Engine, cache: Path) -> Denoiser:
    """The checkpoint's network, ready for inference.

    :param digest: of the checkpoint's file.
    :param cache: a folder for what an engine makes of it; it may be deleted at any time.
    :raises InputError: when the engine is not installed.
    """
    if engine.name == "openvino":
        return load_openvino(checkpoint, digest, engine, cache)
    model = load_model(checkpoint, engine.device, getattr(torch, engine.precision), engine.memory_format)
    return InParts(model, torch.compile(model.denoise) if engine.is_compiled else model.denoise)


def largest_batch(config: ModelConfig, engine: Engine) -> int:
    """As many images as are worth being sampled at once: a multiple of the network's `nframes`.

    It depends on the machine and not on what else is running there, since stored samples go by batches.
    """
    images = 2 * config.nframes
    if engine.device.type == "cuda":
        mib = IMAGE_MIB[engine.precision] * (config.image_size / 128) ** 2 * config.num_channels / 128
        total = torch.cuda.get_device_properties(engine.device).total_memory / 2**20
        images = min(LARGEST_BATCH, int(total / 2 / mib))
    return max(1, images // config.nframes) * config.nframes


# ----------------------------------------------------------------------------------------------------------- PyTorch


@dataclass
class InParts:
    """A network that is given fewer images at once when a GPU's memory does not suffice for all; the sum is the same.

    The split is below the sampling loop, whose noise is drawn for the whole batch.

    :param denoise_all: the model's own, or a compiled one.
    :param rows: at most so many images at once.
    """

    model: TFGModel
    denoise_all: Callable[..., Tensor]
    rows: int = sys.maxsize

    def encode_audio(self, indiv_mels: Tensor) -> Tensor:
        return self._run(self.model.encode_audio, indiv_mels)

    def denoise(
        self, x: Tensor, timesteps: Tensor, cond_img: Tensor, ref_img: Tensor | None, audio_code: Tensor, mask: Tensor
    ) -> Tensor:
        return self._run(self.denoise_all, x, timesteps, cond_img, ref_img, audio_code, mask)

    def _run(self, function: Callable[..., Tensor], first: Tensor, *others: Tensor | None) -> Tensor:
        """:raises InputError: when the memory does not suffice for one image."""
        n = len(first)
        while True:
            rows = min(n, self.rows)
            try:
                if rows == n:
                    return function(first, *others)
                parts = [slice(start, start + rows) for start in range(0, n, rows)]
                return torch.cat([
                    function(first[part], *(other if other is None else other[part] for other in others))
                    for part in parts
                ])  # fmt: skip
            except torch.cuda.OutOfMemoryError:
                if rows == 1:
                    raise InputError("the GPU's memory does not suffice for one image; give --device cpu") from None
            torch.cuda.empty_cache()
            self.rows = rows // 2
            print(f"notice: the GPU's memory is full: {self.rows} images at once from here on", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------- OpenVINO


TORSO = ("input_blocks", "middle_block", "output_blocks", "out")
"""The parts of a `TFGModel` that OpenVINO runs."""


class DenoiseModule(nn.Module):
    """`TFGModel.denoise` as a module, for converters: called with the tensors of `example_inputs`, in their order."""

    def __init__(self, model: TFGModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Tensor, timesteps: Tensor, cond_img: Tensor, audio_code: Tensor, mask: Tensor,
        ref_img: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return self.model.denoise(x, timesteps, cond_img, ref_img, audio_code, mask)


def example_inputs(model: TFGModel, config: ModelConfig, n: int = 1) -> dict[str, Tensor]:
    """What `DenoiseModule` is called with for n images, of the right shapes: the names in order, float32 tensors."""
    size = config.image_size
    image = torch.zeros(n, 3, size, size)
    mels = torch.zeros(n, config.audio_dim, config.syncnet_mel_step_size)
    inputs = {
        "x": image, "timesteps": torch.full((n,), 500.0), "cond_img": image.clone(),
        "audio_code": model.encode_audio(mels), "mask": torch.ones(n, 1, size, size),
    }  # fmt: skip
    return {**inputs, "ref_img": image.clone()} if config.use_ref else inputs


@dataclass(frozen=True)
class OpenVINODenoiser:
    """The torso in OpenVINO, the audio encoder, which runs once for a batch, in PyTorch.

    Each image goes through alone, as many at a time as there are threads: caches hold more of it than of a batch, and a
    network for one image has fixed shapes. It takes 0.8 to 0.97 of the time (docs/benchmarks.md), and an image is the
    same in any batch.

    :param model: its torso may be missing.
    :param queue: an `openvino.AsyncInferQueue` for one image each.
    """

    model: TFGModel
    queue: Any

    def encode_audio(self, indiv_mels: Tensor) -> Tensor:
        return self.model.encode_audio(indiv_mels)

    def denoise(
        self, x: Tensor, timesteps: Tensor, cond_img: Tensor, ref_img: Tensor | None, audio_code: Tensor, mask: Tensor
    ) -> Tensor:
        tensors = [x, timesteps, cond_img, audio_code, mask, *([] if ref_img is None else [ref_img])]
        inputs = [tensor.contiguous().numpy() for tensor in tensors]
        outputs = [np.zeros(0)] * len(x)

        def keep(request: Any, row: int) -> None:
            outputs[row] = request.get_output_tensor(0).data.copy()  # the next image is written there

        self.queue.set_callback(keep)
        for row in range(len(x)):
            self.queue.start_async([array[row : row + 1] for array in inputs], row, share_inputs=True)
        self.queue.wait_all()
        return torch.from_numpy(np.concatenate(outputs))


def load_openvino(checkpoint: Checkpoint, digest: str, engine: Engine, cache: Path) -> OpenVINODenoiser:
    """Convert and compile the network, or read it from the cache, where one file holds all that it depends on.

    Parameters as in `load_denoiser`.
    """
    openvino = import_openvino()
    parts = {
        **engine.key, "checkpoint": digest, "config": dataclasses.asdict(checkpoint.config), "torch": torch.__version__,
        "network": file_digest(unet.__file__), "conversion": file_digest(__file__), "images": 1,
    }  # fmt: skip
    path = cache / f"openvino-{content_key(parts)}.blob"
    properties = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[engine.precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": torch.get_num_threads(),
    }
    core, model = openvino.Core(), load_model(checkpoint, "cpu")
    blob = _intact(path)
    if blob is None:
        print(f"notice: OpenVINO converts the network once, to {path}", file=sys.stderr)
        blob = core.compile_model(_converted(model, checkpoint.config), "CPU", properties).export_model().getvalue()
        with replace_when_complete(path) as part:
            part.write_bytes(hashlib.sha256(blob).digest() + blob)
    compiled = core.import_model(blob, "CPU", properties)
    for name in TORSO:
        delattr(model, name)  # its weights would be held twice
    return OpenVINODenoiser(model, openvino.AsyncInferQueue(compiled))


def _intact(path: Path) -> bytes | None:
    """A file's content without the SHA-256 before it; None when that is not its own, or there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    blob = content[32:]
    return blob if hashlib.sha256(blob).digest() == content[:32] else None


def _converted(model: TFGModel, config: ModelConfig) -> Any:
    """An `openvino.Model` for one image. It changes the layers of the model's torso."""
    openvino = import_openvino()
    inputs = example_inputs(model, config)
    for name in TORSO:
        _keep_channels_last(getattr(model, name))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, which OpenVINO needs
        # traced here: OpenVINO would trace it several times, to check it
        traced = torch.jit.trace(DenoiseModule(model), tuple(inputs.values()), check_trace=False)
        shapes = [openvino.PartialShape(list(tensor.shape)) for tensor in inputs.values()]
        return openvino.convert_model(traced, example_input=tuple(inputs.values()), input=shapes)


class MeansNorm(nn.Module):
    """`GroupNorm32` by means over rows and columns, [N x C x H x W] -> same shape."""

    def __init__(self, norm: GroupNorm32) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (values[:, None, None] for values in (self.norm.weight, self.norm.bias))
        mean = self._mean_of_group(x)
        centred = x - mean
        scale = torch.rsqrt(self._mean_of_group(centred * centred) + self.norm.eps) * weight
        return x * scale + (bias - mean * scale)  # in bfloat16 nearer than a picture that is centred first

    def _mean_of_group(self, x: Tensor) -> Tensor:
        n, channels = x.shape[:2]
        means = x.mean((2, 3)).view(n, self.norm.num_groups, -1)
        return means.mean(2, keepdim=True).expand_as(means).reshape(n, channels, 1, 1)


class PixelConvolution(nn.Module):
    """A linear layer, [N x in] -> [N x out], as the convolution of one pixel."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight[:, :, None, None]
        return F.conv2d(x[:, :, None, None], weight, self.linear.bias).flatten(1)


def _keep_channels_last(part: nn.Module) -> None:
    """Change those layers for which OpenVINO turns the picture from channels last, which its convolutions need, to
    planes and back: its GroupNorm, and a sum with what comes from a linear layer (docs/benchmarks.md)."""
    for module in list(part.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupNorm32):
                setattr(module, name, MeansNorm(child))
            elif isinstance(child, nn.Linear):
                setattr(module, name, PixelConvolution(child))
