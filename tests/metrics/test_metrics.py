"""All metrics together: batch sizes, the registry, and what does not fit a data set."""

import math
from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from datasets.types import DatasetInfo, Sample
from metrics import METRICS, MetricSet, Prediction, build_metrics, default_metrics
from metrics.base import ExactMetric
from tests.metrics.cases import (
    BIRDS,
    THREE,
    fed_alone,
    feed,
    many_classes,
    metrics_for,
    outside_metric,
    random_set,
    rows_of,
)  # fmt: skip

ALL = ("accuracy", "groups", "auroc", "mask", "foreground", "parts", "keypoints")
DATA_SETS = (BIRDS, THREE, many_classes(30))


def test_every_metric_is_tried() -> None:
    assert {name for info in DATA_SETS for name in metrics_for(info)} == set(METRICS) >= {*ALL, "f1", "multilabel"}


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("info", DATA_SETS, ids=lambda info: info.name)
def test_results_do_not_depend_on_the_batch_size(info: DatasetInfo, size: int) -> None:
    batch, prediction = random_set(info, n=90)
    with outside_metric():
        whole = fed_alone(info, batch, prediction, 90)
        assert "brier" in whole and all(whole.values())
        assert fed_alone(info, batch, prediction, size) == whole
    assert all(isinstance(value, float) for results in whole.values() for value in results.values())


def test_a_metric_that_depends_on_the_batch_size_is_noticed() -> None:
    batch, prediction = random_set(BIRDS)
    with outside_metric():
        METRICS["brier"].update = (
            lambda self, batch, prediction: self.errors.append(  # type: ignore[attr-defined]
                prediction.logits[:1].double().flatten()
            )
        )
        assert fed_alone(BIRDS, batch, prediction, 67) != fed_alone(BIRDS, batch, prediction, 7)


@pytest.mark.parametrize("info", DATA_SETS, ids=lambda info: info.name)
def test_moving_the_states_loses_no_batch(info: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the first batch moves the states: other lists and tensors take the place of the first ones."""
    batch, prediction = random_set(info)
    expected = fed_alone(info, batch, prediction, 30)

    def move(metric: ExactMetric, prediction: Prediction) -> None:
        for name, state in metric.states():
            setattr(metric, name, list(state) if isinstance(state, list) else state.clone())

    monkeypatch.setattr(ExactMetric, "follow", move)
    assert fed_alone(info, batch, prediction, 30) == expected


def test_order_of_the_images_does_not_matter() -> None:
    batch, prediction = random_set(BIRDS)
    order = torch.randperm(67, generator=torch.Generator().manual_seed(1))
    assert feed(build_metrics(ALL, BIRDS), *rows_of(batch, prediction, order), 7) == feed(
        build_metrics(ALL, BIRDS), batch, prediction, 7
    )


def test_reset_and_a_second_compute() -> None:
    batch, prediction = random_set(BIRDS)
    metrics = build_metrics(ALL, BIRDS)
    first = feed(metrics, batch, prediction, 64)
    assert metrics.compute() == first
    metrics.reset()
    assert feed(metrics, batch, prediction, 10) == first


@pytest.mark.parametrize("name", ALL)
def test_nothing_counted_is_nan(name: str) -> None:
    results = build_metrics([name], BIRDS).compute()
    assert all(math.isnan(value) for key, value in results.items() if not key.startswith("count/"))


def test_inputs_are_left_alone_and_need_no_grad() -> None:
    batch, prediction = random_set(BIRDS)
    asking = replace(
        prediction,
        logits=prediction.logits.clone().requires_grad_(),
        mask=prediction.mask.float(),
        maps=prediction.maps.clone().requires_grad_(),
    )
    metrics = build_metrics(ALL, BIRDS)
    assert feed(metrics, batch, asking, 64) == feed(build_metrics(ALL, BIRDS), batch, prediction, 64)
    assert torch.equal(asking.logits, prediction.logits)
    assert not any(value.requires_grad for value in metrics.metrics["auroc"].rows)
    assert not any(value.requires_grad for value in metrics.metrics["keypoints"].scored)


def test_default_metrics_fit_the_data_set() -> None:
    assert default_metrics(BIRDS, has_mask=True) == ALL[:4]
    assert default_metrics(BIRDS, has_mask=False) == ALL[:3]
    assert default_metrics(replace(BIRDS, group_names=None), has_mask=False) == ("accuracy", "auroc")
    assert default_metrics(many_classes(100), has_mask=True) == ("accuracy", "mask")


def test_default_metrics_of_part_maps_fit_the_annotations() -> None:
    mask, points, labels = torch.ones(4, 4, dtype=torch.bool), torch.ones(3, 3), torch.zeros(4, 4, dtype=torch.int64)
    sample = Sample(torch.zeros(3, 4, 4), 0, "x")

    def chosen(**annotations: torch.Tensor) -> tuple[str, ...]:
        return default_metrics(BIRDS, True, replace(sample, **annotations))[4:]

    assert chosen() == ("part_use",)
    framed = chosen(mask=mask, keypoints=points, frame=torch.ones(4))
    assert framed == ("part_use", "foreground", "parts")  # a fit costs a pass
    assert chosen(keypoints=points) == ("part_use", "parts")
    assert chosen(mask=mask, part_labels=labels) == ("part_use", "foreground", "parts")


def test_unknown_and_repeated_names() -> None:
    with pytest.raises(UserError, match="did you mean 'auroc'"):
        build_metrics(["aurco"], BIRDS)
    with pytest.raises(UserError, match="groups more than once"):
        build_metrics(["groups", "accuracy", "groups"], BIRDS)


def test_two_metrics_under_one_key() -> None:
    batch, prediction = random_set(BIRDS)
    twice = MetricSet({"one": METRICS["auroc"](BIRDS), "two": METRICS["auroc"](BIRDS)}, BIRDS)
    with pytest.raises(ValueError, match="'one' and 'two' both report 'auroc'"):
        feed(twice, batch, prediction, 64)


@pytest.mark.parametrize("name", ["accuracy", "groups", "auroc"])
def test_logits_of_another_label_space(name: str) -> None:
    info = DatasetInfo("three", ("a", "b", "c"), group_names=BIRDS.group_names)
    with pytest.raises(ValueError, match=r"\(67, 2\), expected \(67, 3\)"):
        build_metrics([name], info).update(*random_set(BIRDS))
