"""Images of a run's test split by group, worst failures first."""

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from common.files import read_file
from datasets import Sample, collate
from engine.demo.subject import Subject
from engine.evaluation.predict import predict
from engine.evaluation.records import PREDICTIONS_FILE, RecordCollector
from metrics.class_mapping import to_dataset_classes

RANKED = 24
"""Wrong images of a group that are ranked by the confidence of the wrong prediction; each costs a forward pass."""


@dataclass
class Examples:
    """The test split of a run. Threads share the ranking, which is computed once."""

    subject: Subject
    predicted: Sequence[int] | None
    """Predicted class of every image, from the run's predictions.csv; None if there is none that fits the split."""
    note: str = ""
    """Why images are not told right from wrong; empty if they are."""
    _ranked: dict[int, list[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def group_names(self) -> tuple[str, ...]:
        """The groups, or the classes of a data set without."""
        assert self.subject.split is not None
        return self.subject.split.info.group_names or self.subject.split.info.class_names

    @property
    def _groups(self) -> Sequence[int]:
        """The group of every image, or its class."""
        assert self.subject.split is not None
        return self.subject.split.labels if self.subject.split.raw.groups is None else self.subject.split.raw.groups

    def sample(self, index: int) -> Sample:
        """One image with its annotations. Raises UserError, and IndexError for an index outside the split."""
        assert self.subject.split is not None
        if not 0 <= index < len(self.subject.split):
            raise IndexError(index)
        return self.subject.split[index]

    def of_group(self, group: int) -> list[int]:
        """Indices of the images of a group."""
        return [index for index, value in enumerate(self._groups) if value == group]

    def right(self, group: int) -> list[int]:
        """The images of a group that are classified correctly, or all of them if that is not known."""
        return [index for index in self.of_group(group) if self.is_right(index) is not False]

    def wrong(self, group: int) -> list[int]:
        """The others: the `RANKED` first of them in order of the confidence of the wrong prediction, then the rest."""
        with self._lock:
            if group not in self._ranked:
                wrong = [index for index in self.of_group(group) if self.is_right(index) is False]
                self._ranked[group] = self._worst_first(wrong[:RANKED]) + wrong[RANKED:]
            return self._ranked[group]

    def first_group(self) -> int:
        """The first group with a wrong image, or 0."""
        return min((group for index, group in enumerate(self._groups) if self.is_right(index) is False), default=0)

    def is_right(self, index: int) -> bool | None:
        """Whether the run classifies the image correctly; None if that is not known."""
        assert self.subject.split is not None
        return None if self.predicted is None else self.predicted[index] == self.subject.split.labels[index]

    def _worst_first(self, indices: Sequence[int]) -> list[int]:
        split, records = self.subject.split, RecordCollector()
        assert split is not None
        with self.subject.alone():
            for index in indices:
                batch = collate([split[index]]).to(self.subject.device)
                records(batch, to_dataset_classes(predict(self.subject.model, batch), split.info))
        confidence = [record.wrong_confidence for record in records.records]
        return [index for _, index in sorted(zip(confidence, indices, strict=True), key=lambda pair: -pair[0])]


def examples_of(subject: Subject) -> Examples:
    """The examples of a run with a split; right and wrong as its predictions.csv says, if that is of this split."""
    split, run = subject.split, subject.run
    assert split is not None and run is not None
    if split.info.multi_label:
        return Examples(subject, None, "An image of this data set may show several classes: it is not right or wrong.")
    try:
        table = pd.read_csv(io.BytesIO(read_file(run / PREDICTIONS_FILE)))
        labels, predicted = table["label"].tolist(), table["predicted"].tolist()
    except (OSError, ValueError, KeyError):
        return Examples(subject, None, f"{subject.name} has no {PREDICTIONS_FILE}: failures are not listed.")
    if labels != list(split.labels):
        return Examples(subject, None, f"{PREDICTIONS_FILE} of {subject.name} is not of this test split.")
    return Examples(subject, [int(value) for value in predicted])
