"""Raw attention: what the classifier's token attends to in one block."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explain.attention_capture import record
from explain.rollout import Fusion, fused_heads
from explain.subject import Subject, require_block
from explain.types import METHODS, Explainer


@METHODS.register("raw_attention")
@dataclass(frozen=True)
class RawAttention(Explainer):
    """The classifier's row of one block's attention; the mean over patch rows where the classifier reads patches."""

    head_fusion: Fusion = "mean"
    layer: int = -1
    """Which block, from 0, or from the end: -1 is the last."""

    class_specific: ClassVar[bool] = False

    def check(self, subject: Subject) -> None:
        """Raise UserError where attention cannot be read, or there is no such block."""
        super().check(subject)
        require_block(subject, self.layer)

    def maps(self, subject: Subject, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; class-agnostic, so `targets` is unused."""
        with torch.no_grad(), record([subject.vit.blocks[self.layer]]) as tape:
            subject.logits(images)
        rows_BRN = fused_heads(tape.attentions, self.head_fusion, subject.rows())
        return rows_BRN.mean(1)[:, subject.num_prefix :].unflatten(1, subject.grid(images))
