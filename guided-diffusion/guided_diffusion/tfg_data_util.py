"""From crops and mel windows to the network's conditioning, and from its sample back to a picture."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from .dist_util import to_device
from .streams import Box, Face

LIPS = (0.59, 0.86, 0.20)
"""Where lips begin and end in a crop, of its height, and how near its sides they come, of its width: in four clips."""
LEAST_RAMP = 16  # of the height this part, where the generated part begins near lips or within


def lower_half_mask(B: int, H: int, W: int, face_hide_percentage: float) -> Tensor:
    """The binary mask that the network was trained with, float32 [B x 1 x H x W].

    It is 1 (to be generated) from row int(H * (1 - face_hide_percentage)) down (REFERENCE.md: Conditioning).
    """
    mask = torch.zeros(B, 1, H, W)
    mask[:, :, int(H * (1 - face_hide_percentage)) :] = 1
    return mask


def create_gradient_mask(
    B: int, H: int, W: int, face_hide_percentage: float, blur_kernel_size: int | tuple[int, int]
) -> Tensor:
    """How much of a generated crop the composite shows, float32 [B x 1 x H x W] in [0, 1]. Never for the network.

    The binary lower part, inset on all four sides by half the kernel and blurred with its Gaussian. So the ramps lie
    inside: below the mask's upper edge and within the crop's border, one kernel wide. Above that edge, where the known
    pixels are of the network's resolution only, nothing is shown; and as the ramps start from 0, neither the step that
    the network leaves at its mask's edge nor the crop's border shows.
    Each ramp is shorter than its kernel where it must be: it takes at most a third of the generated part, so that the
    middle third is 1, and what is left beside LIPS (above them LEAST_RAMP at least): the old mouth does not shine
    through.

    :param blur_kernel_size: in pixels of this mask, or one for the rows and one for the columns. An even one counts as
        the next odd one; 0 blurs nothing and gives `lower_half_mask`.
    """
    rows_kernel, columns_kernel = np.broadcast_to(blur_kernel_size, 2)
    start = int(H * (1 - face_hide_percentage))
    top, bottom, side = LIPS
    above = max(int(H * top) - start, H // LEAST_RAMP)
    rows = _ramps(H, start, rows_kernel, above, int(H * (1 - bottom)))
    columns = _ramps(W, 0, columns_kernel, int(W * side), int(W * side))
    return torch.outer(rows, columns).expand(B, 1, H, W)


def _ramps(length: int, start: int, kernel_size: int, longest_up: int, longest_down: int) -> Tensor:
    """Float32 [length]: 0 before `start`, then up to 1, and down again at the end, along a blurred step.

    A step that is inset by half the kernel and blurred is the kernel's running sum.
    """
    shown = np.ones(length - start)
    up, down = (
        cv2.getGaussianKernel(_odd(min(int(kernel_size) + 1, len(shown) // 3, longest)), 0).cumsum()
        for longest in (longest_up, longest_down)
    )
    shown[: len(up)] = up
    shown[len(shown) - len(down) :] = down[::-1]
    return torch.from_numpy(np.concatenate([np.zeros(start), shown.clip(0, 1)])).float()


def _odd(size: int) -> int:
    """The largest odd number up to `size`, at least 1."""
    return max(1, (size - 1) // 2 * 2 + 1)


def sampling_noise(B: int, size: int, sampling_seed: int | None) -> Tensor:
    """Initial noise x_T, float32 [B x 3 x size x size], drawn on the CPU.

    With a seed it is one image repeated over the batch, the same for every frame: that keeps the video steady.
    """
    if sampling_seed is None:
        return torch.randn(B, 3, size, size)
    generator = torch.Generator().manual_seed(sampling_seed)
    return torch.randn(1, 3, size, size, generator=generator).expand(B, -1, -1, -1)


def resize_crop(crop: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize of a crop [h, w, 3], to the network's size and back to the box (REFERENCE.md: Video loop)."""
    return cv2.resize(crop, (width, height))


Slices = tuple[slice, slice]


def visible_box(box: Sequence[int], size: tuple[int, ...]) -> Box:
    """The part of a box (y1, y2, x1, x2) that is inside a frame of this (height, width, ...); empty when none is."""
    y1, y2, x1, x2 = (int(v) for v in box)
    height, width = size[:2]
    return min(max(y1, 0), height), min(max(y2, 0), height), min(max(x1, 0), width), min(max(x2, 0), width)


def inside_frame(box: Box, size: tuple[int, ...]) -> tuple[Slices, Slices]:
    """Rows and columns of a box's part inside a frame of this (height, width, ...): of the frame, and of the box."""
    y1, _, x1, _ = box
    top, bottom, left, right = visible_box(box, size)
    return (slice(top, bottom), slice(left, right)), (slice(top - y1, bottom - y1), slice(left - x1, right - x1))


def crop_box(frame: np.ndarray, box: Box) -> np.ndarray:
    """What a box shows, uint8 [y2 - y1, x2 - x1, 3]: a view of the frame; beyond it, a copy in which its edge goes on.

    :param frame: RGB uint8 [H, W, 3].
    """
    y1, y2, x1, x2 = box
    if visible_box(box, frame.shape) == box:
        return frame[y1:y2, x1:x2]
    rows, columns = np.arange(y1, y2).clip(0, frame.shape[0] - 1), np.arange(x1, x2).clip(0, frame.shape[1] - 1)
    return frame[rows[:, None], columns]


