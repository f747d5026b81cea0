"""Gradients with respect to the pixels, and the base class of the methods built on them.

The method `gradient`: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks: Visualising Image
Classification Models and Saliency Maps", ICLR Workshop 2014:

    map = sum over channels of |dy/dx|        (the paper takes the maximum over channels)
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from explain.explained_model import ExplainedModel
from explain.types import METHODS, Explainer


class PixelExplainer(Explainer):
    """A method based on gradients at the pixels. It needs no attention, so it can explain any classifier."""

    keeps_graph: ClassVar[bool] = True
    drops_hidden: ClassVar[bool] = True
    resolution: ClassVar[Literal["patch", "pixel"]] = "pixel"

    def check(self, explained: ExplainedModel) -> None:
        """Accept every model."""


@METHODS.register("gradient")
@dataclass(frozen=True)
class Gradient(PixelExplainer):
    """The magnitude of the gradient, summed over channels."""

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; [B, H, W]."""
        return image_gradient(explained, images, targets).abs().sum(1)


def image_gradient(explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
    """dy/dx of each image's target logit y: [B, 3, H, W] float32 (float64 for a float64 model).

    images [B, 3, H, W]; targets [B] int64, None: predicted class.
    """
    # If a graph is wanted, images that depend on something (the weights of stage 1, say) must stay connected to it.
    connected = explained.graph and images.requires_grad
    x = images if connected else images.detach().requires_grad_()
    score = explained.target_score(explained.logits(x), targets)
    (gradient,) = torch.autograd.grad(score, x, create_graph=explained.graph)
    return at_least_float(gradient)


def at_least_float(t: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is float64."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
