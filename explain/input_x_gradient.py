"""Input x gradient (Shrikumar et al. 2016): the first-order share of every pixel in the target logit."""

from dataclasses import dataclass

from torch import Tensor

from explain.explained_model import ExplainedModel
from explain.gradients import PixelExplainer, image_gradient
from explain.types import METHODS


@METHODS.register("input_x_gradient")
@dataclass(frozen=True)
class InputXGradient(PixelExplainer):
    """sum over channels of x dy/dx, signed; x is the normalised image, so the mean colour counts nothing."""

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; [B, H, W]."""
        return (images * image_gradient(explained, images, targets)).sum(1)
