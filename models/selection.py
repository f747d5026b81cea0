"""From the logits of stage 1 to the patches of stage 2: hard mask, straight-through gradient, empty masks.

Shape legend: B images, N patches (h x w grid), K foreground parts; channel K (the last of K+1) is background.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.transfer import on_device


@dataclass(frozen=True)
class Selection:
    """What stage 1, or any other source of masks, passes to stage 2."""

    mask: Tensor
    """[B, h, w] bool: the patches that stage 2 sees."""
    pixels: Tensor | None = None
    """[B, H, W] bool: what it sees of these patches, with the mean colour elsewhere; None: all of their pixels."""
    maps: Tensor | None = None
    """[B, K+1, h, w] fp32: probabilities over the channels; last = background."""
    logits: Tensor | None = None
    """[B, K+1, h, w] fp32: scaled negative squared distances / temperature, without noise."""
    gate: Tensor | None = None
    """[B, h, w] fp32 in [0, 1]: a mask with a gradient (straight-through) or a soft mask; None: `mask` alone counts."""
    empty: Tensor | None = None
    """[B] bool: no patch was selected (before the fallback)."""
    counts: Callable[[], Sequence[int]] | None = field(default=None, init=False)  # `replace` then leaves it out
    """The number of patches in each image's `mask`, where the host knows it or can ask once for many; see `counted`."""

    def __post_init__(self) -> None:
        """Raise TypeError for a mask that is not bool: of other types, `~` and indexing mean something else."""
        for name, value in (("mask", self.mask), ("pixels", self.pixels)):
            if value is not None and value.dtype != torch.bool:
                raise TypeError(f"Selection.{name} must be bool, not {value.dtype}; compare it with a threshold first")

    @property
    def visible(self) -> Tensor:
        """What stage 2 sees, as fine as it is known: `pixels` [B, H, W] or else `mask` [B, h, w], bool."""
        return self.mask if self.pixels is None else self.pixels

    def each(self, change: Callable[[Tensor], Tensor]) -> "Selection":
        """The selection with every tensor changed; without `counts`."""
        changed: dict[str, Any] = {name: change(value) for name, value in self._tensors().items()}
        return replace(self, **changed)

    def counted(self) -> "Selection":
        """The selection with `counts`, which come to the host together, with one wait, when the first is needed."""
        return self._with_counts(cache(lambda: self.mask.flatten(1).sum(1).tolist()))

    def part(self, images: slice | Sequence[int]) -> "Selection":
        """The selection of some images of the batch, with their `counts`."""
        rows = images if isinstance(images, slice) else on_device(images, self.mask.device, torch.int64)
        counts, chosen = self.counts, range(len(self.mask))[images] if isinstance(images, slice) else images
        known = None if counts is None else lambda: [counts()[image] for image in chosen]
        return self.each(lambda t: t[rows])._with_counts(known)

    def _with_counts(self, counts: Callable[[], Sequence[int]] | None) -> "Selection":
        found = replace(self)
        object.__setattr__(found, "counts", counts)
        return found

    def _tensors(self) -> dict[str, Tensor]:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in given.items() if isinstance(value, Tensor)}

    def joined(self, others: Sequence["Selection"]) -> "Selection":
        """The selections of several batches as one, without `counts`; all have the same fields."""
        parts: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in (self, *others)]) for name in self._tensors()
        }
        return replace(self, **parts)

    def shown(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] with hidden pixels set to the mean colour (0); unchanged with a gate.

        Without this, hidden values would reach the logits where they are huge or not finite: attention gives hidden
        keys the weight 0, and 0 times infinity is nan. A gate has a gradient that depends on what it hides.
        """
        if self.gate is not None:
            return images
        visible = enlarge_patches(self.mask, (images.shape[2], images.shape[3]))
        # Replaced, not multiplied, for the same reason.
        return torch.where((visible if self.pixels is None else visible & self.pixels)[:, None], images, 0.0)


def selection_of(visible: Tensor, grid: tuple[int, int]) -> Selection:
    """The Selection of a mask [B, h, w] bool of the patches, or [B, H, W] bool of the pixels that stage 2 may see."""
    if visible.shape[1:] == grid:
        return Selection(visible)
    return Selection(patches_with(visible, grid), visible)


def patches_with(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h, w] bool: the patches that hold a pixel of [B, H, W] bool; H, W are multiples of h, w."""
    patch = (pixels.shape[1] // grid[0], pixels.shape[2] // grid[1])
    # Not adaptive_max_pool2d, which has no ONNX counterpart.
    return F.max_pool2d(pixels[:, None].float(), patch)[:, 0] > 0


def enlarge_patches(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W] bool: all pixels of the patches in [B, h, w] bool; H, W are multiples of h, w."""
    tall, wide = size[0] // mask.shape[1], size[1] // mask.shape[2]
    return mask.repeat_interleave(tall, 1).repeat_interleave(wide, 2)


def drop_border(mask: Tensor, drop: Tensor) -> Tensor:
    """`mask` [B, h, w] bool without those patches of `drop` [B, h, w] bool that have a hidden neighbour (of four).

    Neighbours outside the image count as visible: an object that the frame cuts off has no border there.
    """
    padded = F.pad(mask.float(), (1, 1, 1, 1), value=1.0) > 0
    inside = padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:] & padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1]
    return mask & (inside | ~drop)


def enlarge_tokens(x_BNC: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Values of patches [B, N, C] at pixels [B, H * W, C], bilinear (align_corners=False)."""
    x_BChw = x_BNC.transpose(1, 2).unflatten(2, grid)
    return F.interpolate(x_BChw, size=size, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


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
    are limited (see `limit_hidden`).
    """
    gate: Tensor = _StraightThrough.apply(margin.sigmoid(), mask)
    return gate


class _StraightThrough(torch.autograd.Function):
    """The mask in the dtype of q, with the limited gradient of q. A hook instead would not compile."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, mask: Tensor) -> Tensor:
        """0 or 1 exactly."""
        ctx.save_for_backward(mask)
        return mask.to(q)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """See `limit_hidden`."""
        (mask,) = ctx.saved_tensors
        return limit_hidden(gradient, mask), None


def limit_hidden(gradient: Tensor, mask: Tensor) -> Tensor:
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
