"""Integrated gradients along the straight line from the mean colour to the image.

Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, with the baseline 0 (the mean colour,
as x is normalised):

    IG(x) = x * integral over a in [0, 1] of dy/dx at a x        map = sum over channels of IG(x)

Completeness: the pixels of a map sum to y(x) - y(0).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from explain.explained_model import ExplainedModel, with_selection
from explain.gradients import PixelExplainer, at_least_float, image_gradient
from explain.types import METHODS

IMAGES_AT_ONCE = 32
"""Several points of the line are computed in one batch of up to this many images."""


@METHODS.register("integrated_gradients")
@dataclass(frozen=True)
class IntegratedGradients(PixelExplainer):
    """The integral by Gauss-Legendre quadrature."""

    steps: int = 32
    """Number of points on the line; each costs one gradient."""
    absolute: bool = False
    """Sum the channels' magnitudes instead of the signed values."""

    def __post_init__(self) -> None:
        """Raise UserError for fewer than one step."""
        if self.steps < 1:
            raise UserError(f"--steps: {self.steps} is below 1")

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; [B, H, W]."""
        if targets is None:  # fixed along the whole line
            with torch.no_grad():
                targets = explained.logits(images).argmax(1)
        total = torch.zeros_like(at_least_float(images))
        nodes, weights = (total.new_tensor(values) for values in gauss_legendre(self.steps))
        count = max(1, IMAGES_AT_ONCE // len(images))
        for alpha, weight in zip(torch.split(nodes, count), torch.split(weights, count), strict=True):
            points = alpha.to(images.dtype).view(-1, 1, 1, 1, 1) * images  # [s, B, 3, H, W]
            gradient = image_gradient(_repeat(explained, len(alpha)), points.flatten(0, 1), targets.repeat(len(alpha)))
            total += torch.einsum("s,sbchw->bchw", weight, gradient.reshape(points.shape))
        attribution = images * total
        return (attribution.abs() if self.absolute else attribution).sum(1)


def gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [steps] of the quadrature on [0, 1], exact for polynomials of degree 2 steps - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2


def _repeat(explained: ExplainedModel, times: int) -> ExplainedModel:
    """The explained model for its batch repeated `times` times: the selection of stage 2 has a row per image."""
    selection = explained.selection
    if selection is None:
        return explained
    return with_selection(explained, selection.each(lambda t: t.repeat(times, *[1] * (t.ndim - 1))))
