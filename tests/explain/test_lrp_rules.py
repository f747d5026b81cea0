"""The relevance rules: known values, slow textbook forms, and what each rule conserves."""

import pytest
import torch
from torch import Tensor

from explain.lrp import rules as relevance
from tests.explain import textbook_lrp as textbook


def t(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


X, WEIGHT, BIAS, R_LINEAR = t([2, -1, 0.5]), t([1, -2, 0.5], [-1, 1, 3]), t(10, -10), t([1, -0.5])
OUT = X @ WEIGHT.T + BIAS
A, B, R_SUM = t([1, -2, 3]), t([0.5, 1, -1]), t([0.2, 0.3, 0.5])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, atol: float = 5e-7) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_linear_golden() -> None:
    close(relevance.linear(R_LINEAR, X, WEIGHT, BIAS, OUT), t([0.470588, 0.470588, -0.441176]))
    close(relevance.linear_plain(R_LINEAR, X, WEIGHT), t([0.888889, 1, -0.388889]))


def test_residual_golden() -> None:
    a, b = relevance.residual(R_SUM, (A, B))
    close(a, t([0.067797, 0.305085, 0.381356]))
    close(b, t([-0.033898, 0.152542, 0.127119]))
    a, b = relevance.residual_plain(R_SUM, (A, B))
    close(a, t([0.133333, 0.6, 0.75]))
    close(b, t([0.066667, -0.3, -0.25]))


def test_matrix_product_golden() -> None:
    U, V, R = t([0.7, 0.3], [0.4, 0.6]), t([1, -2], [3, 0.5]), t([0.1, 0.2], [0.3, 0.4])
    R_U, R_V = relevance.factors(R, U, V, fraction=1)
    close(R_U, t([0.26775, 0.03225], [0.694545, 0.005455]))
    close(R_V, t([0.098295, 0.864], [0.301705, -0.264]))
    close(relevance.attention_matrix(R, U @ V, U, V), R_U / 2)


def test_division_is_zero_at_zero_and_never_by_zero() -> None:
    found = relevance.divide(t(1, 1, 1, 1), t(0, -1e-9, 2, -0.5))
    torch.testing.assert_close(found, t(0, 1e9, 0.5, -2), rtol=1e-8, atol=0)


def test_linear_equals_its_four_products() -> None:
    x, W, bias, R = drawn(4, 7, 40), drawn(24, 40, seed=1), drawn(24, seed=2), drawn(4, 7, 24, seed=3)
    x[0, 0] = 0  # a token of zeros has no relevance to give
    W[3] = 0
    out = x @ W.T + bias
    close(relevance.linear(R, x, W, bias, out), textbook.linear(R, x, W, "ours"), atol=1e-12)
    close(relevance.linear(R, x, W, None, x @ W.T), textbook.linear(R, x, W, "ours"), atol=1e-12)
    close(relevance.linear_plain(R, x, W), textbook.linear(R, x, W, "plain"), atol=1e-12)


def test_linear_gives_nothing_to_outputs_without_support() -> None:
    """Every product of the first output is negative: z is exactly 0, and its relevance is lost, not blown up."""
    x, W = drawn(2, 30).abs().float(), drawn(8, 30, seed=1).float()
    W[0] = -W[0].abs()
    R = torch.ones(2, 8)
    found = relevance.linear(R, x, W, None, x @ W.T)
    close(found.double(), textbook.linear(R.double(), x.double(), W.double(), "ours"), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_residual_and_linear_conserve(seed: int) -> None:
    a, b, R = (drawn(3, 5, 8, seed=3 * seed + i) for i in range(3))
    first, second = relevance.residual(R, (a, b))
    close((first + second).sum((1, 2)), R.sum((1, 2)), atol=1e-6)
    x, W = drawn(3, 5, 16, seed=seed), drawn(8, 16, seed=seed + 9)
    close(relevance.linear(R, x, W, None, x @ W.T).sum(-1), R.sum(-1), atol=1e-6)


def test_residual_sums_per_image_unless_coupled() -> None:
    a, b, R = drawn(3, 5, 8), drawn(3, 5, 8, seed=1), drawn(3, 5, 8, seed=2)
    alone = torch.cat([textbook.residual(R[i : i + 1], a[i : i + 1], b[i : i + 1], "ours")[0] for i in range(3)])
    together = textbook.residual(R, a, b, "ours")[0]
    assert not torch.allclose(alone, together)
    close(relevance.residual(R, (a, b))[0], alone, atol=1e-12)
    close(relevance.residual(R, (a, b), whole_batch=True)[0], together, atol=1e-12)


def test_patch_pixels_is_the_box_rule_of_each_image() -> None:
    images, weight, R = drawn(2, 3, 8, 12), drawn(6, 3, 4, 4, seed=1), drawn(2, 6, 2, 3, seed=2)
    expected = torch.cat([textbook.box(R[i : i + 1], images[i : i + 1], weight, 4) for i in range(2)])
    close(relevance.patch_pixels(R, images, weight, (4, 4)), expected, atol=1e-9)
    close(expected.sum((1, 2, 3)), R.sum((1, 2, 3)), atol=1e-6)
