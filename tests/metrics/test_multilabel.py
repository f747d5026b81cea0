"""Metrics of images with several classes, against scikit-learn and against sums by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from common.errors import UserError
from datasets.types import Batch, DatasetInfo
from metrics import Prediction, build_metrics, default_metrics
from metrics.multilabel import average_precision
from tests.metrics.cases import BIRDS, THREE, feed, many_classes, rows_of


def several(info: DatasetInfo = THREE, n: int = 67, seed: int = 0) -> tuple[Batch, Prediction]:
    """Images of zero to three classes; the logits are rounded, so that many are equal."""
    g = torch.Generator().manual_seed(seed)
    present = torch.rand(n, info.num_classes, generator=g) > 0.6
    batch = Batch(torch.zeros(n, 3, 1, 1), torch.zeros(n, dtype=torch.int64), ("x",) * n, present=present)

    def logits() -> torch.Tensor:
        return (2 * torch.randn(n, info.num_classes, generator=g) + present).round(decimals=1)

    return batch, Prediction(logits=logits(), stage_1_logits=logits())


def measured(batch: Batch, prediction: Prediction, size: int = 67, info: DatasetInfo = THREE) -> dict[str, float]:
    return feed(build_metrics(["multilabel"], info), batch, prediction, size)


@pytest.mark.parametrize("seed", range(5))
def test_scikit_learn_says_the_same(seed: int) -> None:
    batch, prediction = several(seed=seed)
    assert batch.present is not None and prediction.stage_1_logits is not None
    found = measured(batch, prediction)
    truth = batch.present.numpy()
    for prefix, logits in (("", prediction.logits), ("stage_1/", prediction.stage_1_logits)):
        named = logits.sigmoid().numpy() > 0.5
        expected = {
            "mean_average_precision": average_precision_score(truth, logits.numpy(), average="macro"),
            "macro_f1": f1_score(truth, named, average="macro"),
            "micro_f1": f1_score(truth, named, average="micro"),
        }
        assert {name: found[prefix + name] for name in expected} == pytest.approx(expected, abs=1e-12)
    by_class = average_precision_score(truth, prediction.logits.numpy(), average=None)
    assert [found[f"average_precision/class/{name}"] for name in "abc"] == pytest.approx(by_class.tolist(), abs=1e-12)


def test_average_precision_by_hand() -> None:
    """Thresholds 3, 2, 1: precision 1, 2/3, 2/4 where recall grows by 1/2, 1/2, 0."""
    scores, once = np.array([3.0, 2.0, 2.0, 1.0]), np.ones(4)
    assert average_precision(scores, np.array([True, False, True, False]))(once) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert math.isnan(average_precision(scores, np.zeros(4, bool))(once))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_and_order_change_nothing(size: int) -> None:
    batch, prediction = several()
    whole = measured(batch, prediction)
    assert whole["count/images"] == 67 and len(whole) == 10
    assert measured(batch, prediction, size) == whole
    order = torch.randperm(67, generator=torch.Generator().manual_seed(1))
    assert measured(*rows_of(batch, prediction, order), size) == whole


def test_classes_without_images_are_left_out() -> None:
    """Neither shown nor named: no F1; not shown but named: F1 0; not shown: no average precision."""
    batch, prediction = several()
    assert batch.present is not None
    batch.present[:, 2] = False
    logits = prediction.logits.clone()
    first_two = logits[:, :2].numpy(), batch.present[:, :2].numpy()
    f1 = f1_score(first_two[1], first_two[0] > 0, average=None)
    logits[:, 2] = -1
    unnamed = measured(batch, replace(prediction, logits=logits))
    assert unnamed["macro_f1"] == pytest.approx(f1.mean())
    assert math.isnan(unnamed["average_precision/class/c"])
    precision = average_precision_score(first_two[1], first_two[0], average="macro")
    assert unnamed["mean_average_precision"] == pytest.approx(precision)
    logits[0, 2] = 1
    assert measured(batch, replace(prediction, logits=logits))["macro_f1"] == pytest.approx(f1.sum() / 3)


def test_a_probability_of_one_half_names_no_class() -> None:
    batch, prediction = several(n=2)
    zeros = replace(prediction, logits=torch.zeros(2, 3))
    assert measured(replace(batch, present=torch.ones(2, 3, dtype=torch.bool)), zeros)["micro_f1"] == 0


def test_a_nan_spoils_its_stage_alone() -> None:
    batch, prediction = several()
    assert prediction.stage_1_logits is not None
    whole = measured(batch, prediction)
    prediction.stage_1_logits[5, 1] = math.nan
    found = measured(batch, prediction)
    spoilt = {key for key, value in found.items() if math.isnan(value)}
    assert spoilt == {"stage_1/mean_average_precision", "stage_1/macro_f1", "stage_1/micro_f1"}
    assert all(found[key] == whole[key] for key in found.keys() - spoilt)


def test_large_logits_do_not_tie() -> None:
    """sigmoid(40) and sigmoid(50) are both 1 in float32; the ranking is that of the logits."""
    scores = torch.tensor([[50.0], [40.0]])
    batch = Batch(torch.zeros(2, 3, 1, 1), torch.zeros(2, dtype=torch.int64), ("x", "y"))
    info = DatasetInfo("one", ("a",), multi_label=True)
    first = replace(batch, present=torch.tensor([[True], [False]]))
    assert measured(first, Prediction(logits=scores), info=info)["mean_average_precision"] == 1


def test_nothing_counted_is_nan() -> None:
    found = build_metrics(["multilabel"], THREE).compute()
    assert found.pop("count/images") == 0 and all(math.isnan(value) for value in found.values())


def test_what_fits_a_data_set() -> None:
    assert default_metrics(THREE, has_mask=True) == ("multilabel", "mask")
    many = replace(many_classes(30), multi_label=True)
    found = measured(*several(many), info=many)
    assert not any("class/" in key for key in found) and not np.isnan(found["mean_average_precision"])
    with pytest.raises(UserError, match="multilabel.*'birds' show one class; drop it"):
        build_metrics(["multilabel"], BIRDS)
    batch, prediction = several()
    with pytest.raises(UserError, match="does not list them"):
        measured(replace(batch, present=None), prediction)
    with pytest.raises(ValueError, match=r"\(67, 3\), expected \(67, 2\)"):
        measured(batch, prediction, info=replace(THREE, class_names=("a", "b")))
