"""F1 against scikit-learn, and its intervals against resampling by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics import Prediction, build_metrics
from tests.metrics.cases import feed, many_classes, random_set


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_scikit_learns(classes: int) -> None:
    info = many_classes(classes)
    batch, prediction = random_set(info, n=200)
    results = feed(build_metrics(("f1",), info), batch, prediction, 16)
    said = prediction.logits.argmax(1)
    assert results["macro_f1"] == pytest.approx(f1_score(batch.label, said, average="macro"))
    assert results["micro_f1"] == pytest.approx(f1_score(batch.label, said, average="micro"))
    assert results["micro_f1"] == pytest.approx(float((said == batch.label).double().mean()))
    by_class = f1_score(batch.label, said, average=None, labels=range(classes))
    named = [results.get(f"f1/class/c{c}") for c in range(classes)]
    assert named == (pytest.approx(by_class) if classes <= 20 else [None] * classes)


def test_the_interval_is_that_of_resampled_images() -> None:
    info = many_classes(3)
    batch, prediction = random_set(info, n=80)
    results = feed(build_metrics(("f1",), info), batch, prediction, 80)
    random, said = np.random.default_rng(1), prediction.logits.argmax(1).numpy()
    drawn = [random.integers(80, size=80) for _ in range(400)]
    values = [f1_score(batch.label.numpy()[rows], said[rows], average="macro") for rows in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    assert results["macro_f1/low"] == pytest.approx(low, abs=0.03)
    assert results["macro_f1/high"] == pytest.approx(high, abs=0.03)
    assert results["macro_f1/low"] < results["macro_f1"] < results["macro_f1/high"]


def test_classes_that_are_neither_there_nor_predicted() -> None:
    info = many_classes(4)
    batch = Batch(torch.zeros(3, 3, 1, 1), torch.tensor([0, 0, 1]), ("a", "b", "c"))
    logits = 4.0 * torch.eye(4)[[0, 2, 1]]
    results = feed(build_metrics(("f1",), info), batch, Prediction(logits), 3)
    assert [results[f"f1/class/c{c}"] for c in range(3)] == pytest.approx([2 / 3, 1, 0])
    assert math.isnan(results["f1/class/c3"])
    assert results["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_nan_logits_predict_nothing() -> None:
    info = many_classes(2)
    batch = Batch(torch.zeros(2, 3, 1, 1), torch.tensor([0, 0]), ("a", "b"))
    logits = torch.tensor([[1.0, 0.0], [math.nan, 0.0]])
    results = feed(build_metrics(("f1",), info), batch, Prediction(logits), 2)
    assert results["f1/class/c0"] == pytest.approx(2 * 1 / (1 + 2))


def test_several_classes_in_a_image_are_refused() -> None:
    with pytest.raises(UserError, match="use multilabel"):
        build_metrics(("f1",), DatasetInfo("voc", ("a", "b"), multi_label=True))
