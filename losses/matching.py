"""Bring two kinds of maps to one resolution before `losses.consistency` (ATCON, section 3).

Shapes: B images of 3 x H x W, maps of h x w.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.processes import own_rows
from losses.consistency import soft_mask

ResolutionMatch = Literal["enlarge", "shrink", "mask_by_second", "mask_by_first", "smoothgrad"]
"""In the order of the published numbers, 0 to 4."""
MapsOf = Callable[[Tensor], Tensor]
"""Images [B, 3, H, W] to maps [B, h, w], for one fixed class per image."""

FIRST_MASK_INTENSITY = 32
"""Published steepness of the mask made from the first map; `mask_intensity` does not apply to it."""
NOISY_COPIES, NOISE = 8, 0.15
"""SmoothGrad (Smilkov et al. 2017): number of copies, and noise as a fraction of each image's value range."""


def matched(
    first: MapsOf, second: MapsOf, images: Tensor, match: ResolutionMatch, mask_intensity: float
) -> tuple[Tensor, Tensor]:
    """The pair of maps (u, v), each [B, h, w], that the consistency loss compares.

    enlarge: both maps at the finer resolution. shrink: both at the coarser one. mask_by_second: the first map of the
    images, and the first map of the images under a soft mask made from the second. mask_by_first: the same with the
    maps swapped. smoothgrad: as enlarge, with the second map averaged over noisy copies (global generator).

    Images are normalised: masked pixels become the mean colour.
    """
    match match:
        case "mask_by_second":
            return first(images), first(masked(images, second(images), mask_intensity))
        case "mask_by_first":
            return second(images), second(masked(images, first(images), FIRST_MASK_INTENSITY))
        case "shrink":
            return same_size(first(images), second(images), smaller=True)
        case "enlarge":
            return same_size(first(images), second(images))
    copies = [second(noisy(images)) for _ in range(NOISY_COPIES)]
    return same_size(first(images), torch.stack(copies).mean(0))


def masked(images: Tensor, maps: Tensor, intensity: float) -> Tensor:
    """Images [B, 3, H, W] times the soft mask of their maps [B, h, w], the same for all channels."""
    return images * soft_mask(enlarged(maps, (images.shape[-2], images.shape[-1])), intensity).unsqueeze(1)


def same_size(u: Tensor, v: Tensor, smaller: bool = False) -> tuple[Tensor, Tensor]:
    """Resize both maps to the larger height and width of the two, or to the smaller ones."""
    choose, resize = (min, shrunk) if smaller else (max, enlarged)
    size = choose(u.shape[-2], v.shape[-2]), choose(u.shape[-1], v.shape[-1])
    return resize(u, size), resize(v, size)


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] enlarged to `size`, bilinear with aligned corners, as published."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]


def shrunk(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] shrunk to `size` by area averages."""
    return maps if maps.shape[-2:] == size else F.adaptive_avg_pool2d(maps, size)


def noisy(images: Tensor) -> Tensor:
    """Add Gaussian noise with a standard deviation of `NOISE` times the value range of each image."""
    flat = images.detach().flatten(1)
    spread = NOISE * (flat.amax(1) - flat.amin(1))
    shape = images.shape[1:]
    noise = own_rows(lambda n: torch.randn(n, *shape, dtype=images.dtype, device=images.device), len(images))
    return images + noise * spread[:, None, None, None]
