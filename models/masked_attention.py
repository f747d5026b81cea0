"""Run timm's ViT blocks on visible tokens only, in one of five ways. The first three give the same results.

- `dense`: all tokens stay, hidden keys are masked. Any timm block.
- `gathered`: visible tokens are gathered and padded to the largest count in the batch. Any timm block.
- `packed`: visible tokens of all images in one row, padded at most inside attention. timm's plain `Block`.
- `straight_through`: all tokens stay; the mask is a 0/1 gate with a gradient. timm's plain `Block`.
- `soft`: the ablation; the log of a gate in [0, 1] is added to the attention scores. Any timm block.

Shape legend: B images, P prefix tokens, S = P + N tokens, T packed tokens, H heads, E head width.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor

from models.varlen import Packing, packed_attention

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(q, k, v [B, H, S, E], scale) -> [B, H, S, E]"""


def key_mask(mask_BN: Tensor, num_prefix: int) -> Tensor:
    """[B, N] -> [B, S] bool; prefix tokens are always visible."""
    return F.pad(mask_BN, (num_prefix, 0), value=True)


def dense(vit: VisionTransformer, x_BSD: Tensor, mask_BN: Tensor) -> Tensor:
    """Class token after the last block, [B, D]. Hidden tokens stay in the sequence, but no token attends to them."""
    # [B, 1, 1, S]: the same keys for every head and query.
    return _run_blocks(vit, x_BSD, key_mask(mask_BN, vit.num_prefix_tokens)[:, None, None, :])


def gathered(vit: VisionTransformer, x_BSD: Tensor, mask_BN: Tensor) -> Tensor:
    """Like `dense`, on the visible tokens only; shorter images are padded with masked tokens.

    One host sync: the largest number of visible tokens determines the shapes.
    """
    keys = key_mask(mask_BN, vit.num_prefix_tokens)
    longest = int(keys.sum(1).max())
    order = keys.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]  # visible first, in order of position
    x_BSD = x_BSD.gather(1, order.unsqueeze(-1).expand(-1, -1, x_BSD.shape[-1]))
    return _run_blocks(vit, x_BSD, keys.gather(1, order)[:, None, None, :])  # False at padding


def packed(vit: VisionTransformer, x_BSD: Tensor, mask_BN: Tensor) -> Tensor:
    """Like `dense`, with the visible tokens of all images in one row, so that linear layers see no padding.

    One host sync: the number of visible tokens determines the shapes.
    """
    packing = Packing.of(key_mask(mask_BN, vit.num_prefix_tokens))
    x_1TD = x_BSD.flatten(0, 1).index_select(0, packing.index).unsqueeze(0)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return packed_attention(q, k, v, scale, packing)

    *blocks, last = vit.blocks
    for block in blocks:
        x_1TD = run_block(block, x_1TD, attend)
    # Only the class tokens are read afterwards: the last block's projection and MLP can skip all others.
    return run_block(last, x_1TD, attend, packing.starts)[0]


def straight_through(vit: VisionTransformer, x_BSD: Tensor, gate_BN: Tensor) -> Tensor:
    """Class token, [B, D], with attention sum_j p_ij g_j v_j / sum_j p_ij g_j, where p is the softmax over ALL keys.

    With a gate of exact zeros and ones this equals the masked attention of `dense`. Its derivative at a hidden patch is
    the effect of making that patch visible.
    """
    gate_BS = F.pad(gate_BN, (vit.num_prefix_tokens, 0), value=1.0)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return ratio_attention(q, k, v, gate_BS, scale)

    for block in vit.blocks:
        x_BSD = run_block(block, x_BSD, attend)
    return x_BSD[:, 0]


def soft(vit: VisionTransformer, x_BSD: Tensor, gate_BN: Tensor) -> Tensor:
    """Class token, [B, D], with log(gate + 1e-10) added to the attention scores (the published soft-mask ablation)."""
    # The log is taken in fp32: in fp16, 1e-10 would round to 0 and the bias to -inf.
    bias = (F.pad(gate_BN, (vit.num_prefix_tokens, 0), value=1.0) + 1e-10).log()
    return _run_blocks(vit, x_BSD, bias.to(x_BSD.dtype)[:, None, None, :])


def _run_blocks(vit: VisionTransformer, x_BSD: Tensor, attn_mask: Tensor) -> Tensor:
    for block in vit.blocks:
        x_BSD = block(x_BSD, attn_mask=attn_mask)
    return x_BSD[:, 0]


def ratio_attention(q: Tensor, k: Tensor, v: Tensor, gate_BS: Tensor, scale: float) -> Tensor:
    """Attention of q, k, v [B, H, S, E] in which key j is weighted by gate_j: [B, H, S, E].

    One fused call gives numerator and denominator: the gate is appended to the values as one more channel.
    """
    width = q.shape[-1]
    gate = gate_BS.to(v)[:, None, :, None].expand(-1, v.shape[1], -1, 1)
    # Fused kernels need q, k and v of the same width, a multiple of 8. Zero padding of q and k leaves scores unchanged.
    pad = -(width + 1) % 8
    values = F.pad(torch.cat([v * gate, gate], dim=-1), (0, pad))
    q, k = (F.pad(t, (0, values.shape[-1] - width)) for t in (q, k))
    out = F.scaled_dot_product_attention(q, k, values, scale=scale).float()
    # sum_j p_ij g_j. It is 0 only if p underflows at all visible keys.
    mass = out[..., width : width + 1].clamp_min(torch.finfo(torch.float32).tiny)
    return (out[..., :width] / mass).to(v.dtype)


def is_plain(vit: VisionTransformer) -> bool:
    """Whether every block is timm's plain Block, whose attention `packed` and `straight_through` can replace."""
    return all(type(block) is Block and type(block.attn) is Attention for block in vit.blocks)


def query_key_value(attn: Any, h_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, H, S, E] of the attention of timm's plain Block, from its input (after the norm)."""
    # [B, S, 3 H E] -> [3, B, H, S, E]
    q, k, v = attn.qkv(h_BSD).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v


def run_block(block: Any, x: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
    """timm's plain Block with its attention replaced by `attend`: tokens [B, S, D] -> [B, S, D].

    `rows` [R] int64: return only these tokens, [B, R, D]; the others are dropped after attention.
    """
    attn = block.attn
    h = block.norm1(x)
    q, k, v = query_key_value(attn, h)
    out = attend(q, k, v, attn.scale).transpose(1, 2).flatten(2)
    if rows is not None:
        x, h, out = (t.index_select(1, rows) for t in (x, h, out))
    out = attn.norm(out)
    if attn.gate is not None:  # timm's optional output gate
        out = out * attn.gate(h).sigmoid()
    x = x + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(out))))
    return cast(Tensor, x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))))
