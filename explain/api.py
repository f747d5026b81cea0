"""`explain` and the methods by name. Use it as `from explain import explain`."""

from dataclasses import replace
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
from explain.explained_model import ExplainedModel, explainable, explained_model, without_hidden
from explain.feature_targets import feature_scores
from explain.inputs import Targets, checked_images, checked_targets, returning_logits
from explain.isolation import alone, at_least, usable
from explain.lrp import method as _lrp  # noqa: F401
from explain.types import METHODS, Explainer, check_method
from explain.wrappers import unwrapped
from models.selection import Selection

__all__ = ["METHODS", "Explainer", "build_method", "explain", "run_method"]


def explain(
    model: nn.Module,
    images: Tensor,
    method: str | Explainer = "rollout",
    targets: Targets = None,
    *,
    stage: Literal[1, 2] = 2,
    selection: Selection | None = None,
    **options: Any,
) -> Tensor:
    """Heat maps of a batch: [B, h, w] on the patch grid or [B, H, W] at pixels, unnormalised, detached.

    `model`: any module from images to logits; methods with attention need a ViT of timm, Hugging Face or this project
    (docs/models.md). `stage`: which stage of a TwoStageModel to explain.
    images [B, 3, H, W], floats, normalised as the model expects. targets: a class for all images or one per image, [B],
    as index or, if the model knows them, as name; None: the predicted class. Without classifier, what of the features
    to explain: see `explain.feature_targets`. `selection`: what stage 2 sees of these images, if it is known already
    (`explain.explained_model.selected`). `options`: the method's fields. Half precision is computed in float32.
    The model, its gradients, hooks and flags are left unchanged, also after an error. Raises UserError for an unknown
    method or option, for images or targets that do not fit the model, or for a model that the method cannot explain.
    """
    explainer = build_method(method, **options) if isinstance(method, str) else method
    if not isinstance(explainer, Explainer):
        raise UserError(f"method: a {type(explainer).__name__}; give a name or what build_method returns")
    if not isinstance(model, nn.Module):
        raise UserError(f"cannot explain a {type(model).__name__}; give a model")
    if stage not in (1, 2):
        raise UserError(f"stage: {stage!r}; a two-stage model has stages 1 and 2")
    model = unwrapped(model)
    images = checked_images(model, images)
    images = images if images.dtype == torch.float64 else images.float()
    # Explanations divide by sums that cancel, and CPUs lack operations in float16. All threads see replaced weights.
    with alone(model), at_least(torch.float32, model):
        explained = explained_model(model, images, stage, selection=selection)
        if explained.has_classes:
            explained = replace(explained, logits=returning_logits(explained.logits))
            return run_method(explainer, explained, images, checked_targets(targets, images, model, explained.logits))
        scored, columns = (explained, None) if targets is None else feature_scores(explained, targets, images)
        return run_method(explainer, scored if explainer.class_specific else explained, images, columns)


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
    check_method(explainer, explained)
    if explainer.drops_hidden:
        explained = without_hidden(explained)
    with explainable(explained):
        maps = explainer.maps(explained, usable(images), None if targets is None else usable(targets))
        return maps.detach().to(torch.promote_types(images.dtype, torch.float32))
