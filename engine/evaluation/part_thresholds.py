"""How strongly the patches of each part match it over a data set: quantiles that serve as part-logit thresholds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError
from datasets.types import Batch
from engine.evaluation.predict import evaluation_mode
from metrics.base import count_by
from models.backbone import patch_tokens
from models.part_discovery import draw_noise
from models.two_stage import TwoStageModel

CUTS_NOTHING = torch.finfo(torch.float32).min
"""Threshold of a part that claims no patch: no dot product is below the smallest float32. (JSON has no -infinity.)"""


@dataclass(frozen=True)
class PartThresholds:
    """Thresholds of K parts for several quantiles."""

    values: dict[float, list[float]]
    """Quantile q -> the part logit that a share q of each part's patches lies below; CUTS_NOTHING for no patches."""
    patches: list[int]
    """How many patches each part claims."""

    def files(self) -> dict[str, dict[str, float]]:
        """File name -> {"0": t, ...}, as published; the name for q = 0.05 is 0.95.json."""
        return {
            threshold_file(quantile): {str(part): value for part, value in enumerate(values)}
            for quantile, values in self.values.items()
        }


def threshold_file(quantile: float) -> str:
    """The published name: of what stays, not of what goes."""
    return f"{round(1 - quantile, 12)}.json"


def check_quantiles(quantiles: list[float]) -> None:
    """Raise UserError unless they lie between 0 and 1, each once."""
    if not all(0 < quantile < 1 for quantile in quantiles):
        raise UserError(f"--quantiles lie between 0 and 1, both excluded; got {_listed(quantiles)}")
    if len({threshold_file(quantile) for quantile in quantiles}) < len(quantiles):
        raise UserError(f"--quantiles names one twice: {_listed(quantiles)}")


def claims(model: TwoStageModel, images: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of every patch: the dot product with its strongest part's prototype, that part, and whether it is a part at all.

    Three tensors [B * N]: fp32, int64, bool. The dot product is what `Intervention.thresholds` is compared with.
    """
    stage, parts = model.stage_1, model.model_config.parts
    with torch.autocast(images.device.type, dtype=precision, enabled=precision != torch.float32):
        tokens = patch_tokens(stage.backbone, images)
    noise = draw_noise(parts, (tokens.shape[0], tokens.shape[1]), tokens.device, stage.training)
    winner = stage.parts(tokens, noise).maps.argmax(-1)
    _, dots = stage.parts.logits(tokens.float())
    dot = dots.gather(-1, winner[..., None])
    return dot.flatten(), winner.flatten().clamp(max=parts.num_parts - 1), (winner < parts.num_parts).flatten()


def measure_thresholds(
    model: TwoStageModel,
    batches: Iterable[Batch],
    device: torch.device,
    quantiles: list[float],
    precision: torch.dtype = torch.float32,
    advance: Callable[[int], None] = lambda images: None,
) -> PartThresholds:
    """Two passes of stage 1 over `batches`; exact (see `ExactQuantiles`). `advance` is told of each batch's images."""
    found = ExactQuantiles(model.model_config.parts.num_parts, quantiles, device)
    for first in (True, False):
        with evaluation_mode(model, device, seed=0):  # in each pass: published noise must be the same in both
            for batch in batches:
                found.count(*claims(model, batch.image.to(device), precision))
                advance(len(batch))
        if first:
            found.locate()
    values = torch.where(found.counts[:, None] > 0, found.compute(), CUTS_NOTHING).T.tolist()
    return PartThresholds(dict(zip(quantiles, values, strict=True)), found.counts.tolist())


def _listed(quantiles: list[float]) -> str:
    return " ".join(f"{quantile:g}" for quantile in quantiles)


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
