"""One description of a vision transformer, for all code that runs its parts: where its blocks are, which tokens come
before the patches, how positions are added, how attention computes q, k and v, and what a classifier can read.

`describe` gives it for timm's `VisionTransformer` and `Eva`. `Eva` is timm's class of the ViTs with rotary positions:
DINOv3, EVA-02, Perception Encoder and `vit_*_rope_*`; EVA has learned positions only.

Shape legend: B images, N patches (h x w grid), P prefix tokens (class token first, then registers), S = P + N tokens,
D width, H heads, E head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeGuard, cast

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope, PatchEmbed, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from models.nano import MlpPatchEmbed  # the import also registers the small ViTs with timm

ViT = VisionTransformer | Eva
"""The backbones of our models."""


@dataclass(frozen=True)
class Tokens:
    """The input of the first block, and the rotary positions that all blocks share or each has of its own."""

    x: Tensor
    """[B, S, D], prefix tokens first, with learned positions."""
    rope: Tensor | None = None
    """[L, H or 1, S, 2 E], sines then cosines of q's and k's rotation; L is 1 or the number of blocks. Prefix tokens
    are not rotated. Of tokens chosen per image [L, B, H or 1, S, 2 E]. None: the ViT has no rotary positions."""

    def rope_of(self, block: int) -> Tensor | None:
        """The rotation in this block, [..., H or 1, S, 2 E]."""
        return None if self.rope is None else self.rope[min(block, len(self.rope) - 1)]

    def gather(self, order_BL: Tensor) -> "Tokens":
        """The tokens at the positions `order_BL` [B, L] int64 of each image; their rotations follow them."""
        x = self.x.gather(1, order_BL.unsqueeze(-1).expand(-1, -1, self.x.shape[-1]))
        return Tokens(x, None if self.rope is None else self.rope[:, :, order_BL].transpose(1, 2))

    def pack(self, index_T: Tensor) -> "Tokens":
        """The tokens `index_T` [T] int64 of the flattened [B * S] batch in one row, [1, T, D], with their rotations."""
        rope = None if self.rope is None else self.rope.index_select(2, index_T % self.x.shape[1])
        return Tokens(self.x.flatten(0, 1).index_select(0, index_T).unsqueeze(0), rope)


@dataclass(frozen=True)
class Transformer:
    """timm's `VisionTransformer`, and the base of other classes."""

    vit: Any

    plain: ClassVar[dict[type, tuple[type, ...]]] = {Block: (Attention,)}
    """Blocks and their attentions that `query_key_value` and `layer_scale` describe."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, first to last."""
        return cast(Sequence[nn.Module], self.vit.blocks)

    @property
    def num_prefix_tokens(self) -> int:
        """P: the class token, if there is one, and registers."""
        return int(self.vit.num_prefix_tokens)

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token. Otherwise a classifier reads the mean of the patch tokens."""
        return self.vit.cls_token is not None

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (h, w) of the image size that the ViT was built for."""
        return cast(tuple[int, int], self.vit.patch_embed.grid_size)

    @property
    def norm(self) -> nn.Module:
        """The final norm, which acts on each token separately; an `Identity` if there is none."""
        return cast(nn.Module, self.vit.norm)

    @property
    def embeds_patches_separately(self) -> bool:
        """Whether each input token depends on its own patch alone, unlike with an overlapping convolutional stem."""
        return isinstance(self.vit.patch_embed, PatchEmbed | MlpPatchEmbed)

    @property
    def is_plain(self) -> bool:
        """Whether every block is of a kind in `plain`, so that its attention can be replaced."""
        return all(type(getattr(block, "attn", None)) in self.plain.get(type(block), ()) for block in self.blocks)

    @property
    def draws_positions(self) -> bool:
        """Whether rotary positions are drawn anew in every training step (`rope_rescale_coords` and such)."""
        return bool(getattr(getattr(self.vit, "rope", None), "aug_active", False))

    def embed(self, images: Tensor) -> Tokens:
        """Images [B, 3, H, W] -> the input of the first block."""
        x = self.vit._pos_embed(self.vit.patch_embed(images))
        return Tokens(self.vit.norm_pre(self.vit.patch_drop(x)))

    def run_block(self, index: int, tokens: Tokens, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """timm's own block on x [B, S, D], with the rotations of `tokens`; `attn_mask` broadcasts to [B, H, S, S]."""
        return cast(Tensor, self.blocks[index](x, attn_mask=attn_mask))

    def query_key_value(self, index: int, h: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, H, S, E] of a plain block from its attention's input h [B, S, D], rotated by `rope`."""
        attn: Any = cast(Any, self.blocks[index]).attn
        q, k, v = _projections(attn, h)
        q, k = attn.q_norm(q), attn.k_norm(k)
        if rope is not None:
            q, k = (apply_rot_embed_cat(t, rope, half=attn.rotate_half).type_as(v) for t in (q, k))
        groups = q.shape[1] // k.shape[1]  # grouped-query attention: several heads share k and v
        return (q, k, v) if groups == 1 else (q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))

    def layer_scale(self, index: int, branch: Literal[1, 2], t: Tensor) -> Tensor:
        """A plain block's LayerScale, if it has one, of the output of its attention (branch 1) or its MLP (2)."""
        return cast(Tensor, getattr(self.blocks[index], f"ls{branch}")(t))

    def read(self, x_BSD: Tensor, weight_BS: Tensor) -> Tensor:
        """What a classifier reads of the last block's output, after the final norm: [B, D].

        The class token. Without one, the mean of the patch tokens weighted by `weight_BS`, 0 if all weights are 0.
        """
        if self.has_class_token:
            return cast(Tensor, self.norm(x_BSD[:, 0]))
        patches_BND = self.norm(x_BSD)[:, self.num_prefix_tokens :]
        weight_BN1 = weight_BS[:, self.num_prefix_tokens :, None].to(patches_BND)
        total_B1 = weight_BN1.sum(1)
        return cast(Tensor, (patches_BND * weight_BN1).sum(1) / total_B1.clamp_min(torch.finfo(total_B1.dtype).tiny))


