"""Maps that can be differentiated with respect to weights and images, for losses on explanations."""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.errors import UserError
from explain.explained_model import ExplainedModel, explainable, explained_model
from explain.types import METHODS, Explainer, check_method

_math_kernel = threading.RLock()
"""Held while torch's choice of attention kernels, which all threads share, is changed."""


def differentiable_maps(model: nn.Module, images: Tensor, method: Explainer, targets: Tensor | None = None) -> Tensor:
    """The maps of `explain` for images [B, 3, H, W], with their graph: [B, h, w], float32, also under autocast.

    Gradients reach every trainable weight that the map depends on, and the images. The model runs in eval mode (no
    dropout or stochastic depth, running statistics in BatchNorm), so the map of an image does not depend on the other
    images. Raises UserError for a method whose maps cannot be differentiated, or that cannot explain the model.
    """
    if not method.keeps_graph:
        known = ", ".join(name for name in METHODS if METHODS[name].keeps_graph)
        raise UserError(f"{type(method).__name__}: its maps cannot be differentiated; those of {known} can")
    with twice_differentiable(model, images) as explained:
        check_method(method, explained)
        return method.maps(explained, images, targets)


def predicted_classes(model: nn.Module, images: Tensor) -> Tensor:
    """The model's top class for each image [B, 3, H, W] in eval mode: [B] int64."""
    with twice_differentiable(model, images) as explained, torch.no_grad():
        return explained.logits(images).argmax(1)


@contextlib.contextmanager
def twice_differentiable(model: nn.Module, images: Tensor) -> Iterator[ExplainedModel]:
    """The model, ready to be explained with a graph. Inside, attention uses torch's math kernel.

    The fused kernels have no second derivative, and a map already contains a first one.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_math_kernel)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.autocast(images.device.type, enabled=False))
        stack.enter_context(torch.enable_grad())
        explained = explained_model(model, images, graph=True)
        stack.enter_context(explainable(explained))
        yield explained
