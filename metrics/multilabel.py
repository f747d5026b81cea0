"""Images that may show several classes: average precision and F1, each class against the rest, with intervals."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, check_logits
from metrics.f1 import SHOWN_F1, mean_of_known, ratio_or_nan
from metrics.maps.per_image import bootstrap
from metrics.registry import MAX_NAMED_CLASSES, METRICS
from metrics.types import Prediction

Resampled = Callable[[np.ndarray], float]
"""How often each image occurs, [N] float64 -> the value for that data set."""


class _KeptLogits(ExactMetric):
    """Keeps which classes each image shows, and its logits."""

    name: ClassVar[str]
    otherwise: ClassVar[str]
    """What to do for a data set with one class per image."""
    rows: list[Tensor]

    def __init__(self, info: DatasetInfo) -> None:
        """Raises UserError for a data set with one class per image."""
        super().__init__()
        if not info.multi_label:
            raise UserError(f"metric {self.name!r}: images of {info.name!r} show one class; {self.otherwise}")
        self.info = info
        self.add_values("rows")

    def keep(self, rows: list[Tensor], batch: Batch, logits: Tensor) -> None:
        """Append the classes and the logits [B, C] of one batch to a state of `add_values`."""
        if batch.present is None:
            raise UserError(f"a batch of {self.info.name!r}, whose images may show several classes, does not list them")
        check_logits(logits, batch.label, self.info.num_classes)
        rows.append(torch.cat([batch.present.double(), logits.detach().double()], dim=1).flatten())

    def kept(self, state: str) -> tuple[np.ndarray, np.ndarray]:
        """Classes [N, C] bool and logits [N, C] of all images."""
        rows = self.values(state).cpu().numpy().reshape(-1, 2, self.info.num_classes)
        return rows[:, 0] > 0, rows[:, 1]


@METRICS.register("multilabel")
class MultiLabel(_KeptLogits):
    """Keys, in [0, 1] except the count:

    - `mean_average_precision`: mean of `average_precision` over the classes that any image shows
    - `macro_f1`: mean over classes of 2 TP / (2 TP + FP + FN), without those where it is 0 / 0; `micro_f1`: the same
      ratio of the counts of all classes together. A class is predicted where its probability, the sigmoid of the logit,
      is above 0.5
    - `average_precision/class/<name>`, up to `MAX_NAMED_CLASSES` classes; nan for a class that no image shows
    - `stage_1/...`: the first three of `Prediction.stage_1_logits`, where it is given
    - `count/images`

    A nan among the logits makes all metrics of its stage nan. Keeps 16 C bytes per image and stage.
    """

    shown: ClassVar = {
        "mean_average_precision": MetricInfo(percent=True, headline=20, panel="several classes", better="higher"),
        **SHOWN_F1,
        "average_precision/class/": MetricInfo(percent=True, better="higher"),
    }
    name, otherwise = "multilabel", "drop it from --metrics"
    rows_stage_1: list[Tensor]

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__(info)
        self.add_values("rows_stage_1")

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises UserError where it does not say which classes it shows."""
        self.keep(self.rows, batch, prediction.logits)
        if prediction.stage_1_logits is not None:
            self.keep(self.rows_stage_1, batch, prediction.stage_1_logits)

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        present, logits = self.kept("rows")
        once = np.ones(len(logits))
        results = resampled_metrics(present, logits)(once)
        if self.info.num_classes <= MAX_NAMED_CLASSES:
            for name, scores, shown in zip(self.info.class_names, logits.T, present.T, strict=True):
                value = float("nan") if np.isnan(logits).any() else average_precision(scores, shown)(once)
                results[f"average_precision/class/{name}"] = value
        if self.values("rows_stage_1").numel():
            stage_1 = resampled_metrics(*self.kept("rows_stage_1"))(once)
            results |= {f"stage_1/{name}": value for name, value in stage_1.items()}
        return results | {"count/images": float(len(logits))}


@METRICS.register("multilabel_intervals")
class MultiLabelIntervals(_KeptLogits):
    """`/low` and `/high` of `multilabel`'s values: their 95 % bootstrap interval over images.

    For `mean_average_precision`, `macro_f1` and `micro_f1`; nan where a logit is. Keeps 16 C bytes per image.
    """

    name, otherwise = "multilabel_intervals", "use f1"

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises UserError where it does not say which classes it shows."""
        self.keep(self.rows, batch, prediction.logits)

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        present, logits = self.kept("rows")
        # Resamples name images by position: sort them, so that no digit depends on the order or the processes.
        order = np.lexsort(np.hstack([present, logits]).T)
        return bootstrap(resampled_metrics(present[order], logits[order]), len(order))


def resampled_metrics(present: np.ndarray, logits: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """The three values of `MultiLabel` for resampled images: counts [N] of how often each occurs -> value by name.

    present [N, C] bool, logits [N, C].
    """
    found, has_nan = logits > 0, bool(np.isnan(logits).any())
    hits, wholes = 2.0 * (present & found), present.astype(np.float64) + found
    precisions = [average_precision(*column) for column in zip(logits.T, present.T, strict=True)]

    def results(counts: np.ndarray) -> dict[str, float]:
        hit, whole = counts @ hits, counts @ wholes  # [C], whole numbers and therefore exact
        values = {
            "mean_average_precision": mean_of_known(np.array([precision(counts) for precision in precisions])),
            "macro_f1": mean_of_known(ratio_or_nan(hit, whole)),
            "micro_f1": float(ratio_or_nan(hit.sum(), whole.sum())),
        }
        return dict.fromkeys(values, np.nan) if has_nan else values

    return results


def average_precision(scores: np.ndarray, present: np.ndarray) -> Resampled:
    """Average precision of resampled images: counts [N] of how often each occurs -> the value.

    scores [N], present [N] bool. The sum over the distinct scores, from the highest, of precision times the gain in
    recall. Equal scores are one threshold and nothing is interpolated: scikit-learn's `average_precision_score`, which
    takes 45 times as long per resample because it sorts again. PASCAL VOC's interpolated AP is never lower. nan where
    no image that occurs shows the class.
    """
    order = np.argsort(-scores)
    ranked, shown = -scores[order], np.flatnonzero(present[order])
    # For each image that shows the class: the last position with its score, and the last such image up to there.
    tie_ends = np.searchsorted(ranked, ranked[shown], side="right") - 1
    hits_until = np.searchsorted(shown, tie_ends, side="right") - 1

    def value(counts: np.ndarray) -> float:
        drawn = counts[order]
        positive = drawn[shown]
        there = positive > 0
        if not there.any():
            return float("nan")
        precision = positive.cumsum()[hits_until][there] / drawn.cumsum()[tie_ends][there]
        # Not a dot product, which rounds with the number of threads.
        return float((positive[there] * precision).sum() / positive.sum())

    return value
