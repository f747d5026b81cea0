"""A two-stage model whose masks the benchmark chooses, so that the fraction of patches kept is known."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import SEED
from models.outputs import StageOneOutput
from models.two_stage import TwoStageModel, with_mask

NUM_CLASSES = 200  # CUB


class FixedMaskModel(TwoStageModel):
    """Stage 1 runs as usual, so its cost counts; then `fixed_mask` replaces its mask."""

    fixed_mask: Tensor
    """[B, h, w] bool; set it before each forward pass."""

    def select(self, images: Tensor, **options: Any) -> StageOneOutput:
        """As TwoStageModel.select, with the fixed mask."""
        stage_1 = super().select(images, **options)
        return replace(stage_1, selection=with_mask(stage_1.selection, self.fixed_mask))


def random_mask(batch: int, grid: tuple[int, int], keep: float, spread: float = 0.0) -> Tensor:
    """[B, h, w] bool: random patches, in each image exactly round(ratio * N) of them and at least 1.

    The ratios run evenly from keep * (1 - spread) to keep * (1 + spread) over the batch, cut at 1.
    """
    patches = grid[0] * grid[1]
    ratios = keep * (1 + spread * torch.linspace(-1, 1, batch)) if batch > 1 else torch.tensor([keep])
    counts = (ratios * patches).round().clamp(1, patches)
    rank = torch.rand(batch, patches, generator=torch.Generator().manual_seed(SEED)).argsort(1).argsort(1)
    return (rank < counts[:, None]).unflatten(1, grid)
