"""Run timm's ViT blocks on visible tokens only, in one of five ways. The first three give the same results.

- `dense`: all tokens stay, hidden keys are masked. Any timm block.
- `gathered`: visible tokens are gathered and padded to the largest count in the batch. Any timm block.
- `packed`: visible tokens of all images in one row, padded at most inside attention. Plain blocks.
- `straight_through`: all tokens stay; the mask is a 0/1 gate with a gradient. Plain blocks.
- `soft`: the ablation; the log of a gate in [0, 1] is added to the attention scores. Any timm block.

Each returns what the classifier reads after the final norm, [B, D]: the class token or, if the backbone has none, the
mean over the visible patches (0 if there are none; with a gate, the mean weighted by it). Rotary positions follow
the tokens. Plain blocks: `Transformer.is_plain`.

Shape legend: B images, P prefix tokens, S = P + N tokens, T packed tokens, L tokens of the longest image, H heads, E
head width, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.transformer import Tokens, Transformer, ViT, describe
from models.varlen import Packing, packed_attention

LENGTHS = 64
"""On a GPU, `gathered` pads the visible tokens to a multiple of this; slicing ends at the number of tokens."""
Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(q, k, v [B, H, S, E], scale) -> [B, H, S, E]"""
PatchCounts = Callable[[], Sequence[int]]
"""The number of visible patches of each image, on the host: `Selection.counts`."""


def key_mask(mask_BN: Tensor, num_prefix: int) -> Tensor:
    """[B, N] -> [B, S] bool; prefix tokens are always visible.

    Without prefix tokens, an image of which no patch is visible would have no keys: all are, and `read` counts none.
    """
    keys_BN = mask_BN if num_prefix else mask_BN | ~mask_BN.any(1, keepdim=True)
    return F.pad(keys_BN, (num_prefix, 0), value=True)


def token_counts(counts: PatchCounts | None, patches: int, num_prefix: int) -> list[int] | None:
    """The number of tokens that `key_mask` shows of each image, if the numbers of patches are known."""
    if counts is None:
        return None
    return [count + num_prefix if count or num_prefix else patches for count in counts()]


def dense(vit: ViT, tokens: Tokens, mask_BN: Tensor, counts: PatchCounts | None = None) -> Tensor:
    """Hidden tokens stay in the sequence, but no token attends to them."""
    described = describe(vit)
    # [B, 1, 1, S]: the same keys for every head and query.
    keys = key_mask(mask_BN, described.num_prefix_tokens)[:, None, None, :]
    return described.read(_run_blocks(described, tokens, keys), _weights(described, mask_BN))


def gathered(vit: ViT, tokens: Tokens, mask_BN: Tensor, counts: PatchCounts | None = None) -> Tensor:
    """Like `dense`, on the visible tokens only; shorter images are padded with masked tokens.

    One host sync, unless `counts` are known: the largest number of visible tokens determines the shapes.
    """
    described = describe(vit)
    keys = key_mask(mask_BN, described.num_prefix_tokens)
    order = visible_first(keys, token_counts(counts, mask_BN.shape[1], described.num_prefix_tokens))
    x_BLD = _run_blocks(described, tokens.gather(order), keys.gather(1, order)[:, None, None, :])  # False at padding
    return described.read(x_BLD, _weights(described, mask_BN).gather(1, order))


def visible_first(keys_BS: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """[B, L] int64: the tokens that `gathered` runs, visible ones first, in order of position; the rest is padding.

    `lengths`: see `Packing.of`.
    """
    longest = int(keys_BS.sum(1).max()) if lengths is None else max(lengths)
    if keys_BS.is_cuda:  # few lengths, for kernels that are planned for each one
        longest += -longest % LENGTHS
    return keys_BS.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]


def packed(vit: ViT, tokens: Tokens, mask_BN: Tensor, counts: PatchCounts | None = None) -> Tensor:
    """Like `dense`, with the visible tokens of all images in one row, so that linear layers see no padding.

    One host sync, unless `counts` are known: the number of visible tokens determines the shapes.
    """
    described = describe(vit)
    prefix = described.num_prefix_tokens
    packing = Packing.of(key_mask(mask_BN, prefix), token_counts(counts, mask_BN.shape[1], prefix))
    tokens = tokens.pack(packing.index)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return packed_attention(q, k, v, scale, packing)

    x_1TD, last = tokens.x, len(described.blocks) - 1
    for index in range(last):
        x_1TD = run_block(described, index, tokens, x_1TD, attend)
    if described.has_class_token:
        # Only the class tokens are read afterwards: the last block's projection and MLP can skip all others.
        return cast(Tensor, described.norm(run_block(described, last, tokens, x_1TD, attend, packing.starts)[0]))
    x_TD = run_block(described, last, tokens, x_1TD, attend)[0]
    weight_T = _weights(described, mask_BN).flatten().index_select(0, packing.index)
    return described.read(packing.padded(x_TD), packing.padded(weight_T))


