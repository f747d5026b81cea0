"""Maps that can be differentiated in turn, with respect to weights and images: what a loss on explanations needs."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.errors import UserError
from explain.explained_model import ExplainedModel, explainable, explained_model
from explain.types import METHODS, Explainer

DIFFERENTIABLE = tuple(name for name in METHODS if METHODS[name].keeps_graph)
"""Names of the methods whose maps can be differentiated."""


def differentiable_maps(
    model: nn.Module, images: Tensor, method: Explainer, targets: Tensor | None = None, stage: Literal[1, 2] = 2
) -> Tensor:
    """What `explain` gives for these images [B, 3, H, W], with its graph: [B, h, w], float32, also under autocast.

    Nothing is detached: gradients reach every trainable weight that the map depends on, and the images. The model
    works in eval mode (no dropout, no stochastic depth, BatchNorm's running statistics), so the map of a batch is the
    map of each image alone. Raises UserError for a method whose maps have no graph, or that cannot explain the model.
    """
    if not method.keeps_graph:
        known = ", ".join(DIFFERENTIABLE)
        raise UserError(f"{type(method).__name__}: its maps cannot be differentiated; those of {known} can")
    with twice_differentiable(model, images, stage) as explained:
        method.check(explained)
        return method.maps(explained, images, targets)


def predicted_classes(model: nn.Module, images: Tensor, stage: Literal[1, 2] = 2) -> Tensor:
    """The model's own top class of each image [B, 3, H, W], in eval mode: [B] int64."""
    with twice_differentiable(model, images, stage) as explained, torch.no_grad():
        return explained.logits(images).argmax(1)


@contextlib.contextmanager
def twice_differentiable(model: nn.Module, images: Tensor, stage: Literal[1, 2] = 2) -> Iterator[ExplainedModel]:
    """The model ready to be explained with a graph; fused attention, which has no second derivative, is off inside."""
    with torch.autocast(images.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        explained = explained_model(model, images, stage, graph=True)
        with explainable(explained):
            yield explained
