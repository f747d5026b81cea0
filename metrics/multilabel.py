"""Images that may show several classes: average precision and F1, each class against the rest."""

import math

import torch
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, check_logits, mean, ratio, ratios
from metrics.registry import MAX_NAMED_CLASSES, METRICS
from metrics.types import Prediction


def average_precision(scores: Tensor, present: Tensor) -> float:
    """Sum over the distinct scores [N], from the highest, of precision times the gain in recall.

    present: [N] bool; nan where none is. Equal scores count as one threshold, and nothing is interpolated, as in
    scikit-learn's `average_precision_score`. PASCAL VOC's own figure takes for each recall the best precision at that
    or a higher recall, and so is never lower.
    """
    distinct, place = scores.unique(return_inverse=True)
    positive = place[present].bincount(minlength=len(distinct)).flip(0)
    everything = place.bincount(minlength=len(distinct)).flip(0)
    precision = positive.cumsum(0).double() / everything.cumsum(0)
    return ratio(math.fsum((positive * precision).tolist()), int(present.sum()))


class MultiLabel(ExactMetric):
    """Keys, in [0, 1] but for the count:

    - `mean_average_precision`: mean over the classes that any image shows of `average_precision`
    - `macro_f1`: mean over classes of 2 TP / (2 TP + FP + FN), without those where it is 0 / 0; `micro_f1`: the same of
      the counts of all classes together. A class is predicted where its probability, sigmoid of the logit, is above 0.5
    - `average_precision/class/<name>`, up to `MAX_NAMED_CLASSES` classes; nan for a class that no image shows
    - `stage_1/...`: the first three of `Prediction.stage_1_logits`, where it is given
    - `count/images`

    A nan among the logits makes all metrics of its stage nan. Keeps 16 C bytes per image and stage.
    """

    def __init__(self, info: DatasetInfo) -> None:
        """Raises UserError for a data set with one class in an image."""
        super().__init__()
        if not info.multi_label:
            raise UserError(f"metric 'multilabel': data set {info.name!r} has one class in an image; drop it")
        self.info = info
        self.add_values("rows")
        self.add_values("rows_stage_1")

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Keep the logits and classes of one batch. Raises UserError where it does not say which classes it shows."""
        if batch.present is None:
            raise UserError(f"metric 'multilabel': a batch of {self.info.name!r} does not say which classes it shows")
        self.follow(prediction)
        for state, logits in (("rows", prediction.logits), ("rows_stage_1", prediction.stage_1_logits)):
            if logits is not None:
                check_logits(logits, batch.label, self.info.num_classes)
                row = torch.cat([batch.present.to(torch.float64), logits.detach().to(torch.float64)], dim=1)
                getattr(self, state).append(row.flatten())

    def compute(self) -> dict[str, float]:
        """The metrics named in the class docstring."""
        present, logits = self._kept("rows")
        results, by_class = self._figures(present, logits)
        if len(by_class) <= MAX_NAMED_CLASSES:
            named = zip(self.info.class_names, by_class, strict=True)
            results |= {f"average_precision/class/{name}": value for name, value in named}
        if self.values("rows_stage_1").numel():
            stage_1, _ = self._figures(*self._kept("rows_stage_1"))
            results |= {f"stage_1/{name}": value for name, value in stage_1.items()}
        return results | {"count/images": float(len(logits))}

    def _kept(self, state: str) -> tuple[Tensor, Tensor]:
        """Classes [N, C] bool and logits [N, C]."""
        rows = self.values(state).reshape(-1, 2, self.info.num_classes)
        return rows[:, 0] > 0, rows[:, 1]

    def _figures(self, present: Tensor, logits: Tensor) -> tuple[dict[str, float], list[float]]:
        """The three metrics, and the average precision of every class."""
        classes = range(self.info.num_classes)
        if logits.isnan().any():
            names = ("mean_average_precision", "macro_f1", "micro_f1")
            return dict.fromkeys(names, math.nan), [math.nan for _ in classes]
        by_class = [average_precision(logits[:, c], present[:, c]) for c in classes]
        found = logits > 0
        hits = 2 * (found & present).sum(0)
        wholes: list[int] = (found.sum(0) + present.sum(0)).tolist()
        results = {
            "mean_average_precision": mean(by_class),
            "macro_f1": mean(ratios(hits, wholes)),
            "micro_f1": ratio(int(hits.sum()), sum(wholes)),
        }
        return results, by_class


@METRICS.register("multilabel")
def multilabel(info: DatasetInfo) -> MultiLabel:
    """See `MultiLabel`."""
    return MultiLabel(info)
