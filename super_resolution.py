"""More detail for the generated lips: a super-resolution network on the network's crop, before it is enlarged."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from guided_diffusion.errors import InputError
from guided_diffusion.options import Options
from guided_diffusion.store import check_digest, download
from guided_diffusion.streams import Box, Item
from guided_diffusion.tfg_data_util import resize_crop

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

# ---------------------------------------------------------------------------------------------------------- weights

CHECKPOINTS = Path(__file__).parent / "checkpoints"
REAL_ESRGAN = "https://github.com/xinntao/Real-ESRGAN/releases/download"


@dataclass(frozen=True)
class Weights:
    """A network's file in `checkpoints`; without a `url` it comes with the project.

    :param is_faithful: trained for the least error: it invents nothing, and may undo blur that the crop itself shows.
    """

    file: str
    sha256: str
    url: str = ""
    is_faithful: bool = False


MODELS = {  # METHODS: Real-ESRGAN; checkpoints/README.md: those without a URL
    "realesr-general-wdn-x4v3": Weights(
        "realesr-general-wdn-x4v3.safetensors", "24386b14e32be9a301c0c38ef1ab8467df1e545f4051f3aab8a13eed4015f0a9"
    ),
    "span_x2": Weights(
        "span_x2.safetensors",
        "a1f5f6559523984e7b5e0527943d9a1bf25c5dd96de4463a7e0d6597fa1aa093",
        is_faithful=True,
    ),
    "span_x4": Weights(
        "span_x4.safetensors",
        "d368b83bceb65f39236c40c244ec99cd8234f2f0d97400c302d2572ff8cd6b31",
        is_faithful=True,
    ),
    "realesr-general-x4v3": Weights(
        "realesr-general-x4v3.pth",
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        f"{REAL_ESRGAN}/v0.2.5.0/realesr-general-x4v3.pth",
    ),
    "RealESRGAN_x2plus": Weights(
        "RealESRGAN_x2plus.pth",
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        f"{REAL_ESRGAN}/v0.2.1/RealESRGAN_x2plus.pth",
    ),
    "RealESRGAN_x4plus": Weights(
        "RealESRGAN_x4plus.pth",
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        f"{REAL_ESRGAN}/v0.1.0/RealESRGAN_x4plus.pth",
    ),
}


def find_weights(model: str) -> Path:
    """The file of `--sr_model`: the one that it names, or one of MODELS in `checkpoints` or in PyTorch's cache.

    One that is in neither is downloaded: to `checkpoints`, or to the cache where that may not be written to.

    :raises InputError: there is no such file or name, it cannot be downloaded, or its content is not what it should be.
    """
    if Path(model).is_file():
        return Path(model)
    if model not in MODELS:
        raise InputError(f"--sr_model {model}: no such file; give one, or choose from {', '.join(MODELS)}")
    weights = MODELS[model]
    folders = CHECKPOINTS, Path(torch.hub.get_dir(), "checkpoints")
    for folder in folders:
        if (folder / weights.file).is_file():
            check_digest(folder / weights.file, weights.sha256)
            return folder / weights.file
    if not weights.url:
        raise InputError(f"--sr_model {model}: {CHECKPOINTS / weights.file}, which comes with the project, is missing")
    path = next(folder for folder in folders if os.access(folder, os.W_OK) or folder is folders[-1]) / weights.file
    print(f"notice: downloading {weights.url} to {path}", file=sys.stderr)
    download(weights.url, path, weights.sha256)
    return path


def load_network(model: str) -> "ImageModelDescriptor[Any]":
    """Any network that spandrel knows and that enlarges RGB pictures; float32, on the CPU.

    :param model: as for `find_weights`.
    :raises InputError: for a file that holds no such network, and without spandrel, before anything is downloaded.
    """
    try:
        import spandrel
    except ImportError:
        raise InputError("--super_resolution True needs the package spandrel: pip install spandrel") from None
    path = find_weights(model)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        state_dict = with_branches(spandrel.canonicalize_state_dict(content))
        network = spandrel.ModelLoader().load_from_state_dict(state_dict)
    except Exception:  # a damaged or foreign file fails in many ways, in torch's unpickler and in spandrel
        raise InputError(f"--sr_model {path}: not the weights of a network that spandrel knows") from None
    channels = network.input_channels, network.output_channels
    if not isinstance(network, spandrel.ImageModelDescriptor) or network.scale < 2 or channels != (3, 3):
        raise InputError(
            f"--sr_model {path}: a {network.purpose} network of scale {network.scale} from {channels[0]} to "
            f"{channels[1]} channels; give one that enlarges RGB pictures"
        )
    merge_branches(network.model)
    # channels_last takes three quarters of the time on a CPU
    network.model.requires_grad_(False).to(memory_format=torch.channels_last)
    return network.float().eval()


def with_branches(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A SPAN of its merged convolutions alone, with the branches of training that spandrel expects; others as they are.

    The branches are the merged convolution between two identities, beside a skip of zeros.
    """
    result = dict(state_dict)
    for name, merged in state_dict.items():
        block, is_merged, kind = name.partition(".eval_conv.")
        if not is_merged or f"{block}.sk.{kind}" in state_dict:
            continue
        n_out, n_in = state_dict[f"{block}.eval_conv.weight"].shape[:2]
        if kind == "bias":
            zeros = torch.zeros(2 * max(n_in, n_out))
            result[f"{block}.sk.bias"] = result[f"{block}.conv.2.bias"] = zeros[:n_out]
            result[f"{block}.conv.0.bias"] = zeros[: 2 * n_in]
            result[f"{block}.conv.1.bias"] = torch.cat([merged, zeros[:n_out]])
        else:
            result[f"{block}.sk.weight"] = torch.zeros(n_out, n_in, 1, 1)
            result[f"{block}.conv.0.weight"] = torch.eye(2 * n_in, n_in)[..., None, None]
            result[f"{block}.conv.1.weight"] = nn.functional.pad(merged, (0, 0, 0, 0, 0, n_in, 0, n_out))
            result[f"{block}.conv.2.weight"] = torch.eye(n_out, 2 * n_out)[..., None, None]
    return result