@dataclass(frozen=True)
class EvaTransformer(Transformer):
    """timm's `Eva`: rotary positions, LayerScale as parameters of the block, separate biases or projections."""

    plain: ClassVar[dict[type, tuple[type, ...]]] = {EvaBlock: (EvaAttention, AttentionRope)}

    def embed(self, images: Tensor) -> Tokens:
        """Images [B, 3, H, W] -> the input of the first block, with rotations."""
        x, rope = self.vit._pos_embed(self.vit.patch_embed(images))
        x = self.vit.norm_pre(x)
        if rope is None:
            return Tokens(x)
        # timm: [N, 2 E], or with learned frequencies [L, H, N, 2 E].
        return Tokens(x, _unrotated_prefix(rope if rope.ndim == 4 else rope[None, None], self.num_prefix_tokens))

    def run_block(self, index: int, tokens: Tokens, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """See `Transformer.run_block`."""
        rope = tokens.rope_of(index)
        # timm's block takes the rotations of the patches and leaves the first P tokens as they are.
        rope = None if rope is None else rope[..., self.num_prefix_tokens :, :]
        return cast(Tensor, self.blocks[index](x, rope=rope, attn_mask=attn_mask))

    def layer_scale(self, index: int, branch: Literal[1, 2], t: Tensor) -> Tensor:
        """See `Transformer.layer_scale`."""
        gamma = cast(Tensor | None, getattr(self.blocks[index], f"gamma_{branch}"))
        return t if gamma is None else gamma * t


def describe(vit: nn.Module) -> Transformer:
    """The description of a timm `VisionTransformer` or `Eva`. Raises UserError for anything else."""
    if isinstance(vit, Eva):
        return EvaTransformer(vit)
    if isinstance(vit, VisionTransformer):
        return Transformer(vit)
    raise UserError(f"a {type(vit).__name__} is not a timm VisionTransformer or Eva")


def is_vit(module: nn.Module) -> TypeGuard[ViT]:
    """Whether `describe` knows it."""
    return isinstance(module, ViT)


def _projections(attn: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, S, E], k and v [B, H or fewer, S, E], before their norms."""
    if attn.qkv is None:
        parts = (project(h).unflatten(-1, (-1, attn.head_dim)) for project in (attn.q_proj, attn.k_proj, attn.v_proj))
        q, k, v = (part.transpose(1, 2) for part in parts)
        return q, k, v
    qkv = attn.qkv(h)
    if getattr(attn, "q_bias", None) is not None:  # EVA: k has no bias
        qkv = qkv + torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)).to(qkv)
    # [B, S, 3 H E] -> [3, B, H, S, E]
    q, k, v = qkv.unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _unrotated_prefix(rope: Tensor, count: int) -> Tensor:
    """Rotations [..., N, 2 E] -> [..., count + N, 2 E]; the first `count` are by the angle 0."""
    sin, cos = rope.chunk(2, -1)
    return torch.cat([F.pad(sin, (0, 0, count, 0)), F.pad(cos, (0, 0, count, 0), value=1.0)], dim=-1)
