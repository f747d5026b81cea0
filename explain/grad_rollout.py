"""Gradient attention rollout: rollout of attention weighted by the gradient of the target's logit.

Gildenblat, "Exploring Explainability for Vision Transformers", 2020 (github.com/jacobgil/vit-explain):

    map = the classifier's row of M_L ... M_1,  M_l = rows of (max(E_h[A_l * dy/dA_l], 0) + I), normalised to sum to 1

E_h is the mean over heads. The classifier's row of I is subtracted (not with compat): see `explain.rollout.roll_out`.
Similar to the rule of Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers", ICCV 2021, which does not normalise the rows.

Shape suffixes: B images, H heads, N tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from explain.attention_capture import Attention, AttentionCapture, record
from explain.explained_model import ExplainedModel
from explain.rollout import (
    FUSIONS,
    Fusion,
    check_ratio,
    discard,
    divide_by_maximum,
    ratio_or_default,
    require_averages,
    roll_out,
)
from explain.types import METHODS, Explainer


@METHODS.register("grad_rollout")
@dataclass(frozen=True)
class GradRollout(Explainer):
    """Rollout with max(fused heads of A * dy/dA, 0) in place of attention."""

    head_fusion: Fusion = "mean"
    discard_ratio: float | None = None
    """Fraction of each fused matrix's entries, the smallest, set to 0. None: 0."""
    compat: Literal["", "vit-explain"] = ""
    """vit-explain: dy/dS in place of dy/dA, with the blocks in reverse order, so that A of the first block is
    multiplied by the gradient of the last one; columns are divided by row sums, maps by their maximum; discard_ratio
    defaults to 0.9."""

    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise UserError for options out of range."""
        super().__post_init__()
        check_ratio(self.discard_ratio)

    def check(self, explained: ExplainedModel) -> None:
        """Raise UserError if attention cannot be read; compat=vit-explain needs scores in every block."""
        super().check(explained)
        if self.compat:
            require_averages(explained)

    @property
    def drops_hidden(self) -> bool:
        """Unless entries of the whole matrix are counted, hidden patches included."""
        return self._ratio == 0

    @property
    def _ratio(self) -> float:
        return ratio_or_default(self.discard_ratio, self.compat)

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`."""
        with record(explained.blocks, graph=explained.graph) as capture:
            logits = explained.logits(images)
        capture.compute_gradients(explained.target_score(logits, targets))
        return self.maps_from(capture, explained, images)

    def maps_from(self, capture: AttentionCapture, explained: ExplainedModel, images: Tensor) -> Tensor:
        """Maps from a capture whose gradients are computed."""
        published = self.compat == "vit-explain"
        blocks = capture.by_block()
        pairs = zip(reversed(blocks), blocks if published else reversed(blocks), strict=True)
        last_first = (self._fused(*pair) for pair in pairs)
        maps = roll_out(last_first, explained, images, by_column=published, keep_identity=published)
        return divide_by_maximum(maps) if published else maps

    def _fused(self, weights_of: list[Attention], gradients_of: list[Attention]) -> Tensor:
        """[B, N, N] of one block; the lists hold its parallel branches and are the same unless compat is set."""
        published = self.compat == "vit-explain"
        weighted = [
            attention.weights() * (other.scores_gradient() if published else other.weights_gradient())
            for attention, other in zip(weights_of, gradients_of, strict=True)
        ]
        fused_BNN = FUSIONS[self.head_fusion](torch.cat(weighted, dim=1), dim=1).clamp_min(0)
        return discard(fused_BNN, self._ratio, keep_first=False)
