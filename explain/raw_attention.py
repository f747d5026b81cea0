"""Raw attention: the attention weights of the class token in one block.

    map_j = A_0j, with the heads fused

The common baseline for ViTs; shown for example in Caron et al., "Emerging Properties in Self-Supervised Vision
Transformers", ICCV 2021, and compared with in Chefer et al., CVPR 2021. Shape suffixes: B images, R rows, N tokens.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from common.errors import UserError
from explain.attention_capture import ALL, record
from explain.explained_model import ExplainedModel, require_row
from explain.rollout import Fusion, fuse_heads
from explain.types import METHODS, Explainer
from explain.vits import attention_pooling


@METHODS.register("raw_attention")
@dataclass(frozen=True)
class RawAttention(Explainer):
    """The class token's row of one block's attention; the mean over patch rows if the classifier reads patches."""

    head_fusion: Fusion = "mean"
    layer: int = -1
    """The block, from 0; negative: from the end."""
    pooling: bool = False
    """Show the attention of timm's attention pooling (global_pool="map") instead of a block's."""
    head: int | None = None
    """Show this head alone, from 0. None: all, fused."""

    class_specific: ClassVar[bool] = False
    drops_hidden: ClassVar[bool] = True

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError if attention cannot be read or there is no such block or pooling."""
        if self.pooling:
            if attention_pooling(explained.vit) is None:
                raise UserError("--pooling: this model has no attention pooling")
            return
        super().check(explained)
        require_row(explained, self.layer)

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; class-agnostic, so `targets` is unused."""
        if self.pooling:
            return self._of_pooling(explained, images)
        layers = [range(len(explained.blocks))[self.layer]]
        with torch.no_grad(), record(explained.blocks, layers) as capture:
            explained.logits(images)
        rows_BRN = fuse_heads(capture.attentions, self.head_fusion, explained.rows(), self.head)
        return explained.on_grid(explained.mean_over_rows(rows_BRN), images)

    def _of_pooling(self, explained: ExplainedModel, images: Tensor) -> Tensor:
        pooling = cast(Any, attention_pooling(explained.vit))
        with torch.no_grad(), record([pooling], pooling=True) as capture:
            explained.logits(images)
        rows = slice(0, 1) if pooling.pool == "token" else ALL
        row_BN = fuse_heads(capture.attentions, self.head_fusion, rows, self.head).mean(1)
        height, width = explained.grid(images)
        return row_BN[:, -height * width :].reshape(-1, height, width)  # prefix tokens first, if they are pooled
