"""Raw attention: the attention weights of the class token in one block.

    map_j = A_0j, with the heads fused

The common baseline for ViTs; shown for example in Caron et al., "Emerging Properties in Self-Supervised Vision
Transformers", ICCV 2021, and compared with in Chefer et al., CVPR 2021. Shape suffixes: B images, R rows, N tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explain.attention_capture import record
from explain.explained_model import ExplainedModel, require_block
from explain.rollout import Fusion, fuse_heads
from explain.types import METHODS, Explainer


@METHODS.register("raw_attention")
@dataclass(frozen=True)
class RawAttention(Explainer):
    """The class token's row of one block's attention; the mean over patch rows if the classifier reads patches."""

    head_fusion: Fusion = "mean"
    layer: int = -1
    """The block, from 0; negative: from the end."""

    class_specific: ClassVar[bool] = False

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError if attention cannot be read or there is no such block."""
        super().check(explained)
        require_block(explained, self.layer)

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; class-agnostic, so `targets` is unused."""
        layers = [range(len(explained.blocks))[self.layer]]
        with torch.no_grad(), record(explained.blocks, layers) as capture:
            explained.logits(images)
        rows_BRN = fuse_heads(capture.attentions, self.head_fusion, explained.rows())
        return explained.on_grid(rows_BRN.mean(1), images)
