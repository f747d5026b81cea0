"""Intervals of images with several classes, against resampled data sets measured from scratch."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics import Prediction, build_metrics
from metrics.multilabel import average_precision
from tests.metrics.cases import feed, many_classes, rows_of

SEVERAL = DatasetInfo("several", ("a", "b", "c"), multi_label=True)
FIGURES = {
    "mean_average_precision": lambda truth, logits: average_precision_score(truth, logits, average="macro"),
    "macro_f1": lambda truth, logits: f1_score(truth, logits > 0, average="macro"),
    "micro_f1": lambda truth, logits: f1_score(truth, logits > 0, average="micro"),
}


def shown(n: int = 80) -> tuple[Batch, Prediction]:
    """Images of zero to three classes, and noisy logits of them, some of which are equal."""
    g = torch.Generator().manual_seed(0)
    present = torch.rand(n, 3, generator=g) > 0.6
    batch = Batch(torch.zeros(n, 3, 1, 1), torch.zeros(n, dtype=torch.int64), ("x",) * n, present=present)
    return batch, Prediction((2 * torch.randn(n, 3, generator=g) + 4 * present - 2).round(decimals=1))


@pytest.mark.parametrize("figure", FIGURES)
def test_they_are_those_of_resampled_images(figure: str) -> None:
    batch, prediction = shown()
    assert batch.present is not None
    results = feed(build_metrics(("multilabel", "multilabel_intervals"), SEVERAL), batch, prediction, 16)
    random, truth, logits = np.random.default_rng(1), batch.present.numpy(), prediction.logits.numpy()
    drawn = [random.integers(80, size=80) for _ in range(400)]
    low, high = np.quantile([FIGURES[figure](truth[rows], logits[rows]) for rows in drawn], [0.025, 0.975])
    assert (results[f"{figure}/low"], results[f"{figure}/high"]) == pytest.approx((low, high), abs=0.03)
    assert results[f"{figure}/low"] < results[figure] < results[f"{figure}/high"]


@pytest.mark.parametrize("seed", range(20))
def test_every_resample_is_measured_exactly(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, present = random.integers(-4, 4, size=30) / 2, random.random(30) > 0.7
    rows = random.integers(30, size=30)
    found = average_precision(scores, present)(np.bincount(rows, minlength=30).astype(float))
    expected = average_precision_score(present[rows], scores[rows]) if present[rows].any() else math.nan
    assert found == pytest.approx(expected, abs=1e-15, nan_ok=True)


def test_a_class_that_the_resample_does_not_show() -> None:
    precision = average_precision(np.array([2.0, 1.0]), np.array([True, False]))
    assert math.isnan(precision(np.array([0.0, 2.0]))) and precision(np.array([1.0, 1.0])) == 1


def test_intervals_do_not_depend_on_the_order() -> None:
    batch, prediction = shown()
    order = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    found = [
        feed(build_metrics(("multilabel_intervals",), SEVERAL), *some, 7)
        for some in ((batch, prediction), rows_of(batch, prediction, order))
    ]
    assert found[0] == found[1]
    with pytest.raises(UserError, match="use f1"):
        build_metrics(("multilabel_intervals",), many_classes(2))


def test_a_nan_spoils_them_and_nothing_has_none() -> None:
    batch, prediction = shown()
    prediction.logits[5, 1] = math.nan
    metrics = build_metrics(("multilabel_intervals",), SEVERAL)
    found = feed(metrics, batch, prediction, 16)
    assert len(found) == 6 and all(math.isnan(value) for value in found.values())
    metrics.reset()
    assert metrics.compute() == {}
