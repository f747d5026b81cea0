"""Pointing game and energy against loops over pixels, and worked examples."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from common.errors import UserError
from metrics.maps.per_image import MAP_METRICS
from tests.metrics.map_cases import CONSTANT, EMPTY, FAILED, INFO, SIZE, feed, one, random_maps


def slow(pixels: np.ndarray, truth: np.ndarray, tolerance: float) -> tuple[float, float]:
    """Share of the peaks within the tolerance of a true pixel, and share of the positive sum inside."""
    objects = np.argwhere(truth)
    peaks = np.argwhere(pixels == pixels.max())
    hits = [np.sqrt(((objects - peak) ** 2).sum(1)).min() <= tolerance for peak in peaks]
    positive = [(value, true) for value, true in zip(pixels.flat, truth.flat, strict=True) if value > 0]
    return sum(hits) / len(hits), sum(v for v, true in positive if true) / sum(v for v, _ in positive)


@pytest.mark.parametrize("tolerance", [0.0, 3.0])
def test_against_loops(tolerance: float) -> None:
    batch, explanation = random_maps()
    assert batch.mask is not None
    results = feed(MAP_METRICS["pointing"](INFO, tolerance=tolerance), batch, explanation, 5).compute()
    hits, energies = [], []
    for i in (i for i in range(len(batch)) if i != EMPTY):
        maps = explanation.maps[i].double()[None, None]
        pixels = interpolate(maps, size=SIZE, mode="bilinear", align_corners=False)[0, 0]
        silent = i in (FAILED, CONSTANT)
        hit, energy = (0.0, 0.0) if silent else slow(pixels.numpy(), batch.mask[i].numpy(), tolerance)
        hits.append(hit)
        energies.append(energy)
    assert results["pointing/mask/hit"] == pytest.approx(np.mean(hits), abs=1e-12)
    assert results["pointing/mask/energy"] == pytest.approx(np.mean(energies), abs=1e-12)
    assert results["pointing/mask/chance"] == pytest.approx(batch.mask.double().mean().item() * 23 / 22, abs=1e-12)
    assert results["pointing/boxes/chance"] > results["pointing/mask/chance"], "a mask is part of its boxes"
    counts = {key: value for key, value in results.items() if key.startswith("count/")}
    assert counts == {
        "count/pointing/images": 23, "count/pointing/with_boxes": 22, "count/pointing/with_mask": 22,
        "count/pointing/nan_maps": 1, "count/pointing/constant_maps": 1,
    }  # fmt: skip


def point(maps: torch.Tensor, **options: float) -> dict[str, float]:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, :2] = True
    return feed(MAP_METRICS["pointing"](INFO, **options), *one(maps, (4, 4), mask=mask), 1).compute()


def test_worked_examples() -> None:
    maps = torch.zeros(4, 4)
    maps[0, 1], maps[2, 2], maps[3, 3] = 3.0, 1.0, -7.0
    results = point(maps)
    assert (results["pointing/mask/hit"], results["pointing/mask/energy"]) == (1.0, 0.75)
    assert results["pointing/mask/chance"] == 2 / 16
    maps[2, 2] = 3.0
    assert point(maps)["pointing/mask/hit"] == 0.5, "two peaks, one inside"
    assert point(-maps)["pointing/mask/energy"] == 0.0, "the only positive value lies outside"


def test_tolerance_is_a_distance_between_pixels() -> None:
    maps = torch.zeros(4, 4)
    maps[1, 2] = 1.0  # diagonal neighbour of the object
    hits = [point(maps, tolerance=tolerance)["pointing/mask/hit"] for tolerance in (0.0, 1.0, 1.4, 1.5)]
    assert hits == [0.0, 0.0, 0.0, 1.0]


def test_a_map_without_positive_values_has_no_energy() -> None:
    maps = -torch.arange(16.0).view(4, 4) - 1
    results = point(maps)
    assert (results["pointing/mask/hit"], results["pointing/mask/energy"]) == (1.0, 0.0)


def test_no_object_at_all() -> None:
    case = one(torch.rand(2, 2), (4, 4), mask=torch.zeros(1, 4, 4, dtype=torch.bool))
    results = feed(MAP_METRICS["pointing"](INFO), *case, 1).compute()
    assert all(key.startswith("count/") for key in results) and results["count/pointing/images"] == 1
    assert not any(math.isnan(value) for value in results.values())


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_wrong_tolerance(tolerance: float) -> None:
    with pytest.raises(UserError, match=f"tolerance={tolerance} must be 0 or more pixels"):
        MAP_METRICS["pointing"](INFO, tolerance=tolerance)
