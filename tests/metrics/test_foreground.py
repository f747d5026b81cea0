"""Foreground and background IoU of part maps against pixel loops."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from common.errors import UserError
from datasets.types import Batch
from metrics import build_metrics
from metrics.parts.foreground import map_foreground
from tests.metrics.cases import BIRDS, feed, random_set


def slow(batch: Batch, maps: torch.Tensor) -> tuple[float, float]:
    parts = maps.shape[1] - 1
    labels = interpolate(maps, size=batch.mask.shape[1:], mode="bilinear", align_corners=True).argmax(dim=1)
    sums = {True: [0, 0], False: [0, 0]}
    for label, true in zip(labels.flatten().tolist(), batch.mask.flatten().tolist(), strict=True):
        for kind, (both, either) in {
            True: (label != parts and true, label != parts or true),
            False: (label == parts and not true, label == parts or not true),
        }.items():
            sums[kind][0] += both
            sums[kind][1] += either
    return sums[True][0] / sums[True][1], sums[False][0] / sums[False][1]


@pytest.mark.parametrize("parts", [1, 3])
def test_against_pixel_loops(parts: int) -> None:
    batch, prediction = random_set(BIRDS, n=11, parts=parts)
    results = feed(build_metrics(["foreground"], BIRDS), batch, prediction, 4)
    assert tuple(results.values()) == pytest.approx(slow(batch, prediction.maps), abs=1e-15)
    assert results["foreground_iou"] > 0  # K = 1 included


@pytest.mark.parametrize("parts", [1, 4])
def test_maps_that_know_the_mask(parts: int) -> None:
    batch, prediction = random_set(BIRDS, n=9)
    foreground = torch.randint(parts, batch.mask.shape, generator=torch.Generator().manual_seed(0))
    channel = torch.where(batch.mask, foreground, parts)
    maps = torch.nn.functional.one_hot(channel, parts + 1).permute(0, 3, 1, 2).float()
    results = feed(build_metrics(["foreground"], BIRDS), batch, replace(prediction, maps=maps), 4)
    assert results == {"foreground_iou": 1.0, "background_iou": 1.0}


def test_maps_in_half_precision_and_one_part() -> None:
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0, 0, 0] = maps[0, 1].fill_(0.4)[0, 0] + 0.6
    found = map_foreground(maps.bfloat16(), (4, 4))[0]
    assert found[0, 0] and not found[3, 3]


def test_what_is_missing_is_named() -> None:
    batch, prediction = random_set(BIRDS)
    with pytest.raises(UserError, match="'birds' has no true masks here; drop it from --metrics"):
        build_metrics(["foreground"], BIRDS).update(replace(batch, mask=None), prediction)
    with pytest.raises(UserError, match="'foreground': this model has no part maps; drop it from --metrics"):
        build_metrics(["foreground"], BIRDS).update(batch, replace(prediction, maps=None))
