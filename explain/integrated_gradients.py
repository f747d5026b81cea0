"""Integrated gradients (Sundararajan et al. 2017) along the straight line from the mean colour to the image.

    IG(x) = x * integral over a in [0, 1] of dy/dx at a x

The baseline is zero in the normalised space. Completeness: the pixels add up to y(x) - y(0).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from explain.explained_model import ExplainedModel, with_selection
from explain.gradients import PixelExplainer, at_least_float, image_gradient
from explain.types import METHODS
from models.selection import Selection

IMAGES_AT_ONCE = 32
"""Points of the line are taken together up to this many images; a larger batch goes point by point."""


@METHODS.register("integrated_gradients")
@dataclass(frozen=True)
class IntegratedGradients(PixelExplainer):
    """The integral by Gauss-Legendre quadrature, summed over channels."""

    steps: int = 32
    """Points on the line, each one gradient."""
    absolute: bool = False
    """Sum the channels' magnitudes instead of the signed values."""

    def __post_init__(self) -> None:
        """Raise UserError for fewer than one step."""
        if self.steps < 1:
            raise UserError(f"--steps: {self.steps} is below 1")

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; [B, H, W]."""
        if targets is None:
            with torch.no_grad():
                targets = explained.logits(images).argmax(1)
        total = torch.zeros_like(at_least_float(images))
        nodes, weights = (total.new_tensor(values) for values in gauss_legendre(self.steps))
        count = max(1, IMAGES_AT_ONCE // len(images))
        for alpha, weight in zip(nodes.split(count), weights.split(count), strict=True):
            points = alpha.to(images.dtype).view(-1, 1, 1, 1, 1) * images
            times = len(alpha)
            gradient = image_gradient(_repeated(explained, times), points.flatten(0, 1), targets.repeat(times))
            total += torch.einsum("s,sbchw->bchw", weight, gradient.unflatten(0, (times, -1)))
        attribution = images * total
        return (attribution.abs() if self.absolute else attribution).sum(1)


def gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [steps] of the quadrature on [0, 1]: exact for polynomials of degree 2 steps - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2


def _repeated(explained: ExplainedModel, times: int) -> ExplainedModel:
    """The explained model for its batch of images repeated `times` times: stage 2's selection has a row per image."""
    selection = explained.selection
    if selection is None:
        return explained
    gate = None if selection.gate is None else selection.gate.repeat(times, 1, 1)
    return with_selection(explained, Selection(selection.mask.repeat(times, 1, 1), gate=gate))
