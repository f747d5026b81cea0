"""Perturbation metrics against one-image-one-step loops, identities of the curves, and the cost in forwards."""

import json
import math
from collections.abc import Hashable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch
from metrics.maps.per_image import MAP_METRICS
from metrics.maps.perturbation import ABPC
from metrics.maps.removal import blur, on_grid
from metrics.types import Explanation
from tests.metrics.covering import (
    INFO,
    MEAN,
    STD,
    classifier,
    feed,
    mean_of,
    metric,
    random_case,
    slow_cover,
    slow_curve,
    trapezoid,
)

NAMES = ("abpc", "perturbation", "perturbation_label", "insertion_deletion")


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("fill", ["grey", "black", "mean", "blur"])
def test_abpc_equals_one_image_one_step(fill: str, patch: int) -> None:
    predict, (batch, maps) = classifier(), random_case()
    found = feed(metric("abpc", fill=fill, patch=patch), batch, maps, predict)
    lerf, morf = [], []
    for image, label, heat in zip(batch.image, batch.label, on_grid(maps, (16 // patch,) * 2), strict=True):
        cover = slow_cover(image, fill)

        def p(logits: Tensor, label: int = int(label)) -> float:
            return logits.softmax(0)[label].item()

        morf.append(slow_curve(predict, p, image, heat, cover, patch))
        lerf.append(slow_curve(predict, p, image, -heat, cover, patch))
    curves = found.mean_curves()
    assert curves["fraction"] == pytest.approx([i / 10 for i in range(11)])
    assert curves["lerf"] == pytest.approx(mean_of(lerf), abs=1e-5)
    assert curves["morf"] == pytest.approx(mean_of(morf), abs=1e-5)
    results = found.compute()
    assert results["abpc/lerf_auc"] == pytest.approx(sum(mean_of(lerf)) / 11, abs=1e-5)
    assert results["abpc/morf_auc"] == pytest.approx(sum(mean_of(morf)) / 11, abs=1e-5)
    assert results["abpc"] == pytest.approx(results["abpc/lerf_auc"] - results["abpc/morf_auc"], abs=1e-9)
    assert results["abpc/low"] <= results["abpc"] <= results["abpc/high"]


def published_values(logits: Tensor, clean: Tensor, label: int) -> dict[str, float]:
    """What the published perturbation test records of one image and step, from soft-max probabilities."""
    p, p_clean = logits.double().softmax(0), clean.double().softmax(0)
    return {
        "": float(logits.argmax() == label),
        "_dissimilarity": math.log(p[label] / p.sort().values[-2]),
        "_probability_change": float(p.max() - p_clean.max()),
        "_logit_change": float(logits.max() - clean.max()),
    }


@pytest.mark.parametrize("name", ["perturbation", "perturbation_label"])
def test_perturbation_equals_one_image_one_step(name: str) -> None:
    predict, (batch, maps) = classifier(), random_case(n=12)
    batch.label[:9] = predict(batch.image).argmax(1)[:9]  # most clean answers right, so that there is something to lose
    found = feed(metric(name, patch=2), batch, maps, predict)
    rows: dict[str, list[list[float]]] = {}
    for image, label, heat in zip(batch.image, batch.label, on_grid(maps, (8, 8)), strict=True):
        clean = predict(image[None])[0]
        for line, sign in {"positive": 1, "negative": -1}.items():
            for kind in published_values(clean, clean, 0):

                def value(logits: Tensor, clean: Tensor = clean, label: int = int(label), kind: str = kind) -> float:
                    return published_values(logits, clean, label)[kind]

                curve = slow_curve(predict, value, image, sign * heat, slow_cover(image, "black"), 2)
                rows.setdefault(line + kind, []).append(curve[:-1])
    results, curves = found.compute(), found.mean_curves()
    assert curves["fraction"] == pytest.approx([i / 10 for i in range(10)])
    for line, values in rows.items():
        assert curves[line] == pytest.approx(mean_of(values), abs=1e-5)
        mean = sum(mean_of(values)[1:]) / 9
        key = f"{name}/{line}_mean" if line in ("positive", "negative") else f"{name}/{line}"
        assert results[key] == pytest.approx(mean, abs=1e-5) != 0
    for line in ("positive", "negative"):
        assert 0.05 < results[f"{name}/{line}_mean"] < 0.95
        assert results[f"{name}/{line}_auc"] == pytest.approx(trapezoid(mean_of(rows[line])[1:], 0.1))


def test_insertion_and_deletion_equal_one_image_one_step() -> None:
    predict, (batch, maps) = classifier(), random_case()
    results = feed(metric("insertion_deletion", steps=5), batch, maps, predict).compute()
    deletion, insertion = [], []
    for image, heat in zip(batch.image, on_grid(maps, (16, 16)), strict=True):
        predicted = int(predict(image[None]).argmax())

        def p(logits: Tensor, predicted: int = predicted) -> float:
            return logits.softmax(0)[predicted].item()

        deletion.append(trapezoid(slow_curve(predict, p, image, heat, slow_cover(image, "mean"), 1, 5), 0.2))
        insertion.append(trapezoid(slow_curve(predict, p, blur(image[None])[0], heat, image, 1, 5), 0.2))
    assert results["insertion_deletion/deletion"] == pytest.approx(sum(deletion) / 6, abs=1e-5)
    assert results["insertion_deletion/insertion"] == pytest.approx(sum(insertion) / 6, abs=1e-5)


def test_reversed_map_negates_the_score_and_ends_meet() -> None:
    predict, (batch, maps) = classifier(), random_case()
    forth = feed(metric("abpc"), batch, maps, predict)
    back = feed(metric("abpc"), batch, -maps, predict)
    # Not equal to the last digit: a forward pass may round with the position in the batch.
    assert forth.compute()["abpc"] == pytest.approx(-back.compute()["abpc"], abs=1e-12) != 0
    curves = forth.mean_curves()
    for end in (0, -1):
        assert curves["lerf"][end] == curves["morf"][end]
    assert curves["lerf"][5] != curves["morf"][5]


def test_perfect_map_scores_nine_elevenths() -> None:
    """The answer hangs on one pixel, and the map knows which."""
    image, maps = torch.ones(1, 3, 16, 16), torch.zeros(1, 16, 16)
    maps[0, 3, 5] = 1
    batch = Batch(image, torch.tensor([1]), ("x",))

    def predict(images: Tensor) -> Tensor:
        seen = images[:, 0, 3, 5]  # 1, or 0 where covered with grey
        return 100 * torch.stack([0.5 - seen, seen - 0.5], 1)

    found = feed(metric("abpc", mean=(0.5,) * 3, std=(0.5,) * 3), batch, maps, predict)
    assert found.mean_curves()["lerf"] == pytest.approx([1] * 10 + [0], abs=1e-9)
    assert found.mean_curves()["morf"] == pytest.approx([1] + [0] * 10, abs=1e-9)
    assert found.compute()["abpc"] == pytest.approx(9 / 11, abs=1e-9)


@pytest.mark.parametrize("maps_side", [4, 5, 16])
def test_constant_map_is_flagged_and_scores_nothing(maps_side: int) -> None:
    batch, _ = random_case()
    results = feed(metric("abpc"), batch, torch.full((6, maps_side, maps_side), 0.3), classifier()).compute()
    assert results["abpc"] == 0
    assert results["count/abpc/constant_maps"] == 6
    assert results["count/abpc/nan_maps"] == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_failed_maps_are_counted_and_left_out(name: str, bad: float) -> None:
    predict, (batch, maps) = classifier(), random_case()
    maps[1, 2, 2] = maps[4] = bad
    found = feed(metric(name), batch, maps, predict)
    results, table = found.compute(), found.per_image()
    assert results[f"count/{name}/nan_maps"] == 2
    assert results[f"count/{name}/images"] == 4
    good = [0, 2, 3, 5]
    part = Batch(batch.image[good], batch.label[good], ("a", "b", "c", "d"))
    without = feed(metric(name), part, maps[good], predict).compute()
    for figure in found.results:
        assert results[figure] == pytest.approx(without[figure], abs=1e-6)
        assert [math.isnan(value) for value in table[figure]] == [i not in good for i in range(6)]


def test_only_failed_maps_give_no_score() -> None:
    batch, maps = random_case(n=2)
    results = feed(metric("abpc"), batch, maps * math.nan, classifier()).compute()
    assert math.isnan(results["abpc"])
    assert results["count/abpc/images"] == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "chunk"), [(1, None), (4, None), (6, 1), (4, 5), (6, 1000)])
def test_batches_and_chunks_change_nothing(name: str, size: int, chunk: int | None) -> None:
    predict, (batch, maps) = classifier(), random_case()
    whole = feed(metric(name), batch, maps, predict).per_image()
    parts = feed(metric(name, chunk=chunk), batch, maps, predict, size).per_image()
    for column, values in whole.items():
        assert parts[column] == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "fill", "per_image", "once"),
    [
        ("abpc", "grey", 18, 1),
        ("abpc", "blur", 19, 0),
        ("perturbation", "black", 18, 0),
        ("insertion_deletion", "mean", 19, 1),
    ],
)
def test_forwards_are_few_and_full(name: str, fill: str, per_image: int, once: int) -> None:
    """The clean image costs nothing (its logits are at hand), the covered one is seen once, and no forward is large."""
    predict, (batch, maps) = classifier(), random_case()
    logits, seen = predict(batch.image), []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return predict(images)

    measured = metric(name, fill=fill, chunk=2)
    for rows in torch.arange(6).split(3):
        part = Batch(batch.image[rows], batch.label[rows], ("a",) * 3)
        measured.update(part, Explanation(maps[rows], logits[rows], counting))
    assert sum(seen) == 6 * per_image + once
    assert max(seen) == 2
    assert seen.count(1) <= 3  # a third image, twice, and the covered one


