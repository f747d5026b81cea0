"""What measures: classification, groups and masks. Importing this package fills the registry."""

from metrics import auroc, classification, groups, masks  # noqa: F401  (each registers its metrics)
from metrics.registry import METRICS, MetricSet, build_metrics, default_metrics
from metrics.types import Metric, Prediction

__all__ = ["METRICS", "Metric", "MetricSet", "Prediction", "build_metrics", "default_metrics"]
