"""Pairs of maps of two resolutions, on maps that are plain functions of the pixels."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from losses import matching
from losses.consistency import soft_mask
from losses.matching import enlarged, masked, matched, same_size


def fine(images: Tensor) -> Tensor:
    """[B, H, W]."""
    return images.abs().sum(1)


def coarse(images: Tensor) -> Tensor:
    """[B, H / 4, W / 4]."""
    return F.avg_pool2d(images, 4)[:, 0]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_enlarge_keeps_corners(images: Tensor) -> None:
    u, v = matched(coarse, fine, images, "enlarge", 8)
    assert u.shape == v.shape == (2, 8, 12)
    assert torch.equal(v, fine(images))
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(u[:, row, column], coarse(images)[:, row, column])
    for i in range(8):  # straight lines between the two rows
        torch.testing.assert_close(u[:, i, 0], torch.lerp(u[:, 0, 0], u[:, -1, 0], i / 7))


def test_shrink_takes_means(images: Tensor) -> None:
    u, v = matched(coarse, fine, images, "shrink", 8)
    assert torch.equal(u, coarse(images))
    expected = torch.stack([fine(images)[:, i : i + 4, j : j + 4].mean((1, 2)) for i in (0, 4) for j in (0, 4, 8)], 1)
    torch.testing.assert_close(v.flatten(1), expected)


@pytest.mark.parametrize("order", [(coarse, fine), (fine, coarse)])
def test_the_finer_map_may_come_first(images: Tensor, order: tuple[matching.MapsOf, matching.MapsOf]) -> None:
    assert [maps.shape[1:] for maps in matched(*order, images, "shrink", 8)] == [(2, 3)] * 2
    assert [maps.shape[1:] for maps in matched(*order, images, "enlarge", 8)] == [(8, 12)] * 2


def test_maps_of_one_size_stay_as_they_are(images: Tensor) -> None:
    u, v = same_size(coarse(images), 2 * coarse(images))
    assert torch.equal(u, coarse(images)) and torch.equal(v, 2 * coarse(images))


def test_masks(images: Tensor) -> None:
    u, v = matched(coarse, fine, images, "mask_by_second", 5)
    assert torch.equal(u, coarse(images))
    torch.testing.assert_close(v, coarse(soft_mask(fine(images), 5)[:, None] * images))
    u, v = matched(coarse, fine, images, "mask_by_first", 5)
    assert torch.equal(u, fine(images))
    mask = soft_mask(enlarged(coarse(images), (8, 12)), 32)  # the published constant, whatever the intensity
    torch.testing.assert_close(v, fine(mask[:, None] * images))


def test_a_steep_mask_keeps_the_high_and_hides_the_rest(images: Tensor) -> None:
    maps = fine(images)
    kept = masked(images, maps, 1e6)
    high = maps > (maps.flatten(1).mean(1) + maps.flatten(1).std(1) / 2)[:, None, None]
    assert 0 < high.double().mean() < 1
    torch.testing.assert_close(kept, images * high[:, None])


def test_smoothgrad_is_a_mean_over_noise_of_every_pixel(images: Tensor) -> None:
    torch.manual_seed(0)
    u, v = matched(coarse, lambda x: x[:, 0], images, "smoothgrad", 8)
    torch.manual_seed(0)
    spread = torch.stack([image.max() - image.min() for image in images]) * 0.15
    noise = torch.stack([torch.randn_like(images) for _ in range(8)]).mean(0)[:, 0]
    torch.testing.assert_close(v, images[:, 0] + noise * spread[:, None, None])
    assert u.shape == v.shape
    assert (noise.flatten(1).std(1) > 0.1).all()
