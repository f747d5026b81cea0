"""Attention within each image for the tokens of several images packed in one row.

Shape legend: B images, S tokens per image before packing, T packed tokens, L tokens of the longest image, H heads, E
head width.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn


def with_flash(attend: Callable[..., object]) -> Callable[..., object]:
    """torch's `varlen_attn`, held to flash attention.

    From torch 2.14 on it would take cuDNN on an H100, which builds a plan for every new number of tokens. cuDNN cannot
    split keys, so any `num_splits` rules it out.
    """
    return partial(attend, num_splits=1) if "num_splits" in inspect.signature(attend).parameters else attend


flash_attention = with_flash(varlen_attn)
"""CUDA only."""


@dataclass(frozen=True)
class Packing:
    """Index of packed tokens in the original batch, and in a batch padded to a common length."""

    index: Tensor
    """[T] int64: position of each packed token in the flattened [B * S] batch."""
    bounds: Tensor
    """[B + 1] int32: image b has the packed tokens bounds[b] to bounds[b + 1] - 1."""
    starts: Tensor
    """[B] int64: the first packed token of each image; its class token, if it has one."""
    slot: Tensor
    """[T] int64: position of each packed token in a padded [B * L] batch."""
    valid: Tensor
    """[B, L] bool: False at padding."""

    @staticmethod
    def of(visible_BS: Tensor, lengths: Sequence[int] | None = None) -> "Packing":
        """Pack the tokens where `visible_BS` [B, S] bool is True. Every row must have one.

        `lengths`: how many each row has; None: asks the device for their sum and maximum, one host sync.
        """
        counts = visible_BS.sum(1)
        if lengths is None:
            total, longest = torch.stack((counts.sum(), counts.max())).tolist()
        else:
            total, longest = sum(lengths), max(lengths)
        ends = counts.cumsum(0)
        starts = ends - counts
        visible = visible_BS.flatten()
        # Packed position of each visible token; all others go to a last entry that is dropped. `nonzero` would sync.
        position = torch.where(visible, visible.cumsum(0) - 1, total)
        order = torch.arange(len(visible), device=visible.device)
        index = order.new_empty(total + 1).scatter_(0, position, order)[:total]
        image = index // visible_BS.shape[1]  # [T], the image of each packed token
        # Row of the image in the padded batch, plus the token's position within its image.
        slot = image * longest + order[:total] - starts[image]
        valid = order[:longest] < counts.unsqueeze(1)
        return Packing(index, F.pad(ends, (1, 0)).int(), starts, slot, valid)

    def padded(self, rows: Tensor) -> Tensor:
        """Values of the packed tokens [T, ...] -> those of each image [B, L, ...], 0 at padding."""
        empty = rows.new_zeros(self.valid.numel(), *rows.shape[1:])
        return cast(Tensor, empty.index_copy(0, self.slot, rows).unflatten(0, self.valid.shape))


def packed_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, packing: Packing) -> Tensor:
    """Attention of q, k, v [1, H, T, E] within each image: [1, H, T, E]."""
    if _flash_supports(q):
        q, k, v = (t[0].transpose(0, 1).contiguous() for t in (q, k, v))  # [T, H, E]
        longest = packing.valid.shape[1]
        out = flash_attention(q, k, v, packing.bounds, packing.bounds, longest, longest, scale=scale)
        return cast(Tensor, out).transpose(0, 1).unsqueeze(0)
    return _padded_attention(q, k, v, scale, packing)


def _flash_supports(q: Tensor) -> bool:
    """Flash attention needs half precision, a head width divisible by 8, and an Ampere or newer GPU."""
    if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16) or q.shape[-1] % 8 or q.shape[-1] > 256:
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0)


def _padded_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, packing: Packing) -> Tensor:
    """The same on any device and dtype: tokens are padded for attention only, the cheap part of a ViT block."""
    q, k, v = (packing.padded(t[0].transpose(0, 1)).transpose(1, 2) for t in (q, k, v))  # [B, H, L, E]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=packing.valid[:, None, None, :], scale=scale)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, packing.slot).transpose(0, 1).unsqueeze(0)
