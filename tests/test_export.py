"""A checkpoint as ONNX: it gives what PyTorch does, at another batch size than it was traced with."""

import re
import sys
from pathlib import Path

import pytest
import torch
from export import export, largest_difference, main
from torch import Tensor, nn

from guided_diffusion.errors import InputError


def test_the_files_are_the_network(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(checkpoint), str(tmp_path / "net é.onnx")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"net é.onnx", "net é_audio.onnx"}
    differences = [float(found) for found in re.findall(r"PyTorch (\S+)", capsys.readouterr().out)]
    assert len(differences) == 2
    assert max(differences) < 1e-4


def test_another_network_is_not_taken_for_it(tmp_path: Path) -> None:
    class Shift(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return x + self.by

    path = tmp_path / "shift.onnx"
    export(Shift(1), {"x": torch.zeros(2, 3)}, "out", path)
    assert largest_difference(Shift(1), {"x": torch.zeros(2, 3)}, path) < 1e-6
    with pytest.raises(InputError, match="differs from PyTorch"):
        largest_difference(Shift(1.1), {"x": torch.zeros(2, 3)}, path)


def test_what_cannot_be_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="give a name that ends in"):
        main([str(checkpoint), str(tmp_path / "net.pt")])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="pip install onnx onnxruntime"):
        main([str(checkpoint), str(tmp_path / "net.onnx")])
    assert list(tmp_path.iterdir()) == []
