import math

import pytest
import torch
from torch import Tensor

from losses.consistency import SIMILARITIES, Similarity, consistency, soft_mask, standardise

U = torch.tensor([[[0.0, 1, 2], [1, 4, 1], [0, 2, 3]]], dtype=torch.float64)
V = torch.tensor([[[1.0, 0, 2], [2, 3, 0], [0, 1, 5]]], dtype=torch.float64)
KNOWN: dict[Similarity, float] = {"correlation": -0.779126, "convolution": -2.458661, "ssim": 0.55529}


@pytest.mark.parametrize(("similarity", "value"), KNOWN.items())
def test_known_values(similarity: Similarity, value: float) -> None:
    assert float(consistency(U, V, similarity)) == pytest.approx(value, abs=1e-6)


def test_known_mask() -> None:
    mask = soft_mask(torch.tensor([[[0.0, 1], [2, 5]]]), 8)
    torch.testing.assert_close(mask.flatten(), torch.tensor([0, 0, 0.000177, 1]), atol=1e-6, rtol=0)


def drawn(batch: int = 3, side: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, side, side, generator=generator, dtype=torch.float64)


def slow_ssim(u: Tensor, v: Tensor) -> float:
    """One image, window by window, in plain loops."""
    side, reach = u.shape[-1], 5
    weights = torch.tensor([[math.exp(-(i * i + j * j) / 4.5) for j in range(-5, 6)] for i in range(-5, 6)])
    weights = (weights / weights.sum()).double()
    u, v = ((m - m.mean()) / m.std() for m in (u, v))
    padded_u, padded_v = (torch.nn.functional.pad(m, (reach,) * 4) for m in (u, v))
    values = []
    for i in range(side):
        for j in range(side):
            a, b = padded_u[i : i + 11, j : j + 11], padded_v[i : i + 11, j : j + 11]
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * a * a).sum() - ma**2, (weights * b * b).sum() - mb**2
            cov = (weights * a * b).sum() - ma * mb
            values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return 1 - float(torch.stack(values).mean())


def test_ssim_window_by_window() -> None:
    u, v = drawn(2, 8), drawn(2, 8, seed=1)
    slow = torch.tensor([slow_ssim(a, b) for a, b in zip(u, v, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(consistency(u, v, "ssim"), slow, atol=1e-6, rtol=0)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_properties(similarity: Similarity) -> None:
    u, v = drawn(), drawn(seed=1)
    loss = consistency(u, v, similarity)
    assert loss.shape == (3,)
    torch.testing.assert_close(
        loss, torch.cat([consistency(a[None], b[None], similarity) for a, b in zip(u, v, strict=True)])
    )
    torch.testing.assert_close(loss, consistency(3 * u + 2, 0.5 * v - 1, similarity))  # invariant to shift and scale
    assert (consistency(u, u, similarity) < loss).all()
    assert torch.autograd.gradcheck(
        lambda a, b: consistency(a, b, similarity), (u.requires_grad_(), v.requires_grad_())
    )


def test_equal_maps_correlate_fully() -> None:
    torch.testing.assert_close(consistency(drawn(), drawn()), -torch.ones(3).double())


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_constant_map_has_a_finite_loss_and_gradient(similarity: Similarity) -> None:
    u, v = torch.ones(2, 4, 4, requires_grad=True), drawn(2, 4).float().requires_grad_()
    loss = consistency(u, v, similarity)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and u.grad is not None and torch.isfinite(u.grad).all()
    if similarity == "correlation":
        assert (loss == 0).all()


def test_standardise_is_of_each_map() -> None:
    maps = standardise(drawn() * 5 + 3)
    torch.testing.assert_close(maps.flatten(1).mean(1), torch.zeros(3).double())
    torch.testing.assert_close(maps.flatten(1).std(1), torch.ones(3).double())
