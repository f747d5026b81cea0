"""Agreement of the discovered parts with the true ones: NMI and ARI at key points and at pixels.

Both are computed from tables of exact counts, because lists of the labels of all pixels would not fit into memory.
"""

import math
from typing import ClassVar

import numpy as np
import torch
from scipy.stats import entropy
from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, count_by
from metrics.parts.part_maps import MOST_CHANNELS, check_channels, maps_of, pixel_labels, point_labels
from metrics.registry import METRICS
from metrics.types import Prediction


@METRICS.register("parts")
class PartAgreement(ExactMetric):
    """Agreement of the largest channel of the part maps, background included, with the true parts. Keys:

    - `part_nmi`, `part_ari`: over all visible key points of all images; the true label is the key point's index
    - `part_nmi_pixels`, `part_ari_pixels`: over all pixels of all images; the true label is the pixel's part, or none
    - `count/part_points`, `count/part_pixels`: how many were counted

    NMI is in [0, 1], ARI at most 1 and 0 for chance; published times 100. One number over the whole split, not a mean
    over images. Each pair of metrics appears where batches have that annotation.
    """

    shown: ClassVar = {
        "part_nmi": MetricInfo(percent=True, headline=120, better="higher"),
        "part_ari": MetricInfo(percent=True, headline=130, better="higher"),
        "part_nmi_pixels": MetricInfo(percent=True, headline=140, better="higher"),
        "part_ari_pixels": MetricInfo(percent=True, headline=150, better="higher"),
    }

    at_points: Tensor
    at_pixels: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        """Raises UserError for a data set without parts."""
        super().__init__()
        if info.part_names is None:
            raise UserError(f"metric 'parts': data set {info.name!r} has no parts; drop it from --metrics")
        self.info, self.parts = info, len(info.part_names)
        self.add_counter("at_points", self.parts, MOST_CHANNELS)
        self.add_counter("at_pixels", self.parts + 1, MOST_CHANNELS)  # the last row: pixels of no part

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises UserError where there are no part maps, too many, or no true parts."""
        maps = maps_of(prediction, "parts")
        if batch.keypoints is None and batch.part_labels is None:
            raise UserError(f"metric 'parts': a batch of data set {self.info.name!r} carries no parts")
        check_channels(maps, "parts")
        size = (batch.image.shape[2], batch.image.shape[3])
        if batch.keypoints is not None:
            names = torch.arange(self.parts, device=maps.device).expand(len(batch), -1)
            found = point_labels(maps, batch.keypoints[..., :2], size)
            _count_pairs(names, found, self.at_points, batch.keypoints[..., 2] > 0)
        if batch.part_labels is not None:
            truth = torch.where(batch.part_labels < 0, self.parts, batch.part_labels)
            _count_pairs(truth, pixel_labels(maps, size, align_corners=False), self.at_pixels)

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        results = {}
        states = (("", "part_points", self.at_points), ("_pixels", "part_pixels", self.at_pixels))
        for suffix, name, state in states:
            table = state.cpu().numpy()
            if count := int(table.sum()):
                results[f"part_nmi{suffix}"] = normalized_mutual_information(table)
                results[f"part_ari{suffix}"] = adjusted_rand_index(table)
                results[f"count/{name}"] = float(count)
        return results


def _count_pairs(truth: Tensor, found: Tensor, table: Tensor, flags: Tensor | None = None) -> None:
    """Add every pair of labels, both int64 of one shape, to table [P, C] int64, where flags (bool, same shape)."""
    index = truth * table.shape[1] + found
    count_by(index.flatten(), table.view(-1), None if flags is None else flags.flatten())


def normalized_mutual_information(table: np.ndarray) -> float:
    """Mutual information over the mean of the two entropies, in [0, 1]; table [P, C] int64, nan for an empty one.

    scikit-learn's `normalized_mutual_info_score`, from how often each pair of labels occurs.
    """
    if not table.any():
        return math.nan
    joint, truth, found = (float(entropy(c[c > 0])) for c in (table.flatten(), table.sum(1), table.sum(0)))
    if truth + found == 0:
        return 1.0  # one label each
    return min(max(2 * (truth + found - joint) / (truth + found), 0.0), 1.0)


def adjusted_rand_index(table: np.ndarray) -> float:
    """Agreement on pairs, 0 for chance and 1 at most (Hubert & Arabie 1985, eq. 5); table [P, C] int64, nan if empty.

    scikit-learn's `adjusted_rand_score`, from how often each pair of labels occurs.
    """
    if not table.any():
        return math.nan
    exact = table.astype(object)  # Python integers: the square of a number of pixels does not fit into 64 bits
    # Ordered pairs of elements that share a label in both labellings, in each, and all pairs.
    both, truth, found = (int((n * (n - 1)).sum()) for n in (exact, exact.sum(1), exact.sum(0)))
    count = int(exact.sum())
    total = count * (count - 1)
    if both == truth == found:
        return 1.0
    return 2 * (both * total - truth * found) / ((truth + found) * total - 2 * truth * found)