def merge_branches(model: nn.Module) -> None:
    """Put SPAN's merged convolutions in place of their branches, which spandrel merges at every call.

    It gives the same numbers in two thirds of the time.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            update, merged = getattr(child, "update_params", None), getattr(child, "eval_conv", None)
            if callable(update) and isinstance(merged, nn.Module):
                update()
                setattr(parent, name, merged)


# ---------------------------------------------------------------------------------------------------------- the lips

LIP_REGION = (0.56, 0.93, 0.13, 0.87)
"""(top, bottom, left, right) of the part that is enhanced, as shares of the crop's height and width.

Lips lie within `tfg_data_util.LIPS`. A fixed part cannot jump with landmarks.
"""
FADE = 0.15  # of the region's shorter side, over which the detail fades in from each of its sides
LOW_PASS = 3.0  # px of the crop: sigma of what a faithful network may not change
SR_BATCH = 8  # regions that are enhanced together


def lip_region(shape: Sequence[int], face_hide_percentage: float) -> Box:
    """LIP_REGION of a crop of this (height, width, ...), as far as the network generated it."""
    height, width = shape[:2]
    top, bottom, left, right = LIP_REGION
    top = max(top, 1 - face_hide_percentage)
    return ceil(height * top), round(height * bottom), round(width * left), round(width * right)


class LipSuperResolver:
    """A super-resolution network for the lip region of generated crops.

    What it adds holds no low frequencies: colour and brightness stay the crop's, and do not flicker. Of what a network
    that invents adds, most of what the crop itself can show is taken out again (of waves of eight of its pixels 0.08
    stays, of four 0.28, of two 0.73): where lips and teeth are stays the crop's too.

    :param model_name: of MODELS, or a file, which counts as one that invents.
    :param strength: how much of the detail is added, 0 to 1.
    :raises InputError: when the network cannot be had.
    """

    def __init__(
        self, model_name: str = Options.sr_model, strength: float = 1.0, device: torch.device | str = "cpu"
    ) -> None:
        self.network = load_network(model_name).to(torch.device(device))
        self.is_faithful = model_name in MODELS and MODELS[model_name].is_faithful
        self.scale = self.network.scale
        self.strength = strength
        self._has_told = False

    def enhance_lip_region(self, face_crop: np.ndarray, lip_bbox: Box) -> np.ndarray:
        """The crop, enlarged by the network's scale, with more detail in the lip region.

        :param face_crop: RGB float32 [h, w, 3] in [0, 1].
        :param lip_bbox: (y1, y2, x1, x2), half open, in its pixels. Outside nothing but the plain enlarging happens.
        :return: RGB float32 [scale * h, scale * w, 3] in [0, 1].
        """
        (detail,) = self.lip_detail(face_crop[None], lip_bbox)
        return np.clip(resize_crop(face_crop, *detail.shape[:2]) + detail, 0, 1)

    def lip_detail(self, face_crops: np.ndarray, lip_bbox: Box) -> np.ndarray:
        """What the network would add to the plainly enlarged crops.

        :param face_crops: RGB float32 [N, h, w, 3] in [0, 1].
        :param lip_bbox: as for `enhance_lip_region`, of all crops.
        :return: float32 [N, scale * h, scale * w, 3] in [-1, 1], 0 outside the region and fading in from its sides.
        """
        n, height, width, _ = face_crops.shape
        y1, y2, x1, x2 = lip_bbox
        regions = np.ascontiguousarray(face_crops[:, y1:y2, x1:x2])
        pictures = torch.from_numpy(regions).permute(0, 3, 1, 2)  # its memory is channels_last
        enlarged = self.network(pictures.to(self.network.device)).permute(0, 2, 3, 1).cpu().numpy()
        window = self.strength * fade(*enlarged.shape[1:3])[..., None]
        details = np.zeros((n, height * self.scale, width * self.scale, 3), np.float32)
        for detail, region, picture in zip(details, regions, enlarged, strict=True):
            added = picture - resize_crop(region, *picture.shape[:2])
            added -= self._crops_own(added, region)
            detail[y1 * self.scale : y2 * self.scale, x1 * self.scale : x2 * self.scale] = window * added
        return details

    def _crops_own(self, added: np.ndarray, region: np.ndarray) -> np.ndarray:
        """What of the difference that a network makes to an enlarged region is not its to change, of the same shape."""
        if self.is_faithful:
            return cv2.GaussianBlur(added, (0, 0), LOW_PASS * self.scale)
        height, width = region.shape[:2]
        shown = cv2.resize(added, (width, height), interpolation=cv2.INTER_AREA)
        return resize_crop(shown, *added.shape[:2])

    def enhance(self, items: list[Item], face_hide_percentage: float) -> list[Item]:
        """For `in_batches`: the items with crops of their box's size, whose lips are enhanced.

        Items whose box is not larger than the crop stay as they are, which is said once.
        """
        enhanced: list[Item] = []
        for (enlarged, shape), run in groupby(items, lambda item: (is_enlarged(item), crop_of(item).shape)):
            of_a_shape = list(run)
            if enlarged:
                crops = np.stack([crop_of(item) for item in of_a_shape])
                details = self.lip_detail(crops, lip_region(shape, face_hide_percentage))
                enhanced += map(add_at_box, of_a_shape, details)
                continue
            if not self._has_told:
                self._has_told = True
                told = "notice: --super_resolution True leaves faces that are not larger than the network's crop"
                print(told, "as they are", file=sys.stderr)
            enhanced += of_a_shape
        return enhanced


def crop_of(item: Item) -> np.ndarray:
    assert item.crop is not None  # in_batches hands on no others
    return item.crop


def box_size(item: Item) -> tuple[int, int]:
    """(height, width)."""
    assert item.face is not None
    y1, y2, x1, x2 = item.face.box
    return y2 - y1, x2 - x1


def is_enlarged(item: Item) -> bool:
    return any(size > of_crop for size, of_crop in zip(box_size(item), crop_of(item).shape, strict=False))


def add_at_box(item: Item, detail: np.ndarray) -> Item:
    """The item with its crop at the box's size, and there the detail added.

    :param detail: float32 [h, w, 3], of the whole crop at any size.
    """
    height, width = box_size(item)
    is_less = height < detail.shape[0] and width < detail.shape[1]
    added = cv2.resize(detail, (width, height), interpolation=cv2.INTER_AREA if is_less else cv2.INTER_CUBIC)
    return replace(item, crop=np.clip(resize_crop(crop_of(item), height, width) + added, 0, 1))


def fade(height: int, width: int) -> np.ndarray:
    """A window float32 [height, width]: 1 in the middle, 0 at all sides."""
    length = FADE * min(height, width)
    sides = []
    for size in (height, width):
        distance = np.minimum(np.arange(size), np.arange(size)[::-1])
        ramp = np.clip(distance / length, 0, 1)
        sides.append(ramp * ramp * (3 - 2 * ramp))
    return np.outer(*sides).astype(np.float32)
