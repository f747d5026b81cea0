"""Predictions per image: records for reports, and the table predictions.csv."""

from dataclasses import dataclass

import pandas as pd
import torch

from common.processes import gather_blocks
from datasets.types import Batch, DatasetInfo
from metrics.comparison import LOGIT, PRESENT
from metrics.registry import MAX_NAMED_CLASSES
from metrics.types import Prediction


@dataclass(frozen=True)
class ImageRecord:
    """The prediction for one image."""

    path: str
    label: int
    """The true class; of a multi-label image, the predicted class if it is one of its labels."""
    predicted: int
    wrong_confidence: float
    """Probability of the most likely wrong class."""


class RecordCollector:
    """Evaluation observer that collects one ImageRecord per image."""

    def __init__(self) -> None:
        self.records: list[ImageRecord] = []

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Add the images of one batch."""
        probability = prediction.logits.double().softmax(1).cpu()
        predicted = probability.argmax(1)
        true = torch.zeros_like(probability, dtype=torch.bool).scatter(1, batch.label.cpu()[:, None], True)
        if batch.present is not None:
            true = batch.present.cpu()
        wrong = probability.masked_fill(true, 0.0).amax(1)
        self.records += [
            ImageRecord(
                path=path,
                label=int(predicted[i] if true[i, predicted[i]] else batch.label[i]),
                predicted=int(predicted[i]),
                wrong_confidence=float(wrong[i]),
            )
            for i, path in enumerate(batch.paths)
        ]

    def gathered(self) -> list[ImageRecord]:
        """The records of all processes, in the order of the split; every process must call this."""
        return gather_blocks(self.records)


PREDICTIONS_FILE = "predictions.csv"


class PredictionTable:
    """Evaluation observer: one row per image with path, label and predicted class (as numbers), and group.

    For multi-label data with up to `MAX_NAMED_CLASSES` classes, also the labels (1 or 0) and logits of all classes.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self.frames: list[pd.DataFrame] = []

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Add the images of one batch."""
        frame = pd.DataFrame({"path": batch.paths, "label": batch.label.cpu().numpy()})
        frame["predicted"] = prediction.logits.argmax(1).cpu().numpy()
        frame["group"] = None if batch.group is None else batch.group.cpu().numpy()
        if batch.present is not None and self.info.num_classes <= MAX_NAMED_CLASSES:
            for kind, values in ((PRESENT, batch.present.int()), (LOGIT, prediction.logits)):
                frame[[f"{kind}{name}" for name in self.info.class_names]] = values.cpu().numpy()
        self.frames.append(frame)

    def csv(self) -> str:
        """The table of all processes as CSV, in the order of the split; every process must call this."""
        frames = gather_blocks(self.frames)
        return pd.concat(frames).to_csv(index=False, float_format="%.9g")
