"""Relevance rules of Chefer, Gur and Wolf (2021), each a function from the relevance R of an output to its inputs'.

Relevance has the shape of what it belongs to. Two sets of rules: "ours" is the paper's method; "plain" is the ordinary
LRP it compares with (no rescaling of residuals, the two halves of a linear layer divided separately).

Shape legend: B images, H heads, N tokens, E head width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-9


def divide(a: Tensor, b: Tensor, epsilon: float = EPSILON) -> Tensor:
    """The guarded division q(a, b) = a / (b + epsilon) of every rule: 0 where b is 0, a / epsilon at b = -epsilon."""
    denominator = b + epsilon
    return a / denominator.masked_fill_(denominator == 0, epsilon).masked_fill_(b == 0, torch.inf)


def linear(R: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """alpha = 1, beta = 0 with one denominator, the bias ignored, for out = x Wᵀ + bias.

    The rule is z = W⁺x⁺ + W⁻x⁻, s = q(R, z), R_x = x⁺ (W⁺ᵀ s) + x⁻ (W⁻ᵀ s). As 2z = Wx + |W||x|, and R_x is
    (x Wᵀs + |x| |W|ᵀs) / 2, three products do the work of four and no halves are formed.
    """
    magnitude = weight.abs()
    twice_z = F.linear(x.abs(), magnitude, None if bias is None else -bias).add_(out)
    half_s = divide(R, twice_z, 2 * EPSILON)
    return (half_s @ weight).mul_(x).addcmul_(half_s @ magnitude, x.abs())


def linear_plain(R: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """x⁺ W⁺ᵀ q(R, W⁺x⁺) + x⁻ W⁻ᵀ q(R, W⁻x⁻): both halves hand out all of R."""
    halves = ((x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0)))
    first, second = (x * (divide(R, F.linear(x, weight)) @ weight) for x, weight in halves)
    return first + second


def residual(R: Tensor, branches: Sequence[Tensor], coupled: bool = False) -> list[Tensor]:
    """Of the sum a + b: a s and b s with s = q(R, a + b), each rescaled to a non-negative share of the total of R.

    A branch's share is |sum a s| against |sum b s|, so one with a negative sum changes its sign. Sums are per image;
    `coupled`: over the whole batch, as published.
    """
    parts = residual_plain(R, branches)
    dims = tuple(range(0 if coupled else 1, R.ndim))
    total = R.sum(dims, keepdim=True)
    sums = [part.sum(dims, keepdim=True) for part in parts]
    size = sums[0].abs() + sums[1].abs()
    return [part * divide(divide(s.abs(), size) * total, s) for part, s in zip(parts, sums, strict=True)]


def residual_plain(R: Tensor, branches: Sequence[Tensor]) -> list[Tensor]:
    """Of the sum a + b: a s and b s with s = q(R, a + b). Both of R's shape."""
    a, b = branches
    s = divide(R, a + b)
    return [a * s, b * s]


def attention_matrix(R: Tensor, out: Tensor, weights: Tensor, v: Tensor) -> Tensor:
    """C [B, H, N, N], the relevance of A = `weights` in out = A v: A (s vᵀ) / 2 with s = q(R, out) [B, H, N, E]."""
    return (divide(R, out) @ v.transpose(-2, -1)).mul_(weights).mul_(0.5)


def factors(R: Tensor, a: Tensor, b: Tensor, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Of the matrix product Z = a b: `share` times a (s bᵀ) and b (aᵀ s), with s = q(R, Z)."""
    s = divide(R, a @ b)
    return a * (s @ b.transpose(-2, -1)) * share, b * (a.transpose(-2, -1) @ s) * share


def patch_pixels(R: Tensor, images: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
    """The box rule for the convolution of patches [B, 3, height, width], bias ignored.

    lo and hi, each image's smallest and largest value, stand for the range of pixels: Z = W X - W⁺ lo - W⁻ hi + 1e-9,
    s = R / Z, R_X = X Wᵀs - lo W⁺ᵀs - hi W⁻ᵀs.
    """
    box = (images, *(bound.expand_as(images) for bound in _bounds(images)))
    weights = (weight, -weight.clamp(min=0), -weight.clamp(max=0))
    z = sum(F.conv2d(x, w, stride=stride) for x, w in zip(box, weights, strict=True)) + EPSILON
    shares = [x * F.conv_transpose2d(R / z, w, stride=stride) for x, w in zip(box, weights, strict=True)]
    return torch.stack(shares).sum(0)


def _bounds(images: Tensor) -> tuple[Tensor, Tensor]:
    dims = tuple(range(1, images.ndim))
    return images.amin(dims, keepdim=True), images.amax(dims, keepdim=True)
