"""Worst-group accuracy, in the usual definition and in the paper's."""

import math
from typing import ClassVar

from torch import Tensor

from common.errors import UserError
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, check_logits, count_by, is_correct, mean, ratios, smallest
from metrics.registry import METRICS
from metrics.types import Prediction


@METRICS.register("groups")
class GroupAccuracy(ExactMetric):
    """Accuracy by group (class x place), and the worst of them. Keys, in [0, 1] except the counts:

    - `worst_group_accuracy`: the smallest accuracy over all groups that have images
    - `worst_group_accuracy_paper`: the smallest over `DatasetInfo.minority_groups` (Waterbirds: over the two classes on
      the `worst_case` subset); where these are None, the smallest accuracy of a class (MetaShift)
    - `group_balanced_accuracy`: mean over the groups that have images
    - `adjusted_accuracy`: mean over the groups, each weighted by its fraction of the published training split (adjusted
      average accuracy, Sagawa et al. 2020), where `DatasetInfo.group_fractions` are known; nan where a group with a
      weight has no images
    - `accuracy/group/<name>` (nan for a group without images) and `count/group/<name>`
    - `stage_1/worst_group_accuracy`, where the prediction has stage-1 logits
    """

    shown: ClassVar = {
        "worst_group_accuracy": MetricInfo(percent=True, headline=50, panel="accuracy", better="higher"),
        "group_balanced_accuracy": MetricInfo(percent=True, better="higher"),
        "adjusted_accuracy": MetricInfo(percent=True, better="higher"),
        "accuracy/group/": MetricInfo(percent=True, better="higher"),
    }
    total: Tensor
    correct: Tensor
    correct_stage_1: Tensor
    total_class: Tensor
    correct_class: Tensor
    seen_stage_1: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        """Raises UserError for a data set without groups."""
        super().__init__()
        if info.multi_label:
            raise UserError(f"--metrics groups: {info.name} has several classes per image, so groups have no accuracy")
        if not info.group_names:
            raise UserError(f"metric 'groups': data set {info.name!r} has no groups; drop it from --metrics")
        self.info, self.names = info, info.group_names
        for name in ("total", "correct", "correct_stage_1"):
            self.add_counter(name, len(self.names))
        self.add_counter("total_class", info.num_classes)
        self.add_counter("correct_class", info.num_classes)
        self.add_counter("seen_stage_1")

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises UserError where it has no group ids."""
        if batch.group is None:
            raise UserError(f"metric 'groups': a batch of data set {self.info.name!r} carries no group ids")
        check_logits(prediction.logits, batch.label, self.info.num_classes)
        correct = is_correct(prediction.logits, batch.label)
        count_by(batch.group, self.total)
        count_by(batch.group, self.correct, correct)
        count_by(batch.label, self.total_class)
        count_by(batch.label, self.correct_class, correct)
        if prediction.stage_1_logits is not None:
            count_by(batch.group, self.correct_stage_1, is_correct(prediction.stage_1_logits, batch.label))
            self.seen_stage_1 += len(batch)

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        counts: list[int] = self.total.tolist()
        by_group = ratios(self.correct, counts)
        results = {
            "worst_group_accuracy": smallest(by_group),
            "worst_group_accuracy_paper": self._paper(by_group),
            "group_balanced_accuracy": mean(by_group),
        }
        if self.info.group_fractions:
            weighted = zip(self.info.group_fractions, by_group, strict=True)
            results["adjusted_accuracy"] = math.fsum(weight * value for weight, value in weighted if weight)
        for name, value, count in zip(self.names, by_group, counts, strict=True):
            results[f"accuracy/group/{name}"] = value
            results[f"count/group/{name}"] = float(count)
        if self.seen_stage_1.item():
            results["stage_1/worst_group_accuracy"] = smallest(ratios(self.correct_stage_1, counts))
        return results

    def _paper(self, by_group: list[float]) -> float:
        if self.info.minority_groups is None:
            return smallest(ratios(self.correct_class, self.total_class.tolist()))
        return smallest(by_group[group] for group in self.info.minority_groups)
