"""Weakly supervised detection (ATCON, WACV 2022): does the thresholded map cover the boxes of the class it explains?"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from common.errors import UserError
from common.maps import minmax
from common.metric_info import MetricInfo
from datasets.types import Batch
from metrics.maps.boxes import fill_boxes
from metrics.maps.per_image import MAP_METRICS, Columns, MapMetric, count_flags, weighted_mean
from metrics.maps.pixels import count_pixels, each, silent_maps
from metrics.types import Explanation

THRESHOLD = 0.5


@MAP_METRICS.register("detection")
class Detection(MapMetric):
    """`detection/iou`: mean intersection over union of the display map above 0.5 and the boxes of the predicted class.

    Only images that show the predicted class have such boxes: `count/detection/correct` of `count/detection/images`.
    Maps that are not finite, or constant, find nothing.
    """

    target = "predicted"
    shown: ClassVar = {"detection/iou": MetricInfo(percent=True)}
    columns = ("iou", "nan_map", "constant_map")

    def rows(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, columns]; iou is nan where the image has no box of the predicted class."""
        truth = boxes_of_class(batch, explanation.logits.argmax(1))
        found = display_maps(explanation.maps, (batch.image.shape[2], batch.image.shape[3])) > THRESHOLD
        tp, fp, fn, _ = (count.double() for count in count_pixels(found, truth))
        failed, constant = silent_maps(explanation.maps)
        there = truth.flatten(1).any(1)
        iou = torch.where(there, tp / (tp + fp + fn).clamp(min=1), torch.nan)
        return self.table_of({"iou": iou, "nan_map": failed, "constant_map": constant})

    def summarise(self, columns: Columns, weight: np.ndarray) -> dict[str, float]:
        """The values named in the class docstring."""
        flags = {"images": np.ones_like(weight), "correct": ~np.isnan(columns["iou"])}
        counts = count_flags("detection", flags, columns, weight)
        return {"detection/iou": weighted_mean(columns["iou"], weight)} | counts

    def protocol(self) -> dict[str, object]:
        """The settings that reproduce the metrics."""
        return {
            "maps_of": "predicted class",
            "images": "those with a box of the predicted class",
            "maps": "stretched to [0, 1], enlarged to the image by the nearest value, moved so that the median is 0.5, "
            "cut at 0 and at mean + 2 standard deviations, divided by the maximum",
            "threshold": THRESHOLD,
            "truth": "pixels whose indices lie strictly between the coordinates of a box",
        }


def display_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """ATCON's maps for display: [B, h, w] float -> [B, H, W] float64 in [0, 1] for size (H, W); silent maps are zeros.

    The published z-score before the stretch to [0, 1] has no effect and is left out. The median of an even number of
    values is the mean of the middle two; the standard deviation is the uncorrected one.
    """
    stretched, silent = minmax(maps.double())
    pixels = interpolate(stretched[:, None], size=size, mode="nearest")[:, 0]
    moved = pixels + THRESHOLD - each(lambda m: m.quantile(0.5), pixels)[:, None, None]
    top = each(lambda m: m.mean() + 2 * m.std(correction=0), moved)[:, None, None]
    cut = moved.clamp(min=0).minimum(top)
    return (cut / cut.amax((1, 2), keepdim=True)).masked_fill(silent[:, None, None], 0)


def boxes_of_class(batch: Batch, classes: Tensor) -> Tensor:
    """[B, H, W] bool: pixels in the boxes of one class per image, classes [B]. Raises UserError without boxes."""
    if batch.boxes is None:
        raise UserError("metric 'detection' needs boxes, and this data set has none; drop it from --metrics")
    labels = batch.box_labels or tuple(
        label.expand(len(boxes)) for label, boxes in zip(batch.label.cpu(), batch.boxes, strict=True)
    )
    size = (batch.image.shape[2], batch.image.shape[3])
    filled = [
        fill_boxes(boxes[of == c].cpu().numpy(), size, "strict")
        for boxes, of, c in zip(batch.boxes, labels, classes.cpu(), strict=True)
    ]
    return torch.from_numpy(np.stack(filled)).to(batch.image.device, non_blocking=True)
