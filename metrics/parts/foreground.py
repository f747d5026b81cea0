"""How well the parts together cover the object: the published foreground mIoU."""

import torch
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, ratio
from metrics.parts.part_maps import maps_of, pixel_labels
from metrics.registry import METRICS
from metrics.types import Prediction


def map_foreground(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W] bool: pixels where the enlarged part maps [B, K+1, h, w] are largest in another than the last channel.

    Bilinear with aligned corners, as the published evaluation does. Unlike there, K = 1 is no special case (its
    in-place relabelling turned the one part into background).
    """
    return pixel_labels(maps, size, align_corners=True) != maps.shape[1] - 1


class Foreground(ExactMetric):
    """Intersections and unions of `map_foreground` and the true mask, each summed over all images, then divided.

    Keys, in [0, 1]: `foreground_iou`, which is published as mIoU, and `background_iou`, the same of what is left.
    Images without an object count like all others.
    """

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
        self.follow(prediction)
        found = map_foreground(maps, (truth.shape[1], truth.shape[2]))
        self.foreground += torch.stack([(found & truth).sum(), (found | truth).sum()])
        self.background += torch.stack([(~found & ~truth).sum(), (~found | ~truth).sum()])

    def compute(self) -> dict[str, float]:
        """The metrics named in the class docstring."""
        return {
            "foreground_iou": ratio(*self.foreground.tolist()),
            "background_iou": ratio(*self.background.tolist()),
        }


@METRICS.register("foreground")
def foreground(info: DatasetInfo) -> Foreground:
    """See `Foreground`."""
    return Foreground(info)
