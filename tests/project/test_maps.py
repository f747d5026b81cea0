"""Enlarging maps and stretching them to [0, 1]."""

import math

import torch
from torch import Tensor

from common.maps import minmax, to_pixels


def bilinear(grid: Tensor, y: float, x: float) -> float:
    """The grid at a point given in cells, centres at halves, edges held."""
    y, x = min(max(y - 0.5, 0), grid.shape[0] - 1), min(max(x - 0.5, 0), grid.shape[1] - 1)
    top, left = min(int(y), grid.shape[0] - 2), min(int(x), grid.shape[1] - 2)
    dy, dx = y - top, x - left
    rows = [(1 - dx) * grid[r, left] + dx * grid[r, left + 1] for r in (top, top + 1)]
    return float((1 - dy) * rows[0] + dy * rows[1])


def test_bilinear_between_patch_centres() -> None:
    maps = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels = to_pixels(maps, (21, 32))
    expected = [[[bilinear(m, (i + 0.5) / 7, (j + 0.5) / 8) for j in range(32)] for i in range(21)] for m in maps]
    torch.testing.assert_close(pixels, torch.tensor(expected, dtype=torch.float64))


def test_minmax_is_per_image() -> None:
    maps = torch.tensor([[[1.0, 2.0], [3.0, 5.0]], [[-40.0, 0.0], [-20.0, -10.0]]])
    unit, degenerate = minmax(maps)
    assert torch.equal(unit, torch.tensor([[[0, 0.25], [0.5, 1]], [[0, 1], [0.5, 0.75]]]))
    assert degenerate.tolist() == [False, False]


def test_degenerate_maps_are_flagged() -> None:
    maps = torch.tensor([[[3.0, 3.0]], [[math.nan, 1.0]], [[math.inf, 1.0]], [[0.0, 1e-30]]])
    unit, degenerate = minmax(maps)
    assert degenerate.tolist() == [True, True, True, False]
    assert torch.equal(unit[:3], torch.zeros(3, 1, 2))
    assert torch.equal(unit[3], torch.tensor([[0.0, 1.0]]))
