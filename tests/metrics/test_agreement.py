"""NMI and ARI from a table of counts against scikit-learn and torchmetrics on the labels themselves."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torchmetrics.functional.clustering import adjusted_rand_score as torchmetrics_ari
from torchmetrics.functional.clustering import normalized_mutual_info_score as torchmetrics_nmi

from metrics.parts.agreement import adjusted_rand_index, normalized_mutual_information


def table_of(truth: torch.Tensor, found: torch.Tensor) -> np.ndarray:
    """With an empty row and an empty column."""
    table = np.zeros((int(truth.max()) + 2, int(found.max()) + 2), dtype=np.int64)
    for t, f in zip(truth.tolist(), found.tolist(), strict=True):
        table[t, f] += 1
    return table


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("classes", "clusters", "n"), [(15, 9, 400), (2, 2, 30), (3, 40, 50), (15, 5, 6000)])
def test_equal_to_scikit_learn_and_torchmetrics(classes: int, clusters: int, n: int, noise: float) -> None:
    g = torch.Generator().manual_seed(classes)
    truth = torch.randint(classes, (n,), generator=g)
    random = torch.randint(clusters, (n,), generator=g)
    found = torch.where(torch.rand(n, generator=g) < noise, random, truth % clusters)
    table = table_of(truth, found)
    nmi, ari = normalized_mutual_information(table), adjusted_rand_index(table)
    assert nmi == pytest.approx(normalized_mutual_info_score(truth, found), abs=1e-12)
    assert ari == pytest.approx(adjusted_rand_score(truth, found), abs=1e-12)
    assert nmi == pytest.approx(torchmetrics_nmi(found, truth).item(), abs=1e-4)  # in float32
    assert ari == pytest.approx(torchmetrics_ari(found, truth).item(), abs=1e-4)
    if noise == 0 and clusters >= classes:
        assert (nmi, ari) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("truth", "found"),
    [([0, 0, 0], [1, 1, 1]), ([0, 0, 0], [0, 1, 2]), ([0, 1, 2], [0, 0, 0]), ([0, 1, 2], [2, 1, 0]), ([1], [2])],
)
def test_labellings_of_one_label_and_of_single_points(truth: list[int], found: list[int]) -> None:
    table = table_of(torch.tensor(truth), torch.tensor(found))
    assert normalized_mutual_information(table) == normalized_mutual_info_score(truth, found)
    assert adjusted_rand_index(table) == adjusted_rand_score(truth, found)


def test_nothing_counted() -> None:
    empty = np.zeros((3, 4), dtype=np.int64)
    assert math.isnan(normalized_mutual_information(empty)) and math.isnan(adjusted_rand_index(empty))


def test_more_pixels_than_squares_fit_into_64_bits() -> None:
    small = np.array([[7, 1], [2, 5]])
    table = small * 10**11
    assert normalized_mutual_information(table) == pytest.approx(normalized_mutual_information(small), abs=1e-12)
    # The limit of many points: fractions of pairs, without the pairs of a point with itself.
    joint = small / 15
    same, truth, found = (float((x**2).sum()) for x in (joint, joint.sum(1), joint.sum(0)))
    expected = (same - truth * found) / ((truth + found) / 2 - truth * found)
    assert adjusted_rand_index(table) == pytest.approx(expected, abs=1e-9)