def face_crop(frame: np.ndarray, face: Face) -> np.ndarray:
    """What the frame shows of a face, uint8 [h, w, 3] of its box's size: of a placed one upright, else `crop_box`.

    :param frame: RGB uint8 [H, W, 3].
    """
    if face.placement is None:
        return crop_box(frame, face.box)
    y1, y2, x1, x2 = face.box
    return cv2.warpAffine(
        frame, face.placement, (x2 - x1, y2 - y1), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip


def crop_in_frame(
    face: Face, crop: np.ndarray, alpha: np.ndarray, size: tuple[int, ...]
) -> tuple[np.ndarray, Box, np.ndarray]:
    """A crop as it lies in a frame of this (height, width, ...), in which box, and its alpha there.

    :param crop: RGB uint8 [h, w, 3] of any size: what `face_crop` cuts out, changed. A placed one is interpolated once,
        linearly as by `resize_crop`; cubically if it has its box's size already, where linear would blur its detail.
    :param alpha: float32 [H, W] of the size of the face's box; beside it, it is 0.
    """
    height, width = alpha.shape
    if face.placement is None:
        return resize_crop(crop, height, width), face.box, alpha
    corners = np.array([(-1, -1), (width, -1), (-1, height), (width, height)]) @ face.placement[:, :2].T
    left, top = np.floor(corners.min(axis=0) + face.placement[:, 2]).astype(int)
    right, bottom = np.ceil(corners.max(axis=0) + face.placement[:, 2]).astype(int) + 1
    y1, y2, x1, x2 = box = visible_box((top, bottom, left, right), size)
    if y1 == y2 or x1 == x2:
        return crop[:0, :0], (y1, y1, x1, x1), alpha[:0, :0]
    to_box = face.crop_to_frame[:2] - ((0, 0, x1), (0, 0, y1))
    from_crop = to_box @ enlarging(crop.shape, alpha.shape)
    method = cv2.INTER_CUBIC if crop.shape[:2] == alpha.shape else cv2.INTER_LINEAR
    size_there = x2 - x1, y2 - y1
    shown = cv2.warpAffine(crop, from_crop, size_there, flags=method, borderMode=cv2.BORDER_REPLICATE)
    return shown, box, cv2.warpAffine(alpha, to_box, size_there)


def enlarging(size: tuple[int, ...], to: tuple[int, ...]) -> np.ndarray:
    """float64 [3, 3], from pixels (x, y) of a picture of one (height, width, ...) to those of it resized to another."""
    y_scale, x_scale = to[0] / size[0], to[1] / size[1]
    return np.array([[x_scale, 0, (x_scale - 1) / 2], [0, y_scale, (y_scale - 1) / 2], [0, 0, 1]])


def to_tensor(crops: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
    """Crops uint8 [h, w, 3] of one size -> float32 [N x 3 x h x w] in [-1, 1] on `device`."""
    return to_device(torch.from_numpy(np.stack(crops)), device).permute(0, 3, 1, 2).float() / 127.5 - 1


def tfg_process_batch(
    crops: Sequence[np.ndarray],
    ref_crops: Sequence[np.ndarray] | None,
    mels: np.ndarray,
    noise: Tensor,
    face_hide_percentage: float,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """The network's inputs for a batch of crops.

    :param crops: N crops uint8 [h, w, 3] at the network's size; `ref_crops` likewise, of the same person, or None.
    :param mels: float32 [N, audio_dim, 16].
    :param noise: [N x 3 x h x w]; it hides the lower part.
    :return: on `device`: image, cond_img, ref_img [N x 3 x h x w] in [-1, 1], indiv_mels, mask [N x 1 x h x w], noise.
    """
    image, noise = to_tensor(crops, device), to_device(noise, device)
    n, _, height, width = image.shape
    mask = to_device(lower_half_mask(n, height, width, face_hide_percentage), device)
    batch = {
        "image": image,
        "cond_img": image * (1 - mask) + noise * mask,
        "indiv_mels": to_device(torch.from_numpy(mels), device),
        "mask": mask,
        "noise": noise,
    }
    return batch if ref_crops is None else {**batch, "ref_img": to_tensor(ref_crops, device)}


def sample_to_crops(sample: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Keep the sample inside the mask and the given picture outside: uint8 [N x h x w x 3].

    Values are truncated, not rounded, as upstream does (REFERENCE.md: Video loop).
    """
    merged = sample * mask + image * (1 - mask)
    unit = ((merged + 1) / 2).clamp(0, 1)
    return (unit * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_float(crop: np.ndarray) -> np.ndarray:
    """A sampled crop uint8 [h, w, 3] as stages take it: float32 in [0, 1]. `to_levels` gives the same levels back."""
    return crop.astype(np.float32) / 255


def to_levels(crop: np.ndarray) -> np.ndarray:
    """A crop float32 [h, w, 3], clamped to [0, 1], as uint8."""
    return np.rint(np.clip(crop, 0, 1) * 255).astype(np.uint8)
