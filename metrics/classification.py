"""Accuracy: micro, macro, per class, top 5, and of stage 1's own classifier."""

from typing import ClassVar

from torch import Tensor

from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics.base import ExactMetric, check_logits, count_by, is_correct, mean, ratio, ratios, smallest
from metrics.registry import MAX_NAMED_CLASSES, METRICS
from metrics.types import Prediction


@METRICS.register("accuracy")
class Accuracy(ExactMetric):
    """Keys, all in [0, 1] except the count:

    - `accuracy`: micro top-1; `balanced_accuracy`: mean recall of the classes that have images;
      `worst_class_accuracy`: the smallest of these recalls
    - `accuracy_top5` where there are more than 5 classes
    - `accuracy/class/<name>`: recall, up to `MAX_NAMED_CLASSES` classes; nan for a class without images
    - `stage_1/...`: accuracy, balanced accuracy and top 5 of `Prediction.stage_1_logits`, where it is given
    - `count/images`: how many images were counted

    A row of logits with a nan counts as wrong.
    """

    shown: ClassVar = {
        "accuracy": MetricInfo(percent=True, headline=10, panel="accuracy", better="higher"),
        "balanced_accuracy": MetricInfo(percent=True, headline=60, better="higher"),
        "worst_class_accuracy": MetricInfo(percent=True, better="higher"),
        "accuracy_top5": MetricInfo(percent=True, label="top-5 accuracy", better="higher"),
        "accuracy/class/": MetricInfo(percent=True, better="higher"),
        "stage_1/accuracy": MetricInfo(percent=True, panel="accuracy", better="higher"),
    }
    total: Tensor
    correct: Tensor
    correct_top5: Tensor
    correct_stage_1: Tensor
    correct_stage_1_top5: Tensor
    seen_stage_1: Tensor

    def __init__(self, info: DatasetInfo) -> None:
        super().__init__()
        self.info = info
        for name in ("total", "correct", "correct_top5", "correct_stage_1", "correct_stage_1_top5"):
            self.add_counter(name, info.num_classes)
        self.add_counter("seen_stage_1")

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Count one batch. Raises ValueError where the logits do not fit the classes."""
        count_by(batch.label, self.total)
        self._count(prediction.logits, batch.label, self.correct, self.correct_top5)
        if prediction.stage_1_logits is not None:
            self._count(prediction.stage_1_logits, batch.label, self.correct_stage_1, self.correct_stage_1_top5)
            self.seen_stage_1 += len(batch)

    def _count(self, logits: Tensor, label: Tensor, top1: Tensor, top5: Tensor) -> None:
        check_logits(logits, label, self.info.num_classes)
        count_by(label, top1, is_correct(logits, label))
        if self.info.num_classes > 5:
            count_by(label, top5, is_correct(logits, label, top=5))

    def compute(self) -> dict[str, float]:
        """The values named in the class docstring."""
        total: list[int] = self.total.tolist()
        recalls = ratios(self.correct, total)
        results = self._summary("", self.correct, self.correct_top5, total)
        results["worst_class_accuracy"] = smallest(recalls)
        if len(recalls) <= MAX_NAMED_CLASSES:
            named = zip(self.info.class_names, recalls, strict=True)
            results |= {f"accuracy/class/{name}": recall for name, recall in named}
        if self.seen_stage_1.item():
            results |= self._summary("stage_1/", self.correct_stage_1, self.correct_stage_1_top5, total)
        return results | {"count/images": float(sum(total))}

    def _summary(self, prefix: str, top1: Tensor, top5: Tensor, total: list[int]) -> dict[str, float]:
        results = {
            f"{prefix}accuracy": ratio(int(top1.sum()), sum(total)),
            f"{prefix}balanced_accuracy": mean(ratios(top1, total)),
        }
        if self.info.num_classes > 5:
            results[f"{prefix}accuracy_top5"] = ratio(int(top5.sum()), sum(total))
        return results
