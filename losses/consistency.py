"""How much two explanations of one answer agree (ATCON, WACV 2022): differentiable, one number per image.

Shape legend: B images, h x w a map of any resolution.
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
    """Each map [B, h, w] less its mean, over its unbiased standard deviation; a constant map becomes zeros."""
    flat = maps.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / max(1, flat.shape[1] - 1)
    return _over_root(centred, variance).view_as(maps)


def correlation(u: Tensor, v: Tensor) -> Tensor:
    """-Pearson of the logistic of both standardised maps, [B]; 0 where one of them is constant."""
    return -pearson(standardise(u).sigmoid(), standardise(v).sigmoid())


def pearson(u: Tensor, v: Tensor) -> Tensor:
    """Pearson's correlation of each pair of maps, [B]; 0 where one of them is constant."""
    a, b = (maps.flatten(1) - maps.flatten(1).mean(1, keepdim=True) for maps in (u, v))
    return _over_root((a * b).sum(1), a.square().sum(1) * b.square().sum(1))


def convolution(u: Tensor, v: Tensor) -> Tensor:
    """-|sum of the product of both logistic standardised maps|, [B]; it grows with the maps' size, as published."""
    return -(standardise(u).sigmoid() * standardise(v).sigmoid()).flatten(1).sum(1).abs()


def ssim(u: Tensor, v: Tensor) -> Tensor:
    """1 - structural similarity of both standardised maps, [B]: Gaussian window, zeros around them, as published."""
    a, b = standardise(u).unsqueeze(1), standardise(v).unsqueeze(1)
    mean_a, mean_b, aa, bb, ab = (_smooth(x) for x in (a, b, a * a, b * b, a * b))
    c1, c2 = SSIM_CONSTANTS
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    contrast = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a.square() + bb - mean_b.square() + c2)
    return 1 - (luminance * contrast).flatten(1).mean(1)


SIMILARITIES: dict[Similarity, Callable[[Tensor, Tensor], Tensor]] = {
    "correlation": correlation,
    "convolution": convolution,
    "ssim": ssim,
}


def consistency(u: Tensor, v: Tensor, similarity: Similarity = "correlation") -> Tensor:
    """The loss of each image, [B]: lower where the maps u and v, [B, h, w] each, agree more. ATCON, section 3."""
    return SIMILARITIES[similarity](u, v)


def soft_mask(maps: Tensor, intensity: float) -> Tensor:
    """logistic(intensity (m - mean - std / 2)) of each map [B, h, w]: near 1 where it is high; std is unbiased."""
    flat = maps.flatten(1)
    middle = flat.mean(1) + flat.std(1) / 2
    return (intensity * (maps - middle[:, None, None])).sigmoid()


def _over_root(values: Tensor, squares: Tensor) -> Tensor:
    """values / sqrt(squares), and 0 with a gradient of 0 where squares is 0: the root has no derivative there."""
    nothing = squares == 0
    return (values / squares.masked_fill(nothing, 1).sqrt()).masked_fill(nothing, 0)


def _smooth(maps: Tensor) -> Tensor:
    """[B, 1, h, w] under a Gaussian window of 11 x 11."""
    offsets = torch.arange(SSIM_WINDOW, device=maps.device, dtype=maps.dtype) - SSIM_WINDOW // 2
    window = (-offsets.square() / (2 * SSIM_SIGMA**2)).exp()
    window = window / window.sum()
    rows = F.conv2d(maps, window.view(1, 1, -1, 1), padding=(SSIM_WINDOW // 2, 0))
    return F.conv2d(rows, window.view(1, 1, 1, -1), padding=(0, SSIM_WINDOW // 2))
