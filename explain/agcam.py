"""AGCAM: attention-guided class activation maps.

Leem and Seo, "Attention Guided CAM: Visual Explanations of Vision Transformer Guided by Self-Attention", AAAI 2024:

    map_j = sum over blocks and heads of max(G_0j, 0) sigmoid(S_0j)

S are the attention scores and G = dy/dA the gradient of the attention weights, both in the row of the class token 0.
No gradient passes through an attention: it flows along the residual stream and the MLPs only. Hence G_0j = dy/dO_0 v_j
in closed form, no N x N matrix is formed, and only the class token gets a gradient: the forward pass with a graph can
be restricted to that token.

Shape suffixes: L blocks, B images, N tokens.
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
    """As published for a single image (of a batch, the published code explains the first image only).

    If the classifier reads patches: the mean over their rows. Patches hidden from stage 2 get 0 because their scores
    are minus infinity.
    """

    keeps_graph: ClassVar[bool] = True

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`."""
        blocks = list(explained.vit.blocks)
        if explained.readout == "class_token" and not explained.graph:
            # A plain forward pass of all tokens, then one with a graph for the class token only: less memory and time.
            with torch.no_grad(), record(blocks) as all_tokens:
                explained.logits(images)
            with replay(blocks, all_tokens, explained.rows()) as capture:
                logits = explained.logits(images)
        else:
            with record(blocks, stop_gradient=True, graph=explained.graph) as capture:
                logits = explained.logits(images)
        capture.compute_gradients(explained.target_score(logits, targets))
        return self.maps_from(capture, explained, images)

    def maps_from(self, capture: AttentionCapture, explained: ExplainedModel, images: Tensor) -> Tensor:
        """Maps from a capture whose gradients are computed."""
        rows = explained.rows()
        gated_LBN = [  # [B, H, R, N]: mean over the rows, sum over the heads
            (attention.weights_gradient(rows).clamp_min(0) * attention.scores(rows).sigmoid()).mean(2).sum(1)
            for attention in capture.attentions
        ]
        return explained.on_grid(torch.stack(gated_LBN).sum(0), images)
