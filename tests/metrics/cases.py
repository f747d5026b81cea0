"""A random data set of predictions, and a way to feed it in batches of any size."""

from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from datasets.types import Batch, DatasetInfo
from metrics import MetricSet, Prediction

BIRDS = DatasetInfo(
    name="birds",
    class_names=("land", "water"),
    group_names=("land/land", "land/water", "water/land", "water/water"),
    minority_groups=(1, 2),
)

Record = TypeVar("Record", Batch, Prediction)


def many_classes(count: int) -> DatasetInfo:
    return DatasetInfo(name="many", class_names=tuple(f"c{i}" for i in range(count)))


def random_set(info: DatasetInfo, n: int = 67, parts: int = 3, seed: int = 0) -> tuple[Batch, Prediction]:
    """Batch and prediction of n images of 24x32 pixels, patches of 4; the true mask of every fifth image is empty."""
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

    batch = Batch(
        image=torch.zeros(n, 3, 1, 1),
        label=label,
        paths=tuple(str(i) for i in range(n)),
        group=2 * label + place if info.group_names else None,
        mask=truth,
    )
    return batch, Prediction(logits=logits(), stage_1_logits=logits(), mask=mask, maps=maps)


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
    """Update in batches of `size`, then compute."""
    for rows in torch.arange(len(batch)).split(size):
        metrics.update(*rows_of(batch, prediction, rows))
    return metrics.compute()
