"""Streaming quantiles against numpy's on all numbers at once: equal, not close."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.evaluation.part_thresholds import ExactQuantiles
from tests.tiny import CPU

QUANTILES = [0.01, 0.03, 0.05, 0.1, 0.5, 0.999]


def streamed(values: Tensor, group: Tensor, valid: Tensor, groups: int, chunk: int) -> ExactQuantiles:
    """Both passes, in chunks; the second in another order."""
    found = ExactQuantiles(groups, QUANTILES, CPU)
    parts = [(values[i : i + chunk], group[i : i + chunk], valid[i : i + chunk]) for i in range(0, len(values), chunk)]
    for part in parts:
        found.count(*part)
    found.locate()
    for part in reversed(parts):
        found.count(*part)
    return found


def expected(values: Tensor) -> np.ndarray:
    return np.quantile(values.double().numpy(), QUANTILES, method="linear")


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1500.0, 1e30])
@pytest.mark.parametrize("chunk", [1000, 37])
def test_equals_numpy_in_every_group(scale: float, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, generator=generator) * scale
    values[::5] = values[0]  # ties
    group = torch.randint(0, 3, (1000,), generator=generator)
    valid = torch.rand(1000, generator=generator) > 0.2
    found = streamed(values, group, valid, 4, chunk)
    result = found.compute()
    for g in range(3):
        mine = values[valid & (group == g)]
        assert found.counts[g] == len(mine)
        np.testing.assert_allclose(result[g].numpy(), expected(mine), rtol=1e-14, atol=0)
    assert found.counts[3] == 0 and result[3].isnan().all()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=12))
def test_few_numbers_of_any_kind(numbers: list[float]) -> None:
    """Subnormals, both zeros, the largest floats: a quantile of one number is that number."""
    values = torch.tensor(numbers)
    nothing = torch.zeros(len(values), dtype=torch.int64)
    found = streamed(values, nothing, nothing == 0, 1, 5).compute()[0]
    np.testing.assert_allclose(found.numpy(), expected(values), rtol=1e-12, atol=1e-60)


def test_numbers_that_change_between_the_passes_stay_within_their_bin() -> None:
    values = torch.linspace(1, 2, 500)
    group = torch.zeros(500, dtype=torch.int64)
    found = ExactQuantiles(1, QUANTILES, CPU)
    found.count(values, group, group == 0)
    found.locate()
    found.count(values + 1e-4, group, group == 0)
    np.testing.assert_allclose(found.compute()[0].numpy(), expected(values), rtol=2**-7)