@pytest.mark.parametrize("fill", ["grey", "blur"])
def test_methods_share_what_does_not_depend_on_maps(fill: str) -> None:
    """Bitwise the same rows; the covered and the blurred images are predicted once for all metrics and methods."""
    batch, maps = random_case()
    net, run = classifier(), 0

    def predict(images: Tensor) -> Tensor:
        nonlocal run
        run += len(images)
        return net(images)

    def kept(images: Tensor) -> Tensor:
        return predict(images).softmax(1)[:, 0]

    def rows(shared: dict[Hashable, Tensor] | None) -> list[Tensor]:
        found = []
        for heat in (maps, -maps):  # of two methods
            metrics = [metric("abpc", fill=fill), metric("insertion_deletion", fill=fill)]
            certificate = MAP_METRICS["certificate"](INFO, patch=4, kept=kept)
            for each in (*metrics, certificate):
                explanation = Explanation(heat, net(batch.image), predict)
                found.append(each.rows(batch, explanation if shared is None else replace(explanation, of_batch=shared)))
        return found

    alone = rows(None)
    count, run = run, 0
    for one, other in zip(alone, rows({}), strict=True):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    n = len(batch)
    # kept: n instead of 2 n. Covered in grey: 1 instead of 4, and blurred: n instead of 2 n, or of 4 n as the fill too.
    assert count - run == n + (3 + n if fill == "grey" else 3 * n)