def straight_through(vit: ViT, tokens: Tokens, gate_BN: Tensor) -> Tensor:
    """Like `dense` where the gate is 1 or 0, with a derivative with respect to the gate.

    It is that of attention sum_j p_ij g_j v_j / sum_j p_ij g_j, where p is the softmax over ALL keys: at a hidden patch
    the effect of making that patch visible. The derivatives with respect to the tokens are those of `dense`.
    """
    described = describe(vit)
    gate_BS = _weights(described, gate_BN)
    keys_BS = key_mask(gate_BN.detach() > 0.5, described.num_prefix_tokens)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return gated_attention(q, k, v, gate_BS, keys_BS, scale)

    x_BSD = tokens.x
    for index in range(len(described.blocks)):
        x_BSD = run_block(described, index, tokens, x_BSD, attend)
    return described.read(x_BSD, gate_BS)


def soft(vit: ViT, tokens: Tokens, gate_BN: Tensor) -> Tensor:
    """With log(gate + 1e-10) added to the attention scores (the published soft-mask ablation)."""
    described = describe(vit)
    # The log is taken in fp32: in fp16, 1e-10 would round to 0 and the bias to -inf.
    gate_BS = _weights(described, gate_BN) + 1e-10
    bias = gate_BS.log().to(tokens.x.dtype)[:, None, None, :]
    return described.read(_run_blocks(described, tokens, bias), gate_BS)


def _weights(vit: Transformer, values_BN: Tensor) -> Tensor:
    """Mask or gate of the patches [B, N] -> of all tokens [B, S]; it is True or 1 at prefix tokens."""
    return F.pad(values_BN, (vit.num_prefix_tokens, 0), value=1)


def _run_blocks(vit: Transformer, tokens: Tokens, attn_mask: Tensor) -> Tensor:
    x_BSD = tokens.x
    for index in range(len(vit.blocks)):
        x_BSD = vit.run_block(index, tokens, x_BSD, attn_mask)
    return x_BSD


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate_BS: Tensor, keys_BS: Tensor, scale: float) -> Tensor:
    """Attention of q, k, v [B, H, S, E] to the keys in `keys_BS` bool, those whose gate is 1 and not 0.

    The gate's gradient is that of `ratio_attention`. The values are those of masked attention to the last bit: a
    quotient of sums is off by 0.06 in bfloat16.
    """
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys_BS[:, None, None, :], scale=scale)
    if not gate_BS.requires_grad:
        return out
    zeros: Tensor = _GateGradient.apply(gate_BS, q.detach(), k.detach(), v.detach(), scale)
    return out + zeros.to(out.dtype)


class _GateGradient(torch.autograd.Function):
    """Zeros, with the derivative of `ratio_attention` with respect to the gate."""

    @staticmethod
    def forward(ctx: Any, gate_BS: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Zeros of the shape of v."""
        ctx.save_for_backward(gate_BS, q, k, v)
        ctx.scale = scale
        return torch.zeros_like(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the gate alone."""
        gate_BS, q, k, v = ctx.saved_tensors
        if v.dtype == torch.float16:  # where hidden keys dominate, it would round the weights of visible ones to 0
            v = v.float()
        with torch.enable_grad():
            gate_BS = gate_BS.detach().requires_grad_()
            out = ratio_attention(q.to(v), k.to(v), v, gate_BS, ctx.scale)
        return *torch.autograd.grad(out, gate_BS, grad.to(out.dtype)), None, None, None, None


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


def run_block(
    vit: Transformer, index: int, tokens: Tokens, x: Tensor, attend: Attend, rows: Tensor | None = None
) -> Tensor:
    """A plain block with its attention replaced by `attend`: x [B, S, D] -> [B, S, D], rotated as `tokens` say.

    `rows` [R] int64: return only these tokens, [B, R, D]; the others are dropped after attention.
    """
    block: Any = vit.blocks[index]
    attn = block.attn
    h = block.norm1(x)
    q, k, v = vit.query_key_value(index, h, tokens.rope_of(index))
    out = attend(q, k, v, attn.scale).transpose(1, 2).flatten(2)
    if rows is not None:
        x, h, out = (t.index_select(1, rows) for t in (x, h, out))
    out = attn.norm(out)
    if attn.gate is not None:  # timm's optional output gate
        out = out * attn.gate(h).sigmoid()
    x = x + block.drop_path1(vit.layer_scale(index, 1, attn.proj_drop(attn.proj(out))))
    return cast(Tensor, x + block.drop_path2(vit.layer_scale(index, 2, block.mlp(block.norm2(x)))))
