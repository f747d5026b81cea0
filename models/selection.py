"""From stage 1's logits to what stage 2 may see: the hard mask, its gradient, and the empty mask.

Shape legend: B images, N patches (h x w grid), K foreground parts; channel K (the last of K+1) is background.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """What stage 1, or anything standing in for it, hands to stage 2."""

    mask: Tensor
    """[B, h, w] bool: the patches stage 2 may see."""
    maps: Tensor | None = None
    """[B, K+1, h, w] fp32, sums to 1 over the channels; last = background."""
    logits: Tensor | None = None
    """[B, K+1, h, w] fp32, scaled negative squared distances over the temperature, without noise."""
    gate: Tensor | None = None
    """[B, h, w] fp32 in [0, 1] where the mask carries a gradient (straight-through) or is soft; None: `mask` is all."""
    empty: Tensor | None = None
    """[B] bool: stage 1 kept nothing (before the fallback)."""


def foreground_margin(logits: Tensor) -> Tensor:
    """Best foreground logit minus background logit: [B, N, K+1] -> [B, N]. A patch is foreground where it is >= 0.

    The published code compares probabilities, max_k y_k >= y_background. Comparing logits is the same, but a dropped
    part whose probability was 1 cannot tie with a background that underflowed to 0.
    """
    return logits[..., :-1].amax(-1) - logits[..., -1]


def without_parts(logits: Tensor, keep_BK: Tensor | None, hidden_BN: Tensor | None = None) -> Tensor:
    """Logits in which the parts not in `keep_BK`, and every part at the patches `hidden_BN`, can win nothing."""
    drop = torch.zeros_like(logits, dtype=torch.bool)
    if keep_BK is not None:
        drop[..., :-1] |= ~keep_BK.unsqueeze(1)
    if hidden_BN is not None:
        drop[..., :-1] |= hidden_BN.unsqueeze(-1)
    return logits.masked_fill(drop, -torch.inf)


def keep_best_token(mask: Tensor, score: Tensor) -> Tensor:
    """Where a row of `mask` [B, N] is empty, the patch of largest `score` [B, N] becomes visible.

    A row without a finite score stays empty: every part of it was taken away on purpose.
    """
    best = torch.zeros_like(mask).scatter_(1, score.argmax(1, keepdim=True), True)
    empty = ~mask.any(1, keepdim=True)
    return mask | (empty & best & score.isfinite())


def straight_through(mask: Tensor, margin: Tensor) -> Tensor:
    """A gate whose value is exactly `mask` (0 or 1) and whose gradient is that of q = f / (f + b) = sigmoid(margin).

    q is the probability of what was thresholded: the best part against the background. The gradient that reaches a
    hidden patch is limited (see `_limit_hidden`).
    """
    q = margin.sigmoid()
    gate = mask.to(q) + (q - q.detach())
    if gate.requires_grad:
        gate.register_hook(lambda gradient: _limit_hidden(gradient, mask))
    return gate


def _limit_hidden(gradient: Tensor, mask: Tensor) -> Tensor:
    """No hidden patch may pull harder than the image's strongest visible one; [B, N].

    The derivative at a hidden patch is its attention against that of all visible ones together. Where a hidden key
    would win nearly all attention (DINOv2's high-norm tokens do) it is astronomically large (1e13 was seen), while the
    effect of showing the patch stays bounded: the softmax saturates at once.
    """
    limit = gradient.abs().masked_fill(~mask, 0).amax(1, keepdim=True)
    return torch.where(mask, gradient, gradient.nan_to_num().clamp(-limit, limit))


def soft_gate(mask_logits: Tensor, all_logits: Tensor) -> Tensor:
    """The soft-mask ablation: probability of the best surviving part, [B, N] in [0, 1], not renormalised."""
    return (mask_logits[..., :-1].amax(-1) - all_logits.logsumexp(-1)).exp()
