"""Explanation methods: heat maps of what a classifier looks at.

from explain import explain
maps = explain(model, images, "agcam")  # [B, h, w]
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.errors import UserError
from explain import (  # noqa: F401  (importing a file registers its methods)
    agcam,
    attention_flow,
    grad_rollout,
    gradcam,
    gradients,
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

__all__ = ["METHODS", "Explainer", "build_method", "explain", "explained_model", "run_method"]


def explain(
    model: nn.Module,
    images: Tensor,
    method: str | Explainer = "rollout",
    targets: Tensor | None = None,
    *,
    stage: Literal[1, 2] = 2,
    **options: Any,
) -> Tensor:
    """Heat maps of a batch: [B, h, w] on the patch grid or [B, H, W] at pixels, unnormalised, detached.

    `model`: any timm ViT, a PlainViT, Cnn, PDiscoFormer or TwoStageModel (`stage`: which of its stages to explain).
    images [B, 3, H, W], normalised as the model expects. targets [B] int64, a class per image; None: the predicted
    class. `options`: the method's fields. The model, its gradients, hooks and flags are left unchanged, also after an
    error. Raises UserError for an unknown method or option, or a model that the method cannot explain.
    """
    explainer = build_method(method, **options) if isinstance(method, str) else method
    return run_method(explainer, explained_model(model, images, stage), images, targets)


def build_method(name: str, **options: Any) -> Explainer:
    """The method `name` with its options. Raises UserError for an unknown method or option."""
    kind = METHODS[name]
    known = kind.options()
    if unknown := options.keys() - known:
        raise UserError(f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(known) or 'none'}")
    return kind(**options)


def run_method(
    explainer: Explainer, explained: ExplainedModel, images: Tensor, targets: Tensor | None = None
) -> Tensor:
    """Like `explain`, for an ExplainedModel that was built with `explained_model`."""
    explainer.check(explained)
    with explainable(explained):
        maps = explainer.maps(explained, usable(images), None if targets is None else usable(targets))
        return maps.detach().to(torch.promote_types(images.dtype, torch.float32))