def test_another_model_after_reset() -> None:
    batch, maps = random_case()
    measured = feed(metric("abpc"), batch, maps, classifier(seed=0))
    measured.reset()
    again = feed(measured, batch, maps, classifier(seed=1)).compute()
    assert again == feed(metric("abpc"), batch, maps, classifier(seed=1)).compute()


def test_finer_maps_are_averaged_per_patch() -> None:
    predict, (batch, maps) = classifier(), random_case()
    fine = maps.repeat_interleave(4, 1).repeat_interleave(4, 2) + torch.tensor([0.25, -0.25]).repeat(8)
    coarse = feed(metric("abpc", patch=4), batch, maps, predict).compute()["abpc"]
    assert feed(metric("abpc", patch=4), batch, fine, predict).compute()["abpc"] == pytest.approx(coarse, abs=1e-6)


def test_patch_must_divide_the_image() -> None:
    batch, maps = random_case()
    with pytest.raises(UserError, match="patch=5"):
        feed(metric("abpc", patch=5), batch, maps, classifier())


def test_protocol_names_what_was_done() -> None:
    metric = ABPC(INFO, mean=MEAN, std=STD, steps=4, patch=2)
    protocol = json.loads(json.dumps(metric.protocol()))
    assert protocol["maps_of"] == "label class"
    assert protocol["fractions"] == [0, 0.25, 0.5, 0.75, 1]
    assert (protocol["fill"], protocol["cell_pixels"]) == ("grey", 2)
