"""Exact quantiles of numbers that are never held together: two passes over them, one histogram of bits each.

Shape legend: G groups, R wanted ranks of each group.
"""

import torch
from torch import Tensor

from metrics.base import count_by

BINS = 1 << 16
"""Half of a float32's bits."""
_LOW = BINS - 1
_SIGN = 1 << 31


class ExactQuantiles:
    """Empirical quantiles, linearly interpolated, of G groups of float32 numbers.

    The bits of a float, seen as an integer and flipped where the float is negative, are in the order of the floats. The
    first pass counts the upper 16 bits of every number and so finds the bin of each order statistic that a quantile
    needs; the second counts the lower 16 bits of the numbers in these bins, which tells the order statistic to the last
    bit. The result is that of `numpy.quantile(method="linear")` on all numbers at once, in any order of the numbers.

    Feed all numbers to `count`, call `locate`, feed the same numbers to `count` again, then read `compute`. Numbers
    that change between the passes (kernels that are not deterministic) can move a quantile within its bin, at most 2^-7
    of its value. Memory: 0.5 MB for each group and for each of its wanted ranks, however many numbers there are.
    """

    def __init__(self, groups: int, quantiles: list[float], device: torch.device) -> None:
        """`quantiles` in [0, 1]."""
        self.quantiles = torch.tensor(quantiles, dtype=torch.float64, device=device)
        self.coarse = torch.zeros(groups, BINS, dtype=torch.int64, device=device)
        self.bins: Tensor | None = None
        """[G, R]: which bin the ranks lie in; None in the first pass."""

    def count(self, values: Tensor, group: Tensor, valid: Tensor) -> None:
        """Count the `valid` of the numbers: three tensors [n], float32, int64 below G, bool. No host sync."""
        code = _ordered(values)
        high, low = code >> 16, code & _LOW
        if self.bins is None:
            count_by(group * BINS + high, self.coarse.view(-1), valid)
            return
        ranks = self.bins.shape[1]
        for rank in range(ranks):
            there = valid & (self.bins[group, rank] == high)
            count_by((group * ranks + rank) * BINS + low, self.fine.view(-1), there)

    def locate(self) -> None:
        """End the first pass."""
        positions = self.quantiles * (self.counts[:, None] - 1).clamp(min=0)
        self.ranks = torch.cat([positions.floor(), positions.ceil()], dim=1).long()
        self.share = positions - positions.floor()
        below = self.coarse.cumsum(1)
        self.bins = _search(below, self.ranks)
        self.ranks_in_bin = self.ranks - (below - self.coarse).gather(1, self.bins)
        self.fine = torch.zeros(*self.bins.shape, BINS, dtype=torch.int64, device=self.coarse.device)

    @property
    def counts(self) -> Tensor:
        """[G] int64: how many numbers each group has."""
        return self.coarse.sum(1)

    def compute(self) -> Tensor:
        """[G, quantiles] float64; nan for a group without numbers."""
        assert self.bins is not None, "locate() ends the first pass"
        low = _search(self.fine.cumsum(2).flatten(0, 1), self.ranks_in_bin.view(-1, 1)).view_as(self.bins)
        lower, upper = _value(self.bins << 16 | low).double().chunk(2, dim=1)
        return torch.lerp(lower, upper, self.share).masked_fill((self.counts == 0)[:, None], torch.nan)


def _ordered(values: Tensor) -> Tensor:
    """int64 in [0, 2^32) that are in the order of the float32 `values`."""
    bits = values.view(torch.int32)
    return (bits ^ (bits >> 31 & _SIGN - 1)).long() + _SIGN


def _value(ordered: Tensor) -> Tensor:
    """The inverse of `_ordered`."""
    bits = (ordered - _SIGN).int()
    return (bits ^ (bits >> 31 & _SIGN - 1)).view(torch.float32)


def _search(cumulative: Tensor, ranks: Tensor) -> Tensor:
    """Per row, the first bin whose cumulative count exceeds each rank; the last bin where there is none."""
    return torch.searchsorted(cumulative, ranks.contiguous(), right=True).clamp(max=BINS - 1)
