"""What a metric sees of a model, and what every metric offers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from datasets.types import Batch


@dataclass(frozen=True)
class Prediction:
    """A model's answer for one batch; fields a model does not have are None."""

    logits: Tensor
    """[B, C], the final classification."""
    stage_1_logits: Tensor | None = None
    """[B, C], mean over parts of the stage-1 class scores."""
    mask: Tensor | None = None
    """[B, h, w] bool on the patch grid: what stage 2 saw."""
    maps: Tensor | None = None
    """[B, K+1, h, w] part maps, last = background."""
    empty: Tensor | None = None
    """[B] bool: stage 1 kept nothing (before any fallback)."""


class Metric(Protocol):
    """Accumulates over batches; exact under any batch size. Results are in [0, 1] unless the key says otherwise."""

    def update(self, batch: Batch, prediction: Prediction) -> None: ...

    def compute(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Explanation:
    """Heat maps of one batch, and the model they explain, as the map metrics see them."""

    maps: Tensor
    """[B, h, w] float on the patch grid or at pixels, unnormalised; nan where a method failed."""
    logits: Tensor
    """[B, C], the model's answer to the clean images."""
    predict: Callable[[Tensor], Tensor]
    """Normalised images [M, 3, H, W], any M -> logits [M, C], without gradients: what perturbations are shown to."""
