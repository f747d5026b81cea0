"""Gradient attention rollout (vit-explain): rollout of attention weighted by the gradient of the target's logit."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from explain.attention_capture import Attention, AttentionCapture, record
from explain.explained_model import ExplainedModel
from explain.rollout import FUSIONS, VIT_EXPLAIN_DISCARD, Fusion, check_ratio, discard, over_maximum, roll_out
from explain.types import METHODS, Explainer


@METHODS.register("grad_rollout")
@dataclass(frozen=True)
class GradRollout(Explainer):
    """Rollout with (heads of A * dy/dA fused to one matrix)+ in the place of attention.

    Near Chefer's generic attention rule (2021), but with rows normalised and the identity as residual.
    """

    head_fusion: Fusion = "mean"
    discard_ratio: float | None = None
    """Share of each fused matrix's smallest entries that is set to 0. None: 0."""
    compat: Literal["", "vit-explain"] = ""
    """vit-explain: dy/dS in place of dy/dA, and of the blocks in reverse order: A of the first block meets the gradient
    of the last one; row sums divide columns; divided by the maximum; discards 0.9 where no ratio is given."""

    class_specific: ClassVar[bool] = True
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise UserError for options out of range."""
        super().__post_init__()
        check_ratio(self.discard_ratio)

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`."""
        with record(explained.vit.blocks, graph=explained.graph) as capture:
            logits = explained.logits(images)
        capture.gradients(explained.target_score(logits, targets))
        return self.of_capture(capture, explained, images)

    def of_capture(self, capture: AttentionCapture, explained: ExplainedModel, images: Tensor) -> Tensor:
        """The maps of a forward pass whose gradients are on the capture."""
        published = self.compat == "vit-explain"
        layers = capture.by_block()
        pairs = zip(reversed(layers), layers if published else reversed(layers), strict=True)
        maps = roll_out((self._fused(*pair) for pair in pairs), explained, images, by_column=published)
        return over_maximum(maps) if published else maps

    def _fused(self, attentions: list[Attention], gradients: list[Attention]) -> Tensor:
        published = self.compat == "vit-explain"
        weighted = [
            attention.weights() * (other.scores_gradient() if published else other.weights_gradient())
            for attention, other in zip(attentions, gradients, strict=True)
        ]
        fused = FUSIONS[self.head_fusion](torch.cat(weighted, dim=1), dim=1).clamp_min(0)
        ratio = VIT_EXPLAIN_DISCARD if published else 0.0
        return discard(fused, ratio if self.discard_ratio is None else self.discard_ratio, keep_first=False)
