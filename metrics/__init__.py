"""What measures: classification, groups, masks and heat maps. Importing this package fills the registries."""

from metrics import (  # noqa: F401  (each registers its metrics)
    auroc,
    classification,
    detection,
    f1,
    faithfulness,
    foreground,
    groups,
    keypoints,
    localization,
    masks,
    multilabel,
    multilabel_intervals,
    parts,
    perturbation,
    pointing,
    segmentation,
)
from metrics.registry import METRICS, MetricSet, build_metrics, default_metrics
from metrics.types import Metric, Prediction

__all__ = ["METRICS", "Metric", "MetricSet", "Prediction", "build_metrics", "default_metrics"]
