"""Heat maps at pixels: enlarged, stretched to [0, 1], thresholded, compared with the truth."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from common.maps import minmax, to_pixels


def silent_maps(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Which of maps [B, h, w] rank nothing: (some value is not finite, all values are equal), each [B] bool."""
    flat = maps.flatten(1)
    failed = ~flat.isfinite().all(dim=1)
    return failed, ~failed & (flat.amax(dim=1) == flat.amin(dim=1))


def heat(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """maps [B, h, w] enlarged to size (H, W) and each stretched to [0, 1], float32 (float64 stays); silent maps give 0.

    Silent maps are found before enlarging, which turns a constant map into rounding noise.
    """
    failed, constant = silent_maps(maps)
    kept = torch.where((failed | constant)[:, None, None], 0, maps)
    return minmax(to_pixels(kept if maps.dtype == torch.float64 else kept.float(), size))[0]


def each(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """`function` of each image on its own, [B, ...]: float sums over a batch may round differently for other sizes."""
    return torch.stack([function(*images) for images in zip(*batches, strict=True)])


def foreground(pixels: Tensor, threshold: float | None) -> Tensor:
    """[B, H, W] bool: pixels [B, H, W] strictly above the threshold; or, with None, above the mean of each map."""
    return pixels > (each(torch.mean, pixels)[:, None, None] if threshold is None else threshold)


def check_threshold(threshold: float | None) -> None:
    """Raise UserError unless a threshold of maps in [0, 1] is in [0, 1) or None."""
    if threshold is not None and not 0 <= threshold < 1:
        raise UserError(f"metric option threshold={threshold} must be in [0, 1), or None for the mean of each map")


class Counts(NamedTuple):
    """Number of pixels in each image, each field [B] int64."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


def count_pixels(found: Tensor, truth: Tensor) -> Counts:
    """Confusion counts of found against truth, both [B, H, W] bool."""
    cases = (found & truth, found & ~truth, ~found & truth, ~found & ~truth)
    return Counts(*(case.flatten(1).sum(dim=1) for case in cases))
