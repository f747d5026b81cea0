"""Two very small ViTs for the quick start and tests, registered with timm; they have no pretrained weights.

Their patch embedding is an MLP on each patch separately, so no hidden pixel leaks into a visible token.
"""

from typing import Any, cast

from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class MlpPatchEmbed(nn.Module):
    """A two-layer MLP on each flattened patch: [B, C, H, W] -> [B, N, D]. Replaces timm's PatchEmbed."""

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, **_: Any
    ) -> None:
        """`img_size` and `patch_size` in pixels; other arguments of timm's PatchEmbed are ignored."""
        super().__init__()
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (size[0] // patch_size, size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.unfold = nn.PixelUnshuffle(patch_size)
        self.fc1 = nn.Linear(in_chans * patch_size**2, 2 * embed_dim)
        self.fc2 = nn.Linear(2 * embed_dim, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, D]."""
        patches = self.unfold(images).flatten(2).transpose(1, 2)
        return cast(Tensor, self.fc2(nn.functional.gelu(self.fc1(patches))))


def _nano(
    pretrained: bool, embed_dim: int, depth: int, img_size: int | tuple[int, int] = 96, **kwargs: Any
) -> VisionTransformer:
    if pretrained:
        raise RuntimeError("the small ViTs of the quick start have no pretrained weights")
    for unused in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(unused, None)
    settings: dict[str, Any] = dict(patch_size=8, mlp_ratio=2, embed_layer=MlpPatchEmbed, weight_init="skip") | kwargs
    vit = VisionTransformer(img_size=img_size, embed_dim=embed_dim, depth=depth, num_heads=embed_dim // 32, **settings)
    _init(vit)
    return vit


def _init(vit: VisionTransformer) -> None:
    """Truncated normal with std 0.7 / sqrt(fan in): a shallow network learns faster from it than from timm's 0.02."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.7 / module.in_features**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for token in (vit.cls_token, vit.reg_token, vit.pos_embed):
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)


@register_model
def vit_nano_patch8(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """3 blocks of width 96: stage 2 and the plain ViT of the quick start."""
    return _nano(pretrained, embed_dim=96, depth=3, **kwargs)


@register_model
def vit_pico_patch8(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """2 blocks of width 64, stage 1 of the quick start. Without positions, parts depend on content alone."""
    return _nano(pretrained, embed_dim=64, depth=2, pos_embed="none", **kwargs)
