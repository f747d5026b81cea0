"""Agreement of two explanation maps of one prediction (ATCON, WACV 2022): differentiable, one value per image.

Shapes: B images, maps of h x w.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Similarity = Literal["correlation", "convolution", "ssim"]
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_CONSTANTS = (0.01**2, 0.03**2)


def standardise(maps: Tensor) -> Tensor:
    """Each map [B, h, w] minus its mean, divided by its unbiased standard deviation; a constant map becomes zeros."""
    flat = maps.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / max(1, flat.shape[1] - 1)
    return _over_root(centred, variance).view_as(maps)


def correlation(u: Tensor, v: Tensor) -> Tensor:
    """Negative Pearson correlation of the sigmoids of both standardised maps, [B]; 0 if one of them is constant."""
    return -pearson(standardise(u).sigmoid(), standardise(v).sigmoid())


def pearson(u: Tensor, v: Tensor) -> Tensor:
    """Pearson correlation of each pair of maps, [B]; 0 if one of them is constant."""
    a, b = (maps.flatten(1) - maps.flatten(1).mean(1, keepdim=True) for maps in (u, v))
    return _over_root((a * b).sum(1), a.square().sum(1) * b.square().sum(1))


def convolution(u: Tensor, v: Tensor) -> Tensor:
    """-|sum of the product of the sigmoids of both standardised maps|, [B]; grows with the map size, as published."""
    return -(standardise(u).sigmoid() * standardise(v).sigmoid()).flatten(1).sum(1).abs()


def ssim(u: Tensor, v: Tensor) -> Tensor:
    """1 - structural similarity (Wang et al. 2004) of both standardised maps, [B]; zero padding, as published.

    Not torchmetrics' function: it pads by reflection, which has no deterministic CUDA backward (train.deterministic).
    """
    a, b = standardise(u).unsqueeze(1), standardise(v).unsqueeze(1)
    mean_a, mean_b, aa, bb, ab = (_smooth(x) for x in (a, b, a * a, b * b, a * b))
    c1, c2 = SSIM_CONSTANTS
    # Variances and covariance are E[ab] - E[a] E[b].
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    contrast = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a.square() + bb - mean_b.square() + c2)
    return 1 - (luminance * contrast).flatten(1).mean(1)


SIMILARITIES: dict[Similarity, Callable[[Tensor, Tensor], Tensor]] = {
    "correlation": correlation,
    "convolution": convolution,
    "ssim": ssim,
}


def consistency(u: Tensor, v: Tensor, similarity: Similarity = "correlation") -> Tensor:
    """The loss of each image, [B]: the lower, the more its maps u and v [B, h, w] agree (ATCON, section 3)."""
    return SIMILARITIES[similarity](u, v)


def soft_mask(maps: Tensor, intensity: float) -> Tensor:
    """sigmoid(intensity (m - mean - std / 2)) of each map m [B, h, w]: near 1 where the map is high; unbiased std."""
    flat = maps.flatten(1)
    middle = flat.mean(1) + flat.std(1) / 2
    return (intensity * (maps - middle[:, None, None])).sigmoid()


def _over_root(values: Tensor, squares: Tensor) -> Tensor:
    """values / sqrt(squares); where squares is 0, 0 with a gradient of 0, as the root has no derivative there."""
    zero = squares == 0
    return (values / squares.masked_fill(zero, 1).sqrt()).masked_fill(zero, 0)


def _smooth(maps: Tensor) -> Tensor:
    """Weighted means of maps [B, 1, h, w] under a Gaussian window of 11 x 11, as two passes of 11."""
    offsets = torch.arange(SSIM_WINDOW, device=maps.device, dtype=maps.dtype) - SSIM_WINDOW // 2
    window = (-offsets.square() / (2 * SSIM_SIGMA**2)).exp()
    window = window / window.sum()
    rows = F.conv2d(maps, window.view(1, 1, -1, 1), padding=(SSIM_WINDOW // 2, 0))
    return F.conv2d(rows, window.view(1, 1, 1, -1), padding=(0, SSIM_WINDOW // 2))
