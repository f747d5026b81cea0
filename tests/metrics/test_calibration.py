"""Calibration against torchmetrics and by hand."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_calibration_error

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics import Prediction, build_metrics
from tests.metrics.cases import feed, many_classes, random_set


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_torchmetrics(classes: int) -> None:
    info = many_classes(classes)
    batch, prediction = random_set(info, n=200)
    logits = prediction.logits.double()
    results = feed(build_metrics(("calibration",), info), batch, prediction, 16)
    expected = multiclass_calibration_error(logits.softmax(1), batch.label, classes, n_bins=15)
    assert results["ece"] == pytest.approx(float(expected), abs=1e-6)
    assert results["nll"] == pytest.approx(float(cross_entropy(logits, batch.label)))


def test_by_hand() -> None:
    """Two images at 0.8 of which one is right, one certain and right: (0.3 * 2 + 0) / 3."""
    info = many_classes(2)
    logits = torch.tensor([[math.log(4), 0.0], [math.log(4), 0.0], [0.0, 1000.0]])
    batch = Batch(torch.zeros(3, 3, 1, 1), torch.tensor([0, 1, 1]), ("a", "b", "c"))
    results = feed(build_metrics(("calibration",), info), batch, Prediction(logits), 2)
    assert results["ece"] == pytest.approx(0.2, abs=1e-6)
    assert results["nll"] == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 3)


def test_no_images_and_several_classes_per_image() -> None:
    assert all(math.isnan(value) for value in build_metrics(("calibration",), many_classes(3)).compute().values())
    with pytest.raises(UserError, match="use multilabel"):
        build_metrics(("calibration",), DatasetInfo(name="chests", class_names=("a", "b"), multi_label=True))
