"""Weakly supervised detection against its textbook form, pixel by pixel in NumPy, and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.errors import UserError
from datasets.types import Batch
from metrics.maps.boxes import fill_boxes
from metrics.maps.detection import display_maps
from metrics.maps.per_image import MAP_METRICS
from metrics.types import Explanation
from tests.metrics.map_cases import CONSTANT, EMPTY, FAILED, INFO, SIZE, feed, one, random_maps


def textbook_display(m: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    m = (m - m.mean()) / m.std()
    m = (m - m.min()) / (m.max() - m.min())
    (height, width), (h, w) = size, m.shape
    m = np.array([[m[y * h // height, x * w // width] for x in range(width)] for y in range(height)])
    m = m + (0.5 - np.median(m))
    m = np.clip(m, 0, m.mean() + 2 * m.std())
    return m / m.max()


def textbook_iou(m: np.ndarray, boxes: list[list[float]], size: tuple[int, int]) -> float:
    shown, both, either = textbook_display(m, size), 0, 0
    for y in range(size[0]):
        for x in range(size[1]):
            inside = any(x0 < x < x1 and y0 < y < y1 for x0, y0, x1, y1 in boxes)
            both += inside and shown[y, x] > 0.5
            either += inside or shown[y, x] > 0.5
    return both / either


def several_classes(n: int = 23) -> tuple[Batch, Explanation]:
    """Every box of a class of its own: some images have none of the predicted class."""
    batch, explanation = random_maps(n)
    assert batch.boxes is not None
    g = torch.Generator().manual_seed(3)
    return replace(batch, box_labels=tuple(torch.randint(3, (len(b),), generator=g) for b in batch.boxes)), explanation


@pytest.mark.parametrize("size", [(24, 32), (7, 50)])
def test_the_display_map_is_the_textbooks(size: tuple[int, int]) -> None:
    maps = torch.rand(4, 6, 8, generator=torch.Generator().manual_seed(0)) ** 3
    expected = np.stack([textbook_display(m.double().numpy(), size) for m in maps])
    assert np.allclose(display_maps(maps, size).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("labelled", [False, True])
def test_every_image_is_the_textbooks(labelled: bool) -> None:
    batch, explanation = several_classes() if labelled else random_maps()
    metric = feed(MAP_METRICS["detection"](INFO), batch, explanation, 5)
    found, predicted = metric.per_image()["iou"], explanation.logits.argmax(1)
    assert batch.boxes is not None
    known = 0
    for i, boxes in enumerate(batch.boxes):
        classes = batch.box_labels[i] if batch.box_labels else batch.label[i].expand(len(boxes))
        own = boxes[classes == predicted[i]].tolist()
        if not own:
            assert math.isnan(found[i])
        elif i in (FAILED, CONSTANT):
            assert found[i] == 0
        else:
            known += 1
            assert found[i] == pytest.approx(textbook_iou(explanation.maps[i].double().numpy(), own, SIZE), abs=1e-12)
    assert 5 < known < 20 and math.isnan(found[EMPTY])
    results = metric.compute()
    assert results["detection/iou"] == pytest.approx(np.nanmean(found))
    assert results["detection/iou/low"] < results["detection/iou"] < results["detection/iou/high"]
    assert results["count/detection/images"] == 23
    assert results["count/detection/correct"] == int((~np.isnan(found)).sum())
    assert (results["count/detection/nan_maps"], results["count/detection/constant_maps"]) == (1, 1)


def test_batches_and_order_change_nothing() -> None:
    whole = feed(MAP_METRICS["detection"](INFO), *several_classes(), 23).compute()
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1)).tolist()
    assert feed(MAP_METRICS["detection"](INFO), *several_classes(), 4, order).compute() == whole


def test_strictly_inside() -> None:
    """Between 2 and 6 lie 3, 4, 5; between 1.5 and 3.5 lie 2 and 3; a box may be too thin for any."""
    filled = fill_boxes(np.array([[2, 1.5, 6, 3.5]]), (8, 8), "strict")
    assert filled.nonzero()[0].tolist() == [2, 2, 2, 3, 3, 3] and filled.nonzero()[1].tolist() == [3, 4, 5] * 2
    assert not fill_boxes(np.array([[2.0, 2, 3, 3]]), (8, 8), "strict").any()


def test_by_hand() -> None:
    """A map of two halves on 8 x 8: its median lies between them, the right one is found, the box is 3 x 3 in it."""
    maps = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    batch, explanation = one(maps, (8, 8), boxes=(torch.tensor([[4.0, 4, 8, 8]]),))
    assert feed(MAP_METRICS["detection"](INFO), batch, explanation, 1).compute()["detection/iou"] == 9 / 32


def test_a_data_set_without_boxes() -> None:
    batch, explanation = random_maps()
    with pytest.raises(UserError, match="'detection' needs boxes"):
        feed(MAP_METRICS["detection"](INFO), replace(batch, boxes=None), explanation, 5)
