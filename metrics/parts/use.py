"""How many of the K parts are used: the distribution of the foreground patches over the parts."""

import math
from typing import ClassVar

import torch
from scipy.stats import entropy
from torch import Tensor

from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, count_by, ratio
from metrics.parts.part_maps import MOST_CHANNELS, check_channels, maps_of
from metrics.registry import METRICS
from metrics.types import Prediction

SMALLEST_FRACTION = 0.01
"""A part is used if it holds at least this fraction of the foreground patches."""


@METRICS.register("part_use")
class PartUse(ExactMetric):
    """Over the foreground patches of all images: those whose largest channel of the part maps is a part. Keys:

    - `parts_used`: the number of parts that hold at least 1 % of them
    - `part_entropy`: entropy of their distribution over the parts, divided by log K: 1 if all parts hold equally many,
      0 if one part holds all; nan for K = 1
    - `largest_part`: the fraction that the largest part holds
    - `parts_per_image`: mean over images of the number of parts with at least one patch
    - `count/foreground_patches`: how many there are; with none, the first three are nan

    All but the count are nan if the map of an image is not finite. It needs no annotations.
    """

    shown: ClassVar = {
        "parts_used": MetricInfo(headline=112, label="parts that hold patches", better="higher"),
        "part_entropy": MetricInfo(percent=True, headline=114, better="higher"),
        "largest_part": MetricInfo(percent=True, better="lower"),
        "parts_per_image": MetricInfo(),
    }

    held: Tensor
    present: Tensor
    images: Tensor
    parts: Tensor
    broken: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        self.add_counter("held", MOST_CHANNELS)
        for name in ("present", "images", "parts", "broken"):
            self.add_counter(name)

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises UserError where there are no part maps, or too many."""
        maps = maps_of(prediction, "part_use")
        check_channels(maps, "part_use")
        images, parts = len(maps), maps.shape[1] - 1
        largest = maps.argmax(dim=1).flatten(1)
        count_by(largest.flatten(), self.held, largest.flatten() < parts)
        holds = torch.zeros(images, parts + 1, dtype=torch.int64, device=maps.device).scatter_(1, largest, 1)
        self.present += holds[:, :parts].sum()
        self.images += images
        self.parts += images * parts  # a process without images does not know K: a sum over images gives it to all
        self.broken += (~maps.isfinite()).flatten(1).any(1).sum()

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        images, held = int(self.images), self.held.cpu().numpy()
        parts, patches = int(self.parts) // max(1, images), int(held.sum())
        results = {
            "parts_used": float((held >= SMALLEST_FRACTION * patches).sum()) if patches else math.nan,
            "part_entropy": float(entropy(held[:parts])) / math.log(parts) if patches and parts > 1 else math.nan,
            "largest_part": ratio(int(held.max()), patches),
            "parts_per_image": ratio(int(self.present), images),
        }
        if self.broken:
            results = dict.fromkeys(results, math.nan)
        return {**results, "count/foreground_patches": float(patches)}
