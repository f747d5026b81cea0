"""Two kinds of maps of the same images made comparable before `losses.consistency` (ATCON, section 3).

Shape legend: B images of 3 x H x W, h x w a map of any resolution.
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
"""Images [B, 3, H, W] to the maps [B, h, w] of a fixed class each."""

FIRST_MASK_INTENSITY = 32
"""The published steepness of the mask where the first map makes it, whatever `mask_intensity` is."""
NOISY_COPIES, NOISE = 8, 0.15
"""SmoothGrad (Smilkov et al. 2017): how many, and their noise as a share of each image's range."""


def matched(
    first: MapsOf, second: MapsOf, images: Tensor, match: ResolutionMatch, mask_intensity: float
) -> tuple[Tensor, Tensor]:
    """The pair (u, v) that is to agree, of equal size [B, h, w].

    enlarge: both at the finer map's size. shrink: both at the coarser one's. mask_by_second: the first map, and the
    first map of the images under a soft mask made of the second. mask_by_first: the same the other way round.
    smoothgrad: as enlarge, the second map a mean over noisy copies of the images, drawn from the global generator.

    Images are normalised: what the mask hides becomes the mean colour.
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
    """Images [B, 3, H, W] times the soft mask of their maps [B, h, w], the same for the three channels."""
    return images * soft_mask(enlarged(maps, (images.shape[-2], images.shape[-1])), intensity).unsqueeze(1)


def same_size(u: Tensor, v: Tensor, smaller: bool = False) -> tuple[Tensor, Tensor]:
    """Both maps at the larger height and width of the two, or at the smaller ones."""
    choose, resize = (min, shrunk) if smaller else (max, enlarged)
    size = choose(u.shape[-2], v.shape[-2]), choose(u.shape[-1], v.shape[-1])
    return resize(u, size), resize(v, size)


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] at `size`, bilinear; corners stay corners, as published."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]


def shrunk(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] at `size`, means over areas."""
    return maps if maps.shape[-2:] == size else F.adaptive_avg_pool2d(maps, size)


def noisy(images: Tensor) -> Tensor:
    """Images with Gaussian noise of `NOISE` times the range of each."""
    flat = images.detach().flatten(1)
    spread = NOISE * (flat.amax(1) - flat.amin(1))
    shape = images.shape[1:]
    noise = own_rows(lambda n: torch.randn(n, *shape, dtype=images.dtype, device=images.device), len(images))
    return images + noise * spread[:, None, None, None]
