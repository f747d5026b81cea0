"""How well the union of the parts covers the object: the published foreground mIoU."""

from typing import ClassVar

import torch
from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, ratio
from metrics.parts.part_maps import maps_of, pixel_labels
from metrics.registry import METRICS
from metrics.types import Prediction


def map_foreground(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W] bool: pixels where the largest channel of the enlarged part maps [B, K+1, h, w] is not the last one.

    Enlarged bilinearly with aligned corners, as in the published evaluation. Unlike there, K = 1 is not a special case:
    the published relabelling in place turns the only part into background.
    """
    return pixel_labels(maps, size, align_corners=True) != maps.shape[1] - 1


@METRICS.register("foreground")
class Foreground(ExactMetric):
    """Intersections and unions of `map_foreground` and the true mask, each summed over all images, then divided.

    Keys, in [0, 1]: `foreground_iou`, published as mIoU, and `background_iou`, the same for the complement. Images
    without an object count like all others.
    """

    shown: ClassVar = {
        "foreground_iou": MetricInfo(percent=True, headline=110, better="higher"),
        "background_iou": MetricInfo(percent=True, better="higher"),
    }

    foreground: Tensor
    background: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        self.info = info
        for name in ("foreground", "background"):
            self.add_counter(name, 2)  # intersection, union

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises UserError where the prediction has no part maps or the batch no true masks."""
        maps, truth = maps_of(prediction, "foreground"), batch.mask
        if truth is None:
            raise UserError(
                f"metric 'foreground': data set {self.info.name!r} has no true masks here; drop it from --metrics"
            )
        found = map_foreground(maps, (truth.shape[1], truth.shape[2]))
        self.foreground += torch.stack([(found & truth).sum(), (found | truth).sum()])
        self.background += torch.stack([(~found & ~truth).sum(), (~found | ~truth).sum()])

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        return {
            "foreground_iou": ratio(*self.foreground.tolist()),
            "background_iou": ratio(*self.background.tolist()),
        }
