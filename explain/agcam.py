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
from explain.isolation import is_stock_throughout
from explain.types import METHODS, Explainer


@METHODS.register("agcam")
@dataclass(frozen=True)
class Agcam(Explainer):
    """As published for a single image (of a batch, the published code explains the first image only).

    If the classifier reads patches: the mean over their rows. Patches hidden from stage 2 get 0 because their scores
    are minus infinity.
    """

    keeps_graph: ClassVar[bool] = True
    drops_hidden: ClassVar[bool] = True

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`."""
        capture, logits = self._of_class_token(explained, images) or self._of_all_tokens(explained, images)
        capture.compute_gradients(explained.target_score(logits, targets))
        return self.maps_from(capture, explained, images)

    def _of_all_tokens(self, explained: ExplainedModel, images: Tensor) -> tuple[AttentionCapture, Tensor]:
        layers = range(explained.first_read_block, len(explained.blocks))
        with record(explained.blocks, layers, stop_gradient=True, graph=explained.graph) as capture:
            return capture, explained.logits(images)

    def _of_class_token(self, explained: ExplainedModel, images: Tensor) -> tuple[AttentionCapture, Tensor] | None:
        """A plain forward pass of all tokens, then one with a graph for the class token only: less memory and time.

        None if other tokens are read, or if something besides attention mixes tokens, as parts of a user's own may do.
        """
        if explained.readout != "class_token" or explained.graph or explained.first_read_block:
            return None
        if not all(map(is_stock_throughout, explained.blocks)):
            return None
        with torch.no_grad(), record(explained.blocks) as all_tokens:
            wanted = explained.logits(images)
        with replay(explained.blocks, all_tokens, explained.rows()) as capture:
            logits = explained.logits(images)
        tolerance = torch.finfo(logits.dtype).eps ** 0.5 * wanted.abs().max()
        return (capture, logits) if (logits - wanted).abs().max() <= tolerance else None

    def maps_from(self, capture: AttentionCapture, explained: ExplainedModel, images: Tensor) -> Tensor:
        """Maps from a capture whose gradients are computed."""
        rows = explained.rows()
        gated_LBN = [  # [B, H, R, N]: mean over the rows, sum over the heads
            explained.mean_over_rows(
                attention.weights_gradient(rows).clamp_min(0) * attention.scores(rows).sigmoid()
            ).sum(1)
            for attention in capture.attentions
        ]
        return explained.on_grid(torch.stack(gated_LBN).sum(0), images)
