"""Mask metrics against pixel loops and worked examples."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from common.errors import UserError
from datasets.types import Batch
from metrics import Prediction, build_metrics
from metrics.masks import patch_overlap
from tests.metrics.cases import BIRDS, feed, random_set

LOGITS = torch.tensor([[1.0, 0.0]])


def one(truth: torch.Tensor, mask: torch.Tensor, **more: torch.Tensor) -> dict[str, float]:
    batch = Batch(torch.zeros(1, 3, 1, 1), torch.tensor([0]), ("x",), mask=truth[None])
    return feed(build_metrics(["mask"], BIRDS), batch, Prediction(LOGITS, mask=mask[None], **more), 1)


def slow(batch: Batch, prediction: Prediction) -> dict[str, float]:
    """The same metrics from enlarged masks, image by image."""
    big = interpolate(prediction.mask[:, None].float(), scale_factor=4, mode="nearest")[:, 0] > 0.5
    iou, dice, both_sum, union_sum = [], [], 0, 0
    for found, true in zip(big.tolist(), batch.mask.tolist(), strict=True):
        pixels = [(p, t) for row_p, row_t in zip(found, true, strict=True) for p, t in zip(row_p, row_t, strict=True)]
        both, union = sum(p and t for p, t in pixels), sum(p or t for p, t in pixels)
        both_sum, union_sum = both_sum + both, union_sum + union
        if any(t for _, t in pixels):
            iou.append(both / union)
            dice.append(2 * both / (sum(p for p, _ in pixels) + sum(t for _, t in pixels)))
    return {
        "mask_iou": sum(iou) / len(iou),
        "mask_dice": sum(dice) / len(dice),
        "mask_iou_dataset": both_sum / union_sum,
        "count/masks": len(iou),
        "keep_ratio": prediction.mask.double().mean().item(),
        "empty_ratio": (~prediction.mask.any(dim=2).any(dim=1)).double().mean().item(),
    }


def test_against_pixel_loops() -> None:
    batch, prediction = random_set(BIRDS, n=11)
    results = feed(build_metrics(["mask"], BIRDS), batch, prediction, 4)
    assert results == pytest.approx(slow(batch, prediction), abs=1e-12)


def test_a_worked_example() -> None:
    truth = torch.zeros(4, 4, dtype=torch.bool)
    truth[:2, :3] = True  # 6 pixels; the mask keeps the left half: 8 pixels, 4 of them true
    results = one(truth, torch.tensor([[True, False], [True, False]]))
    assert results["mask_iou"] == results["mask_iou_dataset"] == 4 / 10
    assert results["mask_dice"] == 8 / 14
    assert results["keep_ratio"] == 0.5
    assert results["empty_ratio"] == 0.0


def test_empty_masks_on_either_side() -> None:
    full, none = torch.ones(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    keep, drop = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)
    missed = one(full, drop)
    assert (missed["mask_iou"], missed["mask_dice"], missed["empty_ratio"]) == (0.0, 0.0, 1.0)
    no_object = one(none, keep)
    assert math.isnan(no_object["mask_iou"]) and math.isnan(no_object["mask_dice"])
    assert (no_object["count/masks"], no_object["mask_iou_dataset"]) == (0.0, 0.0)
    assert math.isnan(one(none, drop)["mask_iou_dataset"])


def test_empty_share_is_stage_1s_word_where_given() -> None:
    """With a fall-back the mask that stage 2 saw is full, yet stage 1 kept nothing."""
    keep = torch.ones(2, 2, dtype=torch.bool)
    results = one(torch.ones(4, 4, dtype=torch.bool), keep, empty=torch.tensor([True]))
    assert (results["empty_ratio"], results["keep_ratio"]) == (1.0, 1.0)


def test_without_true_masks_only_the_kept_share() -> None:
    batch, prediction = random_set(BIRDS)
    results = feed(build_metrics(["mask"], BIRDS), replace(batch, mask=None), prediction, 64)
    assert sorted(results) == ["empty_ratio", "keep_ratio"]


def test_a_model_without_masks() -> None:
    batch, prediction = random_set(BIRDS)
    with pytest.raises(UserError, match="this model has no patch mask; drop it from --metrics"):
        build_metrics(["mask"], BIRDS).update(batch, replace(prediction, mask=None))


def test_sizes_must_be_multiples() -> None:
    with pytest.raises(ValueError, match="4x5 pixels is not a multiple of the 2x2 grid of the mask"):
        patch_overlap(torch.ones(1, 2, 2, dtype=torch.bool), torch.ones(1, 4, 5, dtype=torch.bool))
