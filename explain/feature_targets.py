"""What class-specific methods explain of a ViT without classifier (DINOv2, DINOv3, CLIP, SigLIP, ...): its features.

f(x) [D] are the features that the model returns. The score y that takes the place of a class's logit is

    y = f(x)_i                            an index i for all images, or one per image
    y = d . f(x)                          a direction d [D], or one per image [B, D]
    y = cos(f(x), f(r))                   an image r [1, 3, H, W], or one per image [B, 3, H, W]

Cosine similarity of DINO's features: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV
2021.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from explain.explained_model import ExplainedModel, evaluated
from explain.inputs import checked_images, checked_targets
from explain.vits import readout


def feature_scores(explained: ExplainedModel, targets: Any, images: Tensor) -> tuple[ExplainedModel, Tensor]:
    """The model with scores [B, K] of features in place of logits, and the score of each image, [B] int64.

    Integers in `targets` are indices of features; of floats, one or two dimensions are directions, four are images,
    normalised as the model expects. Raises UserError for anything else, and for a ViT that does not pool its tokens.
    """
    features: Callable[[Tensor], Tensor] = explained.logits
    with evaluated(explained.module), torch.no_grad():
        shape = features(images[:1]).shape
    if len(shape) != 2:
        raise UserError(f"targets: this ViT does not pool its tokens {tuple(shape[1:])}; leave targets out")
    values = _floats(targets, images)
    scores: Callable[[Tensor], Tensor] = features
    if values is None:
        columns = checked_targets(targets, images, explained.module, features, "features")
    elif values.ndim == 4:
        checked_images(explained.module, values)
        with evaluated(explained.module), torch.no_grad():
            directions_KD = F.normalize(features(values), dim=1)
        columns = _columns(directions_KD, images, "images to compare with")
        scores = lambda x: F.linear(F.normalize(features(x), dim=1), directions_KD.to(x))  # noqa: E731
    elif values.ndim in (1, 2) and values.shape[-1] == shape[1]:
        directions_KD = values.reshape(-1, shape[1])
        columns = _columns(directions_KD, images, "directions")
        scores = lambda x: F.linear(features(x), directions_KD.to(x))  # noqa: E731
    else:
        what = f"a feature's index, a direction of {shape[1]} numbers, or an image [1, 3, H, W]"
        raise UserError(f"targets: floats of shape {tuple(values.shape)}; without a classifier, give {what}")
    assert columns is not None
    # A classifier on these features would read what the model pools.
    read = replace(explained, logits=scores, has_classes=True, readout=readout(explained.vit, has_classes=True))
    return read, columns


def _floats(targets: Any, images: Tensor) -> Tensor | None:
    """`targets` as floats on the images' device; None for indices, and for what `checked_targets` refuses."""
    try:
        values = targets.detach() if isinstance(targets, Tensor) else torch.as_tensor(np.asarray(targets))
    except (TypeError, ValueError, RuntimeError):
        return None
    return values.to(images.device, images.dtype) if values.is_floating_point() else None


def _columns(directions_KD: Tensor, images: Tensor, what: str) -> Tensor:
    """[B] int64: the direction of each image. Raises UserError unless there is one for all, or one per image."""
    if len(directions_KD) not in (1, len(images)):
        raise UserError(f"targets: {len(directions_KD)} {what} for {len(images)} images; give one, or one per image")
    if not directions_KD.isfinite().all() or not directions_KD.any(1).all():
        raise UserError(f"targets: the {what} must have finite features that are not all 0")
    return torch.arange(len(images), device=images.device) % len(directions_KD)
