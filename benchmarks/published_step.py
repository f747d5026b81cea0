"""The training step as published, on our modules: the same loss and gradients from more work."""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from engine.training.objectives import TwoStageObjective
from losses.equivariance import draw_view, unwarp_maps, warp_images
from models.masked_attention import key_mask
from models.masked_vit import MaskedViT, Path
from models.selection import Selection


class PublishedStageTwo(MaskedViT):
    """Every token goes through every block, with hidden keys masked (timm's own forward).

    In evaluation the published code drops hidden tokens as well: there `gathered` is its equal.
    """

    def forward(self, images: Tensor, selection: Selection, soft: bool = False) -> Tensor:
        """As MaskedViT.forward, for hard masks."""
        keys = key_mask(selection.mask.flatten(1), self.backbone.num_prefix_tokens)[:, None, None, :]
        tokens = self.backbone.forward_features(images, attn_mask=keys)
        return cast(Tensor, self.head(self.fc_norm(tokens[:, 0])))


class PublishedObjective(TwoStageObjective):
    """The equivariance view goes through both stages, and stage 2's output for it is discarded."""

    def _second_view(self, model: Any, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        size = (images.shape[-2], images.shape[-1])
        view = draw_view(len(images), size, self.config.equivariance, device=images.device)
        return unwarp_maps(model(warp_images(images, view)).part_maps, view)


@dataclass(frozen=True)
class Variant:
    """One way to compute the same step."""

    stage_2: type[MaskedViT]
    path: Path
    objective: type[TwoStageObjective]


VARIANTS = {
    "published": Variant(PublishedStageTwo, "dense", PublishedObjective),
    "dense": Variant(MaskedViT, "dense", TwoStageObjective),
    "packed": Variant(MaskedViT, "packed", TwoStageObjective),
    "gathered": Variant(MaskedViT, "gathered", TwoStageObjective),
}
