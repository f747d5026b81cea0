"""Explanations as masks: the largest patches of a heat map, as many as the learned mask keeps, replace that mask."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from common.metric_info import MetricInfo, declare
from common.processes import gather, gather_blocks
from datasets.types import Batch, DatasetInfo
from metrics.base import states_on_host
from metrics.maps.removal import on_grid, rank_cells
from metrics.registry import MetricSet, build_metrics
from metrics.types import Prediction

PredictMasked = Callable[[Tensor, Tensor], Tensor]
"""(images [B, 3, H, W], mask [B, h, w] bool) -> logits [B, C] of a model that sees only the patches in the mask."""

declare(
    {
        "as_mask/accuracy": MetricInfo(percent=True, headline=150),
        "as_mask/worst_group_accuracy": MetricInfo(percent=True, headline=160),
        "as_mask/mask_iou": MetricInfo(percent=True, headline=170),
    }
)


def keep_largest(maps: Tensor, count: Tensor) -> Tensor:
    """[B, h, w] bool: the count[b] largest patches of maps [B, h, w], ties by row-major position; count [B] int64.

    A map with a value that is not finite keeps nothing.
    """
    finite = maps.isfinite().flatten(1).all(1)
    return (rank_cells(maps) < count[:, None, None]) & finite[:, None, None]


def object_patches(truth: Tensor, grid: tuple[int, int]) -> Tensor:
    """The true mask [B, H, W] bool on the patch grid, [B, h, w] bool: patches that the object covers at least by half.

    If it covers half of no patch: the patch it covers most, the first of several. Without an object: none.
    """
    covered = F.adaptive_avg_pool2d(truth.float(), grid)
    best = (rank_cells(covered) == 0) & (covered > 0)
    return (covered >= 0.5) | best


class MaskComparison:
    """Stage 2 with the learned mask, the true mask, and each method's largest patches, as many as the learned mask has.

    For each of these sources the metrics `accuracy`, `mask` and, where the data set has groups, `groups`. All sources
    are scored on the same images: a map with nan keeps no patch and is counted in `count/nan_maps`.
    """

    def __init__(self, info: DatasetInfo, predict: PredictMasked) -> None:
        self.info, self.predict = info, predict
        self.sources: dict[str, MetricSet] = {}
        self.nan_maps: dict[str, Tensor] = {}

    def update(self, batch: Batch, learned: Tensor, maps: Mapping[str, Tensor]) -> None:
        """Count one batch. learned [B, h, w] bool; maps by method, [B, h, w] or at pixels (averaged by patch)."""
        grid = (learned.shape[1], learned.shape[2])
        self._count("learned", batch, learned)
        if batch.mask is not None:
            self._count("truth", batch, object_patches(batch.mask, grid))
        for name, heat in maps.items():
            failed = (~heat.isfinite()).flatten(1).any(1).sum()
            self.nan_maps[name] = self.nan_maps.get(name, 0) + failed
            self._count(name, batch, keep_largest(on_grid(heat, grid), learned.flatten(1).sum(1)))

    def _count(self, source: str, batch: Batch, mask: Tensor) -> None:
        self._metrics(source).update(batch, Prediction(self.predict(batch.image, mask), mask=mask))

    def _metrics(self, source: str) -> MetricSet:
        if source not in self.sources:
            names = ("accuracy", "mask") if self.info.group_names is None else ("accuracy", "groups", "mask")
            self.sources[source] = build_metrics(names, self.info)
        return self.sources[source]

    def compute(self) -> dict[str, dict[str, float]]:
        """Metrics by source: `learned`, `truth` (for data sets with masks), then the methods."""
        states_on_host(metric for metrics in self.sources.values() for metric in metrics.metrics.values())
        nan_maps = torch.stack(list(self.nan_maps.values())).tolist() if self.nan_maps else []
        sources = dict.fromkeys(gather_blocks(list(self.sources)))  # a process without images has none
        results = {source: self._metrics(source).compute() for source in sources}
        for counts in gather(dict(zip(self.nan_maps, nan_maps, strict=True))):
            for name, count in counts.items():
                results[name]["count/nan_maps"] = results[name].get("count/nan_maps", 0.0) + count
        return results
