"""Patch tokens of a frozen backbone, kept in memory: stage 1's part head trains on them without running the backbone.

Shape legend: V views of an image, n images, N patches, D width. View 0 is the image as evaluated, view 1 is flipped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import log
from datasets import Batch, DatasetInfo, Split, eval_loader
from engine.training.objectives import PartsObjective
from losses.config import EquivarianceConfig
from losses.equivariance import AffineView, draw_view, num_views, unwarp_maps, warp_images
from models.backbone import patch_tokens
from models.outputs import StageOneOutput
from models.pdiscoformer import PDiscoFormer
from models.transformer import ViT

FLIPS = (False, True)
COLUMNS = ("angle", "shift_x", "shift_y", "scale")


@dataclass(frozen=True)
class CachedSplit:
    """A split as patch tokens."""

    info: DatasetInfo
    batches: list[Batch]
    """Annotations of the images as evaluated; their images are zeros that take no memory."""
    tokens: Tensor
    """[V, n, N, D] bfloat16."""
    warped: Tensor | None
    """[V, n, N, D] bfloat16: tokens of a warped view of each; None: not needed."""
    view: AffineView | None
    """The warps, with columns [V, n]; None without `warped`."""

    @property
    def label(self) -> Tensor:
        """[n] int64."""
        return torch.cat([batch.label for batch in self.batches])

    def evaluated(self) -> Iterator[tuple[Batch, Tensor]]:
        """Annotations of a few images [B] and their tokens [B, N, D] float32, in the order of the split."""
        tokens = self.tokens[0].split([len(batch) for batch in self.batches])
        for batch, some in zip(self.batches, tokens, strict=True):
            yield batch, some.float()


@torch.no_grad()
def cache_split(backbone: ViT, split: Split, warps: EquivarianceConfig | None, device: torch.device) -> CachedSplit:
    """Run the backbone, which is on `device`, on all images of a split with the evaluation transform.

    With `warps`, for training: also flipped, and with one warped view of each, drawn with seed 0.
    """

    def run(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return patch_tokens(backbone, images.to(device)).bfloat16().cpu()

    generator = torch.Generator().manual_seed(0)
    batches, tokens, warped, views = [], [], [], []
    for batch in eval_loader(split, batch_size=16, workers=0):
        images = torch.stack(
            [batch.image.flip(-1) if flip else batch.image for flip in (FLIPS if warps else FLIPS[:1])]
        )
        tokens.append(torch.stack([run(some) for some in images]))
        if warps:
            drawn = [draw_view(len(batch), (images.shape[-2], images.shape[-1]), warps, generator) for _ in images]
            warped.append(torch.stack([run(warp_images(*pair)) for pair in zip(images, drawn, strict=True)]))
            views.append(joined(drawn, torch.stack))
        batches.append(replace(batch, image=images.new_zeros(()).expand_as(batch.image)))
    log(f"{split.info.name}: tokens of {len(split)} images")
    return CachedSplit(
        info=split.info,
        batches=batches,
        tokens=torch.cat(tokens, dim=1),
        warped=torch.cat(warped, dim=1) if warps else None,
        view=joined(views, partial(torch.cat, dim=1)) if warps else None,
    )


def joined(views: list[AffineView], join: Callable[[list[Tensor]], Tensor]) -> AffineView:
    """One view whose columns are `join` of the columns of all views."""
    columns: dict[str, Any] = {name: join([getattr(view, name) for view in views]) for name in COLUMNS}
    return replace(views[0], **columns)


def rows_of(view: AffineView, *rows: Tensor | slice) -> AffineView:
    """The view with each column indexed by `rows`."""
    return joined([view], lambda columns: columns[0][rows])


class TokenModel(PDiscoFormer):
    """Stage 1 whose input is patch tokens [B, N, D] instead of images; its backbone is never run."""

    def select(self, images: Tensor, **options: Any) -> StageOneOutput:
        """Patch tokens -> StageOneOutput; same options as `StageOne.forward`."""
        return self.stage_1.from_tokens(images, **options)

    forward = select


class TokenObjective(PartsObjective):
    """The objective of stage 1 alone, with the second views of a CachedSplit in place of new ones."""

    second: tuple[Tensor, AffineView]
    """Tokens of the warped images [B, N, D] and the warps of the next batch."""

    def _second_view(self, model: Any, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if not self.config.weights.equivariance:
            return None, None
        tokens, view = self.second
        count = num_views(len(tokens), self.config.equivariance)
        return unwarp_maps(model.select(tokens[:count]).part_maps, rows_of(view, slice(count)))
