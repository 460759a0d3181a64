"""Conditioning: the mask, the noise, the network's inputs, and the way back to pictures."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from guided_diffusion.tfg_data_util import (
    create_gradient_mask,
    crop_box,
    lower_half_mask,
    resize_crop,
    sample_to_crops,
    sampling_noise,
    tfg_process_batch,
    to_tensor,
    visible_box,
)


def random_crops(n: int, height: int = 8, width: int = 6) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "hidden", "first_row"),
    [(64, 0.5, 32), (7, 0.5, 3), (9, 0.5, 4), (10, 0.25, 7), (8, 0.0, 8), (8, 1.0, 0), (5, 0.9, 0)],
)
def test_mask_begins_at_the_truncated_row(height: int, hidden: float, first_row: int) -> None:
    mask = lower_half_mask(2, height, 3, hidden)
    assert (mask.shape, mask.dtype) == ((2, 1, height, 3), torch.float32)
    assert (mask[:, :, :first_row] == 0).all()
    assert (mask[:, :, first_row:] == 1).all()


sizes, shares = st.integers(1, 90), st.floats(0.01, 1)


@given(st.integers(1, 3), sizes, sizes, shares, st.integers(0, 63))
@settings(deadline=None)
def test_gradient_mask_stays_within_the_hard_one_and_its_middle_is_whole(
    n: int, height: int, width: int, hidden: float, kernel: int
) -> None:
    """The old mouth would shine through a mask without a whole middle; above the edge lie blurry known pixels."""
    mask, hard = create_gradient_mask(n, height, width, hidden, kernel), lower_half_mask(n, height, width, hidden)
    assert (mask.shape, mask.dtype) == ((n, 1, height, width), torch.float32)
    assert (mask >= 0).all()
    assert (mask <= hard).all()
    top, third = int(height * (1 - hidden)), (height - int(height * (1 - hidden))) // 3
    assert (mask[:, :, top + third : height - third, width // 3 : width - width // 3] == 1).all()


@given(sizes, sizes, shares)
def test_gradient_mask_without_a_kernel_is_the_hard_one(height: int, width: int, hidden: float) -> None:
    assert torch.equal(create_gradient_mask(2, height, width, hidden, 0), lower_half_mask(2, height, width, hidden))


@pytest.mark.parametrize(("kernel", "size"), [(5, 5), (9, 9), (10, 11), (15, 15), (14, 15), (22, 23)])
def test_gradient_mask_is_the_inset_hard_mask_blurred(kernel: int, size: int) -> None:
    """Even kernels count as the next odd one."""
    inset = np.zeros((256, 384))
    half = size // 2
    inset[128 + half : 256 - half, half : 384 - half] = 1
    weights = cv2.getGaussianKernel(size, 0).ravel()
    for axis in (0, 1):
        inset = np.apply_along_axis(np.convolve, axis, inset, weights, mode="same")
    mask = create_gradient_mask(1, 256, 384, 0.5, (kernel, size))[0, 0].numpy()
    np.testing.assert_allclose(mask, inset, atol=1e-6)
    assert (np.diff(mask[:, 192])[:200] >= 0).all()
    assert mask[128 + size - 1, 192] == pytest.approx(1)
    assert mask[128, 192] < 0.1


@pytest.mark.parametrize("height", [64, 256])
def test_gradient_mask_is_whole_where_lips_are(height: int) -> None:
    """They lie within 0.59 to 0.86 of the height and 0.20 to 0.78 of the width; what is left for the ramps is used."""
    mask = create_gradient_mask(1, height, height, 0.5, height)[0, 0].numpy()
    assert (mask[round(0.59 * height) : round(0.86 * height), round(0.2 * height) : round(0.78 * height)] == 1).all()
    middle = height // 2
    assert mask[round(0.54 * height), middle] < 0.95
    assert mask[round(0.91 * height), middle] < 1
    assert mask[3 * height // 4, round(0.1 * height)] < 0.95


@pytest.mark.parametrize("hidden", [0.42, 0.3])
def test_gradient_mask_that_begins_near_the_lips_or_within_has_a_short_ramp(hidden: float) -> None:
    mask = create_gradient_mask(1, 200, 200, hidden, 63)[0, 0, :, 100].numpy()
    start = int(200 * (1 - hidden))
    assert 0 < mask[start] < mask[start + 3] < mask[start + 6] < 1
    assert mask[start + 12] == 1


def test_gradient_mask_takes_a_kernel_for_rows_and_one_for_columns() -> None:
    mask = create_gradient_mask(1, 200, 200, 0.5, (0, 21))[0, 0]
    assert (mask[100:, 100] == 1).all()
    assert torch.equal(mask[150], create_gradient_mask(1, 200, 200, 0.5, 21)[0, 0, 150])


def test_seeded_noise_is_one_image_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    noise = sampling_noise(3, 8, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    expected = torch.randn(1, 3, 8, 8)  # as upstream draws it
    assert noise.shape == (3, 3, 8, 8)
    assert all(torch.equal(image, expected[0]) for image in noise)
    assert not torch.equal(sampling_noise(1, 8, 8), expected)


def test_noise_without_a_seed_differs_between_images_and_calls() -> None:
    first, second = sampling_noise(2, 8, None), sampling_noise(2, 8, None)
    images = [*first, *second]
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_batch_shows_the_network_no_hidden_pixel() -> None:
    crops, others = random_crops(2), random_crops(3)[:2]
    mels = np.random.default_rng(0).normal(size=(2, 80, 16)).astype(np.float32)
    noise = torch.randn(2, 3, 8, 6)
    batch = tfg_process_batch(list(crops), list(others), mels, noise, 0.5)
    for name in ("image", "cond_img", "ref_img"):
        assert (batch[name].shape, batch[name].dtype) == ((2, 3, 8, 6), torch.float32)
    assert batch["mask"].shape == (2, 1, 8, 6)
    assert torch.equal(batch["image"], to_tensor(crops))
    assert torch.equal(batch["ref_img"], to_tensor(others))
    assert torch.equal(batch["cond_img"][:, :, :4], batch["image"][:, :, :4])
    assert torch.equal(batch["cond_img"][:, :, 4:], noise[:, :, 4:])
    assert torch.equal(batch["noise"], noise)
    np.testing.assert_array_equal(batch["indiv_mels"].numpy(), mels)


def test_batch_without_references_has_none() -> None:
    mels = np.zeros((2, 80, 16), np.float32)
    batch = tfg_process_batch(list(random_crops(2)), None, mels, torch.zeros(2, 3, 8, 6), 0.5)
    assert "ref_img" not in batch


def test_to_tensor_spans_minus_one_to_one_in_rgb() -> None:
    crop = np.zeros((2, 2, 3), np.uint8)
    crop[0, 1] = (255, 0, 51)
    tensor = to_tensor([crop])
    assert tensor.shape == (1, 3, 2, 2)
    torch.testing.assert_close(tensor[0, :, 0, 1], torch.tensor([1.0, -1.0, -0.6]))
    assert (tensor.min(), tensor.max()) == (-1, 1)


def test_sample_is_clamped_and_truncated_inside_the_mask_only() -> None:
    """Truncated as upstream does: 0.999 of a level is none. Outside the mask the given picture stays."""
    levels = torch.tensor([-3.0, -1.0, 99.999 / 127.5 - 1, 100.001 / 127.5 - 1, 1.0, 3.0])
    sample = levels.expand(1, 3, 4, 6)
    image = torch.full((1, 3, 4, 6), 0.5)
    crops = sample_to_crops(sample, image, lower_half_mask(1, 4, 6, 0.5)).numpy()
    assert (crops.shape, crops.dtype) == ((1, 4, 6, 3), np.uint8)
    assert (crops[0, :2] == 191).all()  # 0.75 * 255 = 191.25
    assert (crops[0, 2:] == np.array([0, 0, 99, 100, 255, 255])[None, :, None]).all()


@given(arrays(np.uint8, (2, 5, 4, 3)))
@settings(max_examples=50, deadline=None)
def test_round_trip_loses_a_level_at_most(crops: np.ndarray) -> None:
    tensor = to_tensor(crops)
    back = sample_to_crops(tensor, torch.zeros_like(tensor), torch.ones(2, 1, 5, 4)).numpy()
    assert np.abs(back.astype(int) - crops).max() <= 1


def test_resize_takes_height_first() -> None:
    crop = np.zeros((4, 6, 3), np.uint8)
    crop[:, 3:] = 200
    resized = resize_crop(crop, 8, 18)
    assert resized.shape == (8, 18, 3)
    assert resized[:, :6].max() == 0
    assert resized[:, 12:].min() == 200


def test_crop_of_a_box_beyond_the_frame_continues_its_edge() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    padded = np.pad(frame, ((20, 20), (20, 20), (0, 0)), mode="edge")
    for box in [(-3, 4, 2, 5), (2, 11, -4, 12), (-20, 26, -20, 28), (7, 9, 2, 4), (0, 6, -9, -2)]:
        y1, y2, x1, x2 = box
        np.testing.assert_array_equal(crop_box(frame, box), padded[y1 + 20 : y2 + 20, x1 + 20 : x2 + 20])
    inside = crop_box(frame, (1, 6, 0, 8))
    assert inside.base is not None
    np.testing.assert_array_equal(inside, frame[1:6])


@pytest.mark.parametrize(
    ("box", "visible"),
    [
        ((1, 5, 2, 7), (1, 5, 2, 7)),
        ((-3, 9, -1, 20), (0, 6, 0, 8)),
        ((-5, -2, 10, 12), (0, 0, 8, 8)),
    ],
)
def test_visible_part_of_a_box(box: tuple[int, int, int, int], visible: tuple[int, int, int, int]) -> None:
    assert visible_box(box, (6, 8)) == visible
