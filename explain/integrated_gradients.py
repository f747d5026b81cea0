"""Integrated gradients along the straight line from the mean colour to the image.

Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, with the baseline 0 (the mean colour,
as x is normalised):

    IG(x) = x * integral over a in [0, 1] of dy/dx at a x        map = sum over channels of IG(x)

Completeness: the pixels of a map sum to y(x) - y(0). A sum over too few points misses this: with 32 points and DINOv2
ViT-S/14 by up to 2.7 times that difference. See `steps` and `completeness_gap`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.transfer import on_device
from explain.explained_model import ExplainedModel, with_selection
from explain.gradients import PixelExplainer, at_least_float, image_gradient
from explain.types import METHODS

IMAGES_AT_ONCE = 32
"""Several points of the line are computed in one batch of up to this many images."""
FEWEST_STEPS, MOST_STEPS = 32, 1024
"""`steps=auto` starts with the first number of points and doubles it up to the second."""
ROUNDING = 1e-5
"""Rounding error of a float32 logit, as a fraction of its size."""


@METHODS.register("integrated_gradients")
@dataclass(frozen=True)
class IntegratedGradients(PixelExplainer):
    """The integral by Gauss-Legendre quadrature.

    The gap of a map is `completeness_gap`. A warning says where it exceeds `max_gap`: with a fixed number of steps for
    signed, detached maps, and with steps=auto after the most steps.
    """

    steps: int | Literal["auto"] = 32
    """Number of points on the line; each costs one gradient. auto: 32, 64, ... 1024, for each image until its gap is
    at most `max_gap`."""
    max_gap: float = 0.05
    """Largest gap in completeness, as a fraction of |y(x) - y(0)|."""
    absolute: bool = False
    """Sum the channels' magnitudes instead of the signed values; completeness does not hold for these."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of another type, fewer than one step, or a largest gap that is not positive."""
        super().__post_init__()
        if self.steps != "auto" and self.steps < 1:
            raise UserError(f"--steps: {self.steps!r} is neither a whole number above 0 nor auto")
        if not self.max_gap > 0:
            raise UserError(f"--max-gap: {self.max_gap} is not above 0")

    def maps(self, explained: ExplainedModel, images: Tensor, targets: Tensor | None) -> Tensor:
        """See `Explainer.maps`; [B, H, W]."""
        if targets is None:  # fixed along the whole line
            with torch.no_grad():
                targets = explained.logits(images).argmax(1)
        attribution = self._attribution(explained, images, targets)
        return (attribution.abs() if self.absolute else attribution).sum(1)

    def _attribution(self, explained: ExplainedModel, images: Tensor, targets: Tensor) -> Tensor:
        """IG(x), [B, 3, H, W]."""
        steps = FEWEST_STEPS if self.steps == "auto" else self.steps
        attribution = images * mean_gradient(explained, images, targets, steps)
        if self.steps != "auto" and (self.absolute or explained.graph):
            return attribution
        gap = completeness_gap(explained, images, targets, attribution)
        late = self._late(gap)
        while self.steps == "auto" and steps < MOST_STEPS and late:
            some, rows, steps = _rows(explained, late), on_device(late, images.device), 2 * steps
            better = images[rows] * mean_gradient(some, images[rows], targets[rows], steps)
            attribution = attribution.index_copy(0, rows, better)
            gap = gap.index_copy(0, rows, completeness_gap(some, images[rows], targets[rows], better))
            late = self._late(gap)
        if late:
            hint = "" if self.steps == "auto" else " (see completeness_gap); use steps=auto"
            what = f"some maps do not sum to y(x) - y(mean colour) within {self.max_gap:.0%}"
            warnings.warn(f"integrated_gradients with {steps} steps: {what}{hint}", stacklevel=2)
        return attribution

    def _late(self, gap: Tensor) -> list[int]:
        """The images whose gap [B] is too large. One wait for the device."""
        small = (gap <= self.max_gap).tolist()  # a nan gap is too large as well
        return [image for image, ok in enumerate(small) if not ok]


@torch.no_grad()
def completeness_gap(explained: ExplainedModel, images: Tensor, targets: Tensor, maps: Tensor) -> Tensor:
    """|sum of a map - (y(x) - y(0))| / |y(x) - y(0)|, [B] float64; 0 where the numerator is mere rounding.

    images [B, 3, H, W]; targets [B] int64; maps [B, H, W] or [B, 3, H, W], signed. `explained`: from `explained_model`,
    with the model in eval mode.
    """
    ends = (images, torch.zeros_like(images))
    y, y_0 = (explained.logits(x).double().gather(1, targets[:, None])[:, 0] for x in ends)
    missed = (maps.double().flatten(1).sum(1) - (y - y_0)).abs()
    return (missed / (y - y_0).abs()).masked_fill(missed <= ROUNDING * (y.abs() + y_0.abs()), 0)


def mean_gradient(explained: ExplainedModel, images: Tensor, targets: Tensor, steps: int) -> Tensor:
    """The integral of dy/dx over the line to each of images [B, 3, H, W], by `steps` points; same shape."""
    total = torch.zeros_like(at_least_float(images))
    nodes, weights = (on_device(values, total.device, total.dtype) for values in gauss_legendre(steps))
    count = max(1, IMAGES_AT_ONCE // len(images))
    for alpha, weight in zip(torch.split(nodes, count), torch.split(weights, count), strict=True):
        points = alpha.to(images.dtype).view(-1, 1, 1, 1, 1) * images  # [s, B, 3, H, W]
        rows = list(range(len(images))) * len(alpha)
        gradient = image_gradient(_rows(explained, rows), points.flatten(0, 1), targets.repeat(len(alpha)))
        total += torch.einsum("s,sbchw->bchw", weight, gradient.reshape(points.shape))
    return total


def gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [steps] of the quadrature on [0, 1], exact for polynomials of degree 2 steps - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2


def _rows(explained: ExplainedModel, rows: Sequence[int]) -> ExplainedModel:
    """The explained model for these images of its batch: the selection of stage 2 has a row per image."""
    selection = explained.selection
    return explained if selection is None else with_selection(explained, selection.part(rows))
