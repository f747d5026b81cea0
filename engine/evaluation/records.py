"""Predictions per image: records for reports, and the table predictions.csv."""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from common.processes import gather_blocks
from common.transfer import on_host
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
    """Evaluation observer that collects one ImageRecord per image. It waits for the device when it is read."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.columns: list[Tensor] = []
        """Of each batch, [3, B] float64: label, predicted, wrong_confidence."""

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Add the images of one batch."""
        probability = prediction.logits.double().softmax(1)
        predicted = probability.argmax(1)
        true = batch.present
        if true is None:
            true = torch.zeros_like(probability, dtype=torch.bool).scatter(1, batch.label[:, None], True)
        label = torch.where(true.gather(1, predicted[:, None])[:, 0], predicted, batch.label)
        self.paths += batch.paths
        self.columns.append(torch.stack([label, predicted, probability.masked_fill(true, 0.0).amax(1)]))

    @property
    def records(self) -> list[ImageRecord]:
        """Those of this process."""
        columns = [column for batch in on_host(self.columns) for column in zip(*batch.tolist(), strict=True)]
        return [
            ImageRecord(path, int(label), int(predicted), wrong)
            for path, (label, predicted, wrong) in zip(self.paths, columns, strict=True)
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
        self.paths: list[str] = []
        self.columns: dict[str, list[Tensor]] = {}
        """Of each batch, [B] int64, or [B, classes]. They stay on the device until the table is made."""

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Add the images of one batch."""
        found = {"label": batch.label, "predicted": prediction.logits.argmax(1), "group": batch.group}
        if batch.present is not None and self.info.num_classes <= MAX_NAMED_CLASSES:
            found |= {PRESENT: batch.present.int(), LOGIT: prediction.logits}
        self.paths += batch.paths
        for name, values in found.items():
            if values is not None:
                self.columns.setdefault(name, []).append(values)

    def csv(self) -> str:
        """The table of all processes as CSV, in the order of the split; every process must call this."""
        frames = gather_blocks([self._frame()] if self.paths else [])
        return pd.concat(frames).to_csv(index=False, float_format="%.9g")

    def _frame(self) -> pd.DataFrame:
        """The rows of this process."""
        joined = dict(zip(self.columns, on_host(map(torch.cat, self.columns.values())), strict=True))
        frame = pd.DataFrame({"path": self.paths} | {name: joined[name].numpy() for name in ("label", "predicted")})
        frame["group"] = joined["group"].numpy() if "group" in joined else None
        for kind in (PRESENT, LOGIT):
            if kind in joined:
                frame[[f"{kind}{name}" for name in self.info.class_names]] = joined[kind].numpy()
        return frame
