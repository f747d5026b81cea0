"""Small timm ViTs for the model tests, each with features of the published backbones, and random weights."""

from typing import Any

import torch
from timm.layers import RmsNorm
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from models.backbone import create_backbone
from models.config import ModelConfig, PartsConfig
from models.transformer import ViT, is_vit

FLAT = ("vit_nano_patch8", "vit_t_dino", "vit_t_noembed", "vit_t_regs", "vit_t_qknorm")
"""Backbones with timm's plain Block, which every path supports."""
EVAS = ("eva_t_dinov3", "eva_t_eva02", "eva_t_tiny", "eva_t_pe", "eva_t_mixed", "eva_t_sapiens", "eva_t_gap")
"""Backbones with timm's plain EvaBlock, which every path supports."""

_UNUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_SHAPE: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}


def _vit(**settings: Any) -> VisionTransformer:
    return VisionTransformer(**_SHAPE | {name: value for name, value in settings.items() if name not in _UNUSED})


@register_model
def vit_t_dino(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Like DINOv2 with registers: LayerScale, positions of patches only."""
    return _vit(reg_tokens=4, init_values=0.5, no_embed_class=True, **kwargs)


@register_model
def vit_t_rad(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Like DINOv2 without registers and RAD-DINO: LayerScale, a position of the class token."""
    return _vit(init_values=0.5, **kwargs)


@register_model
def vit_t_noembed(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _vit(no_embed_class=True, **kwargs)


@register_model
def vit_t_regs(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Registers with positions, a norm before the blocks."""
    return _vit(reg_tokens=2, pre_norm=True, **kwargs)


@register_model
def vit_t_qknorm(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _vit(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, **kwargs)


@register_model
def vit_t_parallel(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Blocks with parallel attention and MLP, whose attention cannot be replaced."""
    return _vit(block_fn=ParallelScalingBlock, **kwargs)


@register_model
def vit_t_gap(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _vit(class_token=False, global_pool="avg", **kwargs)


@register_model
def vit_t_plain16(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _vit(**{"depth": 1} | kwargs | {"patch_size": 16})


def _eva(**settings: Any) -> Eva:
    return Eva(**_SHAPE | {name: value for name, value in settings.items() if name not in _UNUSED})


_ROTARY: dict[str, Any] = dict(use_rot_pos_emb=True, use_abs_pos_emb=False, init_values=0.5)
_DINOV3: dict[str, Any] = _ROTARY | dict(
    qkv_bias=False, rope_type="dinov3", rope_temperature=100, rope_rotate_half=True, num_reg_tokens=4,
    use_fc_norm=False, dynamic_img_size=True,
)  # fmt: skip


@register_model
def eva_t_dinov3(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Like vit_small_patch16_dinov3: registers, LayerScale, no biases, no learned positions, any image size."""
    return _eva(**_DINOV3 | kwargs)


@register_model
def eva_t_dinov3_qkvb(pretrained: bool = False, **kwargs: Any) -> Eva:
    return _eva(**_DINOV3 | {"qkv_bias": True} | kwargs)


@register_model
def eva_t_eva02(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Like eva02_base: projections of q, k and v, norms in the attention and in the SwiGLU MLP, both positions."""
    extra = dict(qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True)
    return _eva(use_rot_pos_emb=True, ref_feat_shape=(3, 3), **extra, **kwargs)


@register_model
def eva_t_tiny(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Like eva02_tiny: biases of q and v beside a fused projection, a packed SwiGLU MLP."""
    return _eva(use_rot_pos_emb=True, ref_feat_shape=(3, 3), swiglu_mlp=True, **kwargs)


@register_model
def eva_t_pe(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Like vit_pe_core: timm's AttentionRope, columns before rows, a norm before the blocks, a pooling head."""
    rope = dict(use_rot_pos_emb=True, ref_feat_shape=(3, 3), rope_grid_offset=1.0, rope_grid_indexing="xy")
    return _eva(attn_type="rope", global_pool="map", use_pre_transformer_norm=True, **rope, **kwargs)


@register_model
def eva_t_mixed(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Like vit_small_patch16_rope_mixed: learned frequencies of each block and head."""
    extra = dict(attn_type="rope", rope_type="mixed", rope_temperature=10, global_pool="token")
    return _eva(**_ROTARY | extra | kwargs)


@register_model
def eva_t_sapiens(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Like Sapiens2: grouped queries in a block, norms of q and k, LayerScale of the attention only, RMS norms."""
    extra = dict(attn_type="rope", qkv_fused=False, qk_norm=True, num_kv_heads=(2, 1, 2), attn_only_layer_scale=True)
    return _eva(**_DINOV3 | {"qkv_bias": True, "norm_layer": RmsNorm} | extra | kwargs)


@register_model
def eva_t_rescaled(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Rotary positions at a scale that is drawn anew in every training step."""
    return _eva(**_DINOV3 | {"rope_rescale_coords": 2.0} | kwargs)


@register_model
def eva_t_gap(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Like vit_medium_patch16_rope_reg1_gap: a register, but no class token."""
    return _eva(**_ROTARY | dict(class_token=False, num_reg_tokens=1, ref_feat_shape=(4, 4)) | kwargs)


@register_model
def eva_t_post(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Like eva02_enormous: blocks with norms after attention and MLP, which cannot be replaced."""
    return _eva(use_post_norm=True, global_pool="token", **kwargs)


class LeakyEmbed(nn.Module):
    """A convolutional stem: each token sees pixels of neighbouring patches."""

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.conv = nn.Conv2d(in_chans, embed_dim, 3 * patch_size, patch_size, padding=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2)


@register_model
def vit_t_leaky(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _vit(embed_layer=LeakyEmbed, **kwargs)


class ConvMlp(nn.Module):
    """An MLP with a convolution along the tokens."""

    def __init__(self, in_features: int, **_: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_features, in_features, 3, padding=1)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.conv(x_BSD.transpose(1, 2)).transpose(1, 2)


@register_model
def vit_t_conv(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _vit(mlp_layer=ConvMlp, **kwargs)


def shaken(module: nn.Module, seed: int = 0, gain: float = 1.5) -> nn.Module:
    """Randomise all weights. With this gain attention is far from uniform; norms and scales stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.add_(0.3 * noise)
            else:
                p.copy_(0.3 * noise if p.ndim == 3 else gain * noise / p[0].numel() ** 0.5)
    return module


def backbone(name: str, size: tuple[int, int] = (32, 32), seed: int = 0, drop_path: float = 0.0) -> ViT:
    vit = shaken(create_backbone(name, size, drop_path), seed)
    assert is_vit(vit)
    return vit


def images(batch: int = 3, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def random_mask(batch: int, patches: int, keep: float = 0.5, seed: int = 0) -> Tensor:
    """[B, N] bool, a different number of visible patches in every row."""
    mask = torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed)) < keep
    mask[0] = False
    mask[0, 2] = True
    return mask


def config(**changes: Any) -> ModelConfig:
    parts = PartsConfig(**{"num_parts": 3} | changes.pop("parts", {}))
    return ModelConfig(**{"backbone": "vit_t_dino", "weights": "none", "parts": parts} | changes)
