"""The map as a segmentation of the object: its pixels against the true mask (protocol of Chefer et al.)."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from common.transfer import on_device
from datasets.types import Batch
from metrics.base import count_by, mean, ratio
from metrics.maps.per_image import MAP_METRICS, Columns, MapMetric, count_flags, weighted_mean
from metrics.maps.pixels import count_pixels, each, foreground, heat, silent_maps
from metrics.types import Explanation

THRESHOLDS = tuple(step / 20 for step in range(1, 20))
"""0.05, 0.10 ... 0.95."""


@MAP_METRICS.register("segmentation")
class Segmentation(MapMetric):
    """Foreground = pixels above the mean of their map, stretched to [0, 1] at the size of the input.

    Keys under `segmentation/`:

    - `pixel_accuracy`, `iou_object`, `iou_background`: pixels summed over all images, then divided;
      `miou`: the mean of the two IoUs
    - `map`: mean over images of the average precision of both classes' scores (1 - m and m) taken together
    - `f1`: mean over images of the object's F1; images whose true mask is empty are left out
    - `f1_published`: mean over images and pixel rows of the row's F1, 0 for a row without object and prediction. The
      published code reports this as mF1: it treats the rows of a mask as a batch
    - `miou_thresholds`: `miou` at each of 0.05, 0.10 ... 0.95 instead of the mean, averaged; `miou_best`: the largest

    A map that is not finite, or constant, has no foreground.
    """

    target = "predicted"
    shown: ClassVar = {
        "segmentation/pixel_accuracy": MetricInfo(percent=True),
        "segmentation/iou_object": MetricInfo(percent=True),
        "segmentation/iou_background": MetricInfo(percent=True),
        "segmentation/miou": MetricInfo(percent=True, headline=30),
        "segmentation/map": MetricInfo(headline=40, label="segmentation: mAP"),
        "segmentation/f1": MetricInfo(percent=True),
        "segmentation/miou_thresholds": MetricInfo(percent=True),
        "segmentation/miou_best": MetricInfo(percent=True),
    }
    columns = (
        "ap", "f1", "f1_published", "tp", "fp", "fn", "tn", "nan_map", "constant_map",
        *(f"{case}@{threshold:g}" for threshold in THRESHOLDS for case in ("tp", "fp")),
    )  # fmt: skip

    def rows(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, columns]. Raises UserError where the batch has no masks."""
        if batch.mask is None:
            raise UserError("metric 'segmentation' needs masks, which this data set lacks; drop it from --metrics")
        truth = batch.mask
        pixels = heat(explanation.maps, (truth.shape[1], truth.shape[2]))
        found = foreground(pixels, threshold=None)
        counts, (failed, constant) = count_pixels(found, truth), silent_maps(explanation.maps)
        whole = 2 * counts.tp + counts.fp + counts.fn
        f1 = torch.where(counts.tp + counts.fn > 0, 2.0 * counts.tp.double() / whole, torch.nan)
        values = {"ap": each(both_classes_ap, pixels, truth), "f1": f1, "f1_published": each(row_f1, found, truth)}
        values |= counts._asdict() | {"nan_map": failed, "constant_map": constant}
        for case, above in zip(("tp", "fp"), pixels_above(pixels, truth), strict=True):
            values |= {f"{case}@{threshold:g}": above[:, i] for i, threshold in enumerate(THRESHOLDS)}
        return self.table_of(values)

    def summarise(self, columns: Columns, weight: np.ndarray) -> dict[str, float]:
        """The values named in the class docstring."""
        total = {name: float(weight @ columns[name]) for name in columns if name.startswith(("tp", "fp", "fn", "tn"))}
        tp, fp, fn, tn = (total[name] for name in ("tp", "fp", "fn", "tn"))
        at = [
            mean(class_ious(total[f"tp@{t:g}"], total[f"fp@{t:g}"], objects=tp + fn, rest=fp + tn)) for t in THRESHOLDS
        ]
        iou_object, iou_background = class_ious(tp, fp, objects=tp + fn, rest=fp + tn)
        results = {
            "pixel_accuracy": ratio(tp + tn, tp + fp + fn + tn),
            "iou_object": iou_object,
            "iou_background": iou_background,
            "miou": mean((iou_object, iou_background)),
            "map": weighted_mean(columns["ap"], weight),
            "f1": weighted_mean(columns["f1"], weight),
            "f1_published": weighted_mean(columns["f1_published"], weight),
            "miou_thresholds": mean(at),
            "miou_best": max(at),
        }
        flags = {"images": np.ones_like(weight), "with_mask": ~np.isnan(columns["f1"])}
        named = {f"segmentation/{name}": value for name, value in results.items()}
        return named | count_flags("segmentation", flags, columns, weight)

    def protocol(self) -> dict[str, object]:
        """The settings that reproduce the metrics."""
        return {
            "maps_of": "predicted class",
            "images": "all",
            "maps": "enlarged bilinearly, corners not aligned, each stretched to [0, 1]",
            "foreground": "above the mean of each map",
            "thresholds": list(THRESHOLDS),
            "pooled": "pixel_accuracy, iou, miou: pixels summed over all images; map and f1 are means over images",
            "nan_maps": "counted, scored as all background, as constant maps are",
        }


def class_ious(tp: float, fp: float, objects: float, rest: float) -> tuple[float, float]:
    """IoU of object and background with `objects` and `rest` true pixels; nan for a class without any pixel."""
    return ratio(tp, objects + fp), ratio(rest - fp, rest + objects - tp)


def pixels_above(pixels: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """True and false positives of pixels [B, H, W] > t for every t of THRESHOLDS; truth [B, H, W] bool. [B, 19] int64.

    All thresholds share one histogram.
    """
    edges = on_device(THRESHOLDS, pixels.device, pixels.dtype)
    below = torch.bucketize(pixels, edges)  # number of thresholds below each pixel
    bins = len(THRESHOLDS) + 1
    image = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    index = (2 * image + truth.long()) * bins + below  # one histogram per image and true class
    histogram = index.new_zeros(2 * bins * len(pixels))
    count_by(index.flatten(), into=histogram)
    above = histogram.view(-1, 2, bins).flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return above[:, 1], above[:, 0]


def average_precision(right: Tensor, wrong: Tensor) -> Tensor:
    """Area under the precision-recall steps, scalar float64, from the scores of the elements that are true, [n] float,
    and of those that are not, [m]. Ties are one step.

    Equal to scikit-learn's `average_precision_score`, but stays on the GPU instead of sorting 2 H W scores per image on
    the CPU. nan without a true element.
    """
    right, wrong = right.sort().values, wrong.sort().values
    tp = len(right) - torch.searchsorted(right, right)  # found at the threshold of each true element
    fp = len(wrong) - torch.searchsorted(wrong, right)
    return (tp.double() / (tp + fp)).mean()


def both_classes_ap(pixels: Tensor, truth: Tensor) -> Tensor:
    """`average_precision` of the background and object scores of one image together: pixels [H, W] in [0, 1].

    Each pixel is a true element of one of the two classes and an untrue one of the other.
    """
    right, wrong = torch.where(truth, pixels, 1 - pixels), torch.where(truth, 1 - pixels, pixels)
    return average_precision(right.flatten(), wrong.flatten())


def row_f1(found: Tensor, truth: Tensor) -> Tensor:
    """Mean over the pixel rows of one image of the row's F1, scalar float64; found, truth [H, W] bool."""
    counts = count_pixels(found[:, None], truth[:, None])
    whole = 2 * counts.tp + counts.fp + counts.fn
    return (2 * counts.tp.double() / whole.clamp(min=1)).mean()
