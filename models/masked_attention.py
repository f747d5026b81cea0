"""Run timm's ViT blocks so that only visible tokens are ever read. Five ways; the first three give the same numbers.

- `dense`: every token stays, hidden keys are masked. Any timm block.
- `gathered`: visible tokens are gathered, padded to the batch's largest count. Any timm block.
- `packed`: visible tokens of all images in one row, nothing padded but inside attention. timm's plain `Block`.
- `straight_through`: the mask is a 0/1 gate that carries a gradient; every token stays. timm's plain `Block`.
- `soft`: the ablation, attention biased by the logarithm of a gate in [0, 1]. Any timm block.

Shape legend: B images, P prefix tokens, S = P + N tokens, T tokens of all images in one row, H heads, E head width.
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
    """[B, S] bool: prefix tokens are always visible."""
    return F.pad(mask_BN, (num_prefix, 0), value=True)


def dense(vit: VisionTransformer, x_BSD: Tensor, mask_BN: Tensor) -> Tensor:
    """Class token after the last block, [B, D]; hidden tokens stay in the sequence and are read by nobody."""
    keys = key_mask(mask_BN, vit.num_prefix_tokens)[:, None, None, :]
    for block in vit.blocks:
        x_BSD = block(x_BSD, attn_mask=keys)
    return x_BSD[:, 0]


def gathered(vit: VisionTransformer, x_BSD: Tensor, mask_BN: Tensor) -> Tensor:
    """As `dense`, on the visible tokens alone. Images that keep fewer than the largest count get masked fillers.

    One host sync: the largest count decides the shapes.
    """
    keys = key_mask(mask_BN, vit.num_prefix_tokens)
    longest = int(keys.sum(1).max())
    order = keys.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]  # visible first, in position order
    x_BSD = x_BSD.gather(1, order.unsqueeze(-1).expand(-1, -1, x_BSD.shape[-1]))
    kept = keys.gather(1, order)[:, None, None, :]
    for block in vit.blocks:
        x_BSD = block(x_BSD, attn_mask=kept)
    return x_BSD[:, 0]


def packed(vit: VisionTransformer, x_BSD: Tensor, mask_BN: Tensor) -> Tensor:
    """As `dense`, with the visible tokens of all images in one row: the linear layers see no filler at all.

    One host sync: the number of visible tokens decides the shapes.
    """
    packing = Packing.of(key_mask(mask_BN, vit.num_prefix_tokens))
    x_1TD = x_BSD.flatten(0, 1).index_select(0, packing.index).unsqueeze(0)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return packed_attention(q, k, v, scale, packing)

    *blocks, last = vit.blocks
    for block in blocks:
        x_1TD = run_block(block, x_1TD, attend)
    return run_block(last, x_1TD, attend, packing.starts)[0]


def straight_through(vit: VisionTransformer, x_BSD: Tensor, gate_BN: Tensor) -> Tensor:
    """Class token, [B, D], with attention sum_j p_ij g_j v_j / sum_j p_ij g_j, p the softmax over ALL keys.

    For a gate of exact zeros and ones this is the masked attention of `dense`, and its derivative at a hidden patch
    is the effect of making that patch visible.
    """
    gate_BS = F.pad(gate_BN, (vit.num_prefix_tokens, 0), value=1.0)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return ratio_attention(q, k, v, gate_BS, scale)

    for block in vit.blocks:
        x_BSD = run_block(block, x_BSD, attend)
    return x_BSD[:, 0]


def soft(vit: VisionTransformer, x_BSD: Tensor, gate_BN: Tensor) -> Tensor:
    """Class token, [B, D]; the attention scores get log(gate + 1e-10) added (the published soft-mask ablation)."""
    bias = (F.pad(gate_BN, (vit.num_prefix_tokens, 0), value=1.0) + 1e-10).log()
    bias = bias.to(x_BSD.dtype)[:, None, None, :]
    for block in vit.blocks:
        x_BSD = block(x_BSD, attn_mask=bias)
    return x_BSD[:, 0]


def ratio_attention(q: Tensor, k: Tensor, v: Tensor, gate_BS: Tensor, scale: float) -> Tensor:
    """Attention of q, k, v [B, H, S, E] in which key j counts gate_j times, [B, H, S, E].

    One fused call: the gate rides along as one more value channel; q, k and v are zero-padded to a width of a multiple
    of 8, which fused kernels want, so that all three are equally wide.
    """
    width = q.shape[-1]
    gate = gate_BS.to(v)[:, None, :, None].expand(-1, v.shape[1], -1, 1)
    pad = -(width + 1) % 8
    values = F.pad(torch.cat([v * gate, gate], dim=-1), (0, pad))
    q, k = (F.pad(t, (0, values.shape[-1] - width)) for t in (q, k))
    out = F.scaled_dot_product_attention(q, k, values, scale=scale).float()
    mass = out[..., width : width + 1].clamp_min(torch.finfo(torch.float32).tiny)
    return (out[..., :width] / mass).to(v.dtype)


def is_plain(vit: VisionTransformer) -> bool:
    """Whether every block is timm's plain Block, which `packed` and `straight_through` can take apart."""
    return all(type(block) is Block and type(block.attn) is Attention for block in vit.blocks)


def run_block(block: Any, x: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
    """timm's plain Block with its attention replaced by `attend`; tokens [B, S, D] -> [B, S, D].

    `rows` [R] int64: only these tokens are wanted, [B, R, D]; the others end with the attention, their last reader.
    """
    attn = block.attn
    h = block.norm1(x)
    qkv = attn.qkv(h).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    out = attend(attn.q_norm(q), attn.k_norm(k), v, attn.scale).transpose(1, 2).flatten(2)
    if rows is not None:
        x, h, out = (t.index_select(1, rows) for t in (x, h, out))
    out = attn.norm(out)
    if attn.gate is not None:
        out = out * attn.gate(h).sigmoid()
    x = x + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(out))))
    return cast(Tensor, x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))))
