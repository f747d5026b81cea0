"""Small timm ViTs for the model tests, each with a feature of the published backbones, and random weights."""

from typing import Any

import torch
from timm.models import register_model
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from models.backbone import create_backbone
from models.config import ModelConfig, PartsConfig

FLAT = ("vit_nano_patch8", "vit_t_dino", "vit_t_noembed", "vit_t_regs", "vit_t_qknorm")
"""Backbones with timm's plain Block, which every path supports."""


def _vit(**settings: Any) -> VisionTransformer:
    for unused in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        settings.pop(unused, None)
    return VisionTransformer(
        **({"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2} | settings)
    )


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


def backbone(name: str, size: tuple[int, int] = (32, 32), seed: int = 0, drop_path: float = 0.0) -> VisionTransformer:
    vit = shaken(create_backbone(name, size, drop_path), seed)
    assert isinstance(vit, VisionTransformer)
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
