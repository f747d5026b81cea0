"""The relevance rules of LRP: each maps the relevance R of an operation's output to the relevance of its inputs.

Chefer, Gur and Wolf, "Transformer Interpretability Beyond Attention Visualization", CVPR 2021, section 3; the linear
rule is that of Montavon et al., "Explaining nonlinear classification decisions with deep Taylor decomposition", 2017.
There are two sets of rules: "ours" is the paper's method; "plain" is the ordinary LRP that the paper compares with (no
rescaling of residuals, the two halves of a linear layer divided separately).

Relevance always has the shape of the tensor it belongs to. x⁺ and x⁻ are the positive and negative parts of x.
Shape suffixes: B images, H heads, N tokens, D head width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-9


def divide(a: Tensor, b: Tensor, epsilon: float = EPSILON) -> Tensor:
    """The guarded division q(a, b) = a / (b + epsilon) of every rule: 0 where b is 0, a / epsilon at b = -epsilon."""
    denominator = b + epsilon
    denominator.masked_fill_(denominator == 0, epsilon)
    return a / denominator.masked_fill_(b == 0, torch.inf)  # a / inf is 0


def linear(R: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """The alpha=1, beta=0 rule with a common denominator for out = x Wᵀ + bias; the bias is ignored.

    The rule: z = W⁺x⁺ + W⁻x⁻, s = q(R, z), R_x = x⁺ (W⁺ᵀ s) + x⁻ (W⁻ᵀ s). It is computed with three matrix products
    instead of four, without forming the parts: 2z = Wx + |W||x| and 2 R_x = x (Wᵀ s) + |x| (|W|ᵀ s).
    """
    magnitude = weight.abs()
    twice_z = F.linear(x.abs(), magnitude, None if bias is None else -bias).add_(out)  # -bias cancels that in `out`
    half_s = divide(R, twice_z, 2 * EPSILON)
    return (half_s @ weight).mul_(x).addcmul_(half_s @ magnitude, x.abs())


def linear_plain(R: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """x⁺ W⁺ᵀ q(R, W⁺x⁺) + x⁻ W⁻ᵀ q(R, W⁻x⁻): each half distributes all of R."""
    halves = ((x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0)))
    first, second = (x * (divide(R, F.linear(x, weight)) @ weight) for x, weight in halves)
    return first + second


def residual(R: Tensor, branches: Sequence[Tensor], whole_batch: bool = False) -> list[Tensor]:
    """For the sum a + b: a s and b s with s = q(R, a + b), each rescaled to a non-negative fraction of the total of R.

    The fractions are proportional to |sum of a s| and |sum of b s|; a branch with a negative sum changes its sign. The
    sums are per image, or over the `whole_batch` as in the published code.
    """
    relevances = residual_plain(R, branches)
    dims = tuple(range(0 if whole_batch else 1, R.ndim))
    total = R.sum(dims, keepdim=True)
    sums = [relevance.sum(dims, keepdim=True) for relevance in relevances]
    size = sums[0].abs() + sums[1].abs()
    return [r * divide(divide(s.abs(), size) * total, s) for r, s in zip(relevances, sums, strict=True)]


def residual_plain(R: Tensor, branches: Sequence[Tensor]) -> list[Tensor]:
    """For the sum a + b: a s and b s with s = q(R, a + b), both of R's shape."""
    a, b = branches
    s = divide(R, a + b)
    return [a * s, b * s]


def attention_matrix(R: Tensor, out: Tensor, weights: Tensor, v: Tensor) -> Tensor:
    """Relevance C [B, H, N, N] of the attention weights A in out = A v: A * (s vᵀ) / 2 with s = q(R, out).

    R, out and v are [B, H, N, D]. The other half of R goes to v.
    """
    return (divide(R, out) @ v.transpose(-2, -1)).mul_(weights).mul_(0.5)


def factors(R: Tensor, a: Tensor, b: Tensor, fraction: float = 0.5) -> tuple[Tensor, Tensor]:
    """For the matrix product Z = a b: `fraction` times a * (s bᵀ) and b * (aᵀ s), with s = q(R, Z)."""
    s = divide(R, a @ b)
    return a * (s @ b.transpose(-2, -1)) * fraction, b * (a.transpose(-2, -1) @ s) * fraction


def patch_pixels(R: Tensor, images: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
    """The box rule (z^B of deep Taylor decomposition) for the patch embedding's convolution; the bias is ignored.

    R [B, D, h, w] -> [B, 3, H, W]. lo and hi are each image's smallest and largest value: Z = W X - W⁺ lo - W⁻ hi +
    1e-9, s = R / Z, R_X = X (Wᵀ s) - lo (W⁺ᵀ s) - hi (W⁻ᵀ s).
    """
    dims = tuple(range(1, images.ndim))
    lo, hi = images.amin(dims, keepdim=True), images.amax(dims, keepdim=True)
    box = (images, lo.expand_as(images), hi.expand_as(images))
    weights = (weight, -weight.clamp(min=0), -weight.clamp(max=0))
    z = sum(F.conv2d(x, w, stride=stride) for x, w in zip(box, weights, strict=True)) + EPSILON
    terms = [x * F.conv_transpose2d(R / z, w, stride=stride) for x, w in zip(box, weights, strict=True)]
    return torch.stack(terms).sum(0)
