"""From the logits of stage 1 to the patches of stage 2: hard mask, straight-through gradient, empty masks.

Shape legend: B images, N patches (h x w grid), K foreground parts; channel K (the last of K+1) is background.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """What stage 1, or any other source of masks, passes to stage 2."""

    mask: Tensor
    """[B, h, w] bool: the patches that stage 2 sees."""
    maps: Tensor | None = None
    """[B, K+1, h, w] fp32: probabilities over the channels; last = background."""
    logits: Tensor | None = None
    """[B, K+1, h, w] fp32: scaled negative squared distances / temperature, without noise."""
    gate: Tensor | None = None
    """[B, h, w] fp32 in [0, 1]: a mask with a gradient (straight-through) or a soft mask; None: `mask` alone counts."""
    empty: Tensor | None = None
    """[B] bool: no patch was selected (before the fallback)."""


def foreground_margin(logits: Tensor) -> Tensor:
    """Best foreground logit minus background logit: [B, N, K+1] -> [B, N]. A patch is foreground if it is >= 0.

    The published code compares probabilities: max_k y_k >= y_background. With logits the result is the same, except
    that a dropped part of probability 1 cannot tie with a background that underflowed to 0.
    """
    return logits[..., :-1].amax(-1) - logits[..., -1]


def without_parts(logits: Tensor, keep_BK: Tensor | None, hidden_BN: Tensor | None = None) -> Tensor:
    """Logits [B, N, K+1] with -inf for parts that `keep_BK` drops, and for all parts at patches in `hidden_BN`."""
    drop = torch.zeros_like(logits, dtype=torch.bool)
    if keep_BK is not None:
        drop[..., :-1] |= ~keep_BK.unsqueeze(1)  # never the background, so that every patch keeps a winner
    if hidden_BN is not None:
        drop[..., :-1] |= hidden_BN.unsqueeze(-1)
    return logits.masked_fill(drop, -torch.inf)


def keep_best_token(mask: Tensor, score: Tensor) -> Tensor:
    """Make the patch of largest `score` [B, N] visible in every empty row of `mask` [B, N] bool.

    A row without a finite score stays empty: all its parts were removed on purpose.
    """
    best = torch.zeros_like(mask).scatter_(1, score.argmax(1, keepdim=True), True)
    empty = ~mask.any(1, keepdim=True)
    return mask | (empty & best & score.isfinite())


def straight_through(mask: Tensor, margin: Tensor) -> Tensor:
    """A gate with the value of `mask` (exactly 0 or 1) and the gradient of q = f / (f + b) = sigmoid(margin).

    q is the probability that is thresholded: the best part (f) against the background (b). Gradients at hidden patches
    are limited (see `_limit_hidden`).
    """
    q = margin.sigmoid()
    # q - q is exactly 0, so that rounding cannot move the gate away from 0 or 1.
    gate = mask.to(q) + (q - q.detach())
    if gate.requires_grad:
        gate.register_hook(lambda gradient: _limit_hidden(gradient, mask))
    return gate


def _limit_hidden(gradient: Tensor, mask: Tensor) -> Tensor:
    """Limit gradients [B, N] at hidden patches to the largest magnitude at a visible patch of the same image.

    The derivative at a hidden patch is proportional to its attention relative to that of all visible patches. For a
    hidden key that would win nearly all attention, such as DINOv2's high-norm tokens, it is huge (up to 1e13), while
    the true effect of showing the patch is bounded, because the softmax saturates.
    """
    # Without a visible patch the limit is 0.
    limit = gradient.abs().masked_fill(~mask, 0).amax(1, keepdim=True)
    return torch.where(mask, gradient, gradient.nan_to_num().clamp(-limit, limit))


def soft_gate(mask_logits: Tensor, all_logits: Tensor) -> Tensor:
    """The soft-mask ablation: probability of the best remaining part, [B, N] in [0, 1], not renormalised."""
    # The denominator includes dropped parts, as if their probabilities were set to 0 after the softmax.
    return (mask_logits[..., :-1].amax(-1) - all_logits.logsumexp(-1)).exp()
