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
    part_names=("beak", "wing", "tail"),
)

Record = TypeVar("Record", Batch, Prediction)


def many_classes(count: int) -> DatasetInfo:
    return DatasetInfo(name="many", class_names=tuple(f"c{i}" for i in range(count)))


def random_set(info: DatasetInfo, n: int = 67, parts: int = 3, seed: int = 0) -> tuple[Batch, Prediction]:
    """Batch and prediction of n images of 24x32 pixels, patches of 4; the true mask of every fifth image is empty.

    Three key points, a third of them hidden, and as many parts at pixels; boxes of about the whole image.
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
