"""Accuracy, groups and AUROC against scikit-learn and plain loops."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score, roc_auc_score, top_k_accuracy_score
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics import Prediction, build_metrics
from metrics.auroc import auroc, log_odds
from tests.metrics.cases import BIRDS, feed, many_classes, random_set


def run(names: tuple[str, ...], info: DatasetInfo, batch: Batch, prediction: Prediction) -> dict[str, float]:
    return feed(build_metrics(names, info), batch, prediction, 16)


def batch_of(labels: list[int], groups: list[int] | None = None) -> Batch:
    n = len(labels)
    group = None if groups is None else torch.tensor(groups)
    return Batch(torch.zeros(n, 3, 1, 1), torch.tensor(labels), tuple("x" * n), group=group)


def saying(classes: list[int], count: int = 2) -> Tensor:
    return 4.0 * torch.eye(count)[classes]


@pytest.mark.parametrize("classes", [2, 5, 8, 40])
@pytest.mark.parametrize("stage", ["", "stage_1/"])
def test_accuracy_is_scikit_learns(classes: int, stage: str) -> None:
    info = many_classes(classes)
    batch, prediction = random_set(info, n=200)
    results = run(("accuracy",), info, batch, prediction)
    label, logits = batch.label, prediction.stage_1_logits if stage else prediction.logits
    said = logits.argmax(dim=1)
    assert results[f"{stage}accuracy"] == pytest.approx(accuracy_score(label, said), abs=1e-15)
    assert results[f"{stage}balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, said), abs=1e-15)
    assert (f"{stage}accuracy_top5" in results) == (classes > 5)
    if classes > 5:
        top5 = top_k_accuracy_score(label, logits, k=5, labels=range(classes))
        assert results[f"{stage}accuracy_top5"] == pytest.approx(top5, abs=1e-15)
    if not stage:
        recalls = recall_score(label, said, average=None)
        assert results["worst_class_accuracy"] == pytest.approx(recalls.min(), abs=1e-15)
        named = [results.get(f"accuracy/class/c{c}") for c in range(classes)]
        assert named == (pytest.approx(recalls, abs=1e-15) if classes <= 20 else [None] * classes)


def test_a_class_without_images() -> None:
    info = many_classes(3)
    results = run(("accuracy",), info, batch_of([0, 0, 2, 2]), Prediction(saying([0, 1, 2, 2], 3)))
    assert results["balanced_accuracy"] == 0.75
    assert results["worst_class_accuracy"] == 0.5
    assert math.isnan(results["accuracy/class/c1"])
    assert results["count/images"] == 4
    assert "stage_1/accuracy" not in results


def test_nan_logits_are_wrong_and_minus_infinity_is_not() -> None:
    logits = saying([0, 0, 1])
    logits[0] = math.nan
    logits[2, 0] = -math.inf
    results = run(("accuracy",), BIRDS, batch_of([0, 0, 1]), Prediction(logits))
    assert results["accuracy"] == pytest.approx(2 / 3)
    assert math.isnan(run(("auroc",), BIRDS, batch_of([0, 0, 1]), Prediction(logits))["auroc"])


def slow_worst_groups(batch: Batch, logits: Tensor) -> tuple[float, float]:
    accuracies = []
    for group in range(4):
        hits = [
            int(row.argmax()) == int(y)
            for row, y, g in zip(logits, batch.label, batch.group, strict=True)
            if g == group
        ]
        accuracies.append(sum(hits) / len(hits))
    return min(accuracies), min(accuracies[1], accuracies[2])


@pytest.mark.parametrize("seed", range(3))
def test_worst_groups_are_the_slow_ones(seed: int) -> None:
    batch, prediction = random_set(BIRDS, seed=seed)
    results = run(("groups",), BIRDS, batch, prediction)
    worst, paper = slow_worst_groups(batch, prediction.logits)
    assert (results["worst_group_accuracy"], results["worst_group_accuracy_paper"]) == (worst, paper)
    assert results["stage_1/worst_group_accuracy"] == slow_worst_groups(batch, prediction.stage_1_logits)[0]
    assert sum(results[f"count/group/{name}"] for name in BIRDS.group_names) == len(batch)


def test_the_two_definitions_differ_where_a_majority_group_is_worst() -> None:
    batch = batch_of([0, 0, 0, 1, 1, 1], groups=[0, 0, 1, 2, 2, 3])
    results = run(("groups",), BIRDS, batch, Prediction(saying([0, 1, 0, 1, 0, 0])))
    assert results["worst_group_accuracy"] == 0.0  # water/water
    assert results["worst_group_accuracy_paper"] == 0.5  # water/land
    without = replace(BIRDS, minority_groups=None)
    assert run(("groups",), without, batch, Prediction(saying([0, 1, 0, 1, 0, 0])))[
        "worst_group_accuracy_paper"
    ] == pytest.approx(1 / 3)


def test_the_average_by_training_shares() -> None:
    """Group accuracies 1/2, 1, 1/2, 0 with shares 0.7, 0.1, 0.2, 0; a group nobody trained on does not count."""
    batch = batch_of([0, 0, 0, 1, 1, 1], groups=[0, 0, 1, 2, 2, 3])
    answers = Prediction(saying([0, 1, 0, 1, 0, 0]))
    info = replace(BIRDS, group_fractions=(0.7, 0.1, 0.2, 0.0))
    assert run(("groups",), info, batch, answers)["adjusted_accuracy"] == pytest.approx(0.35 + 0.1 + 0.1)
    assert "adjusted_accuracy" not in run(("groups",), BIRDS, batch, answers)
    without = run(("groups",), info, batch_of([0, 1, 1], groups=[0, 2, 3]), Prediction(saying([0, 1, 1])))
    assert math.isnan(without["adjusted_accuracy"])


def test_an_absent_group_is_nan_and_not_the_worst() -> None:
    results = run(("groups",), BIRDS, batch_of([0, 0, 1], groups=[0, 0, 3]), Prediction(saying([0, 1, 1])))
    assert results["worst_group_accuracy"] == 0.5
    assert math.isnan(results["worst_group_accuracy_paper"])
    assert math.isnan(results["accuracy/group/land/water"])
    assert results["count/group/land/water"] == 0.0
    assert results["group_balanced_accuracy"] == 0.75


def test_no_groups_is_said_clearly() -> None:
    with pytest.raises(UserError, match="data set 'birds' has no groups; drop it from --metrics"):
        build_metrics(["groups"], replace(BIRDS, group_names=None))
    with pytest.raises(UserError, match="no group ids"):
        run(("groups",), BIRDS, batch_of([0]), Prediction(saying([0])))


@pytest.mark.parametrize("classes", [2, 4, 25])
def test_auroc_is_scikit_learns(classes: int) -> None:
    info = many_classes(classes)
    batch, prediction = random_set(info, n=300)
    p = prediction.logits.double().softmax(dim=1)
    expected = roc_auc_score(batch.label, p[:, 1] if classes == 2 else p, multi_class="ovr")
    results = run(("auroc",), info, batch, prediction)
    assert results["auroc"] == pytest.approx(expected, abs=1e-12) and "stage_1/auroc" in results
    prediction.logits[0, 0] = math.nan
    assert math.isnan(run(("auroc",), info, batch, prediction)["auroc"])


def test_auroc_counts_ties_as_one_half_and_leaves_absent_classes_out() -> None:
    positive = np.array([True, False, True, False])
    assert auroc(np.array([1.0, 1.0, 2.0, 0.0]), positive) == 0.875
    assert auroc(np.array([1.0, -np.inf, np.inf, 0.0]), positive) == 1
    assert math.isnan(auroc(np.array([1.0, np.nan, 2.0, 0.0]), positive))
    assert math.isnan(run(("auroc",), BIRDS, batch_of([1, 1]), Prediction(saying([0, 1])))["auroc"])
    info = many_classes(3)
    assert run(("auroc",), info, batch_of([0, 2, 2]), Prediction(saying([0, 2, 2], 3)))["auroc"] == 1.0


@pytest.mark.parametrize("classes", [2, 3])
def test_auroc_survives_confident_logits(classes: int) -> None:
    """float32 probabilities would all be 1 here, and float64 ones would be too in the three-class case."""
    logits = saying([1, 1, 1, 1], classes) * torch.tensor([10.0, 11.0, 12.0, 13.0])[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        area = run(("auroc",), many_classes(classes), batch_of([0, 0, 1, 1]), Prediction(logits))["auroc"]
    assert area == 1.0


def test_log_odds() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [90.0, 0.0, 0.0], [-math.inf, 0.0, 0.0]])
    p = logits[0].double().softmax(dim=0)
    odds = log_odds(logits)
    torch.testing.assert_close(odds[0], (p / (1 - p)).log())
    assert odds[1, 0] == pytest.approx(90 - math.log(2))
    assert odds[2, 0] == -math.inf
