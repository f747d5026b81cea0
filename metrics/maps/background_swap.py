"""The certificate end to end: everything except the true object is overwritten, and the model computes a new mask."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from datasets.types import Batch
from metrics.base import ExactMetric
from metrics.maps.certificate import MOVEMENT, Predecessors, movement
from metrics.maps.per_image import bootstrap, weighted_mean
from metrics.types import Prediction


def background_only(images: Tensor, mask: Tensor) -> Tensor:
    """Images [B, 3, H, W] with the object (mask [B, H, W] bool) painted in the mean colour of the rest of the image."""
    outside = ~mask[:, None]
    around = (images * outside).sum((2, 3), keepdim=True) / outside.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(outside, images, around)


class BackgroundSwap(ExactMetric):
    """End to end: the object stays, everything around it comes from the previous image, whose object is painted over.

    Keys, means over the images with an object, each with `/low` and `/high` of its bootstrap interval:
    `background_swap/mask_iou` of the old and the new patch mask (models with a mask), `..._probability_change`,
    `..._total_variation` and `..._flipped` as in `movement`, `background_swap/accuracy` with the new background, and
    `count/background_swap/images`.
    """

    shown: ClassVar = {
        "background_swap/accuracy": MetricInfo(percent=True),
        "background_swap/mask_iou": MetricInfo(percent=True),
    }
    table: list[Tensor]

    def __init__(self, predict: Callable[[Tensor], Prediction]) -> None:
        """`predict`: the model, images [B, 3, H, W] -> Prediction."""
        super().__init__()
        self.predict = predict
        self.predecessors = Predecessors()
        self.add_values("table")

    def reset(self) -> None:
        """Forget everything counted."""
        super().reset()
        self.predecessors = Predecessors()

    def start_after(self, previous: Batch) -> None:
        """Pass the image [1, ...] before the first one, where another process counts that image."""
        self.predecessors(background_only(previous.image, _objects(previous)))

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises UserError where it has no masks."""
        mask = _objects(batch)
        donors = self.predecessors(background_only(batch.image, mask))
        swapped = self.predict(torch.where(mask[:, None], batch.image, donors))
        right = (swapped.logits.argmax(1) == batch.label).double()
        moved = movement(prediction.logits, swapped.logits, batch.label)
        rows = torch.cat([moved, right[:, None], mask_iou(prediction, swapped)[:, None]], 1)
        empty = ~mask.flatten(1).any(1, keepdim=True)
        self.table.append(rows.masked_fill(empty, torch.nan).flatten())

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        names = (*MOVEMENT, "accuracy", "mask_iou")
        table = self.values("table").view(-1, len(names)).cpu().numpy()

        def results(weight: np.ndarray) -> Mapping[str, float]:
            means = {name: weighted_mean(table[:, i], weight) for i, name in enumerate(names)}
            return {f"background_swap/{name}": means[name] for name in names if name != "logit_change"}

        count = float((~np.isnan(table[:, 0])).sum())
        intervals = bootstrap(results, len(table))
        return {**results(np.ones(len(table))), **intervals, "count/background_swap/images": count}


def _objects(batch: Batch) -> Tensor:
    if batch.mask is None:
        raise UserError("metric 'background_swap': this data set has no object masks; drop it from --metrics")
    return batch.mask


def mask_iou(before: Prediction, after: Prediction) -> Tensor:
    """IoU of the patch masks of two predictions, [B] float64; 1 where both are empty, nan for models without a mask."""
    if before.visible is None or after.visible is None:
        return torch.full((len(before.logits),), torch.nan, dtype=torch.float64, device=before.logits.device)
    both = (before.visible & after.visible).flatten(1).sum(1)
    either = (before.visible | after.visible).flatten(1).sum(1)
    return torch.where(either > 0, both.double() / either.clamp(min=1), 1.0)
