"""Raw attention: what the classifier's token attends to in one block."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explain.attention_capture import record
from explain.explained_model import ExplainedModel, require_block
from explain.rollout import Fusion, fused_heads
from explain.types import METHODS, Explainer


@METHODS.register("raw_attention")
@dataclass(frozen=True)
class RawAttention(Explainer):
    """The classifier's row of one block's attention; the mean over patch rows where the classifier reads patches."""

    head_fusion: Fusion = "mean"
    layer: int = -1
    """Which block, from 0, or from the end: -1 is the last."""

    class_specific: ClassVar[bool] = False

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError where attention cannot be read, or there is no such block."""
        super().check(explained)
        require_block(explained, self.layer)

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; class-agnostic, so `targets` is unused."""
        with torch.no_grad(), record([explained.vit.blocks[self.layer]]) as capture:
            explained.logits(images)
        rows_BRN = fused_heads(capture.attentions, self.head_fusion, explained.rows())
        return rows_BRN.mean(1)[:, explained.num_prefix :].unflatten(1, explained.grid(images))
