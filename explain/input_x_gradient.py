"""Input x gradient: the first-order contribution of every pixel to the target's logit.

Shrikumar, Greenside, Shcherbina and Kundaje, "Not Just a Black Box: Learning Important Features Through Propagating
Activation Differences", arXiv:1605.01713, 2016:

    map = sum over channels of x dy/dx
"""

from dataclasses import dataclass

from torch import Tensor

from explain.explained_model import ExplainedModel
from explain.gradients import PixelExplainer, image_gradient
from explain.types import METHODS


@METHODS.register("input_x_gradient")
@dataclass(frozen=True)
class InputXGradient(PixelExplainer):
    """Signed. x is the normalised image, so pixels of the mean colour get 0."""

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; [B, H, W]."""
        return (images * image_gradient(explained, images, targets)).sum(1)
