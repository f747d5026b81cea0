"""Area under the ROC curve, from scikit-learn, on scores that do not saturate."""

import math
from typing import ClassVar

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, check_logits, mean
from metrics.registry import METRICS
from metrics.types import Prediction


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Exact AUROC of scores [N] (on any real scale) against positive [N] bool; ties count one half.

    nan where a score is nan, or where there are only positives or only negatives.
    """
    if np.isnan(scores).any() or positive.all() or not positive.any():
        return math.nan
    # Ranks, because scikit-learn refuses infinite scores.
    return float(roc_auc_score(positive, np.unique(scores, return_inverse=True)[1]))


def log_odds(logits: Tensor) -> Tensor:
    """[N, C] float64: log p_c / (1 - p_c) of softmax(logits [N, C]).

    It ranks images as p_c does and never saturates; float32 probabilities of a confident model all become 1.0 and tie.
    """
    wide = logits.to(torch.float64)
    log_p = wide.log_softmax(dim=1)
    odds = log_p - torch.log1p(-log_p.exp())
    # 1 - p loses digits only for p near 1, that is for the largest one: there it is the sum over the other classes.
    top = wide.argmax(dim=1, keepdim=True)
    others = wide.scatter(1, top, -math.inf).logsumexp(dim=1, keepdim=True)
    return odds.scatter(1, top, wide.gather(1, top) - others)


@METRICS.register("auroc")
class Auroc(ExactMetric):
    """`auroc`: binary, of P(class 1); else the one-vs-rest macro mean over the classes with positives and negatives.

    `stage_1/auroc` too where the prediction has stage-1 logits. Keeps 8 (C + 1) bytes per image and stage: 400 MB for
    ImageNet's validation split.
    """

    shown: ClassVar = {"auroc": MetricInfo(percent=True, headline=70, better="higher")}
    rows: list[Tensor]
    rows_stage_1: list[Tensor]

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        self.info = info
        self.add_values("rows")
        self.add_values("rows_stage_1")

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Keep the logits and labels of one batch. Raises ValueError where the logits do not fit the classes."""
        for rows, logits in ((self.rows, prediction.logits), (self.rows_stage_1, prediction.stage_1_logits)):
            if logits is not None:
                check_logits(logits, batch.label, self.info.num_classes)
                rows.append(torch.cat([batch.label[:, None].double(), logits.detach().double()], dim=1).flatten())

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        results = {"auroc": self._of("rows")}
        if self.values("rows_stage_1").numel():
            results["stage_1/auroc"] = self._of("rows_stage_1")
        return results

    def _of(self, state: str) -> float:
        rows = self.values(state).cpu().reshape(-1, self.info.num_classes + 1)
        label, logits = rows[:, 0].numpy(), rows[:, 1:]
        if self.info.num_classes == 2:
            return auroc((logits[:, 1] - logits[:, 0]).numpy(), label == 1)
        scores = log_odds(logits).numpy()
        if np.isnan(scores).any():
            return math.nan  # `mean` would leave the classes with nan out
        return mean(auroc(scores[:, c], label == c) for c in range(self.info.num_classes))
