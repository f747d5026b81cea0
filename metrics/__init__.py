"""Metrics of classification, groups, masks and heat maps. Importing this package fills the registries."""

from metrics import auroc, calibration, classification, f1, groups, masks, multilabel  # noqa: F401
from metrics.maps import certificate, detection, localization, perturbation, pointing, segmentation  # noqa: F401
from metrics.parts import agreement, foreground, keypoints, use  # noqa: F401
from metrics.registry import METRICS, MetricSet, build_metrics, default_metrics
from metrics.types import Metric, Prediction

__all__ = ["METRICS", "Metric", "MetricSet", "Prediction", "build_metrics", "default_metrics"]
