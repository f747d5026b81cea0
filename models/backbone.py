"""Build timm ViTs by name and load their weights.

Shape legend: B images, N patches (h x w grid), P prefix tokens (class token, registers), D width.
"""

import contextlib
import difflib
from typing import Any, cast

import timm
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from common.errors import UserError
from models.transformer import ViT, describe, is_vit
from models.weights.checkpoints import fit_backbone_state, load_into, read_state
from models.weights.foreign import backbone_part


def create_backbone(
    name: str, image_size: tuple[int, int], drop_path: float = 0.0, size_key: str = "data.image_size"
) -> ViT:
    """timm's model `name`, randomly initialised and without a classifier, for `image_size` (height, width) in pixels.

    `size_key`: config key of the size, for messages.

    Raises UserError for an unknown name, a model that is neither a VisionTransformer nor an Eva, or an image size that
    is not a multiple of the patch size.
    """
    check_timm_name(name)
    try:
        model = _create(name, num_classes=0, img_size=image_size, drop_path_rate=drop_path)
    except RuntimeError as error:  # an unknown pretrained tag (the part after the dot)
        raise UserError(f"model.backbone: {' '.join(str(error).split())[:300]}") from None
    except TypeError as error:
        what = " ".join(str(error).split())[:300]
        raise UserError(f"model.backbone: {name!r} is not a timm VisionTransformer or Eva ({what})") from None
    if not is_vit(model):
        kind = type(model).__name__
        raise UserError(f"model.backbone: {name!r} is a {kind}, not a timm VisionTransformer or Eva")
    cast(Any, model).attn_pool = None  # tokens are read, not timm's pooling
    patch = model.patch_embed.patch_size
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise UserError(f"{size_key}: {image_size} is not a multiple of {name}'s patch size {patch}")
    return model


def _create(name: str, **settings: Any) -> nn.Module:
    """`timm.create_model` with the final norm before pooling.

    timm applies it after pooling in models made for average pooling, but the part head and the explanation methods read
    normalised patch tokens.
    """
    try:
        return timm.create_model(name, **settings, fc_norm=False)
    except TypeError as error:
        with contextlib.suppress(TypeError):
            # Eva's name of the same option. DINOv3 would take images of any size; the grid of our models is fixed.
            return timm.create_model(name, **settings, use_fc_norm=False, dynamic_img_size=False)
        raise error from None


def check_timm_name(name: str, flag: str = "model.backbone") -> None:
    """Raise UserError that names `flag` and the closest names, unless timm has a model `name`."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0)
        raise UserError(f"{flag}: timm has no model {name!r}; nearest: {', '.join(near)}")


def own_input(name: str) -> dict[str, Any]:
    """What timm's weights of the backbone were trained with: `mean`, `std`, `interpolation`, `crop`, `evaluation`.

    Without a tag (the part after the dot) those of timm's default weights. Empty for a network without weights in timm.
    """
    try:
        found = get_pretrained_cfg(name)
    except RuntimeError:  # an unknown name or tag: an error when the backbone is built
        return {}
    if found is None or not found.has_weights:
        return {}
    return {
        "mean": tuple(found.mean), "std": tuple(found.std), "crop": found.crop_pct,
        "interpolation": "bilinear" if found.interpolation == "bilinear" else "bicubic",
        "evaluation": "squash" if found.crop_mode == "squash" else "center_crop",
    }  # fmt: skip


def load_backbone_weights(vit: ViT, name: str, source: str, stage: str = "stage_2") -> None:
    """Load weights into `vit` from `source`: "none" (keep as is), "hub" (timm's download), a weights file or a run.

    `stage`: the backbone to take from a run of a two-stage model. Position embeddings are
    resampled to the grid of `vit`. Raises UserError naming missing or unexpected keys.
    """
    if source == "none":
        return
    state = hub_state(name) if source == "hub" else backbone_part(read_state(source), source, stage=stage)
    load_into(vit, fit_backbone_state(state, vit), source if source != "hub" else f"hub weights of {name}")


def hub_state(name: str) -> dict[str, Tensor]:
    """timm's pretrained weights of `name`, without its classifier. Raises UserError if they cannot be loaded."""
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # timm and the hub raise many types: offline, no such weights, bad cache
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"model.weights=hub: cannot get the weights of {name!r} ({reason}); give a file or model.weights=none"
        ) from None


def require_class_token(vit: ViT, name: str, key: str) -> None:
    """Raise UserError that starts with `key`, the setting that reads it, unless the backbone `name` has one."""
    if not describe(vit).has_class_token:
        raise UserError(f"{key} reads the class token, which the backbone {name!r} does not have")


def grid_of(vit: ViT) -> tuple[int, int]:
    """Patch grid (h, w) of the backbone's input."""
    return describe(vit).grid


def patch_tokens(vit: ViT, images: Tensor) -> Tensor:
    """Patch tokens after the final norm: [B, 3, H, W] -> [B, N, D], row-major."""
    return vit.forward_features(images)[:, vit.num_prefix_tokens :]
