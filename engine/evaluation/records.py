"""One record per image: what the model predicted for it."""

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
    """How one image was answered."""

    path: str
    label: int
    """The true class; where an image shows several, the predicted one if that is among them."""
    predicted: int
    group: int | None
    wrong_confidence: float
    """Probability of the most likely wrong class."""
    keep_ratio: float | None
    """Share of patches stage 2 saw."""


class Recorder:
    """An observer that keeps one ImageRecord per image."""

    def __init__(self) -> None:
        self.records: list[ImageRecord] = []

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Note every image of the batch."""
        probability = prediction.logits.double().softmax(1).cpu()
        predicted = probability.argmax(1)
        shown = torch.zeros_like(probability, dtype=torch.bool).scatter(1, batch.label.cpu()[:, None], True)
        if batch.present is not None:
            shown = batch.present.cpu()
        wrong = probability.masked_fill(shown, 0.0).amax(1)
        kept = None if prediction.mask is None else prediction.mask.flatten(1).double().mean(1).cpu()
        for i, path in enumerate(batch.paths):
            self.records.append(
                ImageRecord(
                    path=path,
                    label=int(predicted[i] if shown[i, predicted[i]] else batch.label[i]),
                    predicted=int(predicted[i]),
                    group=None if batch.group is None else int(batch.group[i]),
                    wrong_confidence=float(wrong[i]),
                    keep_ratio=None if kept is None else float(kept[i]),
                )
            )

    def everyone(self) -> list[ImageRecord]:
        """The records of all processes, in the order of the split; every process must ask."""
        return gather_blocks(self.records)


PREDICTIONS_FILE = "predictions.csv"


class PredictionTable:
    """An observer of an evaluation: one line per image with path, label, predicted class (numbers) and group.

    Where images show several classes, up to `MAX_NAMED_CLASSES`, also which of them (1 or 0), and their logits.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self.frames: list[pd.DataFrame] = []

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Note every image of the batch."""
        frame = pd.DataFrame({"path": batch.paths, "label": batch.label.cpu().numpy()})
        frame["predicted"] = prediction.logits.argmax(1).cpu().numpy()
        frame["group"] = None if batch.group is None else batch.group.cpu().numpy()
        if batch.present is not None and self.info.num_classes <= MAX_NAMED_CLASSES:
            for kind, values in ((PRESENT, batch.present.int()), (LOGIT, prediction.logits)):
                frame[[f"{kind}{name}" for name in self.info.class_names]] = values.cpu().numpy()
        self.frames.append(frame)

    def csv(self) -> str:
        """The table of all processes, in the order of the split; every process must ask."""
        frames = gather_blocks(self.frames)
        return pd.concat(frames).to_csv(index=False, float_format="%.9g")
