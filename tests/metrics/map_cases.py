"""A random data set with heat maps, boxes and masks, and a way to feed it in batches of any size."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from datasets.types import Batch, DatasetInfo
from metrics.maps.per_image import MapMetric
from metrics.types import Explanation

INFO = DatasetInfo(name="things", class_names=("a", "b", "c"))
SIZE = (24, 32)
FAILED, CONSTANT, EMPTY = 2, 3, 4
"""Images whose map has a nan, whose map is constant, and that hold no object."""


def random_maps(n: int = 23, seed: int = 0) -> tuple[Batch, Explanation]:
    """n images of 24 x 32 pixels with one or two objects, half-way found by maps of 6 x 8."""
    g = torch.Generator().manual_seed(seed)
    boxes, masks = [], []
    for index in range(n):
        corner = torch.rand(1 + index % 2, 2, generator=g) * torch.tensor([20.0, 14.0])
        boxes.append(torch.cat([corner, corner + 3 + 8 * torch.rand(corner.shape, generator=g)], dim=1))
        mask = torch.zeros(SIZE, dtype=torch.bool)
        for x0, y0, x1, y1 in boxes[-1].int().tolist():
            mask[y0:y1, x0:x1] = torch.rand(y1 - y0, x1 - x0, generator=g) > 0.2
        masks.append(mask)
    masks[EMPTY], boxes[EMPTY] = torch.zeros(SIZE, dtype=torch.bool), torch.zeros(0, 4)
    truth = torch.stack(masks)
    hint = torch.nn.functional.adaptive_avg_pool2d(truth.float()[:, None], (6, 8))[:, 0]
    maps = hint + 0.7 * torch.rand(n, 6, 8, generator=g) - 0.2
    maps[FAILED, 0, 0] = torch.nan
    maps[CONSTANT] = 0.1
    batch = Batch(
        image=torch.zeros(n, 3, *SIZE),
        label=torch.randint(3, (n,), generator=g),
        paths=tuple(map(str, range(n))),
        mask=truth,
        boxes=tuple(boxes),
    )
    return batch, explanation_of(maps, torch.randn(n, 3, generator=g) + torch.eye(3)[batch.label])


def explanation_of(maps: Tensor, logits: Tensor) -> Explanation:
    def predict(images: Tensor) -> Tensor:
        raise AssertionError("these metrics ask the model nothing")

    return Explanation(maps=maps, logits=logits, predict=predict)


def one(maps: Tensor, size: tuple[int, int], **truth: Any) -> tuple[Batch, Explanation]:
    """One correctly classified image; maps [h, w]; truth: boxes=(Tensor [N, 4],) or mask=Tensor [1, H, W]."""
    batch = Batch(image=torch.zeros(1, 3, *size), label=torch.tensor([0]), paths=("one",), **truth)
    return batch, explanation_of(maps[None], torch.tensor([[2.0, 1.0, 0.0]]))


def take(batch: Batch, explanation: Explanation, rows: Sequence[int]) -> tuple[Batch, Explanation]:
    """The images at `rows`."""
    part = replace(
        batch,
        image=batch.image[rows],
        label=batch.label[rows],
        paths=tuple(batch.paths[i] for i in rows),
        mask=None if batch.mask is None else batch.mask[rows],
        boxes=None if batch.boxes is None else tuple(batch.boxes[i] for i in rows),
        box_labels=None if batch.box_labels is None else tuple(batch.box_labels[i] for i in rows),
    )
    return part, replace(explanation, maps=explanation.maps[rows], logits=explanation.logits[rows], of_batch={})


def feed(metric: MapMetric, batch: Batch, explanation: Explanation, size: int, order: Sequence[int] = ()) -> MapMetric:
    """Update in batches of `size`, in the given order."""
    for rows in torch.tensor(list(order) or range(len(batch))).split(size):
        metric.update(*take(batch, explanation, rows.tolist()))
    return metric
