"""What a swapped background changes, for models that look here and there."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch
from metrics.maps.background_swap import BackgroundSwap, background_only, mask_iou
from metrics.types import Prediction
from tests.models.small import images


def scene(n: int = 6) -> Batch:
    """The object is the upper left quarter; image 2 has none."""
    mask = torch.zeros(n, 32, 32, dtype=torch.bool)
    mask[:, :16, :16] = True
    mask[2] = False
    return Batch(images(n), torch.arange(n) % 2, tuple(map(str, range(n))), mask=mask)


def looks_at(rows: slice) -> Callable[[Tensor], Prediction]:
    """A model that reads some rows of the left columns, and shows the brighter half of its four patches."""

    def answer(x: Tensor) -> Prediction:
        patches = x[:, :, rows, :16].mean(1).unflatten(1, (2, 8)).unflatten(3, (2, 8)).mean((2, 4))
        mask = patches > patches.mean((1, 2), keepdim=True)
        return Prediction(100 * patches.flatten(1)[:, :2], mask=mask)

    return answer


def measure(answer: Callable[[Tensor], Prediction], batch: Batch, size: int = 6) -> dict[str, float]:
    swap = BackgroundSwap(answer)
    for rows in torch.arange(len(batch)).split(size):
        part = Batch(batch.image[rows], batch.label[rows], ("x",) * len(rows), mask=batch.mask[rows])
        swap.update(part, answer(part.image))
    return swap.compute()


def test_a_model_that_sees_the_object_alone_does_not_move() -> None:
    batch, answer = scene(), looks_at(slice(0, 16))
    results = measure(answer, batch)
    assert results["background_swap/mask_iou"] == 1
    for name in ("probability_change", "total_variation", "flipped"):
        assert results[f"background_swap/{name}"] == 0
    right = (answer(batch.image).logits.argmax(1) == batch.label).double()
    assert results["background_swap/accuracy"] == pytest.approx(right[[0, 1, 3, 4, 5]].mean().item())
    assert results["count/background_swap/images"] == 5


def test_a_model_that_sees_the_background_answers_for_the_previous_image() -> None:
    batch, answer = scene(), looks_at(slice(16, 32))
    before, results = answer(batch.image), measure(answer, batch)
    donors = {i: answer(batch.image[i - 1 : i] if i else batch.image[:1].flip((2, 3))) for i in (1, 3, 4, 5)}
    donors[0] = answer(background_only(batch.image[:1], batch.mask[:1]).flip((2, 3)))
    flipped, ious = [], []
    for i, donor in donors.items():
        flipped.append(float(donor.logits.argmax() != before.logits[i].argmax()))
        both, either = (donor.mask[0] & before.mask[i]).sum(), (donor.mask[0] | before.mask[i]).sum()
        ious.append((both / either).item())
    assert results["background_swap/flipped"] == pytest.approx(sum(flipped) / 5)
    assert results["background_swap/mask_iou"] == pytest.approx(sum(ious) / 5)
    assert 0 < sum(ious) < 5
    assert results["background_swap/flipped/low"] <= results["background_swap/flipped"]


@pytest.mark.parametrize("size", [1, 4])
def test_batch_size_changes_nothing(size: int) -> None:
    batch, answer = scene(), looks_at(slice(8, 24))
    assert measure(answer, batch, size) == pytest.approx(measure(answer, batch), abs=1e-6)


def test_the_donor_brings_no_object() -> None:
    batch = scene()
    painted = background_only(batch.image, batch.mask)
    assert torch.equal(painted[2], batch.image[2])
    for picture, image, mask in zip(painted, batch.image, batch.mask, strict=True):
        assert torch.equal(picture[:, ~mask], image[:, ~mask])
        for channel, around in zip(picture, image, strict=True):
            assert torch.allclose(channel[mask], around[~mask].mean(), atol=1e-5)


def test_models_without_a_mask_and_empty_masks() -> None:
    logits = torch.zeros(2, 2)
    empty = Prediction(logits, mask=torch.zeros(2, 2, 2, dtype=torch.bool))
    assert mask_iou(empty, empty).tolist() == [1, 1]
    assert mask_iou(Prediction(logits), empty).isnan().all()
    answer = looks_at(slice(16, 32))
    results = measure(lambda x: replace(answer(x), mask=None), scene())
    assert math.isnan(results["background_swap/mask_iou"])
    assert results["background_swap/total_variation"] > 0


def test_masks_are_needed() -> None:
    batch = replace(scene(), mask=None)
    with pytest.raises(UserError, match="background_swap"):
        BackgroundSwap(looks_at(slice(0, 16))).update(batch, looks_at(slice(0, 16))(batch.image))
