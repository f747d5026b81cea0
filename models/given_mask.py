"""Models that take a mask as input instead of predicting one (iFAM's baselines).

Shape legend: B images, N patches (h x w grid), D width, C classes.
"""

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from models.backbone import create_backbone, patch_tokens
from models.baseline import linear_head
from models.config import ModelConfig
from models.interface import ImageClassifier
from models.masked_vit import MaskedViT, check_masked_vit
from models.outputs import ClassifierOutput
from models.selection import Selection, keep_best_token, selection_of
from models.transformer import ViT


def select_given(mask: Tensor, grid: tuple[int, int], config: ModelConfig) -> Selection:
    """The Selection of given masks [B, H, W] bool.

    With `config.mask_resolution="pixel"`, their pixels; otherwise the patches whose centre pixel (nearest) they hold.
    With `config.empty_mask="best_token"`, an object that covers no centre keeps the patch it covers most. An image
    without object pixels keeps no patch. `Selection.empty` marks both cases (before the fallback).
    """
    if config.mask_resolution == "pixel":
        return replace(selection_of(mask, grid), empty=~mask.flatten(1).any(1))
    pixels = mask[:, None].float()
    kept_BN = F.interpolate(pixels, size=grid, mode="nearest-exact").flatten(1) > 0
    empty = ~kept_BN.any(1)
    if config.empty_mask == "best_token":
        # Covered fraction of each patch; -inf keeps a patch without object pixels from being chosen.
        cover_BN = F.adaptive_avg_pool2d(pixels, grid).flatten(1)
        kept_BN = keep_best_token(kept_BN, cover_BN.masked_fill(cover_BN == 0, -torch.inf))
    return Selection(kept_BN.unflatten(1, grid), empty=empty)


class GivenMaskModel(ImageClassifier):
    """A classifier called as `model(images, mask)`, where `mask` [B, H, W] bool marks the pixels of each object."""

    reads_selection = True
    needs_mask = True
    not_explainable = "its predictions depend on a given mask"

    def forward(self, images: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> ClassifierOutput:
        """Images [B, 3, H, W], mask [B, H, W] bool -> ClassifierOutput. `generator` is unused: there is no noise."""
        selection = select_given(mask, self.patch_grid, self.model_config)
        return ClassifierOutput(self.predict(images, selection), selection.mask, selection.empty, selection.pixels)


class DecoupledViT(GivenMaskModel):
    """Stage 2 alone, trained on given masks: iFAM's "decoupled two-stage" baseline with true or external masks.

    Hidden patches have no influence. The linear head has no bias, and there is no new norm.
    """

    def __init__(self, model_config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        """Random weights; `load_pretrained_backbones` loads `model_config.weights` into the backbone."""
        super().__init__()
        self.model_config = config = model_config
        backbone = create_backbone(config.backbone, image_size, config.drop_path)
        self.stage_2 = MaskedViT(backbone, num_classes, config.stage_2_path, new_norm=False)
        check_masked_vit(config, self.stage_2)

    @property
    def network(self) -> nn.Module:
        """Stage 2's backbone."""
        return self.stage_2.backbone

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """Stage 2."""
        return (self.stage_2,)

    def predict(self, images: Tensor, selection: Selection) -> Tensor:
        """Class logits [B, C] for any Selection."""
        return cast(Tensor, self.stage_2(images, selection))


class LateMaskingViT(GivenMaskModel):
    """A plain ViT; the mask selects patch tokens after the final norm (iFAM's ablation).

    Not faithful: every token has attended to the whole image. The sum of the selected tokens is divided by N, not by
    their number.
    """

    backbone: ViT

    def __init__(self, model_config: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        """Random weights; `load_pretrained_backbones` loads `model_config.weights` into the backbone."""
        super().__init__()
        self.model_config = config = model_config
        if config.mask_resolution == "pixel":
            raise UserError("model.mask_resolution=pixel: late masking selects tokens, which have no pixels; use patch")
        self.backbone = create_backbone(config.backbone, image_size, config.drop_path)
        self.head = linear_head(self.backbone.embed_dim, num_classes)

    def predict(self, images: Tensor, selection: Selection) -> Tensor:
        """Class logits [B, C] from the patch tokens of a Selection."""
        tokens_BND = patch_tokens(self.backbone, images)
        # Multiplied rather than indexed: the mean stays one over all N tokens, as published.
        kept_BN1 = selection.mask.flatten(1).unsqueeze(-1).to(tokens_BND)
        return cast(Tensor, self.head((tokens_BND * kept_BN1).mean(1)))
