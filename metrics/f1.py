"""F1, each class against the rest, with bootstrap intervals."""

from typing import ClassVar

import numpy as np
from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, check_logits, count_by
from metrics.maps.per_image import bootstrap
from metrics.registry import MAX_NAMED_CLASSES, METRICS
from metrics.types import Prediction

SHOWN_F1 = {
    "macro_f1": MetricInfo(percent=True, headline=30, panel="several classes", better="higher"),
    "micro_f1": MetricInfo(percent=True, headline=40, panel="several classes", better="higher"),
}


@METRICS.register("f1")
class F1(ExactMetric):
    """Keys, in [0, 1]:

    - `macro_f1`: mean over classes of 2 TP / (2 TP + FP + FN), without classes that have no images and no predictions
    - `micro_f1`: the same ratio of the counts of all classes together; with one class per image it is the accuracy
    - both with `/low` and `/high`, their 95 % bootstrap interval over images
    - `f1/class/<name>`, up to `MAX_NAMED_CLASSES` classes; nan where it is 0 / 0

    The class with the highest logit is predicted; a row of logits with a nan predicts none.
    """

    shown: ClassVar = {**SHOWN_F1, "f1/class/": MetricInfo(percent=True, better="higher")}
    confusion: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        """Raises UserError for a data set with several classes per image."""
        super().__init__()
        if info.multi_label:
            raise UserError(f"metric 'f1': images of {info.name!r} show several classes; use multilabel")
        self.info = info
        # Rows are labels, columns predictions; the last column is for images without a prediction.
        self.add_counter("confusion", info.num_classes * (info.num_classes + 1))

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises ValueError where the logits do not fit the classes."""
        classes = self.info.num_classes
        check_logits(prediction.logits, batch.label, classes)
        found = prediction.logits.argmax(1).masked_fill(prediction.logits.isnan().any(1), classes)
        count_by(batch.label * (classes + 1) + found, self.confusion)

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        classes = self.info.num_classes
        confusion = self.confusion.cpu().numpy().reshape(classes, classes + 1)
        # One entry per image again, for the bootstrap.
        cell = np.repeat(np.arange(confusion.size), confusion.flatten())
        results = scores(confusion)
        if classes <= MAX_NAMED_CLASSES:
            named = zip(self.info.class_names, f1_by_class(confusion).tolist(), strict=True)
            results |= {f"f1/class/{name}": value for name, value in named}

        def resampled(weight: np.ndarray) -> dict[str, float]:
            return scores(np.bincount(cell, weight, minlength=confusion.size).reshape(confusion.shape))

        return results | bootstrap(resampled, len(cell))


def scores(confusion: np.ndarray) -> dict[str, float]:
    """Macro and micro F1 of counts [C, C + 1]: rows are labels, columns predictions, the last one "none"."""
    total = confusion.sum() + confusion[:, :-1].sum()
    return {
        "macro_f1": mean_of_known(f1_by_class(confusion)),
        "micro_f1": float(ratio_or_nan(2.0 * np.trace(confusion), total)),
    }


def f1_by_class(confusion: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each class, [C]; nan where it is 0 / 0."""
    return ratio_or_nan(2.0 * np.diagonal(confusion), confusion.sum(1) + confusion[:, :-1].sum(0))


def ratio_or_nan(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """parts / wholes, both of the same shape; nan where a whole is 0."""
    ratios: np.ndarray = np.divide(parts, wholes, out=np.full(np.shape(parts), np.nan), where=np.asarray(wholes) > 0)
    return ratios


def mean_of_known(values: np.ndarray) -> float:
    """Mean of the values that are not nan; nan of none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
