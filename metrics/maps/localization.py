"""Localisation: the thresholded map, or the boxes around it, against the true mask and the true boxes."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import is_correct
from metrics.maps.boxes import TRUTHS, Edges, check_edges, fill_components, true_objects
from metrics.maps.per_image import MAP_METRICS, Columns, MapMetric, count_flags, weighted_mean
from metrics.maps.pixels import Counts, check_threshold, count_pixels, foreground, heat, silent_maps
from metrics.types import Explanation

SCORES = ("accuracy", "iou", "dice", "precision", "recall")
PUBLISHED_EPSILON = 1e-5


@MAP_METRICS.register("localization")
class Localization(MapMetric):
    """The localisation scores of the AGCAM paper, computed from the pixels of each image and averaged over images.

    For each of `boxes` and `mask` that the data set has, and each of accuracy, iou, dice, precision, recall:
    `localization/<truth>/<score>` over correctly classified images (as published; which images these are depends on the
    model, not on the explanation method) and `localization/<truth>/<score>/all` over all images. `boxes` compares the
    union of the boxes around the thresholded map's 8-connected components with the union of the true boxes; `mask`
    compares the thresholded map with the true mask. Images without a true object are left out. Maps that are not
    finite, or constant, find nothing: every score except accuracy is 0.

    Options: `threshold` in [0, 1), or None for the mean of each map; `edges` "inclusive" is the arithmetic of the
    published code: boxes one pixel too large, and an epsilon of 1e-5 in every fraction.
    """

    target = "predicted"
    shown: ClassVar = {
        **{f"localization/{truth}/{score}": MetricInfo(percent=True) for truth in TRUTHS for score in SCORES},
        "localization/mask/iou": MetricInfo(percent=True, headline=10),
        "localization/boxes/iou": MetricInfo(percent=True, headline=20),
    }

    def __init__(self, info: DatasetInfo, *, threshold: float | None = 0.5, edges: Edges = "exact") -> None:
        """Raises UserError for an option out of range."""
        super().__init__(info)
        check_threshold(threshold)
        check_edges(edges)
        self.threshold, self.edges = threshold, edges
        self.epsilon = 0.0 if edges == "exact" else PUBLISHED_EPSILON
        scores = (f"{truth}/{score}" for truth in TRUTHS for score in SCORES)
        self.columns = (*scores, "correct", "nan_map", "constant_map")

    def rows(self, batch: Batch, explanation: Explanation) -> Tensor:
        """[B, columns]: scores of each truth, nan where the image has none."""
        objects = true_objects(batch, explanation, "localization", self.edges)
        size = (batch.image.shape[2], batch.image.shape[3])
        found = foreground(heat(explanation.maps, size), self.threshold)
        failed, constant = silent_maps(explanation.maps)
        values = {"correct": is_correct(explanation.logits, batch.label), "nan_map": failed, "constant_map": constant}
        for name, truth in objects.items():
            filled = fill_components(found, self.edges) if name == "boxes" else found
            there = truth.flatten(1).any(dim=1)
            for score, value in overlap_scores(count_pixels(filled, truth), self.epsilon).items():
                values[f"{name}/{score}"] = torch.where(there, value, torch.nan)
        return self.table_of(values)

    def summarise(self, columns: Columns, weight: np.ndarray) -> dict[str, float]:
        """The values named in the class docstring."""
        results, correct = {}, weight * columns["correct"]
        present = [truth for truth in TRUTHS if not np.isnan(columns[f"{truth}/iou"]).all()]
        for name in (f"{truth}/{score}" for truth in present for score in SCORES):
            results[f"localization/{name}"] = weighted_mean(columns[name], correct)
            results[f"localization/{name}/all"] = weighted_mean(columns[name], weight)
        flags = {"images": np.ones_like(weight), "correct": columns["correct"]}
        flags |= {f"with_{truth}": ~np.isnan(columns[f"{truth}/iou"]) for truth in present}
        return results | count_flags("localization", flags, columns, weight)

    def protocol(self) -> dict[str, object]:
        """The settings that reproduce the metrics."""
        return {
            "maps_of": "predicted class",
            "images": "correctly classified; keys ending in /all: every image",
            "maps": "enlarged bilinearly, corners not aligned, each stretched to [0, 1]",
            "threshold": "mean of each map" if self.threshold is None else self.threshold,
            "boxes": "union of the boxes around 8-connected components above the threshold, against all true boxes",
            "mask": "pixels above the threshold against the true mask",
            "edges": self.edges,
            "epsilon": self.epsilon,
            "nan_maps": "counted, scored as empty, as constant maps are",
        }


def overlap_scores(counts: Counts, epsilon: float) -> dict[str, Tensor]:
    """The `SCORES` of each image, [B] float64; epsilon is added to numerator and denominator; 0 / 0 is 0."""
    tp, fp, fn, tn = (count.double() for count in counts)
    fractions = {
        "accuracy": (tp + tn, tp + fp + fn + tn),
        "iou": (tp, tp + fp + fn),
        "dice": (2 * tp, 2 * tp + fp + fn),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
    }
    return {
        name: torch.where(whole + epsilon > 0, (part + epsilon) / (whole + epsilon), 0)
        for name, (part, whole) in fractions.items()
    }
