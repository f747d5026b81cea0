"""Which map metrics a user gets, with which options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics.maps.per_image import MAP_METRICS, MapMetric

OF_STAGE_2 = "as_masks"
OF_THE_MODEL = "background_swap"
DEFAULT = ("localization", "segmentation", "pointing", "abpc", "perturbation", "insertion_deletion", "certificate")
KNOWN = (*MAP_METRICS, OF_STAGE_2, OF_THE_MODEL)
NEEDS = {
    "localization": "masks or boxes", "pointing": "masks or boxes", "segmentation": "masks", OF_THE_MODEL: "masks",
    "detection": "boxes",
}  # fmt: skip
"""Metric to what the data set must have: true masks, boxes, or either."""


@dataclass(frozen=True)
class MetricSelection:
    """What is measured of every method, and what besides."""

    maps: tuple[str, ...]
    """Names in `MAP_METRICS`."""
    as_masks: bool
    background_swap: bool


def wanted_metrics(names: Sequence[str] | None, sample: Batch, has_stage_2: bool) -> MetricSelection:
    """The metrics named, or all that the data set and the models can serve.

    `sample`: any batch of the data. `has_stage_2`: a two-stage model is at hand to be shown maps as masks. Raises
    UserError for an unknown name, or a metric that the data set or the models cannot serve.
    """
    there = {"masks": sample.mask is not None, "boxes": sample.boxes is not None}
    there["masks or boxes"] = any(there.values())
    can = {name: there[NEEDS[name]] if name in NEEDS else True for name in KNOWN}
    can[OF_STAGE_2] = has_stage_2
    for name in names or ():
        if name not in can:
            raise UserError(f"unknown metric (--metrics) {name!r} of maps; known: {', '.join(KNOWN)}")
        if not can[name]:
            lacks = "a two-stage run (--run or --masks-for)" if name == OF_STAGE_2 else f"a data set with {NEEDS[name]}"
            raise UserError(f"--metrics: {name} needs {lacks}")
    chosen = names or [name for name in (*DEFAULT, OF_STAGE_2, OF_THE_MODEL) if can[name]]
    return MetricSelection(tuple(n for n in chosen if n in MAP_METRICS), OF_STAGE_2 in chosen, OF_THE_MODEL in chosen)


@dataclass(frozen=True)
class MapMetricOptions:
    """Options of the metrics that a user can set; the metrics' protocol states them."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """What the images were normalised by."""
    patch: int
    """Side of a patch, pixels."""
    threshold: float | None = 0.5
    """localization: what counts as found; None = the mean of each map."""
    edges: str = "exact"
    steps: int = 10
    """abpc, perturbation, insertion_deletion: steps from the whole image to none of it."""
    fill: str | None = None
    """What covers pixels there; None = each metric's published one."""
    cell: int = 1
    """Side of what is covered at a time there, pixels."""
    tolerance: float = 0.0
    """pointing: pixels around the object that count as hit."""
    keep_ratio: float | Callable[[Tensor], Tensor] = 0.25
    """certificate: fraction of patches to keep, or a function images [B, 3, H, W] -> fractions [B]."""

    def options(self, metric: str) -> dict[str, Any]:
        """The keyword arguments of a metric's factory."""
        removal = {"mean": self.mean, "std": self.std, "steps": self.steps, "patch": self.cell}
        removal |= {"fill": self.fill} if self.fill else {}
        own: dict[str, dict[str, Any]] = {
            "localization": {"threshold": self.threshold, "edges": self.edges},
            "segmentation": {},
            "detection": {},
            "pointing": {"tolerance": self.tolerance},
            "certificate": {"patch": self.patch, "kept": self.keep_ratio},
        }
        return own.get(metric, removal)


def build_map_metrics(names: Sequence[str], info: DatasetInfo, options: MapMetricOptions) -> dict[str, MapMetric]:
    """The named metrics with their options. Raises UserError for a value that does not fit."""
    return {name: MAP_METRICS[name](info, **options.options(name)) for name in names}
