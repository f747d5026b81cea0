"""Which images the contact sheets of a model's predictions show."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from commands import prediction_visualizer
from commands.prediction_visualizer import PredictionVisualizer
from datasets import Split
from engine.evaluation.records import ImageRecord
from models.outputs import ClassifierOutput
from report.examples import Example
from tests.tiny import tiny_config, tiny_splits


class FirstClass(nn.Module):
    """Always predicts class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, images: Tensor) -> ClassifierOutput:
        return ClassifierOutput(self.logits.expand(len(images), 2))


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return tiny_splits(tiny_config(tmp_path))["val"]


@pytest.fixture
def visualizer(split: Split, monkeypatch: pytest.MonkeyPatch) -> PredictionVisualizer:
    """Its sheets are not drawn."""
    for name in ("example_sheet", "failure_sheet"):
        monkeypatch.setattr(prediction_visualizer, name, lambda examples, path: examples)
    return PredictionVisualizer(split, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def record(split: Split, index: int, predicted: int, confidence: float) -> ImageRecord:
    return ImageRecord(f"{index}", split.labels[index], predicted, confidence)


def shown(examples: object) -> list[bytes]:
    assert isinstance(examples, Sequence) and all(isinstance(example, Example) for example in examples)
    return [example.image.tobytes() for example in examples]


def test_the_most_confident_wrong_predictions_come_first(split: Split, visualizer: PredictionVisualizer) -> None:
    model, path = FirstClass(), Path("unused")
    records = [record(split, i, 0, confidence=(7 * i % 16) / 16) for i in range(len(split))]
    wrong = [i for i, label in enumerate(split.labels) if label == 1]
    expected = sorted(wrong, key=lambda i: records[i].wrong_confidence, reverse=True)
    assert len(wrong) > 2 and expected != wrong
    examples = visualizer.failures(model, records, path)
    assert shown(examples) == shown(visualizer.examples(model, expected))
    assert shown(visualizer.failures(model, records, path, limit=2)) == shown(examples)[:2]
    correct = [record(split, i, split.labels[i], 0.5) for i in range(len(split))]
    assert visualizer.failures(model, correct, path) is None


def test_the_sheet_shows_the_first_images_of_every_group(split: Split, visualizer: PredictionVisualizer) -> None:
    model, groups = FirstClass(), list(split.raw.groups or ())
    first = [groups.index(group) for group in sorted(set(groups))]
    assert first != sorted(first)  # by group, not by position
    assert shown(visualizer.sheet(model, Path("unused"), per_group=1)) == shown(visualizer.examples(model, first))


def test_an_example_describes_its_prediction(split: Split, visualizer: PredictionVisualizer) -> None:
    wrong = list(split.labels).index(1)
    (example,) = visualizer.examples(FirstClass(), [wrong])
    names = split.info.class_names
    assert (example.label, example.predicted, example.correct) == (names[1], names[0], False)
    assert example.confidence == pytest.approx(1 / (1 + torch.tensor(-1.0).exp().item()))
    assert example.maps is None and example.mask is None
