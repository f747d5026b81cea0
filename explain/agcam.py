"""Attention-guided CAM (AGCAM, Leem and Seo 2024): the classifier's attention scores, gated by their gradients.

    map_j = sum over blocks and heads of max(G_0j, 0) sigmoid(S_0j)

G = dy/dA and S are taken at the class token's row, and no gradient passes through an attention: it flows along the
residual stream and the MLPs alone. So G_0j = dy/dO_0 . v_j in closed form, no N x N matrix is formed, and no gradient
reaches another token: the graph is that of a second pass with the class token alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explain.attention_capture import AttentionCapture, record, replay
from explain.explained_model import ExplainedModel
from explain.types import METHODS, Explainer


@METHODS.register("agcam")
@dataclass(frozen=True)
class Agcam(Explainer):
    """As published for one image; a batch, of which the published code explains the first image only, gets all maps.

    Where the classifier reads patches, the mean over their rows, each with its own gradient. Patches that are hidden
    from stage 2 get 0, since their score is minus infinity.
    """

    class_specific: ClassVar[bool] = True
    keeps_graph: ClassVar[bool] = True

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`."""
        blocks = list(explained.vit.blocks)
        if explained.readout == "class_token" and not explained.graph:
            with torch.no_grad(), record(blocks) as whole:
                explained.logits(images)
            with replay(blocks, whole, explained.rows()) as capture:
                logits = explained.logits(images)
        else:
            with record(blocks, cut=True, graph=explained.graph) as capture:
                logits = explained.logits(images)
        capture.gradients(explained.target_score(logits, targets))
        return self.of_capture(capture, explained, images)

    def of_capture(self, capture: AttentionCapture, explained: ExplainedModel, images: Tensor) -> Tensor:
        """The maps of a forward pass whose gradients are on the capture."""
        rows = explained.rows()
        gated_LBN = [
            (attention.weights_gradient(rows).clamp_min(0) * attention.scores(rows).sigmoid()).mean(2).sum(1)
            for attention in capture.attentions
        ]
        return torch.stack(gated_LBN).sum(0)[:, explained.num_prefix :].unflatten(1, explained.grid(images))
