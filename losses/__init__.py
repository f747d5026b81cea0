"""Loss terms: part terms, the random view of the equivariance term, classification losses.

Call them with fp32 tensors inside `torch.autocast(device_type, enabled=False)`.

The equivariance term itself is `losses.parts.equivariance`; `losses.equivariance` is the module of its random view.
"""

from losses.classification import ClassificationLoss, Mixup
from losses.config import ClassificationConfig, EquivarianceConfig, LossConfig, LossWeights
from losses.equivariance import AffineView, draw_view, num_views, unwarp_maps, warp_images
from losses.parts import (
    border,
    concentration,
    enforced_presence,
    orthogonality,
    pixel_entropy,
    presence,
    total_variation,
)

__all__ = [
    "AffineView",
    "ClassificationConfig",
    "ClassificationLoss",
    "EquivarianceConfig",
    "LossConfig",
    "LossWeights",
    "Mixup",
    "border",
    "concentration",
    "draw_view",
    "enforced_presence",
    "num_views",
    "orthogonality",
    "pixel_entropy",
    "presence",
    "total_variation",
    "unwarp_maps",
    "warp_images",
]
