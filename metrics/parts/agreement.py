"""Do the discovered parts agree with the true ones: NMI and ARI at key points and at pixels."""

import torch
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, count_by
from metrics.parts.contingency import adjusted_rand_index, normalized_mutual_information
from metrics.parts.part_maps import maps_of, pixel_labels, point_labels
from metrics.registry import METRICS
from metrics.types import Prediction

MOST_CHANNELS = 256
"""Width of the tables, K + 1 at most: a state needs its shape before the first model is seen."""


class PartAgreement(ExactMetric):
    """Agreement of the largest channel of the part maps, background included, with the true parts. Keys:

    - `part_nmi`, `part_ari`: over all visible key points of all images, the truth being which key point it is
    - `part_nmi_pixels`, `part_ari_pixels`: over all pixels of all images, the truth being the pixel's part, or none
    - `count/part_points`, `count/part_pixels`: how many were counted

    NMI (arithmetic mean of the entropies) is in [0, 1], ARI at most 1 and 0 for chance; published times 100. One number
    over the whole split, not a mean over images. Each pair of metrics appears where batches have that annotation.
    """

    at_points: Tensor
    at_pixels: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        """Raises UserError for a data set without parts."""
        super().__init__()
        if info.part_names is None:
            raise UserError(f"metric 'parts': data set {info.name!r} has no parts; drop it from --metrics")
        self.info, self.parts = info, len(info.part_names)
        self.add_counter("at_points", self.parts, MOST_CHANNELS)
        self.add_counter("at_pixels", self.parts + 1, MOST_CHANNELS)  # the last row: none of the parts

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises UserError where there are no part maps, too many, or no true parts."""
        maps = maps_of(prediction, "parts")
        if batch.keypoints is None and batch.part_labels is None:
            raise UserError(f"metric 'parts': a batch of data set {self.info.name!r} carries no parts")
        if maps.shape[1] > MOST_CHANNELS:
            raise UserError(f"metric 'parts' tells {MOST_CHANNELS - 1} parts apart, the model has {maps.shape[1] - 1}")
        self.follow(prediction)
        size = (batch.image.shape[2], batch.image.shape[3])
        if batch.keypoints is not None:
            names = torch.arange(self.parts, device=maps.device).expand(len(batch), -1)
            found = point_labels(maps, batch.keypoints[..., :2], size)
            _count_pairs(names, found, self.at_points, batch.keypoints[..., 2] > 0)
        if batch.part_labels is not None:
            truth = torch.where(batch.part_labels < 0, self.parts, batch.part_labels)
            _count_pairs(truth, pixel_labels(maps, size, align_corners=False), self.at_pixels)

    def compute(self) -> dict[str, float]:
        """The metrics named in the class docstring."""
        results = {}
        for suffix, name, table in (("", "part_points", self.at_points), ("_pixels", "part_pixels", self.at_pixels)):
            if count := int(table.sum()):
                results[f"part_nmi{suffix}"] = normalized_mutual_information(table)
                results[f"part_ari{suffix}"] = adjusted_rand_index(table)
                results[f"count/{name}"] = float(count)
        return results


def _count_pairs(truth: Tensor, found: Tensor, table: Tensor, flags: Tensor | None = None) -> None:
    """Add every pair of labels, both int64 of one shape, to table [P, C] int64, where flags (bool, same shape)."""
    index = truth * table.shape[1] + found
    count_by(index.flatten(), table.view(-1), None if flags is None else flags.flatten())


@METRICS.register("parts")
def parts(info: DatasetInfo) -> PartAgreement:
    """See `PartAgreement`."""
    return PartAgreement(info)
