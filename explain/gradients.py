"""Gradients with respect to the pixels, and what the methods built on them share."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from explain.explained_model import ExplainedModel
from explain.types import METHODS, Explainer


class PixelExplainer(Explainer):
    """A method that differentiates with respect to the pixels. It needs no attention, so it explains any classifier."""

    class_specific: ClassVar[bool] = True
    keeps_graph: ClassVar[bool] = True
    resolution: ClassVar[Literal["patch", "pixel"]] = "pixel"

    def check(self, explained: ExplainedModel) -> None:
        """Nothing to refuse."""


@METHODS.register("gradient")
@dataclass(frozen=True)
class Gradient(PixelExplainer):
    """sum over channels of |dy/dx| (Simonyan et al. 2014)."""

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; [B, H, W]."""
        return image_gradient(explained, images, targets).abs().sum(1)


def image_gradient(explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
    """dy/dx of each image's target logit y: [B, 3, H, W] float32 (float64 for a float64 model).

    images [B, 3, H, W]; targets [B] int64, None: predicted class.
    """
    own = explained.graph and images.requires_grad  # images that depend on weights keep doing so
    leaf = images if own else images.detach().requires_grad_()
    score = explained.target_score(explained.logits(leaf), targets)
    (gradient,) = torch.autograd.grad(score, leaf, create_graph=explained.graph)
    return at_least_float(gradient)


def at_least_float(t: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
