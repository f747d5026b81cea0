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

from explain.attention_capture import Tape, record, replay
from explain.subject import Subject
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

    def maps(self, subject: Subject, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`."""
        blocks = list(subject.vit.blocks)
        if subject.readout == "class_token" and not subject.graph:
            with torch.no_grad(), record(blocks) as whole:
                subject.logits(images)
            with replay(blocks, whole, subject.rows()) as tape:
                logits = subject.logits(images)
        else:
            with record(blocks, cut=True, graph=subject.graph) as tape:
                logits = subject.logits(images)
        tape.gradients(subject.target_score(logits, targets))
        return self.of_tape(tape, subject, images)

    def of_tape(self, tape: Tape, subject: Subject, images: Tensor) -> Tensor:
        """The maps of a forward pass whose gradients are on the tape."""
        rows = subject.rows()
        gated_LBN = [
            (attention.weights_gradient(rows).clamp_min(0) * attention.scores(rows).sigmoid()).mean(2).sum(1)
            for attention in tape.attentions
        ]
        return torch.stack(gated_LBN).sum(0)[:, subject.num_prefix :].unflatten(1, subject.grid(images))
