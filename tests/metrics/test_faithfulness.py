"""The certificate holds where it must, breaks where it must, and its metrics equal loops over images."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch
from metrics.maps.certificate import FILLS, Certificate, Predecessors, masked_explanation, movement
from metrics.maps.per_image import MAP_METRICS
from metrics.types import Explanation
from models.selection import Selection
from models.two_stage import TwoStageModel
from tests.metrics.cases import many_classes
from tests.models.small import FLAT, config, images, random_mask, shaken

INFO = many_classes(5)
PATHS = ("packed", "gathered", "dense")


def two_stage(backbone: str = "vit_t_dino", path: str = "auto", **changes: str) -> TwoStageModel:
    model = shaken(TwoStageModel(config(backbone=backbone, stage_2_path=path, **changes), 5, (32, 32)))
    assert isinstance(model, TwoStageModel)
    return model.eval().requires_grad_(False)


def batch_of(n: int = 6) -> Batch:
    return Batch(images(n), torch.arange(n) % 5, tuple(map(str, range(n))))


def certificate(**options: object) -> Certificate:
    built = MAP_METRICS["certificate"](INFO, **{"patch": 8, "kept": 0.25} | options)
    assert isinstance(built, Certificate)
    return built


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("backbone", FLAT)
def test_two_stage_logits_do_not_move_a_bit(backbone: str, path: str) -> None:
    model, batch, measured = two_stage(backbone, path), batch_of(), certificate()
    mask = random_mask(6, 16).view(6, 4, 4)
    measured.update(batch, masked_explanation(batch.image, mask, lambda x, m: model.predict(x, Selection(m))))
    results = measured.compute()
    assert results["certificate/max_logit_change"] == 0
    assert results["certificate/holds"] == 1
    assert results["certificate/keep_ratio"] == pytest.approx(mask.double().mean().item())


@pytest.mark.parametrize("path", PATHS)
def test_two_stage_logits_hold_in_half_precision(path: str) -> None:
    model, batch, measured = two_stage(path=path), batch_of(), certificate(tolerance=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        mask = model(batch.image).mask
        measured.update(batch, masked_explanation(batch.image, mask, lambda x, m: model.predict(x, Selection(m))))
    assert measured.compute()["certificate/holds"] == 1


def test_soft_masks_get_no_certificate() -> None:
    model, batch, measured = two_stage(mask_kind="soft"), batch_of(), certificate(tolerance=1e-3)
    selection = model.select(batch.image).selection
    measured.update(
        batch,
        masked_explanation(batch.image, selection.mask, lambda x, m: model.predict(x, replace(selection, mask=m))),
    )
    results = measured.compute()
    hides = ~selection.mask.flatten(1).all(1)
    assert hides.any()
    assert results["certificate/holds"] == pytest.approx(1 - hides.double().mean().item())
    assert results["certificate/max_logit_change"] > 1e-3


def test_one_leaking_image_is_found() -> None:
    """A model that looks at one hidden pixel of one image."""
    batch, mask = batch_of(), torch.zeros(6, 4, 4, dtype=torch.bool)
    mask[:, 0, 0] = True
    model, measured = two_stage(), certificate()

    def leaky(x: Tensor, m: Tensor) -> Tensor:
        logits = model.predict(x, Selection(m))
        logits[3, 2] += 1e-3 * x[3, 0, 31, 31]
        return logits

    measured.update(batch, masked_explanation(batch.image, mask, leaky))
    results, table = measured.compute(), measured.per_image()
    assert results["certificate/holds"] == pytest.approx(5 / 6)
    changes = torch.stack([torch.from_numpy(table[f"{fill}/logit_change"]) for fill in FILLS])
    assert changes.amax(0).nonzero().flatten().tolist() == [3]
    assert results["certificate/max_logit_change"] == changes.max()


def test_no_certificate_without_a_visible_patch_or_finite_logits() -> None:
    """Where nothing is kept every model passes, a broken one too: its part head finds no foreground in nan."""
    batch, mask = batch_of(), torch.zeros(6, 4, 4, dtype=torch.bool)
    mask[2:, 1, 1] = True
    model, measured = two_stage(), certificate()

    def broken(x: Tensor, m: Tensor) -> Tensor:
        logits = model.predict(x, Selection(m))
        return torch.where(torch.arange(6)[:, None] == 5, torch.inf, logits)

    measured.update(batch, masked_explanation(batch.image, mask, broken))
    results = measured.compute()
    assert results["certificate/holds"] == pytest.approx(3 / 6)
    assert results["count/certificate/images"] == 6


def shown(image: Tensor, heat: Tensor, count: int, fill: Tensor) -> Tensor:
    """The image with all but its `count` largest patches taken from `fill`."""
    values, result = heat.flatten().tolist(), fill.expand_as(image).clone()
    for patch in sorted(range(16), key=lambda i: (-values[i], i))[:count]:
        y, x = patch // 4 * 8, patch % 4 * 8
        result[:, y : y + 8, x : x + 8] = image[:, y : y + 8, x : x + 8]
    return result


def slow_figures(model: TwoStageModel, batch: Batch, maps: Tensor, counts: list[int]) -> dict[str, float]:
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    sums = {"probability_change": 0.0, "total_variation": 0.0, "flipped": 0.0}
    largest = 0.0
    for i, image in enumerate(batch.image):
        other = batch.image[i - 1] if i else image.flip((1, 2))
        for fill in (noise, torch.zeros(3, 1, 1), other):
            old, new = (model(x[None]).logits[0] for x in (image, shown(image, maps[i], counts[i], fill)))
            shift = (old.softmax(0) - new.softmax(0)).abs()
            largest = max(largest, (old - new).abs().max().item())
            sums["probability_change"] += shift[int(batch.label[i])].item()
            sums["total_variation"] += shift.sum().item() / 2
            sums["flipped"] += float(old.argmax() != new.argmax())
    count = 3 * len(batch)
    return {name: total / count for name, total in sums.items()} | {"max_logit_change": largest, "holds": 0}


@pytest.mark.parametrize("own_share", [False, True])
@pytest.mark.parametrize("size", [6, 4, 1])
def test_post_hoc_maps_equal_loops(own_share: bool, size: int) -> None:
    model, batch = two_stage(), batch_of()
    maps = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(3))
    counts = model.select(batch.image).selection.mask.sum((1, 2)) if own_share else torch.full((6,), 4)
    assert (counts < 16).all()

    def own(x: Tensor) -> Tensor:
        return model.select(x).selection.mask.flatten(1).float().mean(1)

    measured = certificate(kept=own if own_share else 0.25)
    for rows in torch.arange(6).split(size):
        part = Batch(batch.image[rows], batch.label[rows], ("x",) * len(rows))
        measured.update(part, Explanation(maps[rows], model(part.image).logits, lambda x: model(x).logits))
    results = measured.compute()
    for name, value in slow_figures(model, batch, maps, counts.tolist()).items():
        assert results[f"certificate/{name}"] == pytest.approx(value, abs=1e-5)
    assert results["certificate/keep_ratio"] == pytest.approx(counts.double().mean().item() / 16)


def test_failed_maps_are_counted_and_left_out() -> None:
    model, batch, measured = two_stage(), batch_of(), certificate()
    maps = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(3))
    maps[2, 0, 0] = math.nan
    measured.update(batch, Explanation(maps, model(batch.image).logits, lambda x: model(x).logits))
    results, table = measured.compute(), measured.per_image()
    assert results["count/certificate/nan_maps"] == 1
    assert results["count/certificate/images"] == 5
    kept = [i for i in range(6) if i != 2]
    assert results["certificate/max_logit_change"] == max(table[f"{f}/logit_change"][kept].max() for f in FILLS)
    assert math.isnan(table["noise/flipped"][2])


def test_movement_of_known_logits() -> None:
    before = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    after = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, 1.0], [math.nan, 0.0]])
    p = math.e / (1 + math.e)
    expected = [[0, 0, 0, 0], [math.log(3), 0.25, 0.25, 0], [1, 2 * p - 1, 2 * p - 1, 1], [math.inf, 1, 1, 1]]
    assert torch.allclose(movement(before, after, torch.tensor([0, 1, 0, 0])), torch.tensor(expected).double())


def test_predecessors_do_not_depend_on_the_batch_size() -> None:
    pictures, whole, single = images(5), Predecessors(), Predecessors()
    donors = whole(pictures)
    assert torch.equal(donors, torch.cat([single(picture) for picture in pictures.split(1)]))
    assert torch.equal(donors[1:], pictures[:-1])
    assert not torch.equal(donors[0], pictures[0])


def test_protocol_says_how_much_is_kept() -> None:
    protocols = [json.loads(json.dumps(certificate(kept=kept).protocol())) for kept in (0.25, lambda x: x)]
    assert [protocol["kept"] for protocol in protocols] == [0.25, "as the model's own mask, per image"]


@pytest.mark.parametrize("kept", [1.5, -0.1, math.nan])
def test_bad_share_is_named(kept: float) -> None:
    with pytest.raises(UserError, match="kept"):
        certificate(kept=kept)
