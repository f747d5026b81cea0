"""The choice of map metrics and their options."""

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
"""Metric -> what the data set must have: object masks, boxes, or either."""


@dataclass(frozen=True)
class MetricSelection:
    """The metrics to compute: of every method's maps, and of the model."""

    maps: tuple[str, ...]
    """Names in `MAP_METRICS`."""
    as_masks: bool
    background_swap: bool


def wanted_metrics(names: Sequence[str] | None, sample: Batch, has_stage_2: bool) -> MetricSelection:
    """The metrics `names`, or the default ones that data set and models support.

    `sample`: any batch of the data. `has_stage_2`: whether there is a two-stage model to classify with maps as masks.
    Raises UserError for a metric that is unknown or that data set or models do not support.
    """
    available = {"masks": sample.mask is not None, "boxes": sample.boxes is not None}
    available["masks or boxes"] = any(available.values())
    supported = {name: available[NEEDS[name]] if name in NEEDS else True for name in KNOWN}
    supported[OF_STAGE_2] = has_stage_2
    for name in names or ():
        if name not in supported:
            raise UserError(f"unknown map metric (--metrics) {name!r}; known: {', '.join(KNOWN)}")
        if not supported[name]:
            missing = (
                "a two-stage run (--run or --masks-for)" if name == OF_STAGE_2 else f"a data set with {NEEDS[name]}"
            )
            raise UserError(f"--metrics: {name} needs {missing}")
    chosen = names or [name for name in (*DEFAULT, OF_STAGE_2, OF_THE_MODEL) if supported[name]]
    return MetricSelection(tuple(n for n in chosen if n in MAP_METRICS), OF_STAGE_2 in chosen, OF_THE_MODEL in chosen)


@dataclass(frozen=True)
class MapMetricOptions:
    """Options of the map metrics that a user can set. They are part of the reported protocol."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """The normalisation of the images."""
    patch: int
    """Side of a patch in pixels."""
    threshold: float | None = 0.5
    """localization: threshold of the map; None: the mean of each map."""
    edges: str = "exact"
    steps: int = 10
    """abpc, perturbation, insertion_deletion: steps from the whole image to none of it."""
    fill: str | None = None
    """The same metrics: fill of removed pixels; None: the published one of each metric."""
    cell: int = 1
    """The same metrics: side in pixels of the squares that are removed."""
    ties: str = "position"
    """abpc: order of equal values; published: as its code leaves them."""
    tolerance: float = 0.0
    """pointing: distance to the object in pixels that still counts as a hit."""
    keep_ratio: float | Callable[[Tensor], Tensor] = 0.25
    """certificate: fraction of patches to keep, or a function images [B, 3, H, W] -> fractions [B]."""

    def options(self, metric: str) -> dict[str, Any]:
        """The keyword arguments of a metric's factory."""
        removal = {"mean": self.mean, "std": self.std, "steps": self.steps, "patch": self.cell}
        removal |= {"fill": self.fill} if self.fill else {}
        own: dict[str, dict[str, Any]] = {
            "abpc": removal | {"ties": self.ties},
            "localization": {"threshold": self.threshold, "edges": self.edges},
            "segmentation": {},
            "detection": {},
            "pointing": {"tolerance": self.tolerance},
            "certificate": {"patch": self.patch, "kept": self.keep_ratio},
        }
        return own.get(metric, removal)


def build_map_metrics(names: Sequence[str], info: DatasetInfo, options: MapMetricOptions) -> dict[str, MapMetric]:
    """The metrics `names` with their options. Raises UserError for an invalid value."""
    return {name: MAP_METRICS[name](info, **options.options(name)) for name in names}
