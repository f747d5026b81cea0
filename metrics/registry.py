"""Metrics by name, and several metrics used as one."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from common.errors import UserError
from common.registry import Registry
from datasets.types import Batch, DatasetInfo, Sample
from metrics.base import ExactMetric, FittedMetric, states_on_host
from metrics.types import Prediction

MetricFactory: TypeAlias = Callable[[DatasetInfo], ExactMetric]
"""Usually the class of the metric itself."""

METRICS: Registry[MetricFactory] = Registry("metric (--metrics)")

MAX_NAMED_CLASSES = 20
"""Up to this many classes, metrics per class are listed and AUROC is among the default metrics."""


class MetricSet:
    """Several metrics fed together; their results are one dict."""

    def __init__(self, metrics: dict[str, ExactMetric], info: DatasetInfo) -> None:
        """`metrics`: by the name that the user gave, in the order of the report; all built for the data set `info`."""
        self.metrics, self.info = metrics, info

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch in every metric."""
        for metric in self.metrics.values():
            metric.update(batch, prediction)

    @property
    def to_fit(self) -> tuple[str, ...]:
        """Names of the metrics that need the training split first, through `fit`."""
        return tuple(name for name, metric in self.metrics.items() if isinstance(metric, FittedMetric))

    def fit(self, batch: Batch, prediction: Prediction) -> None:
        """Fit the metrics of `to_fit` on one batch of the training split."""
        for metric in self.metrics.values():
            if isinstance(metric, FittedMetric):
                metric.fit(batch, prediction)

    def compute(self) -> dict[str, float]:
        """All metrics. Waits for the device once or twice. Raises ValueError when two metrics report under one key."""
        states_on_host(self.metrics.values())
        results: dict[str, float] = {}
        owner: dict[str, str] = {}
        for name, metric in self.metrics.items():
            for key, value in metric.compute().items():
                if key in owner:
                    raise ValueError(f"metrics {owner[key]!r} and {name!r} both report {key!r}")
                owner[key], results[key] = name, value
        return results

    def certain(self) -> frozenset[str]:
        """Keys that are reported for any model and any images; forgets everything counted."""
        self.reset()
        return frozenset(self.compute())

    def reset(self) -> None:
        """Forget everything counted."""
        for metric in self.metrics.values():
            metric.reset()


def build_metrics(names: Sequence[str], info: DatasetInfo) -> MetricSet:
    """The named metrics for a data set.

    Raises UserError for an unknown name, a name given twice, or a metric that the data set lacks annotations for.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise UserError(f"--metrics names {', '.join(twice)} more than once")
    return MetricSet({name: METRICS[name](info) for name in names}, info)


def default_metrics(info: DatasetInfo, has_mask: bool, sample: Sample | None = None) -> tuple[str, ...]:
    """The metrics that apply to a data set and a model, used where the user names none.

    `has_mask`: the model's predictions have a patch mask (a plain ViT's do not). `sample`: for a model with part maps,
    any sample of the data set; its annotations decide which metrics of the part maps apply. Metrics that read the
    training split (`MetricSet.to_fit`) are never a default.
    """
    there = set() if sample is None else {name for name, value in vars(sample).items() if value is not None}
    fits = {
        "accuracy": not info.multi_label,
        "multilabel": info.multi_label,
        "groups": info.group_names is not None and not info.multi_label,
        "auroc": info.num_classes <= MAX_NAMED_CLASSES and not info.multi_label,
        "mask": has_mask,
        "part_use": sample is not None,
        "foreground": "mask" in there,
        "parts": info.part_names is not None and bool(there & {"keypoints", "part_labels"}),
    }
    return tuple(name for name, wanted in fits.items() if wanted)
