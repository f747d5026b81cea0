"""Heat maps at pixel resolution and scaled to [0, 1], the same for metrics and images."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def to_pixels(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """maps [B, h, w] float -> [B, H, W] for size (H, W), bilinear (align_corners=False); unchanged if of that size."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def minmax(maps: Tensor) -> tuple[Tensor, Tensor]:
    """maps [B, H, W] float -> (each map scaled to [0, 1], degenerate [B] bool).

    Degenerate: constant, or with a value that is not finite. Such a map becomes zeros.
    """
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    width = high - low  # nan or inf where any value is
    degenerate = ~((width > 0) & width.isfinite())
    scaled = (maps - low) / torch.where(degenerate, 1, width)
    return torch.where(degenerate, 0, scaled), degenerate.flatten()
