"""Write a checkpoint's denoiser as ONNX: `python scripts/export.py CHECKPOINT OUT.onnx`.

The file takes x, timesteps, cond_img, audio_code, mask and, where the network has a reference, ref_img, float32 and of
any batch size (`TFGModel.forward` says of which shapes), and gives out. A second file, OUT_audio.onnx, makes audio_code
of indiv_mels, once for all steps. Both are checked with onnxruntime against PyTorch.
Needs: pip install onnx onnxruntime onnxscript
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import _path  # noqa: F401
from guided_diffusion.engines import DenoiseModule, example_inputs
from guided_diffusion.errors import InputError
from guided_diffusion.script_util import load_checkpoint, load_model
from guided_diffusion.store import replace_when_complete
from guided_diffusion.unet import TFGModel

OPSET = 18
LARGEST_ERROR = 1e-3  # of the largest value that PyTorch gives


class EncodeAudioModule(nn.Module):
    """`TFGModel.encode_audio` as a module."""

    def __init__(self, model: TFGModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, indiv_mels: Tensor) -> Tensor:
        return self.model.encode_audio(indiv_mels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="as generate.py's --model_path")
    parser.add_argument("out", type=Path, help="file to write: .onnx")
    arguments = parser.parse_args()
    if arguments.out.suffix != ".onnx":
        raise InputError(f"{arguments.out}: give a name that ends in .onnx")
    checkpoint = load_checkpoint(arguments.checkpoint)
    config = checkpoint.config
    model = load_model(checkpoint, "cpu")
    audio_out = arguments.out.with_name(f"{arguments.out.stem}_audio.onnx")
    mels = {"indiv_mels": torch.zeros(2, config.audio_dim, config.syncnet_mel_step_size)}
    for module, inputs, name, path in (
        (DenoiseModule(model), example_inputs(model, config, 2), "out", arguments.out),
        (EncodeAudioModule(model), mels, "audio_code", audio_out),
    ):
        export(module, inputs, name, path)
        print(f"{path}: opset {OPSET}, largest difference from PyTorch {largest_difference(module, inputs, path):.1e}")
    return 0


@torch.no_grad()
def export(module: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    """Write `module`, called with `inputs`, whose first dimension is that of the batch.

    :raises InputError: with the command that installs what is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error}; install it with: pip install onnx onnxruntime onnxscript") from None
    any_size = {name: {0: torch.export.Dim("n")} for name in inputs}
    program = torch.onnx.export(
        module.eval(), tuple(inputs.values()), input_names=list(inputs), output_names=[output], opset_version=OPSET,
        dynamic_shapes=tuple(any_size.values()), dynamo=True, verbose=False,
    )  # fmt: skip
    assert program is not None
    with replace_when_complete(path) as part:
        program.save(part, external_data=False)


def largest_difference(module: nn.Module, inputs: dict[str, Tensor], path: Path) -> float:
    """Of the file's output from the module's, for three other inputs, as a share of the module's largest value.

    :raises InputError: when it is more than rounding.
    """
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    given = {name: torch.randn(3, *tensor.shape[1:], generator=generator) for name, tensor in inputs.items()}
    with torch.no_grad():
        expected = module(**given).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference < LARGEST_ERROR:
        raise InputError(f"{path}: differs from PyTorch by {difference:.1e}; try another version of torch or onnx")
    return difference


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"export.py: error: {error}", file=sys.stderr)
        sys.exit(2)
