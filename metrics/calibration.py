"""Calibration: whether the probability of the predicted class is how often it is right."""

import math
from typing import ClassVar

from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, check_logits, is_correct, mean, ratio
from metrics.registry import METRICS
from metrics.types import Prediction

BINS = 15


@METRICS.register("calibration")
class Calibration(ExactMetric):
    """Keys:

    - `ece`, in [0, 1]: expected calibration error. Images are sorted into `BINS` equal intervals (a, b] of the largest
      softmax probability; sum over bins of |accuracy - mean probability|, weighted by their images (Guo et al., "On
      Calibration of Modern Neural Networks", ICML 2017, eq. 3)
    - `nll`: mean negative log-likelihood of the labels, natural logarithm
    """

    shown: ClassVar = {
        "ece": MetricInfo(percent=True, headline=60, label="ECE", better="lower"),
        "nll": MetricInfo(headline=61, label="NLL", better="lower"),
    }

    def __init__(self, info: DatasetInfo) -> None:
        """Raises UserError for a data set with several classes per image."""
        super().__init__()
        if info.multi_label:
            raise UserError(f"metric 'calibration': images of {info.name!r} show several classes; use multilabel")
        self.num_classes = info.num_classes
        for name in ("confidences", "hits", "losses"):
            self.add_values(name)

    confidences: list[Tensor]
    hits: list[Tensor]
    losses: list[Tensor]

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises ValueError where the logits do not fit the classes."""
        check_logits(prediction.logits, batch.label, self.num_classes)
        log_probability = prediction.logits.double().log_softmax(1)
        self.confidences.append(log_probability.amax(1).exp())
        self.hits.append(is_correct(prediction.logits, batch.label).double())
        self.losses.append(-log_probability.gather(1, batch.label[:, None])[:, 0])

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring; nan without images."""
        confidence, gap = self.values("confidences"), self.values("hits") - self.values("confidences")
        bins = (confidence * BINS).ceil().clamp(1, BINS).long() - 1
        gaps = [abs(math.fsum(gap[bins == index].tolist())) for index in range(BINS)]
        return {"ece": ratio(math.fsum(gaps), len(confidence)), "nll": mean(self.values("losses").tolist())}
