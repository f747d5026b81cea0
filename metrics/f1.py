"""F1, each class against the rest, with bootstrap intervals."""

import numpy as np
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, check_logits, count_by
from metrics.maps.per_image import bootstrap
from metrics.registry import MAX_NAMED_CLASSES, METRICS
from metrics.types import Prediction


class F1(ExactMetric):
    """Keys, in [0, 1]:

    - `macro_f1`: mean over classes of 2 TP / (2 TP + FP + FN), without classes that are neither there nor predicted
    - `micro_f1`: the same of the counts of all classes together; where an image shows one class it is the accuracy
    - both with `/low` and `/high`, their 95 % bootstrap interval over images
    - `f1/class/<name>`, up to `MAX_NAMED_CLASSES` classes; nan where it is 0 / 0

    The class with the highest logit is predicted; a row of logits with a nan predicts none.
    """

    confusion: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        """Raises UserError for a data set with several classes in an image."""
        super().__init__()
        if info.multi_label:
            raise UserError(f"metric 'f1': images of {info.name!r} show several classes; use multilabel")
        self.info = info
        self.add_counter("confusion", info.num_classes * (info.num_classes + 1))

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises ValueError where the logits do not fit the classes."""
        self.follow(prediction)
        classes = self.info.num_classes
        check_logits(prediction.logits, batch.label, classes)
        found = prediction.logits.argmax(1).masked_fill(prediction.logits.isnan().any(1), classes)
        count_by(batch.label * (classes + 1) + found, self.confusion)

    def compute(self) -> dict[str, float]:
        """The metrics named in the class docstring."""
        classes = self.info.num_classes
        confusion = self.confusion.cpu().numpy().reshape(classes, classes + 1)
        label, found = np.repeat(np.indices(confusion.shape).reshape(2, -1), confusion.flatten(), axis=1)
        results = scores(confusion)
        if classes <= MAX_NAMED_CLASSES:
            named = zip(self.info.class_names, f1_by_class(confusion).tolist(), strict=True)
            results |= {f"f1/class/{name}": value for name, value in named}

        def resampled(weight: np.ndarray) -> dict[str, float]:
            drawn = np.bincount(label * (classes + 1) + found, weight, minlength=confusion.size)
            return scores(drawn.reshape(confusion.shape))

        return results | bootstrap(resampled, len(label))


def scores(confusion: np.ndarray) -> dict[str, float]:
    """Macro and micro F1 of counts [C, C + 1]: rows are labels, columns predictions, the last "none"."""
    total = confusion.sum() + confusion[:, :-1].sum()
    return {
        "macro_f1": mean_of_known(f1_by_class(confusion)),
        "micro_f1": float(ratio_or_nan(2.0 * np.trace(confusion), total)),
    }


def f1_by_class(confusion: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each class, [C]; nan where it is 0 / 0."""
    return ratio_or_nan(2.0 * np.diagonal(confusion), confusion.sum(1) + confusion[:, :-1].sum(0))


def ratio_or_nan(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """parts / wholes, of any one shape; nan where a whole is 0."""
    return np.divide(parts, wholes, out=np.full(np.shape(parts), np.nan), where=np.asarray(wholes) > 0)


def mean_of_known(values: np.ndarray) -> float:
    """Mean of the values that are not nan; nan of none."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")


@METRICS.register("f1")
def f1(info: DatasetInfo) -> F1:
    """See `F1`."""
    return F1(info)
