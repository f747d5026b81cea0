"""Segmentation against the published numbers, scikit-learn, and sums pixel by pixel."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from torch.nn.functional import interpolate

from common.errors import UserError
from metrics.maps.per_image import MAP_METRICS
from metrics.maps.pixels import count_pixels, foreground, heat
from metrics.maps.segmentation import THRESHOLDS, average_precision, pixels_above, row_f1
from tests.metrics.map_cases import CONSTANT, EMPTY, FAILED, INFO, SIZE, feed, one, random_maps

MAP = torch.tensor([[0.1, 0.9, 0.4, 0.2], [0.3, 0.8, 0.7, 0.1], [0, 0.6, 1, 0.2], [0.5, 0.2, 0.1, 0.3]])
MASK = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()


def test_published_numbers() -> None:
    results = feed(MAP_METRICS["segmentation"](INFO), *one(MAP, (4, 4), mask=MASK[None]), 1).compute()
    found = foreground(MAP[None], None)
    counts = count_pixels(found, MASK[None])
    assert results["segmentation/pixel_accuracy"] == 13 / 16
    assert (counts.tn.item(), counts.tp.item()) == (9, 4)
    assert results["segmentation/iou_background"] == 9 / 12 and results["segmentation/iou_object"] == 4 / 7
    assert results["segmentation/miou"] == (9 / 12 + 4 / 7) / 2
    assert round(results["segmentation/map"], 6) == 0.911806
    assert [row_f1(found[0, i : i + 1], MASK[i : i + 1]).item() for i in range(4)] == [1, 1, 0.5, 0]
    assert results["segmentation/f1_published"] == 0.625
    assert results["segmentation/f1"] == 8 / 11


def test_against_scikit_learn() -> None:
    batch, explanation = random_maps()
    assert batch.mask is not None
    results = feed(MAP_METRICS["segmentation"](INFO), batch, explanation, 5).compute()
    values = []
    for maps in explanation.maps:
        m = interpolate(maps[None, None], size=SIZE, mode="bilinear", align_corners=False)[0, 0]
        values.append((m - m.min()) / (m.max() - m.min()))
    values[FAILED] = values[CONSTANT] = torch.zeros(SIZE)
    answers = [m > m.mean() for m in values]
    everywhere, truth = torch.stack(answers).flatten(), batch.mask.flatten()
    expected = {
        "pixel_accuracy": (everywhere == truth).double().mean().item(),
        "iou_object": jaccard_score(truth, everywhere),
        "iou_background": jaccard_score(~truth, ~everywhere),
        "map": mean_of(
            average_precision_score(torch.cat([~t, t]).flatten(), torch.cat([1 - m, m]).flatten())
            for m, t in zip(values, batch.mask, strict=True)
        ),
        "f1": mean_of(f1_score(t.flatten(), a.flatten()) for a, t in zip(answers, batch.mask, strict=True) if t.any()),
        "f1_published": mean_of(
            2 * (row & true).sum().item() / max(1, row.sum().item() + true.sum().item())
            for a, t in zip(answers, batch.mask, strict=True)
            for row, true in zip(a, t, strict=True)
        ),
    }
    by_threshold = [
        mean_of(jaccard_score(kind, above == one_kind) for kind, one_kind in ((truth, True), (~truth, False)))
        for above in (torch.stack([m > t for m in values]).flatten() for t in THRESHOLDS)
    ]
    expected |= {"miou_thresholds": mean_of(by_threshold), "miou_best": max(by_threshold)}
    for name, value in expected.items():
        assert results[f"segmentation/{name}"] == pytest.approx(value, abs=1e-12), name
    assert results["segmentation/miou_best"] > results["segmentation/miou_thresholds"]
    assert results["count/segmentation/with_mask"] == len(batch) - 1
    assert (results["count/segmentation/nan_maps"], results["count/segmentation/constant_maps"]) == (1, 1)


def mean_of(values) -> float:  # type: ignore[no-untyped-def]
    listed = list(values)
    return sum(listed) / len(listed)


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_average_precision_with_ties(levels: int) -> None:
    g = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (300,), generator=g).float()
    truth = torch.rand(300, generator=g) > 0.7
    found = average_precision(scores[truth], scores[~truth]).item()
    assert found == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert math.isnan(average_precision(scores[:0], scores))


def test_one_histogram_counts_every_threshold_strictly() -> None:
    """Values on the thresholds are not above them."""
    pixels = torch.cat([torch.tensor(THRESHOLDS), torch.rand(100), torch.tensor([0.0, 1.0])]).view(1, 11, 11)
    truth = torch.rand(1, 11, 11) > 0.5
    tp, fp = pixels_above(pixels.repeat(2, 1, 1), torch.cat([truth, ~truth]))
    for i, threshold in enumerate(torch.tensor(THRESHOLDS)):
        above = pixels > threshold
        assert tp[0, i] == fp[1, i] == (above & truth).sum()
        assert fp[0, i] == tp[1, i] == (above & ~truth).sum()


def test_a_perfect_map_and_its_opposite() -> None:
    perfect = feed(MAP_METRICS["segmentation"](INFO), *one(MASK.float(), (4, 4), mask=MASK[None]), 1).compute()
    for name in ("pixel_accuracy", "miou", "map", "f1", "miou_thresholds", "miou_best"):
        assert perfect[f"segmentation/{name}"] == 1.0, name
    opposite = feed(MAP_METRICS["segmentation"](INFO), *one(-MASK.float(), (4, 4), mask=MASK[None]), 1).compute()
    assert opposite["segmentation/pixel_accuracy"] == opposite["segmentation/miou"] == 0.0


def test_images_without_an_object() -> None:
    batch, explanation = random_maps()
    alone = (batch.mask[[EMPTY]], explanation.maps[EMPTY])  # type: ignore[index]
    results = feed(MAP_METRICS["segmentation"](INFO), *one(alone[1], SIZE, mask=alone[0]), 1).compute()
    assert math.isnan(results["segmentation/f1"]) and results["segmentation/iou_object"] == 0.0
    assert results["count/segmentation/with_mask"] == 0


def test_without_masks() -> None:
    with pytest.raises(UserError, match="metric 'segmentation' needs masks.*drop it from --metrics"):
        MAP_METRICS["segmentation"](INFO).update(*one(MAP, (4, 4)))


def test_heat_of_a_constant_map_is_zero_and_half_precision_is_taken() -> None:
    maps = torch.stack([torch.full((3, 3), 0.1), torch.arange(9.0).view(3, 3)]).half()
    pixels = heat(maps, (7, 7))
    assert pixels.dtype == torch.float32 and not pixels[0].any()
    assert (pixels[1].min(), pixels[1].max()) == (0, 1)
