"""Maps as masks: which patches are kept, and stage 2's metrics for each source."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from datasets.types import Batch
from metrics import Prediction, build_metrics
from metrics.maps.as_masks import MaskComparison, keep_largest, object_patches
from models.selection import Selection
from models.two_stage import TwoStageModel
from tests.metrics.cases import BIRDS, many_classes, random_set
from tests.models.small import config, images, shaken


def look(pictures: Tensor, mask: Tensor) -> Tensor:
    """A model that reads how many patches it is shown in each half."""
    width = mask.shape[2] // 2
    return torch.stack([mask[:, :, :width].sum((1, 2)), mask[:, :, width:].sum((1, 2))], 1).float()


def birds() -> tuple[Batch, Tensor, Tensor]:
    """Batch, learned mask and a map, on 6 x 8 patches."""
    batch, prediction = random_set(BIRDS, n=40)
    assert prediction.mask is not None
    return batch, prediction.mask, torch.randn(40, 6, 8, generator=torch.Generator().manual_seed(1))


def test_each_image_keeps_its_own_count() -> None:
    maps = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(0))
    maps[0] = maps[0].round()
    count = torch.tensor([5, 0, 12, 1, 6, 6, 6, 6, 6])
    for heat, kept, k in zip(maps, keep_largest(maps, count), count.tolist(), strict=True):
        values = heat.flatten().tolist()
        chosen = sorted(range(12), key=lambda i: (-values[i], i))[:k]
        assert kept.flatten().nonzero().flatten().tolist() == sorted(chosen)


def test_failed_map_keeps_nothing() -> None:
    maps = torch.rand(3, 2, 2)
    maps[1, 0, 0] = math.nan
    maps[2, 1, 1] = math.inf
    assert keep_largest(maps, torch.tensor([3, 3, 3])).sum((1, 2)).tolist() == [3, 0, 0]


def test_object_patches_are_half_covered() -> None:
    truth = torch.zeros(4, 8, 8, dtype=torch.bool)
    truth[0, :4, :2] = True  # half of patch (0, 0)
    truth[0, 4:, 4:] = True
    truth[0, 4, 0] = True  # a sixteenth of patch (1, 0)
    truth[1, 3:5, 6] = True  # no patch half covered: two equally covered, the first stays
    truth[2] = True
    expected = [[[1, 0], [0, 1]], [[0, 1], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]
    assert object_patches(truth, (2, 2)).int().tolist() == expected


def test_every_source_gets_the_figures_of_its_mask() -> None:
    batch, learned, maps = birds()
    compared = MaskComparison(BIRDS, look)
    for rows in torch.arange(40).split(7):
        part = Batch(batch.image[rows], batch.label[rows], ("x",) * len(rows), batch.group[rows], batch.mask[rows])
        compared.update(part, learned[rows], {"method": maps[rows]})
    results = compared.compute()
    masks = {
        "learned": learned,
        "truth": object_patches(batch.mask, (6, 8)),
        "method": keep_largest(maps, learned.sum((1, 2))),
    }
    assert list(results) == list(masks)
    for source, mask in masks.items():
        direct = build_metrics(["accuracy", "groups", "mask"], BIRDS)
        direct.update(batch, Prediction(look(batch.image, mask), mask=mask))
        assert results[source] == direct.compute() | ({"count/nan_maps": 0} if source == "method" else {})
    assert results["truth"]["mask_iou"] > results["method"]["mask_iou"]
    assert results["method"]["keep_ratio"] == results["learned"]["keep_ratio"]


def test_failed_maps_are_counted_and_shown_as_nothing() -> None:
    batch, learned, maps = birds()
    maps[:2], maps[5, 1, 1] = math.nan, math.nan
    compared = MaskComparison(BIRDS, look)
    compared.update(batch, learned, {"method": maps})
    results = compared.compute()["method"]
    assert results["count/nan_maps"] == 3
    assert results["count/images"] == 40
    assert results["empty_ratio"] == pytest.approx(4 / 40)  # image 3's learned mask is empty too


def test_pixel_maps_are_averaged_per_patch() -> None:
    batch, learned, maps = birds()
    pixels = interpolate(maps[:, None], scale_factor=4)[:, 0] + torch.tensor([0.5, -0.5]).repeat(16)
    compared = MaskComparison(BIRDS, look)
    compared.update(batch, learned, {"patches": maps, "pixels": pixels})
    results = compared.compute()
    assert results["patches"] == results["pixels"]


def test_without_masks_and_groups() -> None:
    batch, learned, maps = birds()
    plain = Batch(batch.image, batch.label, batch.paths)
    compared = MaskComparison(many_classes(2), look)
    compared.update(plain, learned, {"method": maps})
    results = compared.compute()
    assert list(results) == ["learned", "method"]
    assert "mask_iou" not in results["learned"]


def test_with_a_two_stage_model() -> None:
    model = shaken(TwoStageModel(config(), 2, (32, 32))).eval()
    assert isinstance(model, TwoStageModel)
    batch = Batch(images(6), torch.tensor([0, 1] * 3), ("x",) * 6)
    compared = MaskComparison(many_classes(2), lambda x, mask: model.predict(x, Selection(mask)))
    with torch.no_grad():
        out = model(batch.image)
        compared.update(batch, out.mask, {"same": out.mask.float()})
    results = compared.compute()
    assert results["learned"]["accuracy"] == (out.logits.argmax(1) == batch.label).double().mean().item()
    assert results["same"] == results["learned"] | {"count/nan_maps": 0}
