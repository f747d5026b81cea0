"""Random predictions, ways to feed them in batches of any size, and a metric as a user would add it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from torch import Tensor

from common import metric_info
from common.errors import UserError
from common.metric_info import MetricInfo
from datasets.types import Batch, DatasetInfo
from metrics import METRICS, MetricSet, Prediction, build_metrics
from metrics.base import ExactMetric, mean
from metrics.maps.per_image import bootstrap

BIRDS = DatasetInfo(
    name="birds",
    class_names=("land", "water"),
    group_names=("land/land", "land/water", "water/land", "water/water"),
    minority_groups=(1, 2),
    part_names=("beak", "wing", "tail"),
)

THREE = DatasetInfo("three", ("a", "b", "c"), multi_label=True)

Record = TypeVar("Record", Batch, Prediction)


def many_classes(count: int) -> DatasetInfo:
    return DatasetInfo(name="many", class_names=tuple(f"c{i}" for i in range(count)))


def random_set(info: DatasetInfo, n: int = 67, parts: int = 3, seed: int = 0) -> tuple[Batch, Prediction]:
    """Batch and prediction of n images of 24x32 pixels, patches of 4; the true mask of every fifth image is empty.

    Three key points, a third of them hidden, and as many parts at pixels; boxes of about the whole image; where `info`
    says so, several classes per image.
    """
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(info.num_classes, (n,), generator=g)
    place = torch.randint(2, (n,), generator=g)
    truth = torch.rand(n, 24, 32, generator=g) > 0.6
    truth[::5] = False
    maps = torch.rand(n, parts + 1, 6, 8, generator=g).softmax(dim=1)
    mask = torch.rand(n, 6, 8, generator=g) > 0.5
    mask[3] = False

    def logits() -> Tensor:
        return torch.randn(n, info.num_classes, generator=g) + 0.5 * torch.eye(info.num_classes)[label]

    stage_2, stage_1 = logits(), logits()
    place_of_parts = torch.rand(n, 3, 2, generator=g) * torch.tensor([31.0, 23.0])
    corner, size = 6 * torch.rand(n, 2, generator=g), 18 + 12 * torch.rand(n, 2, generator=g)
    batch = Batch(
        image=torch.zeros(n, 3, 24, 32),
        label=label,
        paths=tuple(str(i) for i in range(n)),
        group=2 * label + place if info.group_names else None,
        mask=truth,
        keypoints=torch.cat([place_of_parts, (torch.rand(n, 3, 1, generator=g) > 1 / 3).float()], dim=2),
        part_labels=torch.randint(-1, 3, (n, 24, 32), generator=g),
        frame=torch.cat([corner, size], dim=1),
        present=torch.rand(n, info.num_classes, generator=g) > 0.6 if info.multi_label else None,
    )
    return batch, Prediction(logits=stage_2, stage_1_logits=stage_1, mask=mask, maps=maps)


def rows_of(batch: Batch, prediction: Prediction, rows: Tensor) -> tuple[Batch, Prediction]:
    """The images at rows [n] bool or int64."""

    def part(record: Record) -> Record:
        values: dict[str, Any] = {field.name: getattr(record, field.name) for field in fields(record)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value[rows]
        if "paths" in values:
            values["paths"] = tuple(str(i) for i in range(len(values["label"])))
        return type(record)(**values)

    return part(batch), part(prediction)


def feed(metrics: MetricSet, batch: Batch, prediction: Prediction, size: int) -> dict[str, float]:
    """Fit and update in batches of `size`, then compute."""
    for show in (metrics.fit, metrics.update):
        for rows in torch.arange(len(batch)).split(size):
            show(*rows_of(batch, prediction, rows))
    return metrics.compute()


def metrics_for(info: DatasetInfo) -> list[str]:
    """Every registered metric that can be built for the data set."""
    names = []
    for name in METRICS:
        with suppress(UserError):
            METRICS[name](info)
            names.append(name)
    return names


def fed_alone(info: DatasetInfo, batch: Batch, prediction: Prediction, size: int) -> dict[str, dict[str, float]]:
    """The results of each of `metrics_for(info)`, by metric; intervals from few resamples."""
    with few_resamples():
        return {name: feed(build_metrics([name], info), batch, prediction, size) for name in metrics_for(info)}


@contextmanager
def few_resamples() -> Iterator[None]:
    """Bootstrap intervals from 20 resamples instead of 1000."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "__defaults__", (20, 0))
        yield


@contextmanager
def outside_metric() -> Iterator[None]:
    """A metric from outside the repository, "brier": one class with one registration, forgotten at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METRICS, "_entries", dict(METRICS._entries))
        patch.setattr(metric_info, "_DECLARED", dict(metric_info._DECLARED))

        @METRICS.register("brier")
        class Brier(ExactMetric):
            shown: ClassVar = {
                "brier": MetricInfo(percent=True, headline=1000, panel="calibration", label="Brier score"),
                "brier/class/": MetricInfo(percent=True),
            }
            errors: list[Tensor]

            def __init__(self, info: DatasetInfo) -> None:
                super().__init__()
                self.info = info
                self.add_values("errors")

            def update(self, batch: Batch, prediction: Prediction) -> None:
                p = prediction.logits.double().softmax(1)
                self.errors.append((p - torch.eye(self.info.num_classes)[batch.label]).square().flatten())

            def compute(self) -> dict[str, float]:
                errors = self.values("errors").view(-1, self.info.num_classes)
                named = zip(self.info.class_names, errors.T.tolist(), strict=True)
                by_class = {f"brier/class/{name}": mean(column) for name, column in named}
                return {"brier": mean(by_class.values()), **by_class, "count/brier": float(len(errors))}

        yield
