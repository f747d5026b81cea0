"""Bootstrap intervals of the metrics of images that may show several classes."""

from collections.abc import Callable

import numpy as np
import torch

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, check_logits
from metrics.f1 import mean_of_known, ratio_or_nan
from metrics.maps.per_image import bootstrap
from metrics.registry import METRICS
from metrics.types import Prediction


class MultiLabelIntervals(ExactMetric):
    """`/low` and `/high` of `multilabel`'s metrics, their 95 % bootstrap interval over images.

    These are `mean_average_precision`, `macro_f1` and `micro_f1`; nan where a logit is. Keeps 16 C bytes per image.
    """

    def __init__(self, info: DatasetInfo) -> None:
        """Raises UserError for a data set with one class in an image."""
        super().__init__()
        if not info.multi_label:
            raise UserError(f"metric 'multilabel_intervals': images of {info.name!r} show one class; use f1")
        self.info = info
        self.add_values("rows")

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Keep which classes each image shows, and their logits."""
        self.follow(prediction)
        check_logits(prediction.logits, batch.label, self.info.num_classes)
        row = torch.cat([batch.targets.double(), prediction.logits.detach().double()], dim=1)
        self.rows.append(row.flatten())  # type: ignore[union-attr, operator]

    def compute(self) -> dict[str, float]:
        """The metrics named in the class docstring."""
        rows = self.values("rows").reshape(-1, 2 * self.info.num_classes).cpu().numpy()
        rows = rows[np.lexsort(rows.T)]  # neither the order of images nor the number of processes changes a digit
        present, logits = rows.reshape(-1, 2, self.info.num_classes).swapaxes(0, 1)
        return bootstrap(resampled_metrics(present > 0, logits), len(rows))


def resampled_metrics(present: np.ndarray, logits: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """`multilabel`'s metrics of resampled images: counts [N] of how often each occurs -> figure by name.

    present [N, C] bool, logits [N, C].
    """
    found, spoilt = logits > 0, bool(np.isnan(logits).any())
    hits, wholes = 2.0 * (present & found), present.astype(np.float64) + found
    precisions = [average_precision_of(*column) for column in zip(logits.T, present.T, strict=True)]

    def results(counts: np.ndarray) -> dict[str, float]:
        hit, whole = counts @ hits, counts @ wholes
        values = {
            "mean_average_precision": mean_of_known(np.array([precision(counts) for precision in precisions])),
            "macro_f1": mean_of_known(ratio_or_nan(hit, whole)),
            "micro_f1": float(ratio_or_nan(hit.sum(), whole.sum())),
        }
        return dict.fromkeys(values, np.nan) if spoilt else values

    return results


def average_precision_of(scores: np.ndarray, present: np.ndarray) -> Callable[[np.ndarray], float]:
    """`multilabel.average_precision` of resampled images: counts [N] of how often each occurs -> the figure.

    scores [N], present [N] bool. Exact, equal scores being one threshold; the images are sorted once for all resamples.
    nan where no image that occurs shows the class.
    """
    order = np.argsort(-scores)
    ranked, shown = -scores[order], np.flatnonzero(present[order])
    tie_ends = np.searchsorted(ranked, ranked[shown], side="right") - 1
    hits_until = np.searchsorted(shown, tie_ends, side="right") - 1

    def figure(counts: np.ndarray) -> float:
        drawn = counts[order]
        positive = drawn[shown]
        there = positive > 0
        if not there.any():
            return float("nan")
        precision = positive.cumsum()[hits_until][there] / drawn.cumsum()[tie_ends][there]
        return float(positive[there] @ precision / positive.sum())

    return figure


@METRICS.register("multilabel_intervals")
def multilabel_intervals(info: DatasetInfo) -> MultiLabelIntervals:
    """See `MultiLabelIntervals`."""
    return MultiLabelIntervals(info)
