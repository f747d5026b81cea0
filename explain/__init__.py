"""What explains: one verb, one registry of methods.

from explain import explain
maps = explain(model, images, "agcam")  # [B, h, w]
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.errors import UserError
from explain import (  # noqa: F401  (each registers its methods)
    agcam,
    attention_flow,
    grad_rollout,
    gradcam,
    guided_backprop,
    inherent,
    input_x_gradient,
    integrated_gradients,
    raw_attention,
    rollout,
)
from explain.explained_model import ExplainedModel, explainable, explained_model, usable
from explain.lrp import method as _lrp  # noqa: F401
from explain.types import METHODS, Explainer

__all__ = ["METHODS", "Explainer", "explain", "run_method", "explained_model"]


def explain(
    model: nn.Module,
    images: Tensor,
    method: str | Explainer = "rollout",
    targets: Tensor | None = None,
    *,
    stage: Literal[1, 2] = 2,
    **options: Any,
) -> Tensor:
    """Heat maps of a batch: [B, h, w] on the patch grid, unnormalised, detached ([B, H, W] for pixel methods).

    `model`: any timm ViT, a PlainViT or a TwoStageModel (`stage`: which of its two is explained). images [B, 3, H, W],
    normalised as the model expects. targets: [B] int64 class per image; None = predicted class. `options` are the
    method's fields. Model, gradients, hooks and flags are left as they were, also after an error. Raises UserError for
    an unknown method or option, or a model that the method cannot explain.
    """
    explainer = build_method(method, **options) if isinstance(method, str) else method
    return run_method(explainer, explained_model(model, images, stage), images, targets)


def build_method(name: str, **options: Any) -> Explainer:
    """The method `name` with its options. Raises UserError for an unknown one."""
    kind = METHODS[name]
    known = getattr(kind, "__dataclass_fields__", {})
    unknown = set(options) - set(known)
    if unknown:
        raise UserError(f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(known) or 'none'}")
    return kind(**options)


def run_method(
    explainer: Explainer, explained: ExplainedModel, images: Tensor, targets: Tensor | None = None
) -> Tensor:
    """`explain` for an explained model that is at hand."""
    explainer.check(explained)
    with explainable(explained):
        maps = explainer.maps(explained, usable(images), None if targets is None else usable(targets))
        return maps.detach().to(torch.promote_types(images.dtype, torch.float32))
